"""Ports that are chosen now and listened on later.

A port that the system gives out (`bind` to 0) is one that it gives out again, to whatever connects anywhere in the meantime:
who is told of it then finds a stranger there. These lie below what the system gives out by itself, so that only who chooses
the same number takes one away.
"""

import random
import socket
from pathlib import Path
from typing import Final

_LOWEST: Final = 20_000
"""Above what Ray gives its workers, 10,002 to 19,999."""
_TRIES: Final = 100
_GIVEN_OUT: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_chance: Final = random.SystemRandom()


def free_port(host: str = "127.0.0.1") -> int:
    """One that nobody listens on at `host` ("": at any address of this machine)."""
    for _ in range(_TRIES if _highest() > _LOWEST else 0):
        port = _chance.randrange(_LOWEST, _highest())
        if _is_free(host, port):
            return port
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _highest() -> int:
    """The first port that the system gives out by itself; 0 where it does not say."""
    try:
        return int(_GIVEN_OUT.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
