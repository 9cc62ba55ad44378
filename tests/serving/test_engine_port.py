"""Engines are chosen by name, and one is one file: what is put into the folder is served, metered and ended like the others."""

import asyncio
import sys
import textwrap
from pathlib import Path

import httpx
import psutil
import pytest

import serving.engines
from fabric.charging.rates import Rate
from fabric.config import engines
from fabric.doctor import Health, software
from fabric.errors import InvalidRequest, Unavailable
from serving.engines import port, sglang
from serving.engines.parts.server_process import ServerProcess, free_port
from serving.engines.port import Start, engine_named, pairs
from serving.metering.slices import Terms
from serving.replica.listener import Listener, ReplicaSpec
from tests.serving import openai_server_standin

from .ledger_standin import LedgerStandIn
from .openai_server_standin import PROMPT, ServerStandin

TRUST = "t"
IN, OUT = 1, 10
RATE = Rate(
    input_uhs_per_mtok=IN * 10**6, cached_uhs_per_mtok=IN * 10**6, output_uhs_per_mtok=OUT * 10**6,
    reasoning_uhs_per_mtok=OUT * 10**6,
)  # fmt: skip
START = Start(model="m", source="/models/m", trust=TRUST)


def charge(usage):
    return IN * usage.prompt_tokens + OUT * usage.completion_tokens


def spec(state_dir, **said):
    return ReplicaSpec(
        **{
            "replica_id": "r1", "model": "m", "folder": "/nowhere", "accelerator": "H100", "rate": RATE,
            "state_dir": str(state_dir), "trust": TRUST, "terms": Terms(grant_tokens=4), **said,
        }
    )  # fmt: skip


async def asked(listener, ledger, uhs, **body):
    ledger.top_up("ann", uhs)
    headers = {"x-fabric-trust": TRUST, "x-fabric-account": "ann", "x-fabric-call": "c1", "x-fabric-key": "k"}
    async with httpx.AsyncClient(base_url=listener.address) as client:
        return await client.post("/v1/completions", json={"model": "m", "prompt": "x", **body}, headers=headers)


def test_the_cluster_file_and_the_replica_know_the_same_engines():
    assert port.names() == engines.names() == ("http", "sglang", "vllm")


def test_only_models_that_vllm_serves_need_it():
    assert software.check_engine({}).health is Health.FAIL
    assert software.check_engine({}, {"http", "vllm"}).health is Health.FAIL
    assert software.check_engine({}, {"http", "sglang"}).health is Health.OK


@pytest.mark.parametrize("name", ["ollama", "port", "parts", "", "vllm.x", "../vllm"])
def test_what_is_no_engine_is_refused_with_those_that_there_are(name):
    with pytest.raises(InvalidRequest, match="choose of http, sglang, vllm") as refused:
        engine_named(name)
    assert refused.value.code == "unknown_engine"


def test_options_are_read_as_they_were_given():
    words = (
        "--enforce-eager",
        "--max-num-seqs",
        "8",
        "--no-enable-prefix-caching",
        "--dtype",
        "float32",
        "--enable-lora",
    )
    assert list(pairs(words)) == [
        ("enforce-eager", "true"), ("max-num-seqs", "8"), ("enable-prefix-caching", "false"), ("dtype", "float32"),
        ("enable-lora", "true"),
    ]  # fmt: skip


async def test_a_replica_of_a_server_is_metered_and_settled_like_any(tmp_path):
    ledger, server = LedgerStandIn(charge), ServerStandin()
    listener = await Listener.open(spec(tmp_path, engine="http", folder=await server.start()), ledger)
    answer = await asked(listener, ledger, 1_000, max_tokens=7)
    assert (answer.status_code, answer.json()["fabric"]["charged_uhs"]) == (200, str(PROMPT * IN + 7 * OUT))
    assert (listener.engine.abilities, listener.engine.load()["max_context"]) == (("text",), 500)
    await listener.engine.check()
    assert await listener.close()
    assert (ledger.free["ann"], ledger.held("ann")) == (1_000 - PROMPT * IN - 7 * OUT, 0)
    await server.runner.cleanup()


async def test_an_engine_that_takes_no_adapters_is_not_started_with_them(tmp_path):
    server = ServerStandin()
    made = spec(tmp_path, engine="sglang", engine_args=("--enable-lora",))
    with pytest.raises(InvalidRequest) as refused:
        sglang.command(Start(model="m", source="/m", trust=TRUST, options=made.engine_args), port=1)
    assert refused.value.code == "invalid_engine_arg"
    with pytest.raises(InvalidRequest) as refused:
        await Listener.open(
            spec(tmp_path, engine="http", folder=await server.start(), engine_args=("--enable-lora",)),
            LedgerStandIn(charge),
        )
    assert refused.value.code == "invalid_engine_arg"
    await server.runner.cleanup()


MINE = """
from serving.engines.parts.proxy import ProxiedEngine
from serving.engines.http import Vllm

async def open_engine(start, meter):
    return await ProxiedEngine.open(start.source, Vllm(), start, meter)
"""


