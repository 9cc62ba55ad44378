"""LoRA adapters in a real engine: each is metered as a model of its own, and what is cached by one is no other's. An engine of its
own, so it runs with the long tests; `tests/live_serving/test_adapters` has the rest.
"""

import msgspec
import pytest

from serving.replica.lora import Adapter

from .adapter_maker import make_adapter
from .rig import CACHED, IN, OUT, RATE, Rig

pytestmark = [pytest.mark.vllm, pytest.mark.soak, pytest.mark.timeout(400)]

DEARER = msgspec.structs.replace(RATE, output_uhs_per_mtok=3 * OUT * 10**6, version=7)
TEXT = "".join(chr(97 + (n * 7) % 26) for n in range(300))


@pytest.fixture(scope="module")
def adapted(model_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    made = {
        "law": make_adapter(place / "law", model=model_folder, rank=4),
        "med": make_adapter(place / "med", model=model_folder, rank=8, seed=2),
        "wide": make_adapter(place / "wide", model=model_folder, width=24),
        "high": make_adapter(place / "high", model=model_folder, rank=16),
    }
    adapters = tuple(Adapter(name=name, source=str(folder), version="1", rate=DEARER) for name, folder in made.items())
    rig = Rig(
        model_folder,
        tmp_path_factory.mktemp("adapted"),
        engine_args=("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"),
        adapters=adapters,
    ).start()
    yield rig
    left = rig.stop()
    rig.wire.close()
    assert left == []


def asked(model, prompt="import os", most=12):
    return {"model": model, "prompt": prompt, "max_tokens": most, "temperature": 0, "ignore_eos": True}


SURFACES = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
    "completions": ("/v1/completions", {"prompt": "hi", "max_tokens": 5}),
    "responses": ("/v1/responses", {"input": "hi", "max_output_tokens": 5, "store": False}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}),
}


@pytest.mark.parametrize("surface", SURFACES)
def test_an_adapter_is_charged_at_its_own_price_on_every_surface(adapted, surface):
    path, body = SURFACES[surface]
    account = adapted.account(uhs=1_000_000)
    answer = adapted.post(path, account, body | {"model": "law"}, model="law")
    assert (answer.status_code, answer.json()["model"]) == (200, "law"), answer.text
    (call,) = adapted.settled(account)
    assert (call.model, call.rate_version) == ("law", 7)
    due = (call.usage.prompt_tokens - call.usage.cached_tokens) * IN + call.usage.cached_tokens * CACHED
    assert adapted.ledger.charged[call.call_id] == due + call.usage.completion_tokens * 3 * OUT
    assert int(answer.headers["x-fabric-charged-uhs"]) == adapted.ledger.charged[call.call_id]


def test_adapters_and_their_parent_write_each_their_own(adapted):
    account = adapted.account(uhs=10_000_000)
    said = {
        name: adapted.post("/v1/completions", account, asked(name)).json()["choices"][0]["text"]
        for name in ("byte-lm", "law", "med")
    }
    assert len(set(said.values())) == 3, said
    again = adapted.post("/v1/completions", account, asked("law")).json()["choices"][0]["text"]
    assert again == said["law"]
    assert sorted(call.model for call in adapted.settled(account, calls=4)) == ["byte-lm", "law", "law", "med"]


def test_what_one_adapter_has_cached_is_in_no_others_cache(adapted):
    account = adapted.account(uhs=10_000_000)
    for name in ("law", "law", "med", "byte-lm"):
        assert adapted.post("/v1/completions", account, asked(name, TEXT, 1)).status_code == 200
    calls = sorted(adapted.settled(account, calls=4), key=lambda call: call.started_at_us)
    assert [call.usage.cached_tokens > 0 for call in calls] == [False, True, False, False]


def test_an_adapter_that_does_not_fit_is_not_served_and_harms_nobody(adapted):
    account = adapted.account(uhs=1_000_000)
    for name in ("wide", "high"):
        answer = adapted.post("/v1/completions", account, asked(name))
        assert answer.status_code == 404, answer.text
    assert adapted.post("/v1/completions", account, asked("law")).status_code == 200
    adapted.settled(account)
    log = "".join(adapted.lines)
    assert "it has rank 16, at most 8 may be on byte-lm" in log
    assert "it is 24 x 24, and byte-lm is" in log


def test_a_stream_of_an_adapter_ends_at_the_last_token_that_is_paid(adapted):
    account = adapted.account(uhs=10 * IN + 7 * 3 * OUT)
    body = asked("law", most=50) | {"stream": True, "stream_options": {"include_usage": True}}
    *_, end, usage, done = adapted.events("/v1/completions", account, body, model="law")
    assert (end["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    assert usage["usage"]["completion_tokens"] == 7
    (call,) = adapted.settled(account)
    assert (call.model, call.ended, adapted.ledger.free[account]) == ("law", "balance_exhausted", 0)
