"""Before a key was looked at nothing is held: no message, no memory, no connection for long; and one key holds little."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from fabric.api import grpc_server
from fabric.api.connections import KEYLESS_PART, Connection, Connections, address_of
from fabric.api.grpc_server import CALLS
from fabric.client.client import Client
from fabric.client.profile import Profile
from fabric.wire import fabric_pb2 as pb
from fabric.wire.service import METHODS
from tests.doors.raw_http2 import Connection as RawConnection

MB = 2**20
PATH = METHODS["Submit"].path
STREAMS = [2 * number + 1 for number in range(200)]


class DoorProcess:
    """A door in a process of its own, and what that takes of memory."""

    def __init__(self, *, errors=None, **limits):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.doors.door_process", json.dumps(limits)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            env={name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"},  # commands set it
        )  # fmt: skip
        said = json.loads(self._process.stdout.readline())
        self.address, self.ca, self.acme, self.globex = (said[name] for name in ("address", "ca", "acme", "globex"))
        self._opened = []

    def connect(self, source=None):
        self._opened.append(RawConnection(self.address, self.ca, source=source))
        return self._opened[-1]

    def rss(self):
        return psutil.Process(self._process.pid).memory_info().rss

    def descriptors(self):
        return psutil.Process(self._process.pid).num_fds()

    def answers(self, key):
        client = Client(Profile(address=self.address, api_key=key, ca=self.ca))
        try:
            return client.call(pb.BalanceRequest(), pb.BalanceReply).free_uhs > 0
        finally:
            client.close()

    def close(self):
        for opened in self._opened:
            opened.close()
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture
def make_door():
    with contextlib.ExitStack() as stack:

        def make(**limits):
            return stack.enter_context(contextlib.closing(DoorProcess(**limits)))

        yield make


def test_half_sent_messages_without_a_key_take_no_memory(make_door):
    """The attack that put 416 MB into the gate: 200 messages of 2 MiB on one connection, none of them whole."""
    door = make_door()
    assert door.answers(door.acme)
    before, connection = door.rss(), door.connect()
    for stream in STREAMS:
        connection.call(stream, PATH)
    sent = connection.pour(STREAMS, 2 * MB - 5, seconds=20)
    assert connection.ended == set(STREAMS)
    assert sent < 4 * MB
    assert door.rss() - before < 24 * MB


def test_a_flood_of_half_handshakes_meets_a_bound_as_it_comes_in(make_door):
    """Faster than anybody looks at who is there: thousands of connections from many addresses, half a hello on each."""
    door = make_door()
    assert door.answers(door.acme)
    before, most, opened = door.rss(), 0, []
    hello = bytes([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]) + bytes(100)
    host, _, port = door.address.rpartition(":")
    with contextlib.ExitStack() as stack:
        for number in range(8_000):
            half = stack.enter_context(socket.socket())
            half.settimeout(5)
            with contextlib.suppress(OSError):
                half.bind((f"127.0.{number % 40 + 1}.{number % 200 + 1}", 0))
                half.connect((host, int(port)))
                half.send(hello)
            opened.append(half)
            if len(opened) > 4_000:
                opened.pop(0).close()
            if number % 200 == 0:
                most = max(most, door.descriptors())
        assert most <= grpc_server.CONNECTIONS_MAX + 200
        assert door.rss() - before < 400 * MB
        assert door.answers(door.acme)


def test_handshakes_that_fail_write_nothing_into_the_log(make_door, tmp_path):
    """The log is on the journal's disk, and a stranger has thousands of handshakes a second."""
    with (tmp_path / "errors").open("wb") as errors:
        door = make_door(errors=errors)
        host, _, port = door.address.rpartition(":")
        for _ in range(20):
            with socket.create_connection((host, int(port)), 20) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    stranger.recv(100)
        assert door.answers(door.acme)
    assert b"andshake" not in (tmp_path / "errors").read_bytes()


