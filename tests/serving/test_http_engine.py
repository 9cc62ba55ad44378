"""Engines over HTTP: a server that isn't ours to open gives away nothing that isn't paid, and hears nothing it shouldn't."""

import asyncio
import json

import httpx
import pytest

from fabric.errors import InvalidRequest, Unavailable
from serving.engines import http
from serving.engines.parts.openai_requests import PATHS
from serving.engines.port import Start
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter
from serving.metering.slices import Terms

from .ledger_standin import LedgerStandIn
from .openai_server_standin import PROMPT, ServerStandin

TRUST = "t"
CHAT = {"messages": [{"role": "user", "content": "x"}]}


def charge(usage):
    return usage.prompt_tokens - usage.cached_tokens + 10 * usage.completion_tokens


class Rig:
    def __init__(self, ledger, server, client, engine):
        self.ledger, self.server, self.client, self.engine = ledger, server, client, engine
        self.closed = False

    @staticmethod
    def headers(rank=0):
        said = {"trust": TRUST, "account": "ann", "call": "c1", "key": "k", "tier-rank": str(rank)}
        return {f"x-fabric-{name}": value for name, value in said.items()}

    async def post(self, uhs, body, *, path="/v1/completions", rank=0):
        self.ledger.top_up("ann", uhs)
        self.server.seen.clear()
        self.server.made = 0
        return await self.client.post(path, json=body, headers=self.headers(rank))

    async def close(self):
        assert self.closed or await self.engine.close()
        self.closed = True

    async def settled(self):
        await self.close()
        self.ledger.check()
        (call,) = self.ledger.calls.values()
        return call


def meter_of(folder, ledger):
    book = Metering(name="f", model="m", accelerator="H100", charge=charge, terms=Terms(grant_tokens=4))
    return Meter(book, CallLog(folder / "f.outbox"), ledger)


@pytest.fixture(params=[1, 3], ids=["a token a chunk", "three at once"])
async def rig(tmp_path, request):
    ledger = LedgerStandIn(charge)
    server = ServerStandin(at_once=request.param)
    meter = meter_of(tmp_path, ledger)
    await meter.start()
    engine = await http.open_engine(Start(model="m", source=await server.start(), trust=TRUST), meter)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(engine.app), base_url="http://replica") as client:
        rig = Rig(ledger, server, client, engine)
        yield rig
    await rig.close()
    await server.runner.cleanup()


def events(answer):
    return [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]


def chunks(answer):
    *said, done = events(answer)
    assert done == "[DONE]"
    return [json.loads(line) for line in said]


# -- what is paid ------------------------------------------------------------------------------------------------------


async def test_a_paid_stream_comes_through_whole(rig):
    said = chunks(await rig.post(10_000, {"prompt": "x", "max_tokens": 20, "stream": True}))
    assert all(each["choices"] and each["usage"] is None and each["model"] == "m" for each in said)
    call = await rig.settled()
    assert (call.usage.completion_tokens, call.usage.cached_tokens, call.ended) == (20, 2, "length")
    assert rig.ledger.free["ann"] == 10_000 - (PROMPT - 2) - 200


async def test_a_stream_ends_within_what_is_paid_and_the_engine_is_told(rig):
    body = {"prompt": "x", "max_tokens": 90, "stream": True, "stream_options": {"include_usage": True}}
    *_, end, usage = chunks(await rig.post(PROMPT + 100, body))
    assert end["choices"][0] | {"text": ""} == {
        "index": 0, "text": "", "finish_reason": "length", "stop_reason": "balance_exhausted",
    }  # fmt: skip
    call = await rig.settled()
    assert call.usage.completion_tokens == usage["usage"]["completion_tokens"]
    assert usage["fabric"]["charged_uhs"] == str(charge(call.usage))
    assert 10 - rig.server.at_once < call.usage.completion_tokens <= 10
    assert call.ended == "balance_exhausted"
    assert rig.server.stopped == ["cmpl-c1"]
    assert rig.ledger.free["ann"] >= 0


