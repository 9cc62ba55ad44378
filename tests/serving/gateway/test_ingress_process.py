"""The ingress as a process: reloaded, renewed, drained and killed, and gateways that come and go behind it."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from functools import partial
from pathlib import Path

import aiohttp
import psutil
import pytest

from fabric.api.tls import ensure_certificate
from fabric.config.serving import ServingConfig
from fabric.daemon.serving_host import hosts_of
from fabric.errors import Unavailable
from fabric.system.ports import free_port
from fabric.wire import fabric_pb2 as pb
from serving.fabric_client import FabricClient
from serving.gateway.__main__ import secret_of
from serving.host import gateways as keeping
from serving.host.__main__ import located
from serving.host.haproxy import Frontend, binary
from serving.host.ingress import Ingress
from tests.serving import engine_standin
from tests.serving.engine_standin import EngineStandin
from tests.serving.gateway.front import OURS, fronted, is_served, post, until, worker_pid
from tests.serving.gateway.house import CHAT, STREAM, free_socket, house_of, served
from tests.serving.gateway.test_fabric_directory import announce, doors

__all__ = ["doors"]


async def test_a_reload_cuts_no_stream_and_newcomers_meet_the_new_worker(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path) as (ingress, url):
        house.engine.token_s = 0.05
        old = await worker_pid(ingress)

        async def is_replaced():
            with contextlib.suppress(OSError, StopIteration):
                return await worker_pid(ingress) != old
            return False

        async with post(house, url, {**STREAM, "max_tokens": 60}) as answer:
            await answer.content.readany()
            await ingress.reload()
            await until(is_replaced)
            house.engine.token_s = 0.0
            async with aiohttp.ClientSession() as other:
                bearer = {"authorization": f"Bearer {house.key}"}
                async with other.post(url + "/v1/chat/completions", json=CHAT, headers=bearer) as newcomer:
                    assert newcomer.status == 200
            assert b"[DONE]" in await answer.read()


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path):
    first, second = (ensure_certificate(tmp_path / name) for name in ("first", "second"))
    trusted = [ssl.create_default_context(cafile=str(files.ca)) for files in (first, second)]
    async with house_of(tmp_path) as house, fronted(house, tmp_path, certificate=first, look_s=0.1) as (_, url):
        async with post(house, url, ssl=trusted[0]) as answer:
            assert answer.status == 200
        first.cert.write_bytes(second.cert.read_bytes())
        first.key.write_bytes(second.key.read_bytes())

        async def is_shown():
            with contextlib.suppress(aiohttp.ClientError):
                async with aiohttp.ClientSession() as fresh, fresh.get(url + "/v1/models", ssl=trusted[1]):
                    return True
            return False

        await until(is_shown)
        context = ssl.create_default_context(cafile=str(second.ca))
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            assert connection.selected_alpn_protocol() == "h2"


def open_ones(strangers):
    """Those that weren't closed."""
    found = []
    for stranger in strangers:
        stranger.settimeout(0)
        try:
            if stranger.recv(1):
                found.append(stranger)
        except BlockingIOError:
            found.append(stranger)
        except OSError:
            pass
    return found


def strangers(url, addresses, stack):
    """A connection from each address, with half a handshake on it."""
    opened = []
    for address in addresses:
        opened.append(stack.enter_context(socket.socket()))
        opened[-1].bind((address, 0))
        with contextlib.suppress(OSError):
            opened[-1].connect(("127.0.0.1", int(url.rpartition(":")[2])))
            opened[-1].settimeout(0)
            opened[-1].send(bytes([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]) + bytes(100))
    return opened


async def test_whoever_showed_a_key_is_served_beside_a_crowd_that_shows_none(tmp_path):
    files = ensure_certificate(tmp_path / "tls")
    tls = ssl.create_default_context(cafile=str(files.ca))
    async with house_of(tmp_path) as house, fronted(house, tmp_path, certificate=files, connections=40) as (_, url):
        await until(partial(is_served, house, url, ssl=tls, headers={"connection": "close"}))
        with contextlib.ExitStack() as stack:
            addresses = [f"127.0.1.{number}" for number in range(1, 101)]
            crowd = await asyncio.to_thread(strangers, url, addresses, stack)
            await until(partial(is_served, house, url, ssl=tls))
            assert 0 < len(open_ones(crowd)) <= 30


