"""The doors in the gate's process: opened, kept, closed, and opened again at the same address after a restart."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from fabric.api.limits import Limits
from fabric.api.tls import ensure_certificate
from fabric.client.client import Client
from fabric.client.profile import Profile
from fabric.errors import NotFound, Unauthenticated, Unavailable
from fabric.gate.account_events import CreateKey, OpenAccount
from fabric.gate.instructions import Accepted, StartLease
from fabric.server import gate_server
from fabric.server.gate_server import DoorTerms, Gatehouse
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret
from tests.actor.test_actor import JOB

HERE = "this-node"
SECRET = "s" * 43


class Place:
    """What the gate would ask Ray."""

    def get_node_id(self):
        return HERE


@pytest.fixture(autouse=True)
def _node(monkeypatch):
    monkeypatch.setattr(gate_server.ray, "get_runtime_context", Place)


@pytest.fixture
def terms(tmp_path):
    tls = ensure_certificate(tmp_path).read()
    return DoorTerms(node_id=HERE, host="127.0.0.1", port=0, tls=tls, limits=Limits(), sandbox_payments=True)


@pytest.fixture
def ask(tmp_path):
    """Asks a door what it costs nothing to answer; runs in a thread, as a client does."""

    def once(port, key):
        client = Client(Profile(address=f"127.0.0.1:{port}", api_key=key, ca=str(tmp_path / "tls" / "ca.pem")))
        try:
            return client.call(pb.GetJobRequest(job_id="job-none"), pb.Job, timeout_s=5)
        finally:
            client.close()

    return lambda port, key: asyncio.to_thread(once, port, key)


@asynccontextmanager
async def up(world):
    gate = world(Gatehouse)
    try:
        yield gate
    finally:
        await gate.close()


async def key_of(gate):
    events = [
        OpenAccount(account_id="acme", name="Acme", plan="starter", request_id="open"),
        CreateKey(key_id="k-1", account_id="acme", secret_sha256=hash_secret(SECRET), request_id="key"),
    ]
    assert all(isinstance(outcome, Accepted) for outcome in await gate.decide(events))
    return format_key("k-1", SECRET)


async def test_a_door_in_the_gates_process_asks_for_the_key_and_answers_from_the_gate(world, terms, ask):
    async with up(world) as gate:
        port = await gate.open_door(terms)
        key = await key_of(gate)
        with pytest.raises(NotFound, match="job-none"):
            await ask(port, key)
        with pytest.raises(Unauthenticated):
            await ask(port, format_key("k-1", "x" * 43))


async def test_a_gate_that_was_started_again_opens_the_same_door_when_its_keeper_asks_again(world, terms, ask):
    async with up(world) as first:
        key = await key_of(first)
        wanted = replace(terms, port=await first.open_door(terms))
    async with up(world) as second:
        keeping = asyncio.create_task(second.keep_door(wanted))
        with pytest.raises(NotFound):
            await ask(wanted.port, key)
        assert not keeping.done()
        await second.close_door(wanted)
        assert await keeping
        with pytest.raises(Unavailable):
            await ask(wanted.port, key)


async def test_a_gate_that_was_started_again_looks_after_its_jobs_although_no_client_calls(world, cluster, terms):
    async with up(world) as first:
        await first.decide(JOB)
        wanted = replace(terms, port=await first.open_door(terms))
    async with up(world) as second:
        keeping = asyncio.create_task(second.keep_door(wanted))
        async with asyncio.timeout(10):
            while not cluster.made[-1].carried_out:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert [type(said) for said in cluster.made[-1].carried_out] == [StartLease]
        await second.close_door(wanted)
        await keeping


async def test_a_door_that_nobody_keeps_closes(world, terms, monkeypatch):
    monkeypatch.setattr(gate_server, "KEEP_S", 0.02)
    monkeypatch.setattr(gate_server, "UNKEPT_S", 0.2)
    async with up(world) as gate:
        wanted = replace(terms, port=await gate.open_door(terms))
        (door,) = gate._doors.values()
        for _ in range(20):
            assert await gate.keep_door(wanted)
        assert gate._doors
        assert await door.closes_within(10)
        assert not gate._doors


async def test_the_same_door_is_opened_once_and_other_terms_replace_it(world, terms):
    async with up(world) as gate:
        wanted = replace(terms, port=await gate.open_door(terms))
        (first,) = gate._doors.values()
        assert await gate.open_door(wanted) == wanted.port
        assert list(gate._doors.values()) == [first]
        stricter = replace(wanted, limits=Limits(requests_per_s=1))
        assert await gate.open_door(stricter) == wanted.port
        (second,) = gate._doors.values()
        assert second.terms == stricter


async def test_a_gate_on_another_node_opens_nothing(world, terms):
    elsewhere = replace(terms, node_id="another-node")
    async with up(world) as gate:
        assert await gate.open_door(elsewhere) is None
        assert not await gate.keep_door(elsewhere)


async def test_an_address_that_is_taken_is_said_to_be(world, terms):
    async with up(world) as gate:
        taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        async with taken:
            with pytest.raises(Unavailable) as refused:
                await gate.open_door(replace(terms, port=taken.sockets[0].getsockname()[1]))
        assert refused.value.code == "address_taken"


def test_a_doors_key_is_not_shown(terms):
    assert "PRIVATE KEY" in terms.tls.key.decode()
    assert "PRIVATE KEY" not in repr(terms)
