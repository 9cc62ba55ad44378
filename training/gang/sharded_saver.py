"""Saves of a gang of which each rank holds a part of the state: every rank keeps its own, and one record makes it count.

All ranks save the same boundary or none does (`training.gang.part_vault`). Snapshots are agreed on with the steps
(`training.gang.members`): the training threads copy at the same boundary, and the side threads write. A rank that is lost takes its
part with it: what counts then is the newest checkpoint, not the last step, unless the others hold copies of its part in
memory (`training.gang.peer_copies`).
"""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from fabric.errors import FabricError, JobFailed, Unavailable
from training.gang.members import PeerLost
from training.gang.part_vault import Parts
from training.gang.peer_copies import PeerCopies
from training.progress import say
from training.state.boundary import Boundary
from training.state.moment import Copy, Moment, beside
from training.state.registry import Registry
from training.state.saver import Save, Saver
from training.state.sharded_state import Kept, Part, part_name, parted
from training.state.vault import gathered


class _Waiting(NamedTuple):
    """A boundary that was copied, and is to be written."""

    moment: Moment
    copy: Copy
    kept: list[Kept]
    took_s: float


class ShardedSaver(Saver):
    """Saves boundaries together with the other ranks."""

    def __init__(self, registry: Registry, boundary: Boundary, vault: Parts, *, is_ending: Callable[[], bool]) -> None:
        """`is_ending`: whether what is saved from now on is the last of this attempt, which all ranks save."""
        super().__init__(registry, boundary, vault)
        self._parts, self._gang, self._is_ending = vault, vault.gang, is_ending
        self._taken: list[Part] = []
        self._waiting: _Waiting | FabricError | None = None
        """A snapshot that was copied and not yet written; or why this rank could not."""
        self._has_met = False
        """Whether the others know what became of this rank's save."""
        self._last: Save | None = None
        self._is_told = False
        """Whether it was said what became of the loss of a peer."""
        self.wants_snapshot = False
        """Whether this rank's side thread finds that a snapshot is due."""

    @property
    def is_waiting(self) -> bool:
        """Whether a snapshot is to be written."""
        return self._waiting is not None

    @property
    def needs_boundary(self) -> bool:
        """All saves are of boundaries at which the training thread stands."""
        return False

    def snapshot(self) -> None:
        """For the training thread, at a boundary that all ranks agreed on: copy it for the side thread to write."""
        began = time.monotonic()
        with self._writing:
            self._saved_before(leaving=False)
            self.wants_snapshot = False
            if not self.has_new or self.moment is None:
                return
            try:
                copy = self._copied(self.moment, at_boundary=True)
                self._waiting = _Waiting(self.moment, copy, self._kept(copy), time.monotonic() - began)
            except FabricError as failed:
                self._waiting = failed

    def save(self, *, timeout_s: float | None = None, leaving: bool = False, at_boundary: bool = False) -> Save | None:
        """As `Saver.save`, with all ranks. Unasked, it is only noted that a snapshot is due: the ranks agree on when.

        Who leaves stands at a boundary that all ranks agreed on.

        Raises:
            Unavailable: `part_lost`: a rank is gone, and nobody else holds its part.
        """
        if self._parts.copies is not None and self._parts.copies.has_lost:
            return self._recovered(self._parts.copies)
        is_alone = self._gang.world == 1
        if not (is_alone or leaving or (at_boundary and (self.is_last or self._is_ending()))):
            return self._save_waiting(is_due=not at_boundary)
        self._has_met = False
        try:
            saved = super().save(timeout_s=timeout_s, leaving=leaving, at_boundary=at_boundary or not is_alone)
        except PeerLost as lost:
            return self._without(lost)
        except FabricError as failed:
            self._forgo(failed)
            raise
        if saved is None:
            self._forgo(self._not_over())
        return saved

    def _save_waiting(self, *, is_due: bool) -> Save | None:
        try:
            with self._writing:
                written = self._write_waiting()
        except PeerLost as lost:
            return self._without(lost)
        self.wants_snapshot = is_due and written is None
        return written

    def leave(self) -> None:
        """No further step begins; who has not saved its last boundary tells the others, so that they don't wait."""
        if self.has_new:
            self._forgo(self._not_over())
        super().leave()

    def _forgo(self, why: FabricError) -> None:
        """Tell the others, who wait for this rank to save, that it doesn't."""
        with self._writing, suppress(FabricError):
            if not self._has_met:
                self._has_met = True
                self._parts.forgo(why)

    def _not_over(self) -> FabricError:
        return JobFailed(
            f"rank {self._gang.rank} does not save step {self.newest_step}, and without its part nobody can: {self.kept}",
            code="part_not_saved",
        )

    def _without(self, lost: PeerLost) -> Save:
        """A rank is gone: what there is of its part in others' memory."""
        self._has_met = True
        if self._parts.copies is None:
            why = f"nobody else holds its part of step {self.newest_step}"
            raise self._part_lost(lost.message.partition(":")[0], why) from lost
        self._parts.copies.note_loss(lost.message)
        return self._recovered(self._parts.copies)

    def _recovered(self, copies: PeerCopies) -> Save:
        """What the ranks that are left made durable of what they hold, after which this one leaves."""
        self._has_met = True
        found = copies.recovered()
        if found.step is None:
            raise self._part_lost(copies.lost_named, found.why)
        is_told, self._is_told = self._is_told, True
        if not is_told:  # first of all: who finds nothing new ends the process
            self._tell_recovered(found.step, copies)
        self.durable_step = found.step
        self._boundary.leave()
        if not is_told:
            self.after_save()
        return Save(found.step, found.size, copies.recover_s, 0.0, ends=True)

    def _tell_recovered(self, step: int, copies: PeerCopies) -> None:
        lost = self.newest_step - step
        say(
            f"{copies.lost_named}: step {step} was whole in the memory of the others and is durable now, in "
            f"{1000 * copies.recover_s:.0f} ms; {lost} step{'' if lost == 1 else 's'} lost"
        )

    def _part_lost(self, who: str, why: str) -> FabricError:
        return Unavailable(f"{who}, and {why}: {self.kept}", code="part_lost")

    def laid_out(self) -> Any:
        """The part of this rank at the boundary where the training thread stands: see `training.gang.peer_copies.Source`."""
        assert self.moment is not None
        return self._laid_out(self._readable(self.moment, at_boundary=True))[0]

    def copied(self, plan: Any, into: memoryview) -> Callable[[], str | None]:
        """The same, copied."""
        assert self.moment is not None
        with beside(self.moment.device_event):
            copy = Copy(gathered(plan, into=into), plan, self._registry.weights())
        return lambda: "the loss" if self.poisoned() else copy.not_finite(self._excused)

    def _saved_before(self, *, leaving: bool) -> Save | None:
        """Under the lock: what was copied before is written first, and a boundary that is durable isn't saved again."""
        try:
            self._last = self._write_waiting() or self._last
        except PeerLost:
            raise
        except FabricError as failed:
            say(f"no snapshot: {failed.message}")
        if self._last is not None and not self.has_new:
            self._has_met = True
            if leaving:
                self._boundary.leave()
            return self._last
        return None

    def _keep(self, moment: Moment, copy: Copy) -> None:
        self._check_finite(moment, copy)
        self._has_met = True
        self._parts.save(copy.data, step=moment.step, kept=self._kept(copy))

    def _became_durable(self, moment: Moment, copy: Copy, *, took_s: float, blocked_s: float) -> Save:
        self._last = super()._became_durable(moment, copy, took_s=took_s, blocked_s=blocked_s)
        return self._last

    def _write_waiting(self) -> Save | None:
        """Write what was copied; all ranks do, before anything that they copy later."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return None
        began = time.monotonic()
        if not isinstance(waiting, FabricError):
            try:
                self._check_finite(waiting.moment, waiting.copy)
            except FabricError as failed:
                waiting = failed
        if isinstance(waiting, FabricError):
            self._parts.forgo(waiting)
            raise waiting
        self._parts.save(waiting.copy.data, step=waiting.moment.step, kept=waiting.kept)
        took_s = waiting.took_s + time.monotonic() - began
        return self._became_durable(waiting.moment, waiting.copy, took_s=took_s, blocked_s=waiting.took_s)

    def _whole(self, copied: Any) -> Any:
        state, self._taken = parted(super()._whole(copied))
        return state

    def _without_frozen(self, objects: Any) -> tuple[Any, dict[str, Any]]:
        """All of it goes into the parts."""
        return objects, {}

    def _rehearsed(self) -> None:
        with self._writing:
            self._parts.check(self._taken)

    def _kept(self, copy: Copy) -> list[Kept]:
        """Where the bytes of each part lie."""
        name, places = part_name(self._gang.rank), {}
        for tensor, offset in zip(copy.plan.tensors, copy.plan.offsets, strict=True):
            places[tensor.data_ptr(), tensor.dtype, tensor.shape] = len(copy.plan.head) + offset
        return [
            Kept(
                part._replace(held=None),
                None
                if part.held is None
                else (name, places[part.held.data_ptr(), part.held.dtype, part.held.shape], part.held.nbytes),
            )
            for part in self._taken
        ]
