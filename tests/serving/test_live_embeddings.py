"""Embeddings, scores and rankings on a real engine, with the clients that people have: prompts are all that is charged."""

import base64
import json
import struct
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.serving.gateway.live_front import before
from tests.serving.gateway.test_texts import SCORED

from .rig import IN, Rig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]
COHERE = "cohere==7.3.1"


@pytest.fixture(scope="module")
def pooling(model_folder, tmp_path_factory):
    rig = Rig(
        model_folder,
        tmp_path_factory.mktemp("pooling"),
        engine_args=("--runner", "pooling", "--convert", "embed", "--hf-overrides", '{"is_matryoshka": true}'),
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
    assert pooling.free_again(account) == 10 * IN - 1


# -- through the gateway, with clients ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def front(pooling, tmp_path_factory):
    with before(pooling, tmp_path_factory.mktemp("pooling-front")) as house:
        yield house


@pytest.fixture
def client(pooling, front):
    """OpenAI's, with an account that has nothing to do with others'."""
    account = pooling.account(uhs=1_000_000)
    key = front.directory.add_key(f"k-{account}", account)
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key=key, max_retries=0, timeout=60) as opened:
        opened.account = account
        yield opened


TEXTS = ["some text", "more", "and more"]


def test_openais_client_gets_the_same_vectors_as_floats_and_as_base64(pooling, client):
    floats = client.embeddings.create(model="byte-lm", input=TEXTS, encoding_format="float")
    default = client.embeddings.create(model="byte-lm", input=TEXTS)  # base64, which it decodes itself
    raw = client.embeddings.create(model="byte-lm", input=TEXTS, encoding_format="base64")
    assert [each.index for each in floats.data] == [0, 1, 2]
    for plain, decoded, packed in zip(floats.data, default.data, raw.data, strict=True):
        unpacked = struct.unpack(f"<{len(plain.embedding)}f", base64.b64decode(packed.embedding))
        assert plain.embedding == pytest.approx(list(unpacked), abs=1e-3)
        assert plain.embedding == pytest.approx(decoded.embedding, abs=1e-3)
    tokens = sum(len(text) + 1 for text in TEXTS)
    assert floats.usage.prompt_tokens == default.usage.prompt_tokens == tokens
    assert int(floats.usage.model_extra["cost_details"]["charged_uhs"]) == tokens * IN
    calls = pooling.settled(client.account, calls=9)
    assert sum(pooling.ledger.charged[call.call_id] for call in calls) == 3 * tokens * IN


def test_the_models_engine_says_what_it_can_be_asked_for(pooling):
    """By the paths that vLLM has for it."""
    assert "abilities embeddings scores" in " ".join(pooling.lines)


def test_a_batch_has_the_vectors_of_its_texts_one_by_one(client):
    many = client.embeddings.create(model="byte-lm", input=TEXTS * 20, encoding_format="float").data
    one = client.embeddings.create(model="byte-lm", input=TEXTS[1], encoding_format="float").data[0]
    assert len(many) == 60
    for each in many[1::3]:
        assert each.embedding == pytest.approx(one.embedding, abs=1e-2)
    ids = client.embeddings.create(model="byte-lm", input=[[109, 111, 114, 101], [120]], encoding_format="float")
    assert (len(ids.data), ids.usage.prompt_tokens) == (2, 5)


def test_dimensions_are_as_asked_or_refused_with_a_sentence(client):
    short = client.embeddings.create(model="byte-lm", input="x", dimensions=16, encoding_format="float")
    assert len(short.data[0].embedding) == 16
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="byte-lm", input="x", dimensions=1_000_000)
    assert "dimensions" in refused.value.message
    assert not any(word in refused.value.message for word in ("/tmp", "vllm", "--"))


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_a_ranking_is_in_coheres_form(pooling, front, client, path):
    said = client.post(
        path.removeprefix("/v1") if path.startswith("/v1") else f"{front.url}{path}",
        body={"model": "byte-lm", "query": "def main", "documents": ["import os", "def main"], "top_n": 1},
        cast_to=object,
    )
    assert [each["index"] for each in said["results"]] == [1]
    assert -1.01 <= said["results"][0]["relevance_score"] <= 1.01
    assert int(said["fabric"]["charged_uhs"]) == said["usage"]["prompt_tokens"] * IN
    assert len(pooling.settled(client.account, calls=3)) == 3


@pytest.mark.parametrize(("first", "second"), SCORED)
def test_scores_are_charged_for_every_text_that_was_read(pooling, client, first, second):
    body = {"model": "byte-lm", first: "def main", second: ["def main", "import os"]}
    said = client.post("/score", body=body, cast_to=object)
    same, other = (each["score"] for each in said["data"])
    assert same > other
    spent = sum(call.usage.prompt_tokens for call in pooling.settled(client.account, calls=3))
    assert int(said["fabric"]["charged_uhs"]) == spent * IN == said["usage"]["prompt_tokens"] * IN


WRITES = {
    "/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/completions": {"prompt": "x"},
    "/responses": {"input": "x"},
    "/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
}


@pytest.mark.parametrize("path", WRITES)
def test_a_model_that_only_embeds_says_that_it_writes_nothing(pooling, client, path):
    with pytest.raises(openai.BadRequestError, match=r"byte-lm (holds no chats|writes no text): call a model for that"):
        client.post(path, body={"model": "byte-lm", **WRITES[path]}, cast_to=object)
    assert pooling.free_again(client.account) == 1_000_000


CALLS = """
import json, sys
import cohere

client = cohere.ClientV2(api_key=sys.argv[2], base_url=sys.argv[1])
ranked = client.rerank(model="byte-lm", query="def main", documents=["import os", "def main"], top_n=2)
made = client.embed(model="byte-lm", texts=["a", "b"], input_type="search_document", embedding_types=["float"])
print(json.dumps({"first": ranked.results[0].index, "vectors": len(made.embeddings.float_)}))
"""


def test_coheres_own_client_ranks_and_embeds(pooling, front, client, tmp_path):
    uv, python = Path(sys.executable).with_name("uv"), tmp_path / "venv" / "bin" / "python"
    for command in (
        [uv, "venv", "-q", "--python", sys.executable, tmp_path / "venv"],
        [uv, "pip", "install", "-q", "--python", python, COHERE],
    ):
        made = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if made.returncode:
            pytest.skip(f"can't be fetched: {made.stderr[-400:]}")
    done = subprocess.run(
        [python, "-c", CALLS, front.url, client.api_key], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"first": 1, "vectors": 2}
    assert len(pooling.settled(client.account, calls=5)) == 5