@pytest.mark.parametrize("module", ["fabric.server.gate_server", "fabric.server.keeper"])
def test_a_process_with_a_door_says_so_before_grpc_is_there(module):
    look = (
        "import importlib, importlib.abc, os, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'grpc': print(os.environ.get('GRPC_VERBOSITY'))\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"importlib.import_module({module!r})\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    said = subprocess.run([sys.executable, "-c", look], env=env, capture_output=True, text=True, check=True)
    assert said.stdout == "ERROR\n"


def test_half_sent_messages_with_a_key_take_a_bounded_memory_and_end(make_door):
    door = make_door(messages=4)
    assert door.answers(door.acme)
    before, connection = door.rss(), door.connect()
    for stream in STREAMS:
        connection.call(stream, PATH, key=door.acme)
    connection.pour(STREAMS, 2 * MB - 5, seconds=1)
    assert door.rss() - before < 64 * MB
    assert door.answers(door.globex)
    deadline = time.monotonic() + 60
    while not connection.ended and time.monotonic() < deadline:
        connection.hear(0.2)
    assert connection.ended, "a message that doesn't come is given up"


def test_one_address_has_so_many_connections_and_another_is_answered(make_door):
    door = make_door(connections=8)
    opened = [door.connect(source="127.0.0.2") for _ in range(30)]
    deadline = time.monotonic() + 60
    while sum(not each.closed for each in opened) > 8 // KEYLESS_PART and time.monotonic() < deadline:
        for each in opened:
            each.hear(0.01)
    assert sum(not each.closed for each in opened) <= 8 // KEYLESS_PART
    assert door.answers(door.acme)


# -- which connections go ----------------------------------------------------------------------------------------------


def of(*hosts):
    return [Connection(inode, host, 1000 + inode, inode) for inode, host in enumerate(hosts)]


class Doorway(Connections):
    def __init__(self, **limits):
        self.now = 0.0
        super().__init__(1, monotonic=lambda: self.now, **{"per_account": 1_000, **limits})

    def gone(self, found):
        return {each.inode for each in self.too_many(found)}


def test_a_connection_without_a_key_stays_for_a_while_and_one_with_for_ever():
    doorway, there = Doorway(per_address=100, keyless_s=20), of("1.1.1.1", "1.1.1.1")
    assert doorway.gone(there) == set()
    doorway.showed_key(*there[1].peer)
    doorway.now = 19.0
    assert doorway.gone(there) == set()
    doorway.now = 20.0
    assert doorway.gone(there) == {0}
    doorway.now = 10_000.0
    assert 1 not in doorway.gone(there)


def test_those_with_a_key_stay_before_those_without_and_old_before_new():
    doorway = Doorway(per_address=8)
    first = of(*["1.1.1.1"] * 8)
    doorway.gone(first[:6])
    for each in first[2:]:
        doorway.showed_key(*each.peer)
    doorway.now = 1.0
    assert doorway.gone(first) == set()
    more = [*first, Connection(8, "1.1.1.1", 7, 8), Connection(9, "2.2.2.2", 7, 9)]
    doorway.now = 2.0
    assert doorway.gone(more) == {8}


def test_many_addresses_share_the_room_for_those_without_a_key():
    doorway = Doorway(per_address=400, keyless_max=10)
    there = of(*["1.1.1.1"] * 50, "2.2.2.2", "3.3.3.3")
    gone = doorway.gone(there)
    assert len(gone) == 42
    assert not gone & {50, 51}


def test_an_account_has_so_many_connections_from_all_its_addresses_together():
    doorway = Doorway(per_address=8, per_account=10)
    there = of(*(f"1.1.{n}.1" for n in range(12)), "2.2.2.2")
    for each in there[:12]:
        doorway.showed_key(*each.peer, whose="account/acme")
    doorway.showed_key(*there[12].peer, whose="account/globex")
    assert doorway.gone(there[:11]) == {10}
    doorway.now = 1.0
    for each in there:
        doorway.showed_key(*each.peer, whose="account/globex" if each.inode == 12 else "account/acme")
    assert doorway.gone(there) == {10, 11}


def test_connections_over_which_several_accounts_ask_are_cut_for_none_of_them():
    """A proxy's: whoever asks over all of them would have those of others cut."""
    doorway = Doorway(per_address=100, per_account=2)
    there = of(*["1.1.1.1"] * 9)
    for each in there:
        doorway.showed_key(*each.peer, whose="account/acme")
        doorway.showed_key(*each.peer, whose="account/globex")
    assert doorway.gone(there) == set()
    for each in there:
        doorway.showed_key(*each.peer, whose="account/acme")
    assert doorway.gone(there) == set()


def test_a_network_of_ipv6_counts_as_one_address():
    doorway = Doorway(per_address=4 * KEYLESS_PART)
    assert len(doorway.gone(of(*[f"2001:db8::{n:x}" for n in range(10)]))) == 6
    assert doorway.gone(of(*[f"2001:db8:{n:x}::1" for n in range(10)])) == set()


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:50", ("127.0.0.1", 50)),
        ("ipv6:%5B::1%5D:50", ("::1", 50)),
        ("ipv6:[::ffff:10.0.0.1]:50", ("10.0.0.1", 50)),
        ("unix:/tmp/x", ("", 0)),
    ],
)
def test_a_peer_of_grpc_is_an_address(peer, address):
    assert address_of(peer) == address


# -- every call --------------------------------------------------------------------------------------------------------


class Silent:
    """A message that was begun and doesn't come."""

    asked = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.asked += 1
        raise AssertionError("asked for the message before the key was looked at")


class Stranger:
    def __init__(self, peer="ipv4:10.0.0.1:5"):
        self._peer = peer

    def invocation_metadata(self):
        return (("authorization", "Bearer fab_nobody_" + "0" * 64),)

    def peer(self):
        return self._peer

    async def abort(self, code, _text, trailing_metadata):
        raise ConnectionAbortedError(code.name)


@pytest.mark.parametrize("name", sorted(CALLS))
async def test_no_call_asks_for_its_message_before_the_key_is_known(house, name):
    method = METHODS[name]
    run = (grpc_server._streaming if method.server_streams else grpc_server._answering)(house.door, method, CALLS[name])
    with pytest.raises(ConnectionAbortedError, match="UNAUTHENTICATED"):
        await (anext(run(Silent(), Stranger())) if method.server_streams else run(Silent(), Stranger()))


@pytest.mark.parametrize("peer", ["ipv4:10.0.0.1:{}", "ipv6:%5B2001:db8::{}%5D:5"])
async def test_who_tries_keys_is_told_to_wait_before_more_are_looked_up(make_house, limits, peer):
    """From whichever address of its network."""
    house = make_house(limits=limits(guesses_per_s=5))
    run = grpc_server._answering(house.door, METHODS["Balance"], CALLS["Balance"])
    codes = []
    for number in range(1, 31):
        with pytest.raises(ConnectionAbortedError) as refusal:
            await run(Silent(), Stranger(peer.format(number)))
        codes.append(str(refusal.value))
    assert codes[0] == "UNAUTHENTICATED"
    assert codes[-1] == "RESOURCE_EXHAUSTED"
    assert house.client().call(pb.BalanceRequest(), pb.BalanceReply).free_uhs
