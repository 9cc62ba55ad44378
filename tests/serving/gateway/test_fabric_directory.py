"""The gateway before the fabric's own gate and door: keys, offers, the board, and lines told back."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest

from fabric import daemon as places
from fabric.client.client import new_request_id
from fabric.errors import Unauthenticated, Unavailable
from fabric.focus.rules import check_file
from fabric.gate.key_scopes import KeyScope
from fabric.wire import fabric_pb2 as pb
from serving.fabric_client import FabricClient
from serving.gateway.__main__ import secret_of
from serving.gateway.directory import ModelFacts, Replica
from serving.gateway.fabric_directory import FabricDirectory, _model, _with_contexts
from tests.doors.conftest import House as Doors
from tests.serving import engine_standin
from tests.serving.engine_standin import EngineStandin
from tests.serving.gateway.house import CHAT, STREAM, free_socket, served

RATES = [
    pb.Rate(input_uhs_per_mtok=10**6, cached_uhs_per_mtok=0, output_uhs_per_mtok=2 * 10**6, reasoning_uhs_per_mtok=0)
]


@pytest.fixture
def doors(tmp_path):
    made = Doors(tmp_path / "state", sandbox_payments=True)
    operator = made.client(made.root)
    for name, more in (("tiny", {}), ("cell", {"dedicated_to": "globex"})):
        spec = pb.ModelSpec(name=name, source="/models/x", accelerators=["H100"], **more)
        operator.call(pb.OfferModelRequest(request_id=new_request_id(), spec=spec, rates=RATES), pb.Accepted)
    yield made
    made.close()


@contextlib.asynccontextmanager
async def directory_of(doors):
    ledger = FabricClient(doors.profile(doors.root))
    try:
        yield FabricDirectory(ledger, name="g1", endpoint="https://localhost:1/v1"), ledger
    finally:
        await ledger.close()


async def test_a_key_comes_with_what_it_may_call(doors):
    async with directory_of(doors) as (directory, _):
        acme, globex = await directory.key("k-acme"), await directory.key("k-globex")
        assert (acme.account_id, acme.operator, acme.revoked, acme.limited) == ("acme", False, False, False)
        assert set(acme.models) == {"tiny"}
        assert acme.models["tiny"].free_uhs == acme.free_uhs > 0
        assert {name for name, has in globex.models.items() if has.covered} == {"cell"}
        assert (await directory.key("k-root")).operator
        assert await directory.key("nobody") is None


async def test_costs_are_asked_for_with_the_customers_own_key_and_by_no_other(doors, tmp_path):
    wanted = {"dataset": "CostAndUsage", "form": "csv", "from_us": 0, "until_us": None}
    async with directory_of(doors) as (directory, _):
        file = tmp_path / "costs.csv"
        file.write_bytes(b"".join([piece async for piece in directory.focus(doors.acme, **wanted)]))
        assert b",acme," in file.read_bytes()
        assert list(check_file(file)) == []
        for key in ("fab_nobody_" + "0" * 64, ""):
            with pytest.raises(Unauthenticated):
                [piece async for piece in directory.focus(key, **wanted)]


async def test_the_board_comes_as_it_changes_and_lines_go_back(doors):
    async with directory_of(doors) as (directory, ledger):
        boards = directory.boards()
        first = await anext(boards)
        assert first.replicas == ()
        assert first.models["tiny"].rates[0].output_uhs_per_mtok == 2 * 10**6
        near = {"model": "tiny", "state": "ready", "accelerator": "H100", "capacity": 4}
        far = {**near, "address": "http://10.0.0.1:1"}
        pinned = {**near, "address": "https://10.0.0.1:1", "tls_fingerprint": "AB:" * 31 + "AB"}
        replicas = [
            pb.Replica(replica_id="near", address="http://127.0.0.1:1/", **near), pb.Replica(replica_id="far", **far),
            pb.Replica(replica_id="pinned", **pinned), pb.Replica(replica_id="bad", **{**near, "state": "failed"}),
        ]  # fmt: skip
        await ledger.report(pb.ReportServingRequest(reporter="host", replicas=replicas))
        async with asyncio.timeout(10):
            while not (board := await anext(boards)).replicas:
                pass
        states = {replica.replica_id: replica.state for replica in board.replicas}
        assert states == {"near": "ready", "pinned": "ready"} | ({"bad": "gone"} if "bad" in states else {})
        assert {replica.tls_sha256 for replica in board.replicas} == {"", "ab" * 32}
        from serving.gateway.directory import QueueLength

        await directory.report([QueueLength("tiny", 3, 2, 5_000_000)])
        async with asyncio.timeout(10):
            shown = pb.ServingBoard()
            async for shown in ledger.watch():
                if shown.queues:
                    break
        assert (shown.queues[0].waiting, shown.queues[0].running) == (3, 2)
        assert list(shown.endpoints) == ["https://localhost:1/v1"]


async def test_a_door_that_is_away_is_said_to_be(doors):
    async with directory_of(doors) as (directory, _):
        doors.port.away = True
        with pytest.raises(Unavailable):
            await directory.key("k-acme")
        with pytest.raises(Unavailable):
            await anext(directory.boards())


def test_a_secret_is_made_once_and_read_by_all(tmp_path):
    first = secret_of(tmp_path, "trust")
    assert first == secret_of(tmp_path, "trust") != secret_of(tmp_path, "ingress")
    assert (tmp_path / "serving" / "trust").stat().st_mode & 0o077 == 0
    assert len(first) == 64
    assert sorted(path.name for path in (tmp_path / "serving").iterdir()) == ["ingress", "trust"]


class Process:
    """`python -m serving.gateway`, as the host starts it."""

    def __init__(self, state_dir, *arguments):
        command = [sys.executable, "-m", "serving.gateway", "--state-dir", str(state_dir), *arguments]
        self.log = (state_dir / "gateway.log").open("ab")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log)

    async def said(self):
        async with asyncio.timeout(60):
            line = await asyncio.to_thread(self.process.stdout.readline)
        return json.loads(line or self.read_log())

    def read_log(self):
        return Path(self.log.name).read_text()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process.stdout.close()
        self.log.close()
        return code


def announce(doors, state_dir):
    """The state directory as `fabric up` leaves it."""
    running = places.Running(
        name="t", pid=os.getpid(), address=doors.address, ca=str(doors.tls.ca), dashboard="", ray_address="",
        verifier_key="", state_dir=str(state_dir), nodes=1,
    )  # fmt: skip
    places.state_dir.run_file(state_dir).write_bytes(msgspec.json.encode(running))
    file = places.role_key_file(state_dir, KeyScope.GATEWAY)
    file.parent.mkdir(exist_ok=True)
    file.write_text(doors.key("op", "gateway", operator=True, scopes=(KeyScope.GATEWAY,)))


async def test_two_processes_share_a_port_with_tls_and_kill_9_of_one_is_survived(doors, tmp_path, monkeypatch):
    state_dir = tmp_path / "state"
    announce(doors, state_dir)
    engine = EngineStandin(token_s=0.02)
    monkeypatch.setattr(engine_standin, "TRUST", secret_of(state_dir, "trust"))
    taken = free_socket()
    port = taken.getsockname()[1]
    taken.close()
    arguments = ("--listen", f"127.0.0.1:{port}", "--gateways", "2", "--admin", "127.0.0.1:0", "--grace-s", "10")
    processes = [Process(state_dir, *arguments), Process(state_dir, *arguments)]
    told = [await process.said() for process in processes]
    assert {each["endpoint"] for each in told} == {f"https://localhost:{port}/v1"}
    trusted = ssl.create_default_context(cafile=str(doors.tls.ca))
    ledger = FabricClient(doors.profile(doors.root))
    headers = {"authorization": f"Bearer {doors.acme}"}
    url = f"https://localhost:{port}/v1/chat/completions"
    try:
        async with served(engine) as address, aiohttp.ClientSession() as http:

            async def report():
                replica = pb.Replica(
                    replica_id="r1", model="tiny", address=address, state="ready", accelerator="H100", capacity=64
                )
                while True:
                    await ledger.report(pb.ReportServingRequest(reporter="host", replicas=[replica]))
                    await asyncio.sleep(1)

            reporting = asyncio.create_task(report())
            for each in told:
                async with asyncio.timeout(30):
                    while True:
                        async with http.get(f"http://{each['admin']}/metrics") as answer:
                            if 'fabric_gateway_replicas{model="tiny"} 1.0' in await answer.text():
                                break
                        await asyncio.sleep(0.05)
            long = {**STREAM, "max_tokens": 10_000}
            open_ones = [
                await http.post(url, json=long, headers={**headers, "connection": "close"}, ssl=trusted)
                for _ in range(16)
            ]
            assert {answer.status for answer in open_ones} == {200}
            assert engine.active == 16
            processes[0].end(signal.SIGKILL)
            reads = [asyncio.create_task(answer.read()) for answer in open_ones]
            # What died with the gateway is cancelled at the replica; the others go on.
            async with asyncio.timeout(20):
                while not engine.active == sum(not read.done() for read in reads) < len(reads):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert all(isinstance(read.exception(), aiohttp.ClientPayloadError) for read in reads if read.done())
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)
            assert {headers["x-fabric-account"] for _, headers, _ in engine.requests} == {"acme"}
            for answer in open_ones:
                answer.close()
            engine.token_s = 0
            for _ in range(5):
                async with http.post(url, json=CHAT, headers=headers, ssl=trusted) as answer:
                    assert answer.status == 200
                    assert answer.headers["x-fabric-free-uhs"].isdecimal()
            async with http.post(url, json={**CHAT, "model": "cell"}, headers=headers, ssl=trusted) as answer:
                assert answer.status == 404
            reporting.cancel()
            assert processes[1].end() == 0
            lines = (state_dir / "gateway.log").read_text()
            assert '"path": "/v1/chat/completions"' in lines
            assert "hello" not in lines
            assert doors.acme.rpartition("_")[2] not in lines
    finally:
        await ledger.close()
        for process in processes:
            if process.process.poll() is None:
                process.end(signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--listen", "nowhere"], "invalid_address"),
        (["--listen", "0.0.0.0:0", "--plain"], "no_tls"),
        (["--tls-cert", "x.pem"], "no_tls"),
        (["--listen", "127.0.0.1:0", "--admin", "0.0.0.0:0"], "admin_not_loopback"),
    ],
)
def test_a_start_that_would_be_unsafe_is_refused(doors, tmp_path, arguments, code):
    announce(doors, tmp_path / "state")
    process = Process(tmp_path / "state", *arguments)
    process.process.wait(60)
    assert process.process.returncode == 2
    assert f'"code": "{code}"' in (tmp_path / "state" / "gateway.log").read_text()
    process.process.stdout.close()
    process.log.close()


def test_a_context_that_the_operator_did_not_say_is_the_least_of_the_replicas():
    models = {
        "said": ModelFacts(name="said", max_context=100),
        "tiny": ModelFacts(name="tiny"),
        "idle": ModelFacts(name="idle"),
    }
    replicas = [
        Replica(replica_id=f"r{number}", model=model, address="x", max_context=context)
        for number, (model, context) in enumerate([("tiny", 512), ("tiny", 256), ("tiny", 0), ("said", 7)])
    ]
    found = _with_contexts(models, replicas)
    assert {name: each.max_context for name, each in found.items()} == {"said": 100, "tiny": 256, "idle": None}


def test_what_a_model_can_do_is_read_from_the_options_of_its_engine():
    def offered(**options):
        spec = pb.ModelSpec(
            name="m",
            engine_args=[pb.EngineArg(name=name.replace("_", "-"), value=value) for name, value in options.items()],
        )
        return _model(pb.Model(name="m", spec=spec))

    assert not offered().calls_tools
    assert not offered(enable_auto_tool_choice="true").calls_tools
    assert offered(enable_auto_tool_choice="true", tool_call_parser="hermes").calls_tools
    assert (offered(reasoning_parser="qwen3").reasons, offered().reasons) == (True, False)
