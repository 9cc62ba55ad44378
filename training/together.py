"""A session among the other ranks of its gang: they stop after the same step, and one of them saves for all.

Each rank starts an agreement as a step begins and reads it as the step ends. When any of them is asked to stop, all come to
the same boundary; rank 0's side thread saves it, the others' wait to hear so, or save in its place if it dies. When there
is no time left for that, everyone's last boundary is offered at once and the furthest counts. When a peer is lost, so is
its step, and nothing else.

It knows the session's ports (`Stop`, `Vault`, `Way`) and a gang, and not the loop.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import torch.distributed as dist

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.checkpoints.directory import Buffer
from fabric.errors import Conflict, FabricError, InvalidRequest
from training import vault
from training.gang import Gang, PeerLost, Seat, choose
from training.gradients import Overlapped, Reproducible
from training.mixing import REFERENCE_SPEEDS, Member, Mix, admit
from training.registry import Registry
from training.replicas import Replicas
from training.shares import Shares
from training.stopping import Stop
from training.vault import Kept, Nowhere, Vault
from training.virtual import VirtualRanks, fitting_count

MIX_VARIABLE: Final = "FABRIC_MIX"
TIMEOUT_VARIABLE: Final = "FABRIC_GANG_TIMEOUT_S"
"""The longest that a rank may keep the others waiting: more than any step takes."""
_TIMEOUT_S: Final = 300.0
SILENT_VARIABLE: Final = "FABRIC_GANG_SILENT_S"
"""A rank that hangs, or whose machine is gone, is given up after so long."""
_SILENT_S: Final = 20.0
_PATIENCE_S: Final = 2.0


class Together:
    """The part of a rank in what the gang does together."""

    def __init__(self, gang: Gang, *, mix: Mix) -> None:
        self.gang = gang
        self.is_ending = False
        """Whether what is saved from now on is the last of this attempt, and saved by one for all."""
        self._mix = mix
        self._agreed = threading.Event()
        self._agreement: Any = None
        self._shares: Shares | None = None
        self._way: Among | None = None
        self._step_s = 0.0
        self._began = time.monotonic()
        self._save_s: Callable[[], float | None] = lambda: None
        self._own_stop: Stop | None = None

    @classmethod
    def join(cls, job: context.Context, *, mix: str | None) -> Self:
        """Meet the peers that the environment tells of.

        Raises:
            Unavailable: `gang_incomplete`.
            InvalidRequest: the gang mixes accelerators in a way that the job didn't ask for, or that isn't worth it.
        """
        seat = Seat.from_environment()
        asked = Mix(mix or os.environ.get(MIX_VARIABLE) or Mix.NEVER)
        gang = Gang.open(
            seat, timeout_s=float(os.environ.get(TIMEOUT_VARIABLE) or _TIMEOUT_S),
            silent_s=float(os.environ.get(SILENT_VARIABLE) or _SILENT_S),
        )  # fmt: skip
        together = cls(gang, mix=asked)
        kinds = together._everyones(job.accelerator)
        if len(set(kinds)) > 1:
            members = [Member(accelerator=kind, speed=REFERENCE_SPEEDS.get(kind, 1.0)) for kind in kinds]
            admit(members, mix=asked, count=fitting_count(seat.world, 1 << 16))
        return together

    def vault(self, job: context.Context, directory: str | os.PathLike[str] | None) -> Vault:
        """Where the gang's checkpoints go; in a directory, rank 0 claims it for all."""
        named = directory if directory is not None else os.environ.get(vault.DIRECTORY_VARIABLE)
        if job.checkpoints is not None:
            checkpoints = job.checkpoints
        elif named:
            checkpoints = Checkpoints(DirectoryStore(Path(named)), prefix=vault.PREFIX)
            if self.gang.rank == 0:
                checkpoints.claim()
            epoch, attempt = self._everyones((checkpoints.writer.epoch, checkpoints.writer.attempt))[0]
            if self.gang.rank != 0:
                checkpoints = Checkpoints(
                    DirectoryStore(Path(named)), prefix=vault.PREFIX, epoch=epoch, attempt_id=attempt
                )
        else:
            return Nowhere()
        return _OneForAll(self, Kept(checkpoints), checkpoints)

    @property
    def share(self) -> Callable[[int, int], range] | None:
        """Which micro-batches of a step are this rank's."""
        return self._shares.block if self._shares is not None else None

    @property
    def takes_snapshots(self) -> bool:
        return self.gang.rank == 0

    def stop(self, own: Stop, *, save_s: Callable[[], float | None]) -> Stop:
        """The wish to stop, as the gang agrees on it; `save_s` tells how long a save takes."""
        self._own_stop, self._save_s = own, save_s
        return _Agreed(self, own)

    def way(self, state: Registry, ranks: VirtualRanks, *, reproducible: str, workers: int) -> "Among":
        """How a step's gradients come about.

        Raises:
            InvalidRequest: fewer virtual ranks than there are workers, or several models where only one can be.
        """
        if ranks.count < self.gang.world:
            raise InvalidRequest(
                f"{ranks.count} virtual ranks can't be shared by {self.gang.world} workers: set virtual to at least that, for "
                f"instance {fitting_count(self.gang.world, ranks.global_batch)}, and the same in all attempts",
                code="shares_invalid",
            )
        shares = self._shares = Shares(
            ranks.count, world=self.gang.world, rank=self.gang.rank,
            ahead=2 * workers, balances=self._mix is not Mix.NEVER,
        )  # fmt: skip
        self._way = Among(state.modules(), self.gang, shares, Reproducible(reproducible))
        return self._way

    def check_resumed(self, step: int) -> None:
        """All ranks must go on from the same step.

        Raises:
            Conflict: `resumed_apart`: one of them could not read the newest checkpoint.
        """
        steps = self._everyones(step)
        if len(set(steps)) > 1:
            raise Conflict(
                f"the ranks would go on from different steps ({', '.join(map(str, steps))}): some can't read the newest "
                "checkpoint. Look at their logs, and start another attempt",
                code="resumed_apart",
            )

    def begin_step(self) -> None:
        """A step begins: say whether this rank was asked to stop, and how long it computed in the one before."""
        wanted = self._own_stop is not None and self._own_stop.wait(0)
        lap_us = self._way.take_lap_us() if self._way is not None else 0
        self._began = time.monotonic()
        self._agreement = self.gang.agree(stop=wanted, lap_us=lap_us)

    def end_step(self, done: int) -> None:
        """The step is over, `done` in all: learn what was agreed. `PeerLost` if a rank is gone."""
        took_s = time.monotonic() - self._began
        self._step_s = took_s if self._step_s == 0 else 0.7 * self._step_s + 0.3 * took_s
        agreement, self._agreement = self._agreement, None
        if agreement is None:
            return
        verdict = agreement.wait()
        if self._shares is not None:
            self._shares.observe(done, verdict.laps_us)
        if verdict.stop:
            self.end()
            self._agreed.set()

    def end(self) -> None:
        """What is saved from now on, one saves for all."""
        self.is_ending = True

    def is_too_late(self, left_s: float | None) -> bool:
        """Whether there is no time to stop together."""
        return choose(left_s=left_s, step_s=self._step_s, save_s=self._save_s() or 0.0).at_once

    def await_agreed(self, timeout_s: float) -> bool:
        """Whether the gang has agreed to stop, after at most so long."""
        return self._agreed.wait(timeout_s)

    @property
    def patience_s(self) -> float:
        """How long one rank may take to save before the next one does."""
        return _PATIENCE_S + 3 * (self._save_s() or 0.0)

    def is_loss(self, error: FabricError) -> bool:
        return isinstance(error, PeerLost)

    def close(self) -> None:
        self.gang.close()

    def _everyones(self, own: Any) -> list[Any]:
        found: list[Any] = [None] * self.gang.world
        with self.gang.guarded("meeting"):
            dist.all_gather_object(found, own, group=self.gang.saving)
        return found


