"""Streams that end early, on either side, and readers that are slow."""

import asyncio
import json
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest

from serving import http_server
from serving.gateway import app, exchange
from serving.gateway.directory import Replica
from serving.gateway.events import Events
from serving.gateway.routes import ROUTES, route_of
from tests.serving.gateway.house import CHAT, STREAM, free_socket, house_of, stalled_until_let_go

SURFACES = [
    ("/v1/chat/completions", STREAM),
    ("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 5, "stream": True}),
    ("/v1/responses", {"model": "tiny", "input": "x", "max_output_tokens": 5, "stream": True}),
    ("/v1/messages", STREAM),
]


def events_of(raw):
    return [event for event in raw.decode().split("\n\n") if event]


def error_of(event):
    said = json.loads(event.partition("data: ")[2])
    return said["error"]


async def test_a_client_that_leaves_ends_the_work_at_once(house):
    house.engine.token_s = 0.02
    async with house.post(body={**STREAM, "max_tokens": 10_000}) as answer:
        await answer.content.readany()
        call = answer.headers["x-fabric-call"]
        answer.close()
    await house.settled(lambda: house.engine.ended.get(call) == "client_gone")
    await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].seated == 0)
    assert house.engine.produced[call] < 1_000
    await house.settled(lambda: not house.gateway._open)


async def test_a_client_that_leaves_before_an_answer_in_one_piece_ends_the_work_too(house):
    house.engine.token_s = 0.02
    with pytest.raises(TimeoutError):
        async with house.post(body={**CHAT, "max_tokens": 10_000}, timeout=aiohttp.ClientTimeout(total=0.3)):
            pass
    await house.settled(lambda: set(house.engine.ended.values()) == {"client_gone"})


async def test_a_replica_that_breaks_is_an_error_event_and_never_a_clean_end(house):
    for break_with in ("break_after", "end_after"):
        setattr(house.engine, break_with, 3)
        for path, body in SURFACES:
            async with house.post(path, body=body) as answer:
                events = events_of(await answer.read())
            error = error_of(events[-1])
            assert "charged" in error["message"] or "before it was done" in error["message"]
            assert error.get("code", error["type"]) in {"replica_lost", "cut_off", "api_error"}, path
            assert "[DONE]" not in events[-1]
            assert sum("w2" in event for event in events) == 1  # what came is there
        setattr(house.engine, break_with, None)


RAW = {
    "a failure": ("CUDA error: an illegal memory access at /usr/lib/vllm/v1/worker.py", 500, "the engine failed", "engine_failed"),
    "a length": ("This model's maximum context length is 512 tokens.", 400, "maximum context length is 512", "context_length_exceeded"),
    "an option": ("The engine says no. Start it with --enable-auto-tool-choice.", 400, "calls no tools", "tools_not_offered"),
}  # fmt: skip
WRITTEN = {
    "openai": lambda said, code: f'data: {{"error": {{"message": {json.dumps(said)}, "type": "X", "param": null, "code": {code}}}}}',
    "responses": lambda said, code: 'event: error\ndata: '
    f'{{"type": "error", "code": "{code}", "message": {json.dumps(said)}, "param": null, "sequence_number": 7}}',
    "failed": lambda said, code: 'event: response.failed\ndata: '
    f'{{"type": "response.failed", "response": {{"id": "r", "error": {{"code": "server_error", "message": {json.dumps(said)}}}}}}}',
    "messages": lambda said, code: 'event: error\ndata: '
    f'{{"type": "error", "error": {{"type": "internal_error", "message": {json.dumps(said)}}}}}',
}  # fmt: skip
FORMS = [
    ("/v1/chat/completions", "openai"), ("/v1/completions", "openai"), ("/v1/responses", "openai"),
    ("/v1/responses", "responses"), ("/v1/responses", "failed"), ("/v1/messages", "messages"), ("/v1/messages", "openai"),
]  # fmt: skip


@pytest.mark.parametrize("cut", [0, 20])
@pytest.mark.parametrize("what", RAW)
@pytest.mark.parametrize(("path", "form"), FORMS)
def test_an_engines_error_in_a_stream_is_told_in_our_words(path, form, what, cut):
    raw, status, told, code = RAW[what]
    route, _ = route_of("POST", path)
    events = Events(route)
    sent = b'data: {"choices": [{"index": 0, "text": "an \\"error\\" of mine"}]}\n\n'
    written = WRITTEN[form](raw, status).encode() + b"\n\n"
    more = b"data: [DONE]\n\n" if route.surface in {"chat", "completions"} else b""
    whole = sent + written + more
    out = b"".join(events.feed(piece) for piece in (whole[: len(sent) + cut], whole[len(sent) + cut :]) if piece)
    assert out.startswith(sent), "what an answer says is the answer's"
    assert out.endswith(more)
    (error,) = [event for event in events_of(out) if '"message"' in event]
    inner = error_of(error)
    assert told in inner["message"]
    assert inner.get("code") in {code, None}
    for word in ("--enable", "/usr/lib", "CUDA"):
        assert word.encode() not in out
    assert events.ended, "nothing is put behind it"
    assert error.startswith("event: error\n") == (route.surface in {"responses", "anthropic"})