@pytest.mark.parametrize("n", [1, 2])
async def test_without_a_stream_the_engine_is_asked_for_no_more_than_is_paid(rig, n):
    answer = await rig.post(PROMPT + 100, {"prompt": "x", "max_tokens": 90, "n": n})
    assert answer.json()["choices"][0]["stop_reason"] == "balance_exhausted"
    call = await rig.settled()
    assert rig.server.seen[-1]["max_tokens"] == 10 // n
    assert call.usage.completion_tokens == rig.server.made == 10 // n * n
    assert answer.json()["fabric"]["charged_uhs"] == str(charge(call.usage))


async def test_without_tokens_it_is_a_402_and_the_engine_hears_nothing(rig):
    answer = await rig.post(PROMPT, {"prompt": "x", "max_tokens": 9, "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_quota")
    assert rig.server.seen == []


async def test_fewer_tokens_than_choices_is_a_402_that_costs_nothing(rig):
    answer = await rig.post(PROMPT + 20, {"prompt": "x", "max_tokens": 9, "n": 3})
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_quota")
    assert rig.server.seen == []
    assert charge((await rig.settled()).usage) == 0


async def test_a_client_that_leaves_a_stream_pays_for_what_it_had_and_the_engine_stops(rig):
    rig.ledger.top_up("ann", 100_000)
    rig.server.token_s, heard, there = 0.01, [], asyncio.Event()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions",
        "headers": [(name.encode(), value.encode()) for name, value in rig.headers().items()],
    }  # fmt: skip
    body, asked = json.dumps({"prompt": "x", "max_tokens": 400, "stream": True}).encode(), False

    async def receive():
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}
        await there.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        heard.append(message.get("body", b"").count(b'"text"'))
        if sum(heard) >= 3:
            there.set()

    await rig.engine.app(scope, receive, send)
    call = await rig.settled()
    assert call.ended == "client_gone"
    assert 3 <= call.usage.completion_tokens < 400
    assert rig.server.stopped == ["cmpl-c1"]


# -- what an engine may do wrong ---------------------------------------------------------------------------------------


async def test_what_an_engine_refuses_costs_nothing_and_is_told_as_it_said(rig):
    for stream in (False, True):
        answer = await rig.post(1_000, {"prompt": "x", "max_tokens": 9, "temperature": 99, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "too hot")
    await rig.close()
    assert rig.ledger.free["ann"] == 2_000


async def test_a_stream_that_breaks_off_says_so_and_costs_what_came(rig):
    rig.server.breaks_at = 12
    answer = await rig.post(10_000, {"prompt": "x", "max_tokens": 30, "stream": True})
    *said, last = events(answer)
    assert json.loads(last)["error"]["code"] == "engine_unreachable"
    call = await rig.settled()
    assert (call.ended, call.usage.completion_tokens) == ("error", len(said) * rig.server.at_once)


async def test_an_engine_that_is_away_is_said_so_and_costs_nothing(rig):
    await rig.server.runner.cleanup()
    answer = await rig.post(1_000, {"prompt": "x", "max_tokens": 9})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    with pytest.raises(Unavailable):
        await rig.engine.check()
    await rig.close()
    assert rig.ledger.free["ann"] == 1_000


@pytest.mark.parametrize("stream", [False, True])
async def test_what_an_engine_does_not_count_is_not_handed_on(rig, stream):
    rig.server.says_usage = False
    answer = await rig.post(1_000, {"prompt": "x", "max_tokens": 9, "stream": stream})
    assert '"text"' not in answer.text
    assert "engine_unmetered" in answer.text
    assert charge((await rig.settled()).usage) == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_writes_more_than_it_was_asked_for_gives_nothing_away(rig, stream):
    rig.server.obeys = False
    answer = await rig.post(PROMPT + 200, {"prompt": "x", "max_tokens": 6, "stream": stream})
    assert answer.text.count('"text": "x"') * rig.server.at_once <= 6
    call = await rig.settled()
    assert call.usage.completion_tokens <= 6
    assert rig.ledger.free["ann"] >= 0


# -- what an engine hears ----------------------------------------------------------------------------------------------


async def test_an_engine_hears_the_accounts_salt_and_rank_whatever_the_client_says(rig):
    body = {"prompt": "x", "max_tokens": 2, "cache_salt": "another's", "priority": 9, "model": "m", "user": "me"}
    assert (await rig.post(1_000, body, rank=2)).status_code == 200
    (heard,) = rig.server.seen
    assert heard["cache_salt"] not in {"", "another's"}
    assert not {"priority", "user"} & set(heard)


DANGEROUS = [
    "bootstrap_host", "custom_logit_processor", "custom_params", "documents", "ebnf", "echo", "extra_key", "guided_json",
    "input_embeds", "kv_transfer_params", "lora_path", "mm_processor_kwargs", "prompt_embeds", "regex", "return_hidden_states",
    "rid", "session_params", "structured_outputs", "vllm_xargs", "whatever comes next",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", DANGEROUS)
async def test_no_other_word_reaches_an_engine_than_those_that_are_known(rig, name, path):
    prompt = CHAT if "chat" in path else {"prompt": "x"}
    answer = await rig.post(1_000, {**prompt, "max_tokens": 2, name: {"a": 1}}, path=path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
    assert rig.server.seen == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400),
        ("/v1/completions", {"prompt": "x", "max_tokens": "9"}, 400),
        ("/v1/completions", {"prompt": "x", "n": 2, "stream": True}, 400),
        ("/v1/completions", {"prompt": "x", "n": 10**9}, 400),
        ("/v1/completions", {"prompt": "x", "n": "2"}, 400),
        ("/v1/completions", {"prompt": "x", "messages": []}, 400),
        ("/v1/chat/completions", CHAT | {"response_format": {"type": "json_schema", "json_schema": {}}}, 400),
        ("/v1/chat/completions", CHAT | {"tool_choice": "required"}, 400),
        ("/v1/chat/completions", CHAT | {"tools": [{"function": {"name": "f", "strict": True}}]}, 400),
        ("/v1/chat/completions", CHAT | {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, 400),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]},
            400,
        ),
        ("/v1/responses", {"input": "x"}, 404),
        ("/v1/embeddings", {"input": "x"}, 404),
        ("/tokenize", {"prompt": "x"}, 404),
        ("/v1/completions", ["no object"], 400),
    ],
)
async def test_what_it_cannot_meter_it_does_not_offer(rig, path, body, status):
    answer = await rig.post(1_000, body, path=path)
    assert answer.status_code == status
    assert rig.server.made == 0


