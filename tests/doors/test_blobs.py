"""Blobs at the door: however large and however many, they are in nobody's way."""

import asyncio
import hashlib

import pytest

from fabric.api.blobs import PART_BYTES, WHOLE_MAX, Blobs
from fabric.api.limits import Limits
from fabric.errors import NotFound


class Port:
    """An archive that says how many blobs are in its hands at once."""

    def __init__(self):
        self.kept, self.now, self.most = {}, 0, 0

    async def put_blob(self, key, data):
        await self._held()
        self.kept[key] = data

    async def fetch_blob(self, key, into):
        if key not in self.kept:
            raise NotFound(key)
        into.write(self.kept[key])

    async def kept_blobs(self, prefix):
        return ()

    async def ask(self, question):
        return None

    async def _held(self):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1


def blobs_of(port):
    return Blobs(port, limits=Limits(), now_us=lambda: 1)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 17])
async def test_a_blob_comes_out_as_it_went_in(size):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    blobs = blobs_of(Port())
    async with blobs.upload("acme") as upload:
        for start in range(0, size, 300_000):
            await upload.add(data[start : start + 300_000])
        assert (upload.size, upload.sha256) == (size, hashlib.sha256(data).hexdigest())
        await blobs.keep("b", upload)
    parts = [part async for part in blobs.parts("b")]
    assert b"".join(parts) == data
    assert len(parts) >= 1
    assert max(map(len, parts)) <= PART_BYTES


async def test_only_few_blobs_are_in_memory_at_once():
    port = Port()
    blobs = blobs_of(port)

    async def keep(number):
        async with blobs.upload("acme") as upload:
            await upload.add(b"x")
            await blobs.keep(f"b{number}", upload)

    await asyncio.gather(*(keep(number) for number in range(4 * WHOLE_MAX)))
    assert port.most == WHOLE_MAX


async def test_a_slow_reader_of_a_large_blob_keeps_nobody_from_theirs():
    port = Port()
    port.kept["large"] = bytes(2 * PART_BYTES)
    blobs = blobs_of(port)
    slow = [blobs.parts("large") for _ in range(12)]
    for reader in slow:
        assert len(await anext(reader)) == PART_BYTES
    assert b"".join([part async for part in blobs.parts("large")]) == port.kept["large"]
    for reader in slow:
        await reader.aclose()


async def test_what_is_not_there_is_said_to_be():
    with pytest.raises(NotFound):
        await anext(blobs_of(Port()).parts("none"))
