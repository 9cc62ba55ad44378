"""The process that hosts replicas and gateways, beside the door: started, watched, started again, ended in order.

It is `python -m serving.host`; what it does is its own. It lives no longer than whoever started it, and what it leaves
behind, should it be killed, is known by its command line: `-m serving...` with this state directory, or an ingress with
the configuration file in it.
"""

import asyncio
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

import psutil
import structlog

from fabric.logs import open_private

log = structlog.get_logger()

MODULE: Final = "serving.host"
STOP_S: Final = 40.0
"""Beyond the grace that streams are given."""
_PAUSES_S: Final = (0.5, 1, 2, 5, 10, 30)
"""Before it is started again, each longer than the last, until it has stayed up for a while."""
_WELL_S: Final = 60.0
_TIE: Final = """import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGTERM
except (OSError, AttributeError):
    pass
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Hosting:
    """The host, kept up for as long as `run` runs."""

    def __init__(self, place: Path, *, listen: str, config: Path | None, grace_s: float) -> None:
        """Say how it is started; `run` begins.

        Args:
            place: the state directory, in which it finds the door, and keys that may do what it needs.
            listen: where the gateways listen, `host:port`.
            config: the cluster file; None = the one that comes with the package.
            grace_s: how long streams may take to finish at the end.
        """
        self._place = place
        self._options = ["--state-dir", str(place), "--listen", listen]
        self._options += [] if config is None else ["--config", str(config.absolute())]
        self._grace_s = grace_s
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Start it, and start it again whenever it ends; until cancelled, which ends it in order."""
        if importlib.util.find_spec(MODULE) is None:
            log.warning("no_serving", module=MODULE)
            return
        failures = 0
        try:
            while True:
                began = asyncio.get_running_loop().time()
                self._process = await self._start()
                ended = await self._process.wait()
                self._clear_away()
                lasted_s = asyncio.get_running_loop().time() - began
                failures = 0 if lasted_s > _WELL_S else failures + 1
                log.warning("serving_ended", code=ended, lasted_s=round(lasted_s), log=str(self._log))
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
        finally:
            await self._stop()

    @property
    def _log(self) -> Path:
        return self._place / "serving.log"

    async def _start(self) -> asyncio.subprocess.Process:
        with os.fdopen(open_private(self._log), "ab") as out:
            return await asyncio.create_subprocess_exec(
                *tied([sys.executable, "-m", MODULE, *self._options]),
                stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, cwd=self._place, start_new_session=True,
            )  # fmt: skip

    async def _stop(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), self._grace_s + STOP_S)
            except TimeoutError:
                log.warning("serving_killed", after_s=self._grace_s + STOP_S)
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self._clear_away()

    def _clear_away(self) -> None:
        if left := end_hosts(self._place):
            log.warning("serving_remains", processes=left)


def tied(command: Sequence[str]) -> list[str]:
    """The same command, whose process is told to end when the one that started it is gone, however that came about.

    Said by the process itself before it becomes the command: to have Python say it between fork and exec, as `preexec_fn`,
    runs gRPC's handlers of a fork there, which abort it now and then.
    """
    return [sys.executable, "-S", "-c", _TIE, str(os.getpid()), *command]


def end_hosts(place: Path) -> int:
    """Kill what is left of a host of this state directory, and its gateways. Returns how many there were."""
    left = list(hosts_of(place))
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_S)
    return len(left)


def hosts_of(place: Path) -> Iterator[psutil.Process]:
    """Our own processes that run a module of `serving`, or an ingress, for this state directory."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.uids().real == os.getuid() and _serves(process.cmdline(), place):
                yield process


def ingress_file(place: Path) -> Path:
    """The configuration of the state directory's ingress, by which its process is known."""
    return place / "serving" / "haproxy.cfg"


def _serves(words: list[str], place: Path) -> bool:
    said = set(pairwise(words))
    if ("-f", str(ingress_file(place))) in said:
        return True
    ours = MODULE.rpartition(".")[0] + "."
    is_ours = any(before == "-m" and after.startswith(ours) for before, after in said)
    return is_ours and ("--state-dir", str(place)) in said
