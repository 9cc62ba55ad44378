"""Ray's own processes on a machine, known by how they call themselves."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fabric.system.processes import all_processes

_INSTALLER: Final = b"ray::RuntimeEnvAgent"
_SOCKET: Final = b"--raylet_socket_name="
_OF_A_SESSION: Final = b"/sockets/"


def installers() -> Iterator[int]:
    """The agents of our Ray session that would install what a runtime_env names: one a node, by their numbers."""
    session = _session_of(os.getppid())
    if not session:
        return
    for seen in all_processes():
        if _words(seen.pid).startswith(_INSTALLER) and _session_of(seen.parent) == session:
            yield seen.pid


def _session_of(raylet: int) -> bytes:
    """The folder of a raylet's session; b"" of what is no raylet."""
    socket = _words(raylet).partition(_SOCKET)[2].split(b"\0")[0]
    return socket.partition(_OF_A_SESSION)[0]


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