async def test_an_address_without_a_key_has_few_connections_and_with_one_more(tmp_path):
    files = ensure_certificate(tmp_path / "tls")
    tls = ssl.create_default_context(cafile=str(files.ca))
    limits = {"connections": 400, "keyless_per_address": 8, "per_address": 20}
    async with house_of(tmp_path) as house, fronted(house, tmp_path, certificate=files, **limits) as (_, url):
        for least, most in ((1, 8), (9, 20)):
            with contextlib.ExitStack() as stack:
                crowd = await asyncio.to_thread(strangers, url, ["127.0.0.1"] * 30, stack)

                async def is_bounded(crowd=crowd, most=most):
                    return len(open_ones(crowd)) <= most

                await until(is_bounded)
                assert len(open_ones(crowd)) >= least
            await until(partial(is_served, house, url, ssl=tls, headers={"connection": "close"}))


async def test_requests_without_a_key_are_few_from_an_address_and_others_are_served(tmp_path):
    """One connection of HTTP/2 carries a hundred at once, each of which would hold a gateway's connection."""
    async with house_of(tmp_path) as house, fronted(house, tmp_path, keyless_requests=20) as (_, url):
        await until(partial(is_served, house, url))
        stranger = aiohttp.TCPConnector(local_addr=("127.0.0.9", 0))
        statuses = []
        async with aiohttp.ClientSession(connector=stranger) as strange:
            for _ in range(60):
                async with strange.post(url + "/v1/chat/completions", json=CHAT) as answer:
                    statuses.append(answer.status)
            async with strange.get(url + "/v1/models") as answer:
                assert (await answer.json())["error"]["code"] == "too_many_without_a_key"
                assert answer.headers["retry-after"]
        assert statuses[:10] == [401] * 10
        assert 429 in statuses
        assert all([await is_served(house, url) for _ in range(60)])


