"""The engine `http` before vLLM's own server, which knows nothing of the fabric: counted, cut and kept apart like vLLM in a replica."""

import asyncio
import json
import os
import subprocess
import sys
import time

import httpx
import pytest

from fabric.charging.rates import Rate
from serving.engines.parts.options import ON_CPU, QUIET, arguments
from serving.engines.parts.server_process import free_port
from serving.metering.slices import Terms
from serving.replica.listener import Listener, ReplicaSpec

from .ledger_standin import LedgerStandIn

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

TRUST = "t"
IN, CACHED, OUT = 40, 4, 400
RATE = Rate(
    input_uhs_per_mtok=IN * 10**6, cached_uhs_per_mtok=CACHED * 10**6, output_uhs_per_mtok=OUT * 10**6,
    reasoning_uhs_per_mtok=OUT * 10**6,
)  # fmt: skip
FLAGS = ("--enable-prompt-tokens-details", "--scheduling-policy=priority", "--disable-uvicorn-access-log")
PROMPT = 11
"""Of ten bytes: with the token that begins one."""
LONG = "".join(chr(97 + (n * 7) % 26) for n in range(300))


def charge(usage):
    fresh = usage.prompt_tokens - usage.cached_tokens
    return IN * fresh + CACHED * usage.cached_tokens + OUT * usage.completion_tokens


@pytest.fixture(scope="module")
def server(model_folder, tmp_path_factory):
    """Its URL."""
    port = free_port()
    argv = arguments(model_folder, name="byte-lm", max_context=512, kv_bytes=64 << 20, on_cpu=True, more=FLAGS)
    log = (tmp_path_factory.mktemp("vllm") / "log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.launchers.api_server.entry", *argv,
         "--host", "127.0.0.1", "--port", str(port)],
        stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **QUIET, **ON_CPU},
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    while True:
        assert process.poll() is None, log.seek(0) or log.read()[-3_000:]
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                break
        except httpx.TransportError:
            time.sleep(0.2)
    yield url
    process.terminate()
    process.wait(60)


class Replica:
    def __init__(self, listener, ledger):
        self.listener, self.ledger, self.calls = listener, ledger, 0

    async def post(self, account, body, path="/v1/completions"):
        self.calls += 1
        headers = {
            "x-fabric-trust": TRUST, "x-fabric-account": account, "x-fabric-key": "k", "x-fabric-call": f"c{self.calls}"
        }  # fmt: skip
        async with httpx.AsyncClient(base_url=self.listener.address, timeout=120) as client:
            return await client.post(path, json={"model": "byte-lm", "temperature": 0, **body}, headers=headers)

    def call(self):
        return self.ledger.calls[f"c{self.calls}"]

    async def settled(self):
        """The last call, once the ledger has it."""
        for _ in range(300):
            if f"c{self.calls}" not in self.ledger.calls:
                await asyncio.sleep(0.05)
        self.ledger.check()
        return self.call()


@pytest.fixture
async def replica(server, tmp_path):
    ledger = LedgerStandIn(charge, clock=lambda: time.time_ns() // 1_000)
    terms = Terms(grant_tokens=32, idle_us=300_000, report_us=500_000)
    spec = ReplicaSpec(
        replica_id="r1", model="byte-lm", folder=server, engine="http", accelerator="CPU", rate=RATE,
        state_dir=str(tmp_path), trust=TRUST, terms=terms,
    )  # fmt: skip
    listener = await Listener.open(spec, ledger)
    yield Replica(listener, ledger)
    assert await listener.close()


def events(answer):
    said = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in said]


CHAT = {"messages": [{"role": "user", "content": "hi there"}]}


@pytest.mark.parametrize(
    ("path", "prompt"), [("/v1/completions", {"prompt": "import os"}), ("/v1/chat/completions", CHAT)]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_charged_is_what_the_server_counts(replica, path, prompt, stream):
    replica.ledger.top_up("ann", 10**9)
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    answer = await replica.post("ann", {**prompt, "max_tokens": 9, "ignore_eos": True, **more}, path)
    assert answer.status_code == 200, answer.text
    said = events(answer)[-2] if stream else answer.json()
    call = await replica.settled()
    assert (said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"]) == (call.usage.prompt_tokens, 9)
    assert call.usage.completion_tokens == 9
    assert said["fabric"]["charged_uhs"] == str(charge(call.usage))


async def test_a_stream_ends_at_the_last_token_that_is_paid_and_the_server_stops(replica, server):
    replica.ledger.top_up("ann", PROMPT * IN + 7 * OUT)
    body = {"prompt": "0123456789", "max_tokens": 400, "ignore_eos": True, "stream": True}
    *_, end, done = events(await replica.post("ann", body))
    assert (end["choices"][0]["stop_reason"], done) == ("balance_exhausted", "[DONE]")
    call = await replica.settled()
    assert (call.usage.prompt_tokens, call.usage.completion_tokens) == (PROMPT, 7)
    assert replica.ledger.free["ann"] == 0
    async with httpx.AsyncClient(base_url=server) as direct:
        for _ in range(100):
            told = (await direct.get("/metrics")).text
            (running,) = [line for line in told.splitlines() if line.startswith("vllm:num_requests_running{")]
            if float(running.split()[-1]) == 0:
                break
            await asyncio.sleep(0.05)
        else:
            pytest.fail("the server goes on writing what nobody has paid for")


async def test_an_answer_in_one_piece_has_what_is_paid(replica):
    replica.ledger.top_up("ann", PROMPT * IN + 7 * OUT)
    answer = await replica.post("ann", {"prompt": "0123456789", "max_tokens": 400, "ignore_eos": True})
    assert answer.json()["choices"][0]["stop_reason"] == "balance_exhausted"
    call = await replica.settled()
    assert (call.usage.completion_tokens, replica.ledger.free["ann"]) == (7, 0)


async def test_what_one_account_has_cached_is_not_found_by_another(replica):
    cached = []
    for account in ("ann", "ann", "bob", "bob"):
        replica.ledger.top_up(account, 10**9)
        assert (await replica.post(account, {"prompt": LONG, "max_tokens": 1})).status_code == 200
        cached.append((await replica.settled()).usage.cached_tokens > 0)
    assert cached == [False, True, False, True]


async def test_what_the_server_will_not_have_costs_nothing(replica):
    replica.ledger.top_up("ann", 10**6)
    answer = await replica.post("ann", {"prompt": "hi", "max_tokens": 5, "temperature": -3})
    assert answer.status_code == 400
    assert charge((await replica.settled()).usage) == 0
