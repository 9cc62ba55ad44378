"""HAProxy before the gateways: what passes, as it was made, and nobody's word counts but its own."""

import asyncio
import contextlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.system.ports import free_port
from serving.gateway.behind import ALIVE, CLIENT, SECRET
from serving.gateway.keys import GUESSES_PER_S
from serving.host.haproxy import Frontend, binary, configuration
from serving.host.ingress import Ingress
from tests.serving.engine_standin import EngineStandin
from tests.serving.gateway.front import OURS, fronted, is_served, post, until
from tests.serving.gateway.house import CHAT, STREAM, house_of, key_of, served, stalled_until_let_go


class PacedEngine(EngineStandin):
    """Makes each token only when it is let."""

    def __init__(self):
        super().__init__()
        self.may = asyncio.Semaphore(0)

    async def made(self, call, count):
        await self.may.acquire()
        return True


async def test_each_piece_of_a_stream_passes_before_the_next_is_made(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path) as (_, url):
        engine = PacedEngine()
        async with served(engine) as address:
            replica = house.directory.replicas["r1"]
            house.directory.show(type(replica)(replica_id="r1", model="tiny", address=address, accelerator="H100"))
            await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].replicas[0].address == address)
            async with post(house, url, {**STREAM, "max_tokens": 5}) as answer:
                assert answer.status == 200
                for number in range(5):
                    engine.may.release()
                    async with asyncio.timeout(20):
                        while f"w{number} " not in (piece := (await answer.content.readuntil(b"\n\n")).decode()):
                            pass
                    assert f"w{number + 1} " not in piece
                assert b"[DONE]" in await answer.read()


CLAIMS = {
    "x-forwarded-for": "203.0.113.9", "x-forwarded-proto": "https", "forwarded": "for=203.0.113.9", "x-real-ip": "203.0.113.9",
    CLIENT: "203.0.113.9", SECRET: "guess", "x-fabric-account": "victim", "x-fabric-trust": "guess", "x-fabric-tier-rank": "2",
    "x-fabric-strict": "1",
}  # fmt: skip


async def test_what_a_client_claims_about_itself_does_not_pass(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path) as (_, url):
        heard = []
        inner = house.gateway._admit

        async def listening(exchange):
            heard.append((exchange.scope["client"], dict(exchange.headers)))
            return await inner(exchange)

        house.gateway._admit = listening
        async with post(house, url, headers=CLAIMS) as answer:
            assert answer.status == 200
        ((client, headers),) = heard
        assert client[0] == "127.0.0.1"
        assert {name for name in headers if name.startswith((b"x-", b"forwarded"))} == {b"x-fabric-strict"}
        told = house.engine.requests[-1][1]
        assert (told["x-fabric-account"], told["x-fabric-tier-rank"], told["x-fabric-strict"]) == ("ann", "0", "1")


async def test_what_comes_after_a_body_claims_nothing_either(tmp_path):
    """HAProxy passes trailers on as they come."""
    async with house_of(tmp_path) as house, fronted(house, tmp_path) as (_, url):
        heard = []
        inner = house.gateway._admit

        async def listening(exchange):
            heard.append((exchange.scope["client"][0], set(exchange.headers) & {name.encode() for name in CLAIMS}))
            return await inner(exchange)

        house.gateway._admit = listening
        body = json.dumps(CHAT)
        trailers = "".join(f"{name}: {value}\r\n" for name, value in CLAIMS.items())
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {house.key}\r\n"
            "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            f"{len(body):x}\r\n{body}\r\n0\r\n{trailers}\r\n".encode()
        )
        async with asyncio.timeout(20):
            assert (await reader.readline()).split()[1] == b"200"
        writer.close()
        assert heard == [("127.0.0.1", set())]