class Among:
    """Gradients over all ranks of a gang, of which this one computes its share."""

    def __init__(self, modules: list[Any], gang: Gang, shares: Shares, reproducible: Reproducible) -> None:
        from torch import nn  # noqa: PLC0415  # by now it is loaded

        whole = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        is_bitwise = reproducible is Reproducible.BITWISE
        self._way: Replicas | Overlapped = Replicas(whole, gang) if is_bitwise else Overlapped(whole, gang)
        self._overlaps = not is_bitwise
        self.shares = shares
        self._lap_ns, self._counted, self._all = 0, 0, 0
        self._since = 0

    def begin(self, step: int, parts: int) -> None:
        """A step of `parts` micro-batches over all ranks begins."""
        self._way.begin(self.shares.plan(step, parts))

    def forward(self, *, last: bool) -> None:
        """The script computes the next micro-batch from here on."""
        self._way.forward(last=last)
        self._is_last, self._since = last, time.perf_counter_ns()

    def backward(self, loss: Any, *, weight: float) -> None:
        """Add it. Reducing while the last one computes makes its time everybody's, so it is not counted then."""
        self._way.backward(loss, weight=weight)
        self._all += 1
        if not (self._overlaps and self._is_last):
            self._lap_ns += time.perf_counter_ns() - self._since
            self._counted += 1

    def finish(self) -> float:
        return self._way.finish()

    def take_lap_us(self) -> int:
        """How long this rank computed since this was asked last; 0 = can't be told."""
        lap_us = self._lap_ns * self._all // max(1, self._counted) // 1000
        self._lap_ns = self._counted = self._all = 0
        return lap_us


