"""Before a key was looked at: no body is read, and nobody stays connected for long, or in numbers."""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
from functools import cache

import psutil
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from fabric.api.connections import network_of
from fabric.errors import FabricError
from serving.acceptor import Bounds, Guest, Guests
from serving.gateway.app import Gateway, Limits
from serving.gateway.keys import GUESSES_PER_S, Gatekeeper
from serving.gateway.request_lines import KEYLESS_LINES_MAX, KEYLESS_WINDOW_S
from serving.gateway.server import KEYLESS_PART
from serving.http_server import PIPELINED_MAX
from tests.serving.gateway.house import CHAT, house_of, key_of

MB = 2**20
KEYLESS = 100
SPARE = 120
"""Files of a process that are no connections, and connections that are just being closed."""
HALF_HELLO = bytes([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]) + bytes(100)
STRANGER = b"authorization: Bearer fab_nobody_" + b"0" * 64 + b"\r\n"
BODY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + STRANGER + b"content-type: application/json\r\n"
    b"content-length: 9000000\r\n\r\n" + b"x" * 50_000
)


async def test_a_body_is_not_read_before_the_key_is_looked_at(house, monkeypatch):
    read = []
    monkeypatch.setattr(Gateway, "_read", lambda *_: read.append(1))
    async with house.post(key="fab_nobody_" + "0" * 64) as answer:
        assert answer.status == 401
    assert read == []


async def test_who_shows_no_key_is_disconnected_and_who_does_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("serving.acceptor.SWEEP_S", 0.05)
    keyless = 8 // KEYLESS_PART
    async with house_of(tmp_path, server_options={"per_address": 8}) as house:
        (acceptor,) = house.servers[0]._servers[0][0]._acceptors
        host, port = house.url.removeprefix("http://").split(":")
        async with house.post() as answer:
            assert answer.status == 200
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
        async with asyncio.timeout(60):
            while sum(reader.at_eof() for reader, _ in opened) < 12 - keyless:  # noqa: ASYNC110 - it says so to nobody
                await asyncio.sleep(0.05)
        assert sum(reader.at_eof() for reader, _ in opened) == 12 - keyless
        acceptor._guests._bounds = Bounds(most=9, per_address=8, keyless=8, keyless_per_address=8, keyless_s=0.1)
        async with asyncio.timeout(60):
            for reader, _ in opened:
                await reader.read()
        made = house.http.connector._acquired_per_host or house.http.connector._conns
        assert made, "the connection of the first request is still there"
        async with house.post() as answer:
            assert answer.status == 200
        for _, writer in opened:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def test_more_keys_are_not_more_requests(tmp_path):
    async with house_of(tmp_path, limits=Limits(requests_per_s=5)) as house:
        for number in range(10):
            house.directory.add_key(f"more{number}", "ann")
        statuses = set()
        for number in range(30):
            async with house.http.post(
                house.url + "/v1/chat/completions", json=CHAT,
                headers={"authorization": f"Bearer {key_of(f'more{number % 10}')}"},
            ) as answer:  # fmt: skip
                statuses.add(answer.status)
        assert 429 in statuses


async def test_who_tries_keys_from_many_addresses_of_one_network_is_one_who_tries(house):
    """A /64 of IPv6 has more addresses than anybody remembers: each would have guesses of its own."""
    gatekeeper = Gatekeeper(house.directory, monotonic=lambda: 0.0)
    codes = set()
    for number in range(2 * GUESSES_PER_S + 1):
        key = f"fab_nobody{number}_{'0' * 64}".encode()
        with pytest.raises(FabricError) as refusal:
            await gatekeeper.caller({b"x-api-key": key}, host=f"2001:db8::{number:x}")
        codes.add(refusal.value.http_status)
    assert codes == {401, 429}


async def test_whoever_shows_no_key_writes_few_lines_and_a_customer_one_for_each_request(tmp_path):
    """The log is on the journal's disk."""
    now = [1_000.0]
    async with house_of(tmp_path, monotonic=lambda: now[0]) as house:
        with structlog.testing.capture_logs() as said:
            for _ in range(3 * KEYLESS_LINES_MAX):
                async with house.post(key="nobody") as answer:
                    assert answer.status == 401
            for _ in range(5):
                async with house.post() as answer:
                    assert answer.status == 200
            now[0] += KEYLESS_WINDOW_S
            async with house.post(key="nobody") as answer:
                assert answer.status == 401
            await house.settled(lambda: sum(line["event"] == "request" for line in said) >= KEYLESS_LINES_MAX + 6)
    lines = [line["status"] for line in said if line["event"] == "request"]
    assert (lines.count(401), lines.count(200)) == (KEYLESS_LINES_MAX + 1, 5)
    (counted,) = [line for line in said if line["event"] == "requests_without_a_key"]
    assert counted["count"] == 3 * KEYLESS_LINES_MAX