def test_what_our_own_front_says_in_a_stream_stays_as_it_is():
    events = Events(route_of("POST", "/v1/chat/completions")[0])
    own = b'data: {"error": {"message": "no more compute tokens: top up", "code": "insufficient_quota", "fabric": {}}}\n\n'
    assert events.feed(own + b"data: [DONE]\n\n") == own + b"data: [DONE]\n\n"


def test_every_surface_that_streams_has_its_engines_errors_told_in_our_words():
    assert {path for path, _ in FORMS} == {route.path for route in ROUTES if route.streams}


async def test_a_replica_that_breaks_before_an_answer_in_one_piece_is_502(house):
    house.engine.token_s = 30
    asked = asyncio.create_task(house.post().__aenter__())
    await house.settled(lambda: house.engine.active == 1)
    await house.stop_engine["r1"]()
    answer = await asked
    assert answer.status == 502
    assert (await answer.json())["error"]["code"] == "replica_lost"
    answer.close()


async def test_kill_9_of_a_replica_is_heard_at_once_and_the_next_request_goes_elsewhere(tmp_path):
    probe = free_socket()
    port = probe.getsockname()[1]
    probe.close()
    command = [sys.executable, "-m", "tests.serving.engine_standin", str(port), "0.02"]
    process = await asyncio.to_thread(subprocess.Popen, command)
    try:
        async with house_of(tmp_path) as house:
            async with asyncio.timeout(30):
                while True:
                    try:
                        async with house.http.get(f"http://127.0.0.1:{port}/health"):
                            break
                    except aiohttp.ClientError:
                        await asyncio.sleep(0.05)
            alive = house.directory.replicas.pop("r1")
            house.directory.show(Replica(replica_id="r9", model="tiny", address=f"http://127.0.0.1:{port}"))
            await house.settled(
                lambda: [r.replica_id for r in house.gateway.pools.of("tiny", "ann")[0].replicas] == ["r9"]
            )
            async with house.post(body={**STREAM, "max_tokens": 100_000}) as answer:
                await answer.content.readany()
                process.send_signal(signal.SIGKILL)
                async with asyncio.timeout(10):
                    rest = await answer.content.read()
            assert error_of(events_of(rest)[-1])["code"] == "replica_lost"
            # The board still shows the dead one: it can't be reached, and the other is asked, with nothing sent twice.
            house.directory.show(alive)
            await house.settled(lambda: len(house.gateway.pools.of("tiny", "ann")[0].replicas) == 2)
            for _ in range(5):
                async with asyncio.timeout(10), house.post() as answer:
                    assert answer.status == 200
            assert len(house.engine.requests) == 5
    finally:
        process.kill()
        process.wait()


async def test_what_the_board_calls_gone_is_gone_whatever_its_connection_says(house):
    house.engine.token_s = 0.05
    async with house.post(body={**STREAM, "max_tokens": 10_000}) as answer:
        await answer.content.readany()
        house.directory.replicas.clear()
        house.directory.change()
        async with asyncio.timeout(10):
            rest = await answer.content.read()
    assert error_of(events_of(rest)[-1])["code"] == "replica_lost"
    await house.settled(lambda: "client_gone" in house.engine.ended.values())


async def test_a_replica_that_drains_gets_nothing_new_and_finishes_what_it_has(house):
    house.engine.token_s = 0.02
    async with house.post(body={**STREAM, "max_tokens": 20}) as answer:
        await answer.content.readany()
        replica = house.directory.replicas["r1"]
        house.directory.show(Replica(replica_id="r1", model="tiny", address=replica.address, state="draining"))
        await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].replicas[0].state == "draining")
        asked = asyncio.create_task(house.post().__aenter__())
        assert events_of(await answer.read())[-1] == "data: [DONE]"
        assert not asked.done()
        house.directory.show(replica)
        assert (await asked).status == 200
        (await asked).close()