class _OneForAll:
    """Saves of a gang: snapshots are rank 0's, the last one is whoever's lives."""

    is_kept = True

    def __init__(self, together: Together, inner: Vault, checkpoints: Checkpoints) -> None:
        self._together, self._inner, self._checkpoints = together, inner, checkpoints

    def save(self, data: Buffer, *, step: int) -> None:
        together, gang = self._together, self._together.gang
        if together.is_ending:
            gang.keep(
                step,
                save=lambda: self._inner.save(data, step=step),
                newest=self._newest,
                patience_s=together.patience_s,
            )
        elif gang.rank == 0:
            self._inner.save(data, step=step)

    def load(self) -> bytes | None:
        return self._inner.load()

    def _newest(self) -> int | None:
        found = self._checkpoints.newest(verify=False)
        return None if found is None else found.step


class _Agreed:
    """A wish to stop that counts when the gang agreed on it, or when it is too late for that."""

    def __init__(self, together: Together, inner: Stop) -> None:
        self._together, self._inner = together, inner

    @property
    def reason(self) -> str:
        return self._inner.reason or "a peer was asked to stop"

    def wait(self, timeout_s: float) -> bool:
        if self._together.await_agreed(0):
            return True
        if not self._inner.wait(timeout_s):
            return self._together.await_agreed(0)
        if self._together.is_too_late(self._inner.seconds_left()):
            self._together.end()
            return True
        return self._together.await_agreed(timeout_s)

    def seconds_left(self) -> float | None:
        return self._inner.seconds_left()

    def is_save_wanted(self) -> bool:
        return self._inner.is_save_wanted()

    def is_snapshot_wanted(self) -> bool:
        return self._together.gang.rank == 0 and self._inner.is_snapshot_wanted()

    def ending(self) -> BaseException:
        return self._inner.ending()

    def depart(self, thread: int) -> None:
        self._inner.depart(thread)

    def end_process(self) -> None:
        self._inner.end_process()

    def close(self) -> None:
        self._inner.close()
