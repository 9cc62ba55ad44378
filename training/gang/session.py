"""A session among the other ranks of its gang: they stop after the same step, and one of them saves for all.

Each rank starts an agreement as a step begins (as one of several does, where they are quick) and reads it as the step
ends. When any of them is asked to stop, all come to the same boundary; rank 0's side thread saves it, the others' wait
to hear so, or save in its place if it dies. When there is no time left for that, everyone's last boundary is offered at
once and the furthest counts. When a peer is lost, so is its step, and nothing else.

It knows the session's ports (`Stop`, `Vault`, `Way`) and a gang, and not the loop.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import torch.distributed as dist

from fabric import context
from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.errors import Conflict, FabricError, InvalidRequest
from training.gang.copy_places import Asked
from training.gang.gradients import Reproducible
from training.gang.island_gang import EVERY, EVERY_VARIABLE, TRACKED_AS, Apart, Archipelago
from training.gang.islands import Islands
from training.gang.members import Gang, PeerLost, Seat, choose
from training.gang.mixing import Mix
from training.gang.pace import Pace, silent_steps
from training.gang.part_vault import Parts
from training.gang.peer_copies import PeerCopies
from training.gang.peers import saver_of
from training.gang.reduction import Among
from training.gang.sharded_feed import check_feed, islands_of_parts
from training.gang.sharded_saver import ShardedSaver
from training.gang.shares import Shares
from training.gang.stop import GangStop
from training.gang.vault import GangVault
from training.loop.virtual import VirtualRanks, fitting_count
from training.progress import say
from training.state import vault
from training.state.boundary import Boundary
from training.state.registry import Registry
from training.state.saver import Saver
from training.state.stopping import Stop
from training.state.vault import Nowhere, Vault

MIX_VARIABLE: Final = "FABRIC_MIX"
KIND_VARIABLE: Final = "FABRIC_ACCELERATOR"
"""Which kind of device a rank has, where no job's context tells."""
TIMEOUT_VARIABLE: Final = "FABRIC_GANG_TIMEOUT_S"
"""The longest that a rank may keep the others waiting: more than any step takes."""
_TIMEOUT_S: Final = 300.0
SILENT_VARIABLE: Final = "FABRIC_GANG_SILENT_S"
"""A rank that hangs, or whose machine is gone, is given up after so long."""
SILENT_S: Final = 20.0
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
        self._way: Among | Apart | None = None
        self._archipelago: Archipelago | None = None
        self._islands: Islands | None = None
        self._stops_next = False
        self._silent_steps = 0
        """Quick steps that are still to come without an agreement: on all ranks the same."""
        self._pace = Pace([""] * gang.world)
        self._step_s = 0.0
        self._ended_us = 0
        self._began = time.monotonic()
        self._save_s: Callable[[], float | None] = lambda: None
        self._own_stop: Stop | None = None
        self._is_sharded = False
        self._copies: PeerCopies | None = None
        self._copies_asked = Asked(is_wanted=False, each_step=False)
        self._leave: Callable[[str], None] = lambda _why: None
        self.lost_named = ""
        """Who was lost, where others held copies of its part."""
        self._parts_saver: ShardedSaver | None = None
        self._saver: Saver | None = None

    @classmethod
    def join(cls, job: context.Context, *, mix: str | None, peer_copies: bool | str | None = None) -> Self:
        """Meet the peers that the environment tells of.

        Raises:
            Unavailable: `gang_incomplete`.
            InvalidRequest: the gang mixes accelerators in a way that the job didn't ask for, or that isn't worth it.
        """
        seat, wanted = Seat.from_environment(), Asked.of(peer_copies)
        asked = Mix(mix or os.environ.get(MIX_VARIABLE) or Mix.NEVER)
        gang = Gang.open(
            seat, backend="gloo" if asked is Mix.ISLANDS else None,
            timeout_s=float(os.environ.get(TIMEOUT_VARIABLE) or _TIMEOUT_S),
            silent_s=float(os.environ.get(SILENT_VARIABLE) or SILENT_S),
        )  # fmt: skip
        together = cls(gang, mix=asked)
        together._leave, together._copies_asked = job.leave, wanted
        kinds = together._everyones(job.accelerator or os.environ.get(KIND_VARIABLE, ""))
        together._pace = Pace(kinds)
        together._pace.check(mix=asked, count=fitting_count(seat.world, 1 << 16))
        if asked is Mix.ISLANDS:
            together._part(kinds)
        return together

    def _part(self, kinds: list[str]) -> None:
        """One island for each kind. Of one kind alone it is an ordinary gang, over what its devices speak."""
        parted = Archipelago(self.gang, kinds)
        if parted.is_one:
            self.gang.data = parted.island.gang.data
            return
        self._archipelago = parted
        if self.gang.rank == 0:
            named = ", ".join(f"{kinds.count(kind)} on {kind or 'an unnamed kind'}" for kind in parted.kinds)
            say(
                f"EXPERIMENTAL: mix=islands: {len(parted.kinds)} islands ({named}) train apart and meet every "
                f"{_islands_every()} steps: no bits are promised, and how well it learns depends on the model"
            )

    def tracks(self, state: Registry) -> dict[str, Any]:
        """What a checkpoint must bring back besides what the script named, by name."""
        self._is_sharded = any(self._everyones(state.is_sharded))
        if self._is_sharded and self._archipelago is not None:
            raise islands_of_parts()
        if self._archipelago is None or not (modules := state.modules()):
            return {}
        self._islands = self._archipelago.islands(modules, every=_islands_every())
        return {TRACKED_AS: self._islands}

    def vault(
        self,
        job: context.Context,
        directory: str | os.PathLike[str] | None,
        *,
        number: int,
        state: Registry,  # noqa: ARG002
    ) -> Vault:
        """Where the gang's checkpoints go; in a directory, rank 0 claims it for all."""
        named = directory if directory is not None else os.environ.get(vault.DIRECTORY_VARIABLE)
        if job.checkpoints is not None:
            checkpoints = vault.of_session(job.checkpoints, number)
        elif named:
            prefix = vault.prefix_of_session(vault.PREFIX, number)
            checkpoints = Checkpoints(DirectoryStore(Path(named)), prefix=prefix)
            if self.gang.rank == 0:
                checkpoints.claim()
            epoch, attempt = self._everyones((checkpoints.writer.epoch, checkpoints.writer.attempt))[0]
            if self.gang.rank != 0:
                checkpoints = Checkpoints(DirectoryStore(Path(named)), prefix=prefix, epoch=epoch, attempt_id=attempt)
        else:
            return Nowhere()
        if self._is_sharded:
            return self._with_copies(Parts(self.gang, checkpoints))
        return GangVault(self.gang, checkpoints, is_ending=lambda: self.is_ending, patience_s=lambda: self.patience_s)

    def _with_copies(self, parts: Parts) -> Parts:
        """If all ranks want copies in peers' memory, and what one of them wants, they have them."""
        wanted, each_step = zip(*self._everyones(self._copies_asked), strict=True)
        if all(wanted):
            parts.copies = self._copies = PeerCopies(
                self.gang, each_step=any(each_step), checkpoints=parts.checkpoints, committing=parts.committing,
                ended=self._end_lost,
            )  # fmt: skip
        return parts

    def _end_lost(self, who: str) -> None:
        """A peer is gone, and what can be durable is: the attempt ends, wherever its training thread is."""
        self.lost_named = who
        self._leave(f"{PeerLost.code}: {who}")
        self.end()
        self._agreed.set()

    def saver(self, state: Registry, boundary: Boundary, vault: Vault) -> Saver:
        """What saves there: one rank for all, or all of them their parts."""
        made = saver_of(state, boundary, vault, is_ending=lambda: self.is_ending)
        self._parts_saver = made if isinstance(made, ShardedSaver) else None
        self._saver = made
        made.ranks.rank, made.ranks.world = self.gang.rank, self.gang.world
        made.ranks.is_needed = vault.is_kept and self._parts_saver is None and self._archipelago is None
        return made

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
        return GangStop(self, own)

    def way(self, state: Registry, ranks: VirtualRanks, *, reproducible: str, workers: int) -> Among | Apart:
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
        modules, how = state.modules(), Reproducible(reproducible)
        if self._saver is not None:
            self._saver.ranks.is_needed = False  # random numbers belong to virtual ranks
        if self._is_sharded:
            check_feed(modules, how, world=self.gang.world)
        if self._archipelago is not None and self._islands is not None:
            self._way = Apart(modules, self._archipelago.island, shares, self._islands, how)
        else:
            self._way = Among(modules, self.gang, shares, how)
        return self._way

    def learned(self) -> dict[str, Any]:
        """How fast a rank of each kind was found to be, and what a step took besides computing."""
        return self._pace.told()

    def check_resumed(self, step: int, learned: Mapping[str, Any]) -> None:
        """All ranks must go on from the same step, and a new gang of several kinds must be worth it.

        A resumed one goes on however slow it is: its work was paid for, and which devices it got was not its own choice.

        Raises:
            Conflict: `resumed_apart`: one of them could not read the newest checkpoint.
            InvalidRequest: `mix_inefficient`; `islands_need_batches`: islands reduce no gradients but those of `run.batches`.
        """
        if self._archipelago is not None and not isinstance(self._way, Apart):
            raise InvalidRequest(
                "mix=islands trains through run.batches(...) and run.step(loss) with a model that the session tracks: a loop "
                "of one's own would reduce its gradients across islands. Use them, or a gang of one kind (mix=never)",
                code="islands_need_batches",
            )
        if self._islands is not None:
            self._islands.begin()
        self._pace.take(learned)
        if self._shares is not None:
            self._judge(self._shares.count, is_resumed=step > 0)
        steps = self._everyones(step)
        if len(set(steps)) > 1:
            raise Conflict(
                f"the ranks would go on from different steps ({', '.join(map(str, steps))}): some can't read the newest "
                "checkpoint. Look at their logs, and start another attempt",
                code="resumed_apart",
            )

    def _judge(self, count: int, *, is_resumed: bool) -> None:
        try:
            self._pace.admit(mix=self._mix, count=count)
        except InvalidRequest as slow:
            if not is_resumed or slow.code != "mix_inefficient":
                raise
            if self.gang.rank == 0:
                say(
                    f"{slow.message}. It goes on all the same: to wait for better, pause it and resume it with that one kind"
                )

    def begin_step(self) -> None:
        """A step begins: say whether this rank was asked to stop, and how long it computed in the one before."""
        wanted = self._own_stop is not None and self._own_stop.wait(0)
        lap_us, self._ended_us = self._way.take_lap_us() if self._way is not None else (0, 0)
        self._began = time.monotonic()
        if self._silent_steps:
            self._silent_steps -= 1
            return
        save = self._parts_saver is not None and self._parts_saver.wants_snapshot
        save = save or (self._saver is not None and self._saver.ranks.is_wanted)
        self._agreement = self.gang.agree(stop=wanted, lap_us=lap_us, save=save)

    def end_step(self, done: int) -> None:
        """The step is over, `done` in all: learn what was agreed. `PeerLost` if a rank is gone."""
        took_s = time.monotonic() - self._began
        self._step_s = took_s if self._step_s == 0 else 0.7 * self._step_s + 0.3 * took_s
        if isinstance(self._way, Apart) and self._way.lost is not None:
            raise self._way.lost
        agreement, self._agreement = self._agreement, None
        if agreement is None:
            return
        verdict = agreement.wait()
        if self._copies is not None and self._parts_saver is not None:
            self._copies.at_boundary(done, self._parts_saver, step_s=self._step_s, is_stop=verdict.stop)
        is_always = verdict.stop or (self._copies is not None and self._copies.each_step)
        self._silent_steps = 0 if is_always else silent_steps(verdict.laps_us)
        if self._shares is not None:
            self._pace.note(verdict.laps_us, shares=self._shares.counts(done - 2), ended_us=self._ended_us)
            self._shares.observe(done, verdict.laps_us)
        if self._islands is not None and verdict.stop and not self._stops_next:
            self._stops_next = True  # what is saved is what all have learned: they meet in the next step
            self._islands.meet_next()
        elif verdict.stop or self._stops_next:
            self._tell_own()
            self.end()
            self._agreed.set()
        elif verdict.save and self._parts_saver is not None:
            self._parts_saver.snapshot()
        elif verdict.save and self._tell_own() and self._saver is not None and self.gang.rank == 0:
            self._saver.reserve()

    def _tell_own(self) -> bool:
        """Where one saves for all: tell each other what each has of its own at this boundary. Whether that is needed."""
        if self._saver is None or not self._saver.ranks.is_needed:
            return False
        own = self._saver.own_part()
        self._saver.ranks.everyones = self.gang.gather(own, "telling what is its own", group=self.gang.control)
        self._saver.ranks.is_wanted = False
        return True

    def conclude(self) -> Callable[[], None] | None:
        """All steps are done: what is still to be done to the weights, if anything; it can't fail any more.

        Raises:
            PeerLost: another island is gone.
        """
        return None if self._islands is None else self._islands.last_meeting()

    def end(self) -> None:
        """What is saved from now on, one saves for all."""
        self.is_ending = True
        if self._copies is not None:
            self._copies.settle()

    def is_too_late(self, left_s: float | None) -> bool:
        """Whether there is no time to stop together. Parts that were not kept together are worth nothing."""
        if self._is_sharded:
            return False
        steps = 1.0 + self._silent_steps / 2 + (self._islands is not None) / 2  # islands make one more, to meet
        return choose(left_s=left_s, step_s=steps * self._step_s, save_s=self._save_s() or 0.0).at_once

    def await_agreed(self, timeout_s: float) -> bool:
        """Whether the gang has agreed to stop, after at most so long."""
        return self._agreed.wait(timeout_s)

    @property
    def patience_s(self) -> float:
        """How long one rank may take to save before the next one does."""
        return _PATIENCE_S + 3 * (self._save_s() or 0.0)

    def is_loss(self, error: FabricError) -> bool:
        if isinstance(error, PeerLost) and self._copies is not None:
            self._copies.note_loss(error.message)
        return isinstance(error, PeerLost)

    def find_lost(self) -> bool:
        return self._copies is not None and self._copies.find_lost()

    def close(self) -> None:
        if self._copies is not None:
            self._copies.close()
        self.gang.close()

    def _everyones(self, own: Any) -> list[Any]:
        found: list[Any] = [None] * self.gang.world
        with self.gang.guarded("meeting"):
            dist.all_gather_object(found, own, group=self.gang.saving)
        return found


def _islands_every() -> int:
    return int(os.environ.get(EVERY_VARIABLE) or EVERY)