async def test_a_gateway_behind_an_ingress_hears_nobody_else(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path):
        for claimed in ({}, {SECRET: "guess"}, {SECRET: ""}):
            for path in ("/v1/chat/completions", ALIVE, "/v1/models"):
                bearer = {"authorization": f"Bearer {house.key}", **claimed}
                async with house.http.post(house.urls[-1] + path, json=CHAT, headers=bearer) as answer:
                    assert (answer.status, (await answer.json())["error"]["code"]) == (403, "not_the_ingress")
        assert house.engine.requests == []


async def test_keys_are_guessed_on_the_clients_own_account_and_not_on_all(tmp_path):
    """Were the ingress' address what counts, one who guesses would shut everybody out."""
    async with house_of(tmp_path, monotonic=lambda: 50.0) as house, fronted(house, tmp_path) as (_, url):
        guesses = house.gateway._keys._guesses
        async with post(house, url, key=key_of("nobody")) as answer:
            assert answer.status == 401
        for _ in range(2 * GUESSES_PER_S - 1):
            guesses.spend("127.0.0.1")
        async with post(house, url, key=key_of("nobody-else")) as answer:
            assert answer.status == 429
        guesses.spend("127.0.0.2")


async def test_a_client_that_leaves_a_silent_stream_is_noticed(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path) as (_, url):
        house.engine.token_s = 3_600
        async with post(house, url, STREAM) as answer:
            call = answer.headers["x-fabric-call"]
            await answer.content.readany()
            await house.settled(lambda: house.engine.active == 1)
            answer.close()
        await house.settled(lambda: house.engine.ended.get(call) == "client_gone")


async def test_a_client_that_waits_in_silence_is_waited_for_and_one_that_does_not_send_is_not(tmp_path):
    async with (
        house_of(tmp_path) as house,
        fronted(house, tmp_path, headers_s=0.3, reader_s=0.3) as (_, url),
    ):
        house.engine.first_s = 0.7  # of which the ingress hears nothing
        async with post(house, url) as answer:
            assert answer.status == 200
        async with post(house, url, STREAM) as answer:
            assert b"[DONE]" in await answer.read()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        async with asyncio.timeout(20):
            said = await reader.read()
        assert said.startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_reader_that_stalls_is_let_go_and_no_more_is_made_for_it(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path, reader_s=0.5) as (_, url):
        _, writer = await stalled_until_let_go(house, url)
        writer.close()


async def test_one_address_cannot_take_all_connections(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path, per_address=4) as (_, url):
        port = int(url.rpartition(":")[2])
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionResetError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read() == b""
                writer.close()
        for _, each in held:
            each.close()

        await until(lambda: is_served(house, url))


async def test_its_own_figures_are_by_gateway_and_no_client_can_make_a_series(tmp_path):
    metrics = f"127.0.0.1:{free_port()}"
    async with house_of(tmp_path) as house, fronted(house, tmp_path, metrics=metrics) as (_, url):

        async def series():
            async with house.http.get(f"http://{metrics}/metrics") as answer:
                return {line.rpartition(" ")[0] for line in (await answer.text()).splitlines() if line[:1] != "#"}

        async with post(house, url) as answer:
            assert answer.status == 200
        before = await series()
        assert 'haproxy_server_status{proxy="gateways",server="g0",state="UP"}' in before
        for number in range(20):
            async with post(house, f"{url}/made-up-{number}", key=key_of(f"made-up-{number}")) as answer:
                assert answer.status == 404
        assert await series() == before
        async with house.http.get(f"http://{metrics}/anything") as answer:
            assert answer.status == 404


async def test_without_a_gateway_it_says_when_to_come_back(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path, standing=False) as (ingress, url):
        async with post(house, url) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (503, "no_gateway")
            assert answer.headers["retry-after"] == "2"
        await ingress.stands(0, house.urls[-1].removeprefix("http://"))
        async with post(house, url) as answer:
            assert answer.status == 200
        await ingress.falls(0)
        async with post(house, url) as answer:
            assert answer.status == 503


