"""A node agent's watchdog: looks for unleased use while the gate is silent, as the gate does itself while it is there.

The gate says what is its own a few times a second, which is also its heartbeat. When that stops (it was killed, and is being
started again), the agent goes on with what it heard last: what holds an accelerator and is none of it is ended, within the
same two seconds. What the gate had just begun is told by its name, and spared. When it is heard again the agent looks on
beside it for a while: a gate that has just begun has not looked yet itself, and may be gone before it has. It reaches
processes of its own machine, and of other machines what the control store ends: actors and placement groups. After a while
without a gate it stops: a cluster may be others' as well.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import structlog

from fabric.enforcement.reconciler import Look, Ours, Reconciler
from fabric.enforcement.unleased import Unleased
from fabric.inventory.nodes import Node
from fabric.inventory.ray_tables import RayTables, Tables

GROUP_PREFIX: Final = "fabric/"
"""What the names of the gate's placement groups begin with."""
SILENT_S: Final = 0.75
"""For so long the gate must not have been heard, which says that it is there twice a second."""
LOOK_S: Final = 0.25
"""How often it is looked whether that is so. Both together are half of the two seconds: the other half is the look's own, on
a machine under load.
"""
BESIDE_S: Final = 3.0
"""For so long it is looked on beside a gate that is heard again: by then that has looked itself."""
STOPS_S: Final = 300.0
"""A gate that is silent for longer is not being started again."""
_log = structlog.get_logger(__name__)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says is its own."""

    address: str = ""
    """Of the machine that is told."""
    nodes: tuple[Node, ...]
    """All that are sold."""
    groups: tuple[str, ...] = ()
    """The ids of its placement groups, and the names of those being made."""
    used: tuple[str, ...] = ()
    """The ids of those that a lease is in."""
    actors: tuple[str, ...] = ()
    """The ids of its actors, and the names of those being made."""
    job_id: str = ""
    """The gate's Ray job."""
    cluster: bool = False
    """Whether nobody but the fabric may start anything through Ray."""


def known_of(ours: Ours, nodes: Iterable[Node]) -> Known:
    """What is the gate's own now."""
    return Known(
        nodes=tuple(nodes),
        groups=tuple(ours.groups()),
        used=tuple(ours.used()),
        actors=tuple(ours.actors()),
        job_id=ours.job_id,
        cluster=ours.cluster,
    )


class Watchdog:
    """One agent's. `run` it for as long as the agent lives."""

    def __init__(
        self,
        *,
        kill: Callable[[int], None],
        tables: Callable[[], Tables] = RayTables.here,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Still until the gate was heard.

        Args:
            kill: ends a process of this machine.
            tables: opens Ray's.
            now: seconds, steadily.
        """
        self._kill, self._open, self._now = kill, tables, now
        self._known: Known | None = None
        self._heard_at = 0.0
        self._beside_until = 0.0
        self._reconciler: Reconciler | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="watchdog")
        """Its own: the agent's others may all wait for the archive."""

    def hear(self, known: Known | None) -> None:
        """The gate is there; None: it goes, in order, or has chosen another agent."""
        now, before = self._now(), self._known
        if before is not None and known is not None and now - self._heard_at >= SILENT_S:
            self._beside_until = now + BESIDE_S
        self._known, self._heard_at = known, now
        if not self.is_due or _whose(before) != _whose(known):
            self._reconciler = None

    @property
    def is_due(self) -> bool:
        """Whether the gate is silent and may still come back, or has only just come back."""
        now = self._now()
        is_silent = SILENT_S <= now - self._heard_at < STOPS_S
        return self._known is not None and (is_silent or now < self._beside_until)

    async def run(self) -> None:
        """Look while it is due."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self.is_due:
                try:
                    await asyncio.get_running_loop().run_in_executor(self._thread, self.look)
                except Exception:  # noqa: BLE001  # a watch that ends at the first hiccup is none
                    _log.exception("watchdog_failed")

    def look(self) -> list[Unleased]:
        """Look once, and end what is found. Blocks."""
        known = self._known
        if known is None:
            return []
        looking = self._reconciler
        if looking is None:
            _log.warning("gate_silent", what="unleased use is looked for here until it is back")
            tables = self._open()
            looking = Reconciler(self._ours(known, tables), tables=lambda: tables, tells=False)
            self._reconciler = looking

        def kill(address: str, pid: int) -> None:
            if address == known.address:
                self._kill(pid)

        removed: list[Unleased] = []

        def end(look: Look) -> None:
            # Of what isn't seen to hold anything the gate knows more than was heard: suspects are left to it.
            if self.is_due and _whose(self._known) == _whose(known):
                removed.extend(looking.end(look, kill=kill))

        try:
            end(looking.look(known.nodes, kill=kill, first=end))
        except Exception:
            self._reconciler = None  # the control store may have moved
            raise
        return removed

    def _ours(self, known: Known, tables: Tables) -> Ours:
        """What was heard last, and what the gate has begun since. Asked after Ray was: so nothing new is taken for a stranger's."""

        def heard() -> Known:
            return self._known or known

        def groups() -> set[str]:
            begun = [row for row in tables.groups() if row.job_id == known.job_id and row.name.startswith(GROUP_PREFIX)]
            return {*heard().groups, *(row.id for row in begun)}

        return Ours(
            groups=groups,
            used=lambda: set(heard().used),
            actors=lambda: set(heard().actors),
            job_id=known.job_id,
            cluster=known.cluster,
        )


def _whose(known: Known | None) -> tuple[str, str, bool] | None:
    """Which gate has said so, and to whom: what another one says is not what a look has begun with."""
    return None if known is None else (known.address, known.job_id, known.cluster)
