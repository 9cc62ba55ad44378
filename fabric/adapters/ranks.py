"""The ranks of a lease while they run: waited for together, judged as one, their checkpoints told of meanwhile."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import ray

from fabric.adapters.groups import Seated
from fabric.adapters.nodes import Node, answers
from fabric.adapters.stages import JobEnd, Save
from fabric.adapters.surroundings import Surroundings
from fabric.adapters.testimony import end_of, is_number
from fabric.gate.events import LeaseOutcome, LeaseSaved
from fabric.gate.instructions import Lease

_WATCH_SAVES_AFTER_S: Final = 0.05
_NODE_PROBES: Final = 4
_NODE_PROBE_S: Final = 0.2
_ERROR_CHARS_MAX: Final = 500
_SURVIVORS_S: Final = 10.0
"""How long the other ranks may take to save and end, once one has died or failed."""


@dataclass(slots=True, eq=False)
class Ranks:
    """One runner a rank, each with its call under way. What the ranks say is their tenant's word (see `testimony`)."""

    lease: Lease
    runners: Sequence[Seated]
    around: Surroundings
    reported_saves: int = 0

    async def ended(self, calls: Sequence[Any]) -> JobEnd:
        """How the gang ended: when all ranks have, or soon after the first that spoils it."""
        ranks = [asyncio.create_task(self._rank_end(rank, call)) for rank, call in enumerate(calls)]
        saves = asyncio.create_task(self._report_saves())
        progress = asyncio.create_task(self._watch_progress())
        try:
            waiting = set(ranks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if any(_spoils(rank.result()) for rank in done):
                    if waiting:
                        await asyncio.wait(waiting, timeout=_SURVIVORS_S)
                    break
            ends = [rank.result() for rank in ranks if rank.done()]
        finally:
            for task in (saves, progress, *ranks):
                task.cancel()
        told = self.reported_saves if ranks[0].done() else 0
        for end in ends:  # whoever survives saves for all
            for save in end.saves[told:]:
                self._report_save(save)
            told = 0
        return _together(ends)

    async def _rank_end(self, rank: int, call: Any) -> JobEnd:
        runner = self.runners[rank]
        try:
            return end_of(await call, lease=self.lease)
        except ray.exceptions.RayActorError as error:
            if await self._node_is_gone(runner.node, error):
                return JobEnd(outcome=LeaseOutcome.LOST, error=f"node {runner.node.node_id} is gone")
            return JobEnd(outcome=LeaseOutcome.FAILED, error=f"worker_died: {_reason(error)}")
        except Exception as error:  # noqa: BLE001  # a rank whose end is not understood must not keep its devices for ever
            return JobEnd(outcome=LeaseOutcome.LOST, error=str(error)[:_ERROR_CHARS_MAX])

    async def _node_is_gone(self, node: Node, error: BaseException) -> bool:
        """Whether the process went with its node. Then the node is down from now on, whatever Ray still thinks."""
        for _ in range(_NODE_PROBES):
            now = self.around.nodes.get(node.node_id)
            if now is None or now.ray_id != node.ray_id or "node has died" in str(error) or not await answers(node):
                self.around.gone.add(node.ray_id)
                return True
            await asyncio.sleep(_NODE_PROBE_S)
        return False

    async def _report_saves(self) -> None:
        await asyncio.sleep(_WATCH_SAVES_AFTER_S)
        with suppress(ray.exceptions.RayError):
            while True:
                for save in await self.runners[0].actor.saves.remote(self.reported_saves):
                    self._report_save(save)

    async def _watch_progress(self) -> None:
        """Rank 0 speaks for the gang. What it says is shown, and not journaled."""
        await asyncio.sleep(_WATCH_SAVES_AFTER_S)
        with suppress(ray.exceptions.RayError):
            while (said := await self.runners[0].actor.progress.remote()) is not None:
                self.around.progress.note(self.lease.job_id, said)

    def _report_save(self, save: Save) -> None:
        self.reported_saves += 1
        step, write_us, size = save
        if is_number(step) and is_number(write_us) and is_number(size):
            self.around.outbox.put(LeaseSaved(lease_id=self.lease.lease_id, step=step, write_us=write_us, bytes=size))


def _spoils(end: JobEnd) -> bool:
    return end.outcome in (LeaseOutcome.FAILED, LeaseOutcome.LOST)


def _is_survived(ends: Sequence[JobEnd]) -> bool:
    """Whether processes died and others saved the last step: then nothing is lost, and the job goes on elsewhere.

    Without a new checkpoint the job would die at the same step for ever: that is a failure, which is counted.
    """
    dead = [end for end in ends if end.outcome is LeaseOutcome.FAILED and end.error.startswith("worker_died")]
    saved = [end for end in ends if end.outcome is LeaseOutcome.SAVED]
    return bool(dead) and len(dead) + len(saved) == len(ends) and any(end.saves for end in saved)


def _together(ends: Sequence[JobEnd]) -> JobEnd:
    """The worst of the ranks' ends, and rank 0's result."""
    if _is_survived(ends):
        return JobEnd(outcome=LeaseOutcome.SAVED, again=True, step=max(end.step for end in ends))
    order = (LeaseOutcome.LOST, LeaseOutcome.FAILED, LeaseOutcome.SAVED, LeaseOutcome.SUCCEEDED)
    worst = min(ends, key=lambda end: order.index(end.outcome))
    return msgspec.structs.replace(
        worst,
        result_ref=worst.result_ref or (ends[0].result_ref if worst.outcome is LeaseOutcome.SUCCEEDED else ""),
        reusable=all(end.reusable for end in ends),
        used_ray=any(end.used_ray for end in ends),
        step=ends[0].step,
    )


def _reason(error: BaseException) -> str:
    """What Ray knows of a death, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "died" in line or "exit" in line.lower() or "memory" in line.lower()]
    return " ".join(told[-2:] or lines[-1:])[:_ERROR_CHARS_MAX]
