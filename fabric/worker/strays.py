"""Whose the processes are that no lease is known to have on a machine: the gate's word, asked after they were seen.

An agent knows what it was told to follow, for as long as it lives. One that is younger than a lease, as its node or itself
has died, or that a gate could not reach when the lease ended, knows nothing of that end; and a process may come to life with
the mark of a lease that has ended. So an agent says what it has found, and by what it knows it for this fabric's; the gate,
which counts a lease's marks from before its first process on, says which of that is nobody's; and what was seen before is
ended, nothing that has begun since. Nothing of what has ended needs to be remembered for this.
"""

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import msgspec

_ID_CHARS: Final = 16


class Stray(msgspec.Struct, frozen=True, kw_only=True):
    """A process of a fabric's that its agent counts to no lease."""

    pid: int
    started_at: int
    """As the kernel counts it: with the number, this names one process."""
    mark: str = ""
    """The lease or the runner that it says it is of; "" = none, or one that its agent knows to have ended."""
    root: int = 0
    """The living process from which it surely comes, by number; 0 = none that lives, or none that is known."""


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent has found in one look."""

    strays: tuple[Stray, ...] = ()
    watched: tuple[str, ...] = ()
    """The leases that it watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Living:
    """What lives by the gate's word."""

    marks: Collection[str]
    """Of all leases and runners, those too that are only being started."""
    leases: Collection[str]
    busy: Collection[int]
    """The runners on a machine that a lease has, by their processes' numbers."""

    def has(self, stray: Stray) -> bool:
        """Whether it may be a lease's. By what it comes from, which it can't shake off, before what it says of itself."""
        if stray.mark and stray.mark not in self.marks:
            return False
        return stray.root in self.busy if stray.root else bool(stray.mark)


def fabric_id(key: bytes, namespace: str) -> str:
    """By what a fabric's marks are told from another's: the same for as long as it has its key."""
    return hmac.digest(key, f"token-fabric marks of {namespace}".encode(), hashlib.sha256).hex()[:_ID_CHARS]
