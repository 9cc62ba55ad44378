"""What a fabric leaves behind that was killed: processes of its embedded Ray cluster, and their folder.

Ray ends most of its processes with the one that started them, but not all. Each keeps its log, or names its session, in
the cluster's own folder, which is recorded before the first of them starts: by that they are known, by nothing else. What
isn't known to be the cluster's is left alone.
A process of another cluster, of another user or of another fabric is never touched.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from fabric.daemon.serving_host import end_hosts
from fabric.system.processes import LEASE_VARIABLE

_PREFIX: Final = "fabric-"
_OWN_FILES: Final = (
    "python-core-worker-", "worker-", "raylet", "gcs_server", "dashboard", "runtime_env", "event_RAYLET", "event_GCS",
)  # fmt: skip
"""How Ray calls the logs of a cluster's own processes. A client of it, which connected with `ray.init`, writes its own log there,
events, and whatever Ray's libraries log, and keeps some of it open when it has gone on to another cluster.
"""
_KILL_S: Final = 10.0


def new_session_folder(place: Path) -> Path:
    """A new folder for the embedded cluster, recorded in the state directory. Its path is short: sockets live there."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    _record(place).write_text(str(folder))
    return folder


def end_remains(place: Path) -> int:
    """End what is left of the embedded cluster that was last started from here, and remove its folder; and what is left
    of the process that hosted models.

    Only for whoever holds the state directory: nobody else's cluster can be meant then.

    Returns:
        how many processes were ended.
    """
    hosts = end_hosts(place)
    folder = recorded(place)
    if folder is None:
        return hosts
    ended = {}
    while left := [process for process in processes_of(folder) if process.pid not in ended]:
        for process in left:
            ended[process.pid] = process
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_KILL_S)
    shutil.rmtree(folder, ignore_errors=True)
    _record(place).unlink(missing_ok=True)
    return hosts + len(ended)


def recorded(place: Path) -> Path | None:
    """The folder of the cluster that was last started from here and not yet cleared away."""
    try:
        folder = Path(_record(place).read_text())
    except FileNotFoundError:
        return None
    return folder if folder.is_absolute() and folder.name.startswith(_PREFIX) else None


def processes_of(folder: Path) -> Iterator[psutil.Process]:
    """Our own processes that were told the folder as an option, or write there what a cluster's own processes write; not
    whoever reads there.

    A client that connected to the cluster (a notebook, say) writes there as well: it isn't ours, unless a job started it.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.uids().real == os.getuid() and _is_of(process, f"{folder}/"):
                yield process


def _is_of(process: psutil.Process, folder: str) -> bool:
    if any(word.startswith("--") and folder in f"{word}/" for word in process.cmdline()):
        return True
    written = [target for target in _written_to(Path(f"/proc/{process.pid}")) if target.startswith(folder)]
    is_own = any(Path(target).name.startswith(_OWN_FILES) for target in written)
    return bool(written) and (is_own or LEASE_VARIABLE in process.environ())


def _written_to(process: Path) -> Iterator[str]:
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            flags = (process / "fdinfo" / descriptor.name).read_text().partition("flags:")[2].split()[0]
            if int(flags, 8) & os.O_ACCMODE:
                yield os.readlink(descriptor)  # noqa: PTH115 - a string, which need not be a path


def _record(place: Path) -> Path:
    return place / "ray-session"
