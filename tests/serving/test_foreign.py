"""The meter over HTTP: an engine that isn't ours gives away nothing that isn't paid."""

import asyncio
import json

import aiohttp.web
import httpx
import pytest

from serving.engines.admission import Admission
from serving.engines.http import ForeignEngine
from serving.metering.book import Metering
from serving.metering.call_log import CallLog
from serving.metering.meter import Meter
from serving.metering.slices import Terms

from .ledger_standin import LedgerStandIn

TRUST = "t"
PROMPT = 5


def charge(usage):
    return usage.prompt_tokens - usage.cached_tokens + 10 * usage.completion_tokens


class EngineStandIn:
    """Speaks as vLLM does: a token a chunk (or several), usage in each, abort by id. Counts what it made."""

    def __init__(self, *, at_once=1):
        self.at_once, self.made, self.aborted, self.seen = at_once, 0, [], []
        app = aiohttp.web.Application()
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/inference/v1/abort_requests", self.abort)
        self.runner = aiohttp.web.AppRunner(app)

    async def start(self):
        await self.runner.setup()
        site = aiohttp.web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def tokenize(self, request):
        return aiohttp.web.json_response({"count": PROMPT})

    async def abort(self, request):
        self.aborted += (await request.json())["request_ids"]
        return aiohttp.web.json_response({})

    async def complete(self, request):
        body = await request.json()
        self.seen.append(body)
        if not body.get("stream"):
            made = body["max_tokens"] * (body.get("n") or 1)
            self.made += made
            choices = [{"index": n, "text": "x", "finish_reason": "length"} for n in range(body.get("n") or 1)]
            return aiohttp.web.json_response({"choices": choices, "usage": self.usage(made)})
        answer = aiohttp.web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        total = 0
        while total < body["max_tokens"]:
            total = min(body["max_tokens"], total + self.at_once)
            self.made += self.at_once
            end = "length" if total == body["max_tokens"] else None
            await self.say(
                answer, {"choices": [{"index": 0, "text": "x", "finish_reason": end}], "usage": self.usage(total)}
            )
            await asyncio.sleep(0.001)
        await self.say(answer, {"choices": [], "usage": self.usage(total)})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def say(self, answer, chunk):
        await answer.write(b"data: " + json.dumps({"id": "cmpl-1", **chunk}).encode() + b"\n\n")

    @staticmethod
    def usage(made):
        return {"prompt_tokens": PROMPT, "completion_tokens": made, "prompt_tokens_details": {"cached_tokens": 2}}


class Rig:
    def __init__(self, ledger, engine, client, foreign):
        self.ledger, self.engine, self.client, self.foreign = ledger, engine, client, foreign

    async def post(self, uhs, body, *, path="/v1/completions"):
        self.ledger.top_up("ann", uhs)
        headers = {"x-fabric-trust": TRUST, "x-fabric-account": "ann", "x-fabric-call": "c1", "x-fabric-key": "k"}
        return await self.client.post(path, json=body, headers=headers)

    async def settled(self):
        assert await self.foreign.meter.close()
        self.ledger.check()
        (call,) = self.ledger.calls.values()
        return call


@pytest.fixture(params=[1, 3], ids=["a token a chunk", "three at once"])
async def rig(tmp_path, request):
    ledger = LedgerStandIn(charge)
    engine = EngineStandIn(at_once=request.param)
    book = Metering(name="f", model="m", accelerator="H100", charge=charge, terms=Terms(grant_tokens=4))
    meter = Meter(book, CallLog(tmp_path / "f.outbox"), ledger)
    await meter.start()
    foreign = ForeignEngine(await engine.start(), meter, max_context=500)
    transport = httpx.ASGITransport(Admission(foreign, trust=TRUST))
    async with httpx.AsyncClient(transport=transport, base_url="http://replica") as client:
        yield Rig(ledger, engine, client, foreign)
    await foreign.close()
    await engine.runner.cleanup()


def chunks(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_paid_stream_comes_through_whole(rig):
    said = chunks(await rig.post(10_000, {"prompt": "x", "max_tokens": 20, "stream": True}))
    assert all(each["choices"] and each["usage"] is None for each in said)
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
    assert 10 - rig.engine.at_once < call.usage.completion_tokens <= 10
    assert call.ended == "balance_exhausted"
    assert rig.engine.aborted == ["cmpl-c1"]
    assert rig.ledger.free["ann"] >= 0


@pytest.mark.parametrize("n", [1, 2])
async def test_without_a_stream_the_engine_is_asked_for_no_more_than_is_paid(rig, n):
    answer = await rig.post(PROMPT + 100, {"prompt": "x", "max_tokens": 90, "n": n})
    assert answer.json()["choices"][0]["stop_reason"] == "balance_exhausted"
    call = await rig.settled()
    assert rig.engine.seen[-1]["max_tokens"] == 10 // n
    assert call.usage.completion_tokens == rig.engine.made == 10 // n * n


async def test_without_tokens_it_is_a_402_and_the_engine_hears_nothing(rig):
    answer = await rig.post(PROMPT, {"prompt": "x", "max_tokens": 9, "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "insufficient_quota")
    assert rig.engine.seen == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, 400),
        ("/v1/completions", {"prompt": "x", "n": 2, "stream": True}, 400),
        ("/v1/responses", {"input": "x"}, 404),
        ("/v1/completions", ["no object"], 400),
    ],
)
async def test_what_it_cannot_meter_it_does_not_offer(rig, path, body, status):
    answer = await rig.post(1_000, body, path=path)
    assert answer.status_code == status
    assert rig.engine.made == 0


async def test_an_engine_that_is_away_is_said_so_and_costs_nothing(rig):
    await rig.engine.runner.cleanup()
    answer = await rig.post(1_000, {"prompt": "x", "max_tokens": 9})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert rig.ledger.free["ann"] == 1_000
