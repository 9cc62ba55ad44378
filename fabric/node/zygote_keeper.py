"""Keeps the machine's zygote: started when it is first wanted, and again when it has died. For the node agent."""

import asyncio
import os
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Final

import structlog

from fabric.worker.zygote import READY, SOCKET_NAME, environment_of

_READY_WITHIN_S: Final = 120.0
_log = structlog.get_logger(__name__)


class Zygote:
    """One process, with a folder for its socket that nobody else may enter. It ends when its keeper's process does."""

    def __init__(self, *, fabric: str = "") -> None:
        """None runs yet. What is forked from it is known for this fabric's."""
        self._fabric = fabric
        self._folder: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()

    async def socket(self) -> str:
        """Where it listens, once it is ready; "" if it doesn't come up."""
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
        ready = self._process is not None and self._process.returncode is None and self._folder is not None
        return str(self._folder / SOCKET_NAME) if ready and self._folder is not None else ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fabric-zygote-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "fabric.worker.zygote",
            str(self._folder),
            env=environment_of(dict(os.environ), fabric=self._fabric),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                said = await self._process.stdout.readline()
        except TimeoutError:
            said = b""
        if said.decode().strip() != READY:
            _log.warning("zygote_not_ready", said=said.decode(errors="replace")[:200])
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            self._process = None
