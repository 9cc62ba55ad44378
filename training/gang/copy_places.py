"""Which rank keeps the copy of whose part, and whether machines have the memory for it: plain arithmetic, and a look at both."""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import psutil

from fabric.errors import InvalidRequest

VARIABLE: Final = "FABRIC_PEER_COPIES"
EACH_STEP: Final = "each-step"
_ROOM_SHARE: Final = 0.9
"""Of the memory that a machine has free, what copies may take."""
_SLACK: Final = 1.125
_SLACK_BYTES: Final = 2**20
_MEMORY_MAX: Final = Path("/sys/fs/cgroup/memory.max")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_MEMORY_NOW: Final = Path("/sys/fs/cgroup/memory.current")


class Asked(NamedTuple):
    """Whether copies are wanted, and whether after each step, whatever that costs."""

    is_wanted: bool
    each_step: bool

    @classmethod
    def of(cls, given: bool | str | None) -> Self:
        """From an argument of `session`, or what `FABRIC_PEER_COPIES` says.

        Raises:
            InvalidRequest: `peer_copies_invalid`.
        """
        said = os.environ.get(VARIABLE, "") if given is None else str(int(given)) if isinstance(given, bool) else given
        if said not in {"", "0", "1", EACH_STEP}:
            raise InvalidRequest(
                f"{VARIABLE}={said}: say 1 (copies as often as they cost at most 5 % of the time), {EACH_STEP}, or 0",
                code="peer_copies_invalid",
            )
        return cls(said in {"1", EACH_STEP}, said == EACH_STEP)


def keepers(nodes: Sequence[Any]) -> list[int]:
    """Which rank keeps the copy of each rank, of ranks on these nodes: one on another node, as far as there are."""
    ranks = sorted(range(len(nodes)), key=lambda rank: (nodes.index(nodes[rank]), rank))
    largest = max(nodes.count(node) for node in nodes)
    away = largest if largest < len(nodes) else 1
    found = [0] * len(nodes)
    for at, rank in enumerate(ranks):
        found[rank] = ranks[(at + away) % len(ranks)]
    return found


def alike(nodes: Sequence[Any], keeper: Sequence[int]) -> str:
    """In words, whose copies are lost with what they are copies of."""
    found = [rank for rank, node in enumerate(nodes) if node == nodes[keeper[rank]]]
    if not found:
        return "each copy is on another node"
    named = (
        f"the copies of ranks {', '.join(map(str, found))} are" if len(found) > 1 else f"the copy of rank {found[0]} is"
    )
    return f"{named} on the same node, and lost with it"


class Machine(NamedTuple):
    """Where a process runs."""

    host: str
    """Its name: containers of one machine have several."""
    id: str
    """What all containers of one machine have in common."""


def machine() -> Machine:
    """The machine of this process."""
    host = socket.gethostname()
    try:
        return Machine(host, _BOOT.read_text().strip())
    except OSError:
        return Machine(host, host)


class Room:
    """Memory for parts: two of its own and two of the rank whose copies it keeps, at each rank."""

    def __init__(self, hosts: Sequence[Machine], keeper: Sequence[int]) -> None:
        """`hosts`: where each rank runs; `keeper`: who keeps the copies of each."""
        self._hosts, self._owner = list(hosts), [list(keeper).index(rank) for rank in range(len(hosts))]
        self.bytes = [0] * len(hosts)
        """How large a part of each rank there is room for."""

    def widen(self, sizes: Sequence[int], free: Sequence[int]) -> str:
        """Make room for parts of these sizes, if each machine has that much free; else why not, and nothing changes."""
        if all(size <= room for size, room in zip(sizes, self.bytes, strict=True)):
            return ""
        rooms = [max(room, int(size * _SLACK) + _SLACK_BYTES) for size, room in zip(sizes, self.bytes, strict=True)]
        for host in dict.fromkeys(self._hosts):
            here = [rank for rank, its in enumerate(self._hosts) if its == host]
            more = sum(2 * (rooms[of] - self.bytes[of]) for rank in here for of in (rank, self._owner[rank]))
            least = min(free[rank] for rank in here)
            if more > least * _ROOM_SHARE:
                return (
                    f"no copies in peers' memory: {len(here)} rank{'s' if len(here) > 1 else ''} on {host.host} would take "
                    f"{megabytes(more)} for them, and {megabytes(least)} are free there, of which a tenth is left to others. A "
                    "lost node costs what came after the last snapshot: use more nodes, or more memory"
                )
        self.bytes = rooms
        return ""


def node_of_launcher() -> int:
    """The first rank on this one's node, as the launcher says it; 0 where it says nothing."""
    local = os.environ.get("LOCAL_RANK")
    return int(os.environ.get("RANK") or 0) - int(local) if local else 0


def free_bytes() -> int:
    """What this process's machine, or what it may use of that, has of memory."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # no bound of its own
        free = min(free, int(_MEMORY_MAX.read_text()) - int(_MEMORY_NOW.read_text()))
    return max(0, free)


def megabytes(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"
