"""The ranks of a lease while they run: waited for together, judged as one, their checkpoints told of meanwhile."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import ray

from fabric.cluster.placement_groups import Seated
from fabric.cluster.services import Services
from fabric.cluster.validation import end_of, is_number
from fabric.gate.events import LeaseOutcome, LeaseSaved, NodeDown
from fabric.gate.instructions import Lease
from fabric.inventory.nodes import Node, lives
from fabric.units import NodeId
from fabric.worker.exits import DIED
from fabric.worker.outcomes import earliest, together
from fabric.worker.stage import JobEnd, Save

_WATCH_SAVES_AFTER_S: Final = 0.05
SAVES_EVERY_S: Final = 1.0
"""How often a rank is asked for checkpoints that it has made; the first is told of at once."""
SAVES_TOLD_MAX: Final = 4
"""So many of them are told each time, the newest: each is an entry in the journal, and they cost the job nothing."""
PROGRESS_EVERY_S: Final = 0.2
_NODE_PROBES: Final = 4
_NODE_PROBE_S: Final = 0.2
_ERROR_CHARS_MAX: Final = 500


@dataclass(slots=True, eq=False)
class Ranks:
    """One runner a rank, each with its call under way. What the ranks say is their tenant's word (see `fabric.cluster.validation`)."""

    lease: Lease
    runners: Sequence[Seated]
    around: Services
    asked: Callable[[], bool] = lambda: False
    """Whether the gate has asked the lease to end."""
    reported_saves: dict[int, int] = field(default_factory=dict)
    """By rank: a gang may have any of them commit."""

    async def ended(self, calls: Sequence[Any]) -> JobEnd:
        """How the gang ended: when all ranks have, or the first that spoils it. Who outlives one that died may save."""
        ranks = [asyncio.create_task(self._rank_end(rank, call)) for rank, call in enumerate(calls)]
        saves = [asyncio.create_task(self._watch_saves(rank)) for rank in range(len(calls))]
        progress = asyncio.create_task(self._watch_progress())
        try:
            waiting, give_up_at = set(ranks), None
            while waiting:
                left_s = None if give_up_at is None else give_up_at - asyncio.get_running_loop().time()
                done, waiting = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    break
                now = asyncio.get_running_loop().time()
                give_up_at = earliest(give_up_at, [rank.result() for rank in done], now=now)
            ends = [rank.result() for rank in ranks if rank.done()]
        finally:
            for task in (*saves, progress, *ranks):
                task.cancel()
        if ranks[0].done() and (said := ranks[0].result().progress) is not None:
            self.around.progress.note(self.lease.job_id, said)
        for rank, task in enumerate(ranks):
            if task.done():
                self._report_saves(rank, task.result().saves[self.reported_saves.get(rank, 0) :])
        return together(ends, saved=any(end.saves for end in ends))

    async def _rank_end(self, rank: int, call: Any) -> JobEnd:
        runner = self.runners[rank]
        try:
            return end_of(await call, lease=self.lease, asked=self.asked())
        except Exception as error:  # noqa: BLE001  # a rank whose end is not understood must not keep its devices for ever
            return await self._end_without_word(runner.node, error)

    async def _end_without_word(self, node: Node, error: Exception) -> JobEnd:
        """What it means that a rank's process is gone, or says what can't be heard. Its node decides, and not the error: what
        that is, or says, may be the job's own work.
        """
        if await is_gone(node, self.around):
            return JobEnd(outcome=LeaseOutcome.LOST, error=f"node {node.node_id} is gone")
        if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.RayTaskError):
            return JobEnd(outcome=LeaseOutcome.FAILED, error=f"{DIED}: {_reason(error)}")
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=str(error)[:_ERROR_CHARS_MAX])

    async def _watch_saves(self, rank: int) -> None:
        await asyncio.sleep(_WATCH_SAVES_AFTER_S)
        with suppress(ray.exceptions.RayError):
            while True:
                self._report_saves(rank, await self.runners[rank].actor.saves.remote(self.reported_saves.get(rank, 0)))
                await asyncio.sleep(SAVES_EVERY_S)

    async def _watch_progress(self) -> None:
        """Rank 0 speaks for the gang. What it says is shown, and not journaled."""
        await asyncio.sleep(_WATCH_SAVES_AFTER_S)
        with suppress(ray.exceptions.RayError):
            while (said := await self.runners[0].actor.progress.remote()) is not None:
                self.around.progress.note(self.lease.job_id, said)
                await asyncio.sleep(PROGRESS_EVERY_S)

    def _report_saves(self, rank: int, saves: Sequence[Save]) -> None:
        self.reported_saves[rank] = self.reported_saves.get(rank, 0) + len(saves)
        sound = [save for save in saves if all(is_number(said) for said in save)]
        for step, write_us, size, restore_us in sound[-SAVES_TOLD_MAX:]:
            self.around.outbox.put(
                LeaseSaved(
                    lease_id=self.lease.lease_id, step=step, write_us=write_us, bytes=size, restore_us=restore_us
                )
            )


async def is_gone(node: Node, around: Services) -> bool:
    """Whether a process went with its node. Then the node is down from now on, whatever Ray still thinks; the gate hears of it
    before it hears of what was lost with it, or it would try again there, at once and as often as it tries.
    """
    for _ in range(_NODE_PROBES):
        now = around.nodes.get(node.node_id)
        if now is None or now.ray_id != node.ray_id or not await lives(node):
            if node.ray_id not in around.gone and now is not None and now.ray_id == node.ray_id:
                around.outbox.put(NodeDown(node_id=node.node_id))
            around.gone.add(node.ray_id)
            return True
        await asyncio.sleep(_NODE_PROBE_S)
    return False


async def not_built(
    error: Exception, *, nodes: Mapping[NodeId, Node | None], around: Services, own_start: bool
) -> JobEnd:
    """What it means that a lease could not be built: the platform failed, and not the job; but where code of the tenant's ran in
    the start, nobody can tell, unless a node is gone.

    Args:
        error: what was in its way.
        nodes: those that it was to be built on, as they were then; None = it was gone by then.
        around: what is there now.
        own_start: whether such code may have run.
    """
    why = f": {error}"
    if isinstance(error, TimeoutError):
        why = f" within {around.settings.start_timeout_s:g} s"
    said = await asyncio.gather(*(is_gone(node, around) for node in nodes.values() if node is not None))
    is_lost = any(said) or None in nodes.values()
    if is_lost:
        why = ": a node of it is gone"
    outcome = LeaseOutcome.INTERRUPTED if own_start and not is_lost else LeaseOutcome.LOST
    return JobEnd(outcome=outcome, error=f"the lease could not be built{why}"[:_ERROR_CHARS_MAX])


def _reason(error: BaseException) -> str:
    """What Ray knows of a death, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "died" in line or "exit" in line.lower() or "memory" in line.lower()]
    return " ".join(told[-2:] or lines[-1:])[:_ERROR_CHARS_MAX]
