"""A job that runs in a process of its own, forked from the machine's zygote: the runner's side of it.

The runner stays what the gate talks to. It hands wishes on, hears of checkpoints and progress, and judges the end: by the
job's own word, or by how its process ended where there is none.
"""

import os
import pickle
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Final, Self

import msgspec

from fabric.gate.events import LeaseOutcome
from fabric.system.processes import all_processes, below, seen_of
from fabric.worker.exits import judged, unless_ray
from fabric.worker.fork_messages import (
    Commission,
    Ended,
    Exited,
    Reported,
    Saved,
    SaveWish,
    Saving,
    Started,
    StopWish,
    Talk,
)
from fabric.worker.freeze import frozen
from fabric.worker.stage import JobEnd, Stage

_CONNECT_S: Final = 2.0


class Fork:
    """The conversation with one job's process."""

    TELLS_START: ClassVar = False
    """Whether it is to say which process that is."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._started: Started | None = None
        self.saves_itself = False
        """Whether the job's own code has to do with checkpoints."""
        self.saves = 0
        """How many that has made durable."""

    @classmethod
    def begin(cls, stage: Stage, *, zygote: str, order: bytes, devices: tuple[str, ...]) -> Self | None:
        """Have the job's process forked; None if there is no zygote to do it, so that the job must start cold."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_CONNECT_S)
            connection.connect(zygote)
            connection.settimeout(None)
        except OSError:
            connection.close()
            return None
        talk = Talk(connection)
        word = commission_for(stage, order=order, devices=devices, environment=os.environ)
        talk.say(msgspec.structs.replace(word, tells_start=cls.TELLS_START))
        return cls(talk)

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool) -> None:
        self._talk.say(StopWish(reason=reason, seconds_left=seconds_left, save=save))

    def ask_to_save(self) -> None:
        self._talk.say(SaveWish())

    def perform(self, stage: Stage) -> JobEnd:
        """Hear the job to its end; never raises."""
        end = self.heard(stage)
        gone = JobEnd(outcome=LeaseOutcome.FAILED, error="worker_died: its process is gone without a word")
        return unless_ray(end or gone, stage)

    def heard(self, stage: Stage) -> JobEnd | None:
        """What the process says of the job's end, or whoever stands above it; None if it is gone without a word."""
        end: JobEnd | None = None
        while (said := self._talk.hear()) is not None:
            match said:
                case Started():
                    self._started = self._started or said
                case Saving():
                    self.saves_itself = True
                case Saved():
                    self.saves += 1
                    stage.context.durable(step=said.step, write_us=said.write_us, size=said.size)
                case Reported():
                    stage.context.relay(said.progress)
                case Ended():
                    end = said.end
                case Exited():
                    end = end or judged(said.code, asked=stage.context.stop_requested)
                    break
                case _:
                    break
        self._talk.close()
        return end


class ForkedCall(Fork):
    """That of a function whose files its runner keeps, which must know its processes for that."""

    TELLS_START = True

    @property
    def has_ended(self) -> bool:
        """Whether the function's process has, whatever else still lives."""
        if self._started is None:
            return False
        seen = seen_of(self._started.job)
        return seen is None or seen.parent != self._started.stem

    def processes(self) -> list[int]:
        """All that live of the job: below the stem, which adopts what loses its parent."""
        if self._started is None:
            return []
        return below(self._started.stem, [seen.pid for seen in all_processes()])

    @contextmanager
    def frozen(self) -> Iterator[frozenset[int]]:
        """Inside, all of them stand still; `Conflict` if they don't in time."""
        with frozen(self.processes) as pids:
            yield pids


def commission_for(
    stage: Stage, *, order: bytes, devices: tuple[str, ...], environment: Mapping[str, str]
) -> Commission:
    """What a process that is to do a job is told first."""
    return Commission(
        order=order,
        archive=pickle.dumps(stage.archive),
        lease_id=stage.lease.lease_id,
        devices=devices,
        environment=dict(environment),
        kept_folder="" if stage.kept_folder is None else str(stage.kept_folder),
    )