async def test_of_two_gateways_the_one_that_hangs_or_is_gone_is_not_asked(tmp_path):
    """One is a port where nobody listens: not a byte gets there, and the other is asked."""
    async with house_of(tmp_path, gateways=2) as house, fronted(house, tmp_path) as (ingress, url):
        await ingress.stands(1, f"127.0.0.1:{free_port()}")
        for number in range(8):
            key = house.directory.add_key(f"k-{number}", f"a-{number}")
            async with post(house, url, key=key) as answer:
                assert answer.status == 200
        assert len(house.engine.requests) == 8


async def test_a_keys_requests_meet_at_one_gateway(tmp_path):
    async with house_of(tmp_path, gateways=2) as house, fronted(house, tmp_path) as (ingress, url):

        async def is_idle():
            return all(
                line.split(",")[4] == "0" for line in (await ingress.ask("show stat")).splitlines() if ",g" in line
            )

        at = {}
        for name in range(12):
            key = house.directory.add_key(f"k-{name}", f"a-{name}")
            before = [
                gateway.metrics._requests.labels("tiny", "starter", "2xx")._value.get() for gateway in house.gateways
            ]
            for _ in range(3):
                async with post(house, url, key=key, headers={"connection": "close"}) as answer:
                    assert answer.status == 200
                await until(is_idle)
            after = [
                gateway.metrics._requests.labels("tiny", "starter", "2xx")._value.get() for gateway in house.gateways
            ]
            at[name] = tuple(now - was for now, was in zip(after, before, strict=True))
        assert set(at.values()) == {(3.0, 0.0), (0.0, 3.0)}


async def test_a_large_body_passes_and_one_too_large_is_told_so(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path) as (_, url):
        for size, status in ((9 * 2**20, 200), (11 * 2**20, 413)):
            data, headers = json.dumps(CHAT).encode().ljust(size), {"content-type": "application/json"}
            async with post(house, url, None, data=data, headers=headers) as answer:
                assert answer.status == status


@given(
    host=st.sampled_from(["127.0.0.1", "0.0.0.0", "[::1]", "[::]"]),
    gateways=st.lists(st.sampled_from(["", "127.0.0.1:7000", "127.0.0.1:65535"]), min_size=1, max_size=64),
    connections=st.integers(1, 2**20),
    metrics=st.sampled_from(["", "127.0.0.1:7483"]),
    wait_s=st.floats(0.001, 3600),
)
def test_every_configuration_has_each_gateway_once_and_the_secret_nowhere_a_client_sees_it(
    host, gateways, connections, metrics, wait_s
):
    front = Frontend(
        listen=f"{host}:7480", certificate=None, secret=OURS, socket=Path("/x"), connections=connections, metrics=metrics,
        wait_s=wait_s,
    )  # fmt: skip
    text = configuration(front, gateways)
    servers = [line.split() for line in text.splitlines() if line.startswith("    server ")]
    assert [(words[1], "disabled" in words) for words in servers] == [
        (f"g{number}", not address) for number, address in enumerate(gateways)
    ]
    assert not any(OURS in line for line in text.splitlines() if "http-error" in line or "return" in line)
    (per_address,) = re.findall(r"reject if { sc_conn_cur\(0\) gt (\d+) }$", text, re.MULTILINE)
    assert int(per_address) <= max(1, connections // 4)
    assert text.index("del-header x-fabric-") < text.index(f"set-header {SECRET}")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::1]", "[::]"])
async def test_haproxy_takes_what_is_written_for_it(tmp_path, host):
    front = Frontend(
        listen=f"{host}:{free_port()}",
        certificate=None,
        secret=OURS,
        socket=Path("/x"),
        metrics=f"127.0.0.1:{free_port()}",
        threads=2,
    )
    ingress = Ingress(front, place=tmp_path, certificate=None, gateways=3)
    ingress._binary = binary()
    ingress._write()
    await ingress._check()