async def test_a_client_of_http_2_is_served_its_stream(tmp_path):
    curl = shutil.which("curl")
    if curl is None or "HTTP2" not in subprocess.run([curl, "-V"], capture_output=True, text=True, check=False).stdout:  # noqa: ASYNC221
        pytest.skip("no curl that speaks HTTP/2")
    files = ensure_certificate(tmp_path / "tls")
    async with house_of(tmp_path) as house, fronted(house, tmp_path, certificate=files) as (_, url):
        asked = await asyncio.create_subprocess_exec(
            curl, "--http2", "-sSN", "--cacert", str(files.ca), "-H", f"authorization: Bearer {house.key}",
            "-H", "content-type: application/json", "-d", json.dumps(STREAM), "-w", "%{http_version} %{http_code}",
            url + "/v1/chat/completions", stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, _ = await asked.communicate()
    assert said.endswith(b"data: [DONE]\n\n2 200")
    assert said.count(b"data: {") == 7


async def test_an_end_in_order_lets_streams_finish_and_takes_no_more(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path) as (ingress, url):
        house.engine.token_s = 0.05
        async with post(house, url, {**STREAM, "max_tokens": 20}) as answer:
            await answer.content.readany()
            await ingress.drain()

            async def is_closed():
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
                except ConnectionRefusedError:
                    return True
                writer.close()
                return False

            await until(is_closed)
            assert b"[DONE]" in await answer.read()


async def test_an_ingress_that_is_killed_is_started_again_and_knows_the_gateways(tmp_path):
    async with house_of(tmp_path) as house, fronted(house, tmp_path) as (ingress, url):
        family = [psutil.Process(ingress._process.pid), *psutil.Process(ingress._process.pid).children()]
        for process in family:
            process.kill()

        await until(lambda: is_served(house, url))
        assert [each.pid for each in hosts_of(tmp_path)], "what a host leaves behind is known by its file"


async def test_an_address_that_is_taken_is_said_with_haproxys_own_words(tmp_path):
    with free_socket() as taken:
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        front = Frontend(listen=listen, certificate=None, secret=OURS, socket=Path())
        with pytest.raises(Unavailable, match=r"in use|bind") as refused:
            async with Ingress(front, place=tmp_path, certificate=None, gateways=1):
                pass
    assert refused.value.code == "no_ingress"
    assert list(hosts_of(tmp_path)) == []


async def test_without_haproxy_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(Unavailable, match="ingress: none") as refused:
        binary()
    assert refused.value.code == "no_haproxy"


async def test_gateways_that_are_killed_come_back_behind_it_and_a_cut_stream_is_heard_of_at_once(
    doors, tmp_path, monkeypatch
):
    state_dir = tmp_path / "state"
    announce(doors, state_dir)
    engine = EngineStandin(token_s=0.02)
    monkeypatch.setattr(engine_standin, "TRUST", secret_of(state_dir, "trust"))
    monkeypatch.setattr(keeping, "PAUSE_S", 0.1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    listen = f"127.0.0.1:{free_port()}"
    serving = ServingConfig(listen=listen, gateways=2, grace_s=10)
    stopped, ledger = asyncio.Event(), FabricClient(doors.profile(doors.root))
    kept = asyncio.create_task(keeping.keep_gateways(serving, listen=listen, state_dir=state_dir, stopped=stopped))
    trusted = ssl.create_default_context(cafile=str(doors.tls.ca))
    url, headers = f"https://{listen}/v1/chat/completions", {"authorization": f"Bearer {doors.acme}"}
    try:
        async with served(engine) as address, aiohttp.ClientSession() as http:
            reporting = asyncio.create_task(_report(ledger, address))
            await _answers(http, url, headers, trusted, kept)
            long = {**STREAM, "max_tokens": 100_000}
            async with http.post(url, json=long, headers=headers, ssl=trusted) as answer:
                assert answer.status == 200
                await answer.content.readany()
                victims = [each for each in hosts_of(state_dir) if "serving.gateway" in each.cmdline()]
                assert len(victims) == 2
                _at(victims, engine, address).kill()
                with pytest.raises(aiohttp.ClientPayloadError):
                    async with asyncio.timeout(10):
                        await answer.content.read()
            for _ in range(5):
                async with http.post(url, json=CHAT, headers=headers, ssl=trusted) as answer:
                    assert answer.status == 200

            async def are_back():
                return len([each for each in hosts_of(state_dir) if "serving.gateway" in each.cmdline()]) == 2

            await until(are_back)
            async with http.post(url, json={**STREAM, "max_tokens": 60}, headers=headers, ssl=trusted) as answer:
                await answer.content.readany()
                stopped.set()
                assert b"[DONE]" in await answer.read()
            await asyncio.wait_for(kept, 60)
            reporting.cancel()
        assert list(hosts_of(state_dir)) == []
    finally:
        stopped.set()
        kept.cancel()
        await asyncio.wait((kept,))
        await ledger.close()
        for left in hosts_of(state_dir):
            left.send_signal(signal.SIGKILL)


async def test_one_gateway_without_an_ingress_stands_at_the_address_itself_and_comes_back(doors, tmp_path, monkeypatch):
    state_dir = tmp_path / "state"
    announce(doors, state_dir)
    monkeypatch.setattr(keeping, "PAUSE_S", 0.1)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    listen = f"127.0.0.1:{free_port()}"
    file = ServingConfig(listen="127.0.0.1:7480", tls="plain", endpoint="http://ai.example/v1", admin_port=7481)
    serving = located(file, listen)
    assert (serving.has_ingress, serving.admin_port, located(file, file.listen).admin_port) == (False, None, 7481)
    stopped, ledger = asyncio.Event(), FabricClient(doors.profile(doors.root))
    kept = asyncio.create_task(keeping.keep_gateways(serving, listen=listen, state_dir=state_dir, stopped=stopped))
    try:
        async with aiohttp.ClientSession() as http:

            async def answers():
                assert not kept.done()
                with contextlib.suppress(aiohttp.ClientError):
                    async with http.get(f"http://{listen}/v1/models") as answer:
                        return answer.status == 401
                return False

            await until(answers)
            (first,) = hosts_of(state_dir)
            first.kill()
            await until(answers)
            (second,) = hosts_of(state_dir)
            assert second.pid != first.pid
            async with asyncio.timeout(30):
                async for board in ledger.watch():
                    if list(board.endpoints) == ["http://ai.example/v1"]:
                        break
        stopped.set()
        await asyncio.wait_for(kept, 60)
        assert list(hosts_of(state_dir)) == []
    finally:
        stopped.set()
        await asyncio.wait((kept,))
        await ledger.close()


async def _report(ledger, address):
    replica = pb.Replica(replica_id="r1", model="tiny", address=address, state="ready", accelerator="H100", capacity=64)
    while True:
        await ledger.report(pb.ReportServingRequest(reporter="host", replicas=[replica]))
        await asyncio.sleep(1)


async def _answers(http, url, headers, trusted, kept):
    async with asyncio.timeout(60):
        while True:
            if kept.done():
                await kept
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(url, json=CHAT, headers=headers, ssl=trusted) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


def _at(gateways, engine, address):
    """The one that has a connection to the engine for the stream that is under way."""
    port = int(address.rpartition(":")[2])
    for each in gateways:
        if any(link.raddr and link.raddr.port == port for link in each.net_connections("tcp")):
            return each
    raise AssertionError("none of them streams")