async def test_few_requests_wait_behind_one_that_is_not_answered(house):
    """One piece of data holds thousands of requests: each would wait in memory, and be answered before anybody else's."""
    host, port = house.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * (PIPELINED_MAX + 1))
    for _ in range(PIPELINED_MAX + 1):
        assert b" 401 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}}")
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * (PIPELINED_MAX + 2))
    with contextlib.suppress(OSError):
        assert await reader.read() == b""
    writer.close()
    async with house.post() as answer:
        assert answer.status == 200


# -- a flood -----------------------------------------------------------------------------------------------------------


class GatewayProcess:
    """A gateway in a process of its own, and what that takes."""

    def __init__(self, **options):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.serving.gateway.gateway_process", json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        said = json.loads(self._process.stdout.readline())
        self.port, self.key = said["port"], said["key"]
        self.tls = ssl.create_default_context(cafile=said["ca"]) if options.get("tls", True) else None
        self._looked_at = psutil.Process(self._process.pid)

    def rss(self):
        return self._looked_at.memory_info().rss

    def descriptors(self):
        return self._looked_at.num_fds()

    def answers(self):
        if self.tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.tls)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {self.key}"})
            return connection.getresponse().status == 200

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def gateways():
    with contextlib.ExitStack() as stack:

        @cache
        def gateway(tls):
            options = {"tls": tls, "keyless_max": KEYLESS, "per_address": 4 * KEYLESS}
            return stack.enter_context(contextlib.closing(GatewayProcess(**options)))

        yield gateway


@pytest.mark.parametrize(
    ("tls", "sent"),
    [
        pytest.param(True, b"", id="nothing-where-tls-should-begin"),
        pytest.param(True, HALF_HELLO, id="half-a-handshake"),
        pytest.param(False, b"", id="nothing"),
        pytest.param(False, b"POST / HTTP/1.1\r\nhost: ", id="half-a-header"),
        pytest.param(False, BODY, id="half-a-body"),
        pytest.param(False, b"GET / HTTP/1.1\r\n\r\n" * 5_000, id="thousands-of-requests-at-once"),
    ],
)
@pytest.mark.parametrize("addresses", [1, 40])
def test_a_flood_without_a_key_meets_a_bound_as_it_comes(gateways, tls, sent, addresses):
    """Whoever floods, from one address or many, holds few connections and little memory, and another is served beside."""
    gateway = gateways(tls)
    assert gateway.answers()
    before, most = gateway.rss(), 0
    with contextlib.ExitStack() as stack:
        for number in range(400):
            stranger = stack.enter_context(socket.socket())
            stranger.bind((f"127.0.0.{number % addresses + 2}", 0))
            stranger.settimeout(10)
            with contextlib.suppress(OSError):
                stranger.connect(("127.0.0.1", gateway.port))
                stranger.settimeout(0)
                stranger.send(sent)
            most = max(most, gateway.descriptors())
            if number % 200 == 100:
                assert gateway.answers()
        assert most <= KEYLESS + SPARE
        assert gateway.rss() - before < 60 * MB
        assert gateway.answers()


# -- who goes ----------------------------------------------------------------------------------------------------------


class Nobody:
    def keep(self, _):
        pass


def guest(address, since=0.0):
    return Guest(Nobody(), None, network_of(address), since)


def test_an_honest_client_stays_beside_an_address_with_many():
    guests = Guests(Bounds(most=100, per_address=100, keyless=10, keyless_per_address=50))
    honest = guest("10.0.0.1")
    guests.come(honest)
    gone = [each for _ in range(500) for each in guests.come(guest("10.0.0.2"))]
    assert honest not in gone
    assert len(gone) == 491
    assert len(guests) == 10


