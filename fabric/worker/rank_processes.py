"""The ranks of one runner, where a job has a rank for each device: each is a process forked from the machine's zygote.

To the gate the runner is what it always is: it hands wishes on to all of them, hears of their checkpoints, tells the first
one's progress, and their ends are judged as one. Who outlives another is given time to save before the rest is ended.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from fabric.gate.events import LeaseOutcome
from fabric.worker.fork import Fork
from fabric.worker.outcomes import earliest, together
from fabric.worker.stage import JobEnd, Stage


class Crew:
    """Several forks that are one job."""

    def __init__(self, members: Sequence[tuple[Fork, Stage]]) -> None:
        self._members = members
        self._ends: dict[int, JobEnd] = {}
        self._ended = threading.Condition()

    @classmethod
    def begin(cls, stages: Sequence[tuple[Stage, bytes]], *, zygote: str) -> "Self | None":
        """Have a process forked for each stage, with its order; None if the zygote is gone."""
        members: list[tuple[Fork, Stage]] = []
        for stage, order in stages:
            fork = Fork.begin(stage, zygote=zygote, order=order, devices=stage.context.devices)
            if fork is None:
                return None
            members.append((fork, stage))
        return cls(members)

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool) -> None:
        for fork, stage in self._members:
            if not stage.context.stop_requested:
                stage.context.ask_to_stop(reason, seconds_left=seconds_left, save=save)
            fork.ask_to_stop(reason, seconds_left=seconds_left, save=save)

    def ask_to_save(self) -> None:
        for fork, _ in self._members:
            fork.ask_to_save()

    def perform(self, has_saved: Callable[[], bool]) -> JobEnd:
        """Hear all of them to their end, or for as long as survivors have after one is lost; never raises."""
        for at, (fork, stage) in enumerate(self._members):
            threading.Thread(target=self._hear, args=(at, fork, stage), name=f"fabric-rank-{at}", daemon=True).start()
        give_up_at: float | None = None
        with self._ended:
            while len(self._ends) < len(self._members):
                give_up_at = earliest(give_up_at, self._ends.values(), now=time.monotonic())
                left_s = None if give_up_at is None else give_up_at - time.monotonic()
                if left_s is not None and left_s <= 0:
                    break
                self._ended.wait(left_s)
            return together([self._ends[at] for at in sorted(self._ends)], saved=has_saved())

    def _hear(self, at: int, fork: Fork, stage: Stage) -> None:
        try:
            end = fork.perform(stage)
        except BaseException as error:  # noqa: BLE001  # or the job would never end, and burn on
            end = JobEnd(outcome=LeaseOutcome.FAILED, error=f"the rank could not be heard: {type(error).__name__}")
        with self._ended:
            self._ends[at] = end
            self._ended.notify()