# -- whether it starts -------------------------------------------------------------------------------------------------


async def opened(tmp_path, server, **said):
    meter = meter_of(tmp_path, LedgerStandIn(charge))
    try:
        engine = await http.open_engine(
            Start(**{"model": "m", "source": await server.start(), "trust": TRUST, **said}), meter
        )
        await engine.close()
        return engine
    finally:
        await server.runner.cleanup()


async def test_a_server_that_does_not_count_as_it_writes_is_not_served(tmp_path):
    server = ServerStandin()
    server.says_usage = False
    with pytest.raises(InvalidRequest) as refused:
        await opened(tmp_path, server)
    assert refused.value.code == "engine_unmetered"


async def test_a_model_has_the_context_that_both_the_server_and_the_operator_allow(tmp_path):
    for said, most in ((None, 500), (100, 100), (900, 500)):
        assert (await opened(tmp_path, ServerStandin(), max_context=said)).load()["max_context"] == most
    with pytest.raises(InvalidRequest, match="--max-context"):
        await opened(tmp_path, ServerStandin(max_context=None))


async def test_a_server_with_one_model_is_asked_for_it_by_its_own_name(tmp_path):
    assert (await opened(tmp_path, ServerStandin(models=("theirs",)))).served == "theirs"
    assert (await opened(tmp_path, ServerStandin(models=("other", "m")))).served == "m"
    with pytest.raises(InvalidRequest, match="other, another"):
        await opened(tmp_path, ServerStandin(models=("other", "another")))


@pytest.mark.parametrize("source", ["/models/m", "archive:k", "ftp://h/x", "http://", "http://h/v1", "http://h?a=1"])
async def test_only_a_servers_url_is_a_source(tmp_path, source):
    with pytest.raises(InvalidRequest) as refused:
        await http.open_engine(Start(model="m", source=source, trust=TRUST), meter_of(tmp_path, LedgerStandIn(charge)))
    assert refused.value.code == "bad_source"