async def test_an_engine_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setattr(serving.engines, "__path__", [*serving.engines.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, "serving.engines.mine", None)
    del sys.modules["serving.engines.mine"]
    assert "mine" in port.names()
    ledger, server = LedgerStandIn(charge), ServerStandin()
    listener = await Listener.open(spec(tmp_path, engine="mine", folder=await server.start()), ledger)
    assert (await asked(listener, ledger, 1_000, max_tokens=3)).status_code == 200
    assert await listener.close()
    await server.runner.cleanup()


# -- sglang: what it starts, with a stand-in of its server -------------------------------------------------------------


def test_sglang_is_started_with_what_the_meter_relies_on_and_the_operator_wants():
    start = Start(
        model="m", source="/models/m", trust=TRUST, max_context=4096, devices=4,
        options=("--max-num-seqs", "8", "--gpu-memory-utilization", "0.9", "--quantization", "fp8"),
    )  # fmt: skip
    said = dict(pairs(sglang.command(start, port=30_000)[4:]))
    assert said == {
        "model-path": "/models/m", "served-model-name": "m", "host": "127.0.0.1", "port": "30000", "tp-size": "4",
        "enable-cache-report": "true", "enable-priority-scheduling": "true", "disable-custom-logit-processor": "true",
        "context-length": "4096", "max-running-requests": "8", "mem-fraction-static": "0.9", "quantization": "fp8",
    }  # fmt: skip


async def test_sglang_that_is_not_installed_is_said_so(tmp_path):
    with pytest.raises(Unavailable, match="not installed") as refused:
        await Listener.open(spec(tmp_path, engine="sglang"), LedgerStandIn(charge))
    assert refused.value.code == "no_engine"


@pytest.fixture
def sglang_standin(tmp_path, monkeypatch):
    """Where Python looks for sglang: a package whose server is the stand-in."""
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang" / "__init__.py").touch()
    path = str(tmp_path)
    program = f"""
        import asyncio, sys
        assert "FABRIC_ENGINE_KEY" not in __import__("os").environ
        sys.path.insert(0, {str(Path(openai_server_standin.__file__).parent)!r})
        import openai_server_standin
        asyncio.run(openai_server_standin.main())
    """
    (tmp_path / "sglang" / "launch_server.py").write_text(textwrap.dedent(program))
    monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", path)


async def test_a_server_of_sglang_is_started_asked_with_its_key_metered_and_ended(tmp_path, sglang_standin):
    ledger = LedgerStandIn(charge)
    listener = await Listener.open(spec(tmp_path, engine="sglang"), ledger)
    server = psutil.Process(listener.engine._process._process.pid)
    key = listener.engine._headers["authorization"].removeprefix("Bearer ")
    assert key not in " ".join(server.cmdline()), "anybody on the machine reads arguments"
    async with httpx.AsyncClient(base_url=listener.engine._url) as stranger:
        assert (await stranger.get("/v1/models")).status_code == 401
    answer = await asked(listener, ledger, PROMPT * IN + 6 * OUT, max_tokens=50, stream=True)
    assert "balance_exhausted" in answer.text
    await listener.engine.check()
    assert await listener.close()
    assert not server.is_running()
    (call,) = ledger.calls.values()
    assert (call.usage.completion_tokens, ledger.free["ann"]) == (6, 0)


async def test_what_sglang_is_told_has_the_accounts_salt_rank_and_id(tmp_path):
    from serving.metering.payer import SignedPayer
    from serving.metering.slices import Payer

    ticket = SignedPayer(Payer("ann", "", covered=False), key_id="k", call_id="c1", tier_rank=2, salt="salt")
    body, headers = sglang.Sglang().marked({"prompt": "x"}, ticket, "c1.2")
    assert (body, headers) == ({"prompt": "x", "cache_salt": "salt", "rid": "c1.2", "priority": 2}, {})
    assert sglang.Sglang().stopped("/v1/completions", "c1.2") == ("/abort_request", {"rid": "c1.2"})


# -- a server that an engine starts ------------------------------------------------------------------------------------


async def test_a_server_that_ends_while_it_starts_is_said_so():
    with pytest.raises(Unavailable, match="ended with 3") as refused:
        await ServerProcess.start([sys.executable, "-c", "raise SystemExit(3)"], port=free_port(), env={})
    assert refused.value.code == "engine_ended"


async def test_a_server_that_never_answers_is_ended_with_all_below_it():
    program = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(Unavailable) as refused:
        await ServerProcess.start([sys.executable, "-c", program], port=free_port(), env={}, within_s=1.0)
    assert refused.value.code == "engine_silent"
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


async def test_a_server_that_dies_is_told_by_the_engines_health(tmp_path, sglang_standin):
    ledger = LedgerStandIn(charge)
    listener = await Listener.open(spec(tmp_path, engine="sglang"), ledger)
    listener.engine._process._process.kill()
    await listener.engine._process._process.wait()
    with pytest.raises(Unavailable) as refused:
        await listener.engine.check()
    assert refused.value.code == "engine_ended"
    assert await listener.close()
    await asyncio.sleep(0)