def test_who_comes_with_a_key_soon_gets_in_beside_strangers_of_its_address():
    guests = Guests(Bounds(most=100, per_address=8, keyless=100, keyless_per_address=4))
    for _ in range(50):
        guests.come(guest("10.0.0.1"))
    honest = guest("10.0.0.1")
    assert honest not in guests.come(honest)
    guests.showed_key(honest)
    assert honest not in [each for _ in range(50) for each in guests.come(guest("10.0.0.1"))]


def test_an_address_has_so_many_with_a_key_and_no_more():
    guests = Guests(Bounds(most=100, per_address=3, keyless=100, keyless_per_address=3))
    for _ in range(3):
        guests.come(one := guest("10.0.0.1"))
        guests.showed_key(one)
    late = guest("10.0.0.1")
    assert guests.come(late) == [late]
    assert guests.come(guest("10.0.0.2")) == []


def test_an_account_has_so_many_from_all_its_addresses_and_others_have_theirs():
    guests = Guests(Bounds(most=12, per_address=9, keyless=9, keyless_per_address=9, account_part=4))
    there = [guest(f"10.0.{number}.1") for number in range(5)]
    for one in there:
        guests.come(one)
    assert [guests.showed_key(one, "acme") for one in there] == [True, True, True, False, False]
    assert there[3] in guests.without_key()
    assert guests.showed_key(there[4], "globex")
    guests.go(there[0])
    assert guests.showed_key(there[3], "acme")


def test_a_connection_of_several_accounts_is_a_proxys_and_counts_to_none():
    guests = Guests(Bounds(most=8, per_address=8, keyless=8, keyless_per_address=8, account_part=4))
    there = [guest("10.0.0.1") for _ in range(6)]
    for one in there:
        guests.come(one)
        assert guests.showed_key(one, "acme")
        assert guests.showed_key(one, "globex")
        assert guests.showed_key(one, "acme")
    assert len(guests) == 6


def test_who_shows_no_key_for_too_long_is_late_and_who_did_never():
    guests = Guests(Bounds(most=9, per_address=9, keyless=9, keyless_per_address=9, keyless_s=20.0))
    silent, good = guest("10.0.0.1", since=1.0), guest("10.0.0.1", since=1.0)
    guests.come(silent)
    guests.come(good)
    guests.showed_key(good)
    assert guests.late(20.9) == []
    assert guests.late(21.0) == [silent]
    guests.go(silent)
    assert guests.late(10**6) == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "10.0.0.1", False),
    ],
)
def test_a_network_of_ipv6_counts_as_one_address(one, other, same):
    assert (network_of(one) == network_of(other)) is same


@given(
    bounds=st.builds(
        Bounds, most=st.integers(1, 20_000), per_address=st.integers(1, 20_000), keyless=st.integers(1, 20_000),
        keyless_per_address=st.integers(1, 20_000), address_part=st.just(4),
    ),
    files=st.integers(1, 20_000),
)  # fmt: skip
def test_where_few_files_may_be_open_no_address_has_them_all(bounds, files):
    """With 1,024 files there were 384 connections, and 4,096 of them for each address."""
    found = bounds.within(files)
    assert found.most <= files
    assert found.per_address <= max(1, found.most // 4)
    assert found.keyless_per_address <= min(found.keyless, found.per_address)
    assert found.keyless <= found.most


STEPS = st.lists(st.tuples(st.sampled_from(["come", "come", "come", "show", "go"]), st.integers(0, 5)), max_size=120)


@given(steps=STEPS, most=st.integers(1, 20), per_address=st.integers(1, 8), keyless=st.integers(1, 12))
def test_whatever_comes_no_bound_is_passed_and_no_key_is_cut(steps, most, per_address, keyless):
    bounds = Bounds(most=most, per_address=per_address, keyless=keyless, keyless_per_address=max(1, per_address // 2))
    guests, there, shown = Guests(bounds), [], set()
    for step, number in steps:
        if step == "come":
            new = guest(f"10.0.0.{number}", since=len(there))
            going = guests.come(new)
            assert not shown & set(going)
            there = [each for each in (*there, new) if each not in going]
        elif there:
            one = there[number % len(there)]
            if step == "show":
                guests.showed_key(one)
                shown.add(one)
            else:
                guests.go(one)
                there.remove(one)
        by_address = [sum(each.network == f"10.0.0.{address}" for each in there) for address in range(6)]
        assert len(guests) == len(there) <= most
        assert max(by_address) <= per_address
        assert sum(each not in shown for each in there) <= keyless
