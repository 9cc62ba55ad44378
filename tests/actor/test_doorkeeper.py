"""Whoever keeps a door: it is in the gate's process where that is here, else in the keeper's own. Ray is a stand-in."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fabric.api.tls import ensure_certificate
from fabric.client.client import Client
from fabric.client.profile import Profile
from fabric.config.cluster import ClusterConfig
from fabric.errors import Unauthenticated, Unavailable
from fabric.server import keeper as doorkeeper_module
from fabric.server.keeper import Doorkeeper
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key

KEY = format_key("k-1", "s" * 43)


class Gate:
    """The gate's actor as its keeper sees it."""

    def __init__(self, *, here):
        self.here = here
        self.away, self.code = 0, "unavailable"
        self.said = []
        self.heard = asyncio.Event()

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: asyncio.ensure_future(self._answer(name, *given)))

    async def _answer(self, name, terms):
        self.said.append((name, getattr(terms, "port", None)))
        self.heard.set()
        await asyncio.sleep(0.005)
        if self.away:
            self.away -= 1
            raise Unavailable("it is restarting", code=self.code)
        match name:
            case "open_door":
                return 7433 if self.here else None
            case "keep_door":
                return self.here
            case "close_door":
                return None
            case "ask":
                return None


@pytest.fixture
def keeper(tmp_path, monkeypatch):
    monkeypatch.setattr(doorkeeper_module, "AGAIN_S", 0.01)
    monkeypatch.setattr(
        doorkeeper_module.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "this-node")
    )
    monkeypatch.setattr(doorkeeper_module.client, "ray", SimpleNamespace(is_connected=lambda: False))
    config = ClusterConfig.model_validate(
        {
            "name": "test",
            "ray": {"mode": "join", "address": "auto"},
            "archive": {"kind": "directory", "path": str(tmp_path / "archive")},
            "rpc": {"listen": "127.0.0.1:0"},
        }
    )
    return lambda gate, **more: Doorkeeper(gate, config, tls=ensure_certificate(tmp_path), **more)


async def refused_as_unknown(port, tmp_path):
    """Whether a door stands open there, which asks the gate for the key."""

    def ask():
        client = Client(Profile(address=f"127.0.0.1:{port}", api_key=KEY, ca=str(tmp_path / "tls" / "ca.pem")))
        try:
            client.call(pb.BalanceRequest(), pb.BalanceReply, timeout_s=5)
        except Unauthenticated as error:
            return error.code == "key_unknown"
        finally:
            client.close()

    return await asyncio.to_thread(ask)


async def until(true):
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_door_in_the_gates_process_is_kept_again_and_again_and_closed_there(keeper):
    gate = Gate(here=True)
    door = keeper(gate)
    await door.open()
    assert door.port == 7433
    await until(lambda: gate.said.count(("keep_door", 7433)) >= 3)
    await door.close()
    assert gate.said[-1] == ("close_door", 7433)


async def test_a_gate_that_is_away_is_asked_until_it_is_back(keeper):
    gate = Gate(here=True)
    door = keeper(gate)
    await door.open()
    gate.away = 3
    before = len(gate.said)
    await until(lambda: not gate.away and len(gate.said) > before + 4)
    await door.close()


@pytest.mark.parametrize("tries", [1, 3])
async def test_a_gate_that_was_ended_for_good_is_started_again_and_kept_on(keeper, tries):
    gate, revived = Gate(here=True), []

    async def revive():
        revived.append(len(gate.said))
        if len(revived) < tries:
            raise Unavailable("Ray is away")
        gate.away = 0

    door = keeper(gate, revive=revive)
    await door.open()
    gate.code, gate.away = "gate_restarting", 1_000_000
    await until(lambda: len(revived) == tries)
    await until(lambda: len(gate.said) > revived[-1] + 2)
    await door.close()
    assert len(revived) == tries


async def test_a_gate_that_only_does_not_answer_is_not_started_a_second_time(keeper):
    gate, revived = Gate(here=True), []

    async def revive():
        revived.append(1)

    door = keeper(gate, revive=revive)
    await door.open()
    gate.away = 3
    await until(lambda: not gate.away)
    await door.close()
    assert revived == []


async def test_where_the_gate_is_elsewhere_the_door_is_opened_here_and_asks_it_over_ray(keeper, tmp_path):
    gate = Gate(here=False)
    door = keeper(gate)
    await door.open()
    assert await refused_as_unknown(door.port, tmp_path)
    await door.close()
    first, *others = [name for name, _ in gate.said]
    assert first == "open_door"
    assert set(others) == {"ask"}, "of the key, and of payments that are under way"
    assert "close_door" not in [name for name, _ in gate.said]


async def test_when_the_gate_moves_away_the_door_is_opened_here_at_the_same_address(keeper, tmp_path, unused_tcp_port):
    gate = Gate(here=True)
    door = keeper(gate)
    await door.open()
    door._terms = replace(door._terms, port=unused_tcp_port)
    gate.here = False
    await until(lambda: door._here is not None)
    assert door.port == unused_tcp_port
    assert await refused_as_unknown(unused_tcp_port, tmp_path)
    await door.close()
