"""Blobs between clients and the archive: large ones on disk, in memory only a few.

The door shares its process, and maybe the gate's, with everybody's calls. So whatever takes time or room with the size of
a blob (hashing, disks, the archive) happens in threads, and however many come at once, the memory they take is bounded.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Final, Self

from fabric.adapters.clerks import aside
from fabric.api.port import GatePort

WHOLE_MAX: Final = 3
"""Blobs in memory at once, on their way from the disk to the archive."""
PART_BYTES: Final = 1024 * 1024


class Blobs:
    """What a door does with blobs."""

    def __init__(self, port: GatePort) -> None:
        self._port = port
        self._whole = asyncio.Semaphore(WHOLE_MAX)

    async def keep(self, key: str, upload: "Upload") -> None:
        """Put what has come into the archive."""
        async with self._whole:
            await self._port.put_blob(key, await upload.whole())

    async def parts(self, key: str) -> AsyncGenerator[bytes, None]:
        """All of it in order, at the reader's pace; at least one part. `NotFound` if there is none. Of what the archive
        finds damaged, nothing is handed out: it is on disk before the first part is.
        """
        with tempfile.SpooledTemporaryFile(PART_BYTES) as kept:
            await self._port.fetch_blob(key, kept)
            kept.seek(0)
            yield await aside(kept.read, PART_BYTES)
            while part := await aside(kept.read, PART_BYTES):
                yield part


class Upload:
    """A blob that is coming, on disk."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()
        self._received = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._received.close()

    @property
    def sha256(self) -> str:
        """Of what has come so far, in hex."""
        return self._digest.hexdigest()

    async def add(self, part: bytes) -> None:
        self.size += len(part)
        await aside(self._add, part)

    async def whole(self) -> bytes:
        return await aside(self._read)

    def _add(self, part: bytes) -> None:
        self._digest.update(part)
        self._received.write(part)

    def _read(self) -> bytes:
        self._received.seek(0)
        return self._received.read()
