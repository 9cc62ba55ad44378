"""A server that an engine starts in its lease: a command with a port on loopback, waited for, watched, and ended with all below it.

Its output goes where the replica's does, so that its last lines are told where it doesn't start.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp
import psutil

from fabric.errors import Unavailable
from serving.engines.parts.reaper import Reaper, watch

START_S: Final = 840.0
"""A model that isn't there after so long is given up, before the replica is."""
_LOOK_S: Final = 0.2
_ASK_S: Final = 5.0
_END_S: Final = 10.0


class ServerProcess:
    """A command that serves at `url`. `start` it, and `close` it whatever happens."""

    def __init__(self, process: asyncio.subprocess.Process, reaper: Reaper, *, url: str) -> None:
        self.url = url
        self._process, self._reaper = process, reaper

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        port: int,
        env: Mapping[str, str],
        health: str = "/health",
        within_s: float = START_S,
    ) -> "ServerProcess":
        """Run the command, and wait until it answers.

        Args:
            argv: the command; it listens on 127.0.0.1.
            port: where.
            env: beside what this process has.
            health: the path that is answered with 200 once it serves.
            within_s: how long that may take.

        Raises:
            Unavailable: it ended (code `engine_ended`), or it doesn't serve in that time (code `engine_silent`).
        """
        reaper = await asyncio.to_thread(watch)
        try:
            process = await asyncio.create_subprocess_exec(*argv, env={**os.environ, **env})
        except OSError as error:
            reaper.close()
            raise Unavailable(f"the engine's command can't be started: {error}", code="engine_ended") from error
        started = cls(process, reaper, url=f"http://127.0.0.1:{port}")
        try:
            await started._until_healthy(health, within_s)
        except BaseException:
            await started.close()
            raise
        return started

    def check(self) -> None:
        """Raises `Unavailable` where it has ended (code `engine_ended`)."""
        if (code := self._process.returncode) is not None:
            raise Unavailable(f"the engine's server ended with {code}", code="engine_ended")

    async def close(self) -> None:
        """End it and every process below it: asked first, then killed."""
        family = _below(self._process.pid)
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _END_S)
        for each in family:
            with contextlib.suppress(psutil.Error):
                each.kill()
        await self._process.wait()
        await asyncio.to_thread(self._reaper.close)

    async def _until_healthy(self, path: str, within_s: float) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + within_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ASK_S)) as session:
            while loop.time() < give_up_at:
                self.check()
                self._reaper.tell()  # whatever it has started by now goes with this process, however that ends
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(self.url + path) as answer:
                        if answer.status == 200:  # noqa: PLR2004
                            return
                await asyncio.sleep(_LOOK_S)
        raise Unavailable(f"the engine's server doesn't answer {path} after {within_s:g} s", code="engine_silent")


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _below(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []
