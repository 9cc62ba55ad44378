"""Before a key was looked at: no body is read, and nobody stays connected for long, or in numbers."""

import asyncio
import contextlib

from fabric.api.connections import KEYLESS_PART
from serving.gateway.app import Gateway, Limits
from tests.serving.gateway.house import CHAT, house_of, key_of


async def test_a_body_is_not_read_before_the_key_is_looked_at(house, monkeypatch):
    read = []
    monkeypatch.setattr(Gateway, "_read", lambda *_: read.append(1))
    async with house.post(key="fab_nobody_" + "0" * 64) as answer:
        assert answer.status == 401
    assert read == []


async def test_who_shows_no_key_is_disconnected_and_who_does_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("fabric.api.connections.LOOK_S", 0.05)
    async with house_of(tmp_path) as house:
        connections = house.gateway.connections
        connections._per_address, connections._keyless_s = 2 * KEYLESS_PART, 10_000.0
        host, port = house.url.removeprefix("http://").split(":")
        async with house.post() as answer:
            assert answer.status == 200
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
        gone = 0
        async with asyncio.timeout(60):
            while gone < 10:
                await asyncio.sleep(0.05)
                gone = sum(reader.at_eof() for reader, _ in opened)
        assert gone == 10
        connections._keyless_s = 0.1
        async with asyncio.timeout(60):
            for reader, _ in opened:
                await reader.read()
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