async def test_a_reader_that_stalls_is_let_go(house, monkeypatch):
    monkeypatch.setattr(app, "STALL_S", 0.5)
    _, writer = await stalled_until_let_go(house, house.url)
    await house.settled(lambda: not house.servers[0]._servers[0][0].server_state.connections)
    writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(house, monkeypatch):
    monkeypatch.setattr(exchange, "BODY_IDLE_S", 0.2)
    port = int(house.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        + f"authorization: Bearer {house.key}\r\ncontent-length: 500\r\n\r\n{{".encode()
    )
    async with asyncio.timeout(10):
        assert b"408" in await reader.readline()
        await reader.read()
    writer.close()


async def test_a_thousand_idle_streams_keep_nobody_else_waiting(tmp_path):
    async with house_of(tmp_path, capacity=2_000) as house:
        house.engine.token_s = 3_600
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            headers = {"authorization": f"Bearer {house.key}"}
            url = house.url + "/v1/chat/completions"
            answers = []
            for _ in range(20):
                answers += await asyncio.gather(*(http.post(url, json=STREAM, headers=headers) for _ in range(50)))
            assert {answer.status for answer in answers} == {200}
            await house.settled(lambda: house.engine.active == 1_000, within_s=60)
            house.engine.token_s = 0
            async with asyncio.timeout(20), house.post() as answer:
                assert answer.status == 200
            for answer in answers:
                answer.close()
        await house.settled(lambda: house.engine.active == 0, within_s=60)
        await house.settled(lambda: not house.gateway._open, within_s=60)


async def test_a_gateway_that_goes_down_lets_streams_finish_and_takes_no_more(house):
    house.engine.token_s = 0.05
    async with house.post(body={**STREAM, "max_tokens": 20}) as answer:
        await answer.content.readany()
        house.servers[0].stop()
        assert events_of(await answer.read())[-1] == "data: [DONE]"
    with pytest.raises(aiohttp.ClientConnectionError):
        async with house.post():
            pass


async def test_what_does_not_finish_in_time_hears_of_it(tmp_path, monkeypatch):
    async with house_of(tmp_path) as house:
        house.engine.token_s = 0.05
        house.servers[0]._servers[0][0].config.timeout_graceful_shutdown = 0.3
        async with house.post(body={**STREAM, "max_tokens": 100_000}) as answer:
            await answer.content.readany()
            house.servers[0].stop()
            rest = await answer.content.read()
        assert error_of(events_of(rest)[-1])["code"] == "going_down"


async def test_while_the_fabric_is_away_streams_go_on_and_newcomers_hear_when_to_come_back(house):
    house.engine.token_s = 0.05
    async with house.post(body={**STREAM, "max_tokens": 60}) as answer:
        await answer.content.readany()
        house.directory.away = True
        house.directory.change()
        newcomer = house.directory.add_key("new", "bob")
        async with house.post(key=newcomer) as refused:
            assert (refused.status, (await refused.json())["error"]["code"]) == (503, "unavailable")
            assert refused.headers["retry-after"] == "1"
        assert events_of(await answer.read())[-1] == "data: [DONE]"
    house.directory.away = False
    await house.settled(house.gateway.is_ready)
    async with house.post(key=newcomer) as answer:
        assert answer.status == 200


async def test_a_machine_that_is_gone_without_a_word_is_noticed_while_its_next_token_is_waited_for(house):
    """The kernel asks for us: what breaks then is a replica that is lost, as by `kill -9`."""
    async with house.post() as answer:
        assert answer.status == 200
    (kept,) = house.gateway.upstream._session.connector._conns.values()
    opened = kept[0][0].transport.get_extra_info("socket")
    assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    quiet_s, every_s, times, at_most_ms = (opened.getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert quiet_s + every_s * times <= 20
    assert at_most_ms <= 20_000


async def test_headers_that_do_not_come_are_not_waited_for(house, monkeypatch):
    monkeypatch.setattr(http_server, "HEADERS_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


def test_events_pass_whole_however_they_are_cut():
    route, _ = route_of("POST", "/v1/chat/completions")
    raw = b'data: {"a":1}\n\ndata: {"b":"x"}\n\n: note\n\ndata: [DONE]\n\n'
    for size in range(1, len(raw) + 1):
        events = Events(route)
        out = [events.feed(raw[start : start + size]) for start in range(0, len(raw), size)]
        assert b"".join(out) == raw
        assert all(piece == b"" or piece.endswith(b"\n\n") for piece in out)
        assert (events.ended, events.count) == (True, 4)


def test_words_that_look_like_the_end_are_not_the_end():
    route, _ = route_of("POST", "/v1/chat/completions")
    events = Events(route)
    events.feed(b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n')
    assert not events.ended
