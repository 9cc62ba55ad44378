"""Embeddings on a real engine: prompts are all that is charged. An engine of its own, so it runs with the long tests."""

import pytest

from .rig import IN, Rig

pytestmark = [pytest.mark.vllm, pytest.mark.soak, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def pooling(model_folder, tmp_path_factory):
    rig = Rig(
        model_folder,
        tmp_path_factory.mktemp("pooling"),
        engine_args=("--runner", "pooling", "--convert", "embed"),
    ).start()
    yield rig
    left = rig.stop()
    rig.wire.close()
    assert left == []


@pytest.mark.parametrize("given", ["some text", ["some text", "more", "and more"]])
def test_an_embedding_costs_its_prompts(pooling, given):
    texts = [given] if isinstance(given, str) else given
    tokens = sum(len(text) + 1 for text in texts)
    account = pooling.account(uhs=1_000_000)
    answer = pooling.post("/v1/embeddings", account, {"model": "byte-lm", "input": given})
    assert (answer.status_code, len(answer.json()["data"])) == (200, len(texts))
    assert answer.json()["usage"]["prompt_tokens"] == tokens
    calls = pooling.settled(account, calls=len(texts))
    assert sum(call.usage.prompt_tokens for call in calls) == tokens
    assert {(call.usage.completion_tokens, call.ended) for call in calls} == {(0, "stop")}
    assert pooling.ledger.free[account] == 1_000_000 - tokens * IN


def test_a_ranking_costs_the_query_and_its_documents(pooling):
    account = pooling.account(uhs=1_000_000)
    body = {"model": "byte-lm", "query": "def main", "documents": ["def main", "import os", "x"], "top_n": 2}
    answer = pooling.post("/v1/rerank", account, body)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["results"][0]["index"] == 0
    assert len(said["results"]) == 2
    calls = pooling.settled(account, calls=4)
    spent = sum(call.usage.prompt_tokens for call in calls)
    assert said["usage"]["prompt_tokens"] == said["fabric"]["prompt_tokens"] == spent
    assert pooling.ledger.free[account] == 1_000_000 - spent * IN == 1_000_000 - int(said["fabric"]["charged_uhs"])


def test_an_embedding_without_tokens_is_a_402(pooling):
    account = pooling.account(uhs=10 * IN - 1)
    answer = pooling.post("/v1/embeddings", account, {"model": "byte-lm", "input": "some text"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_quota")
    assert pooling.ledger.free[account] == 10 * IN - 1
