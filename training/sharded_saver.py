"""Saves of a gang of which each rank holds a part of the state: every rank keeps its own, and one record makes it count.

All ranks save the same boundary or none does. They meet before (each says whether it can) and after (each says what it
has written), and only then does rank 0 commit. So a rank that dies, or whose disk is full, leaves the checkpoint before it
as it was. Snapshots are agreed on with the steps (`training.gang`): the training threads copy at the same boundary, and the
side threads write. A rank that is lost takes its part with it: what counts then is the newest checkpoint, not the last step.
"""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from fabric.checkpoints import Checkpoints, Manifest, Shard
from fabric.checkpoints.directory import Buffer
from fabric.errors import FabricError, JobFailed, Unavailable
from training import layout
from training.boundary import Boundary
from training.frozen import Frozen, put_back
from training.gang import Gang, PeerLost
from training.moment import Moment
from training.plain import digest
from training.progress import say
from training.registry import Registry
from training.saver import Copy, Save, Saver
from training.sharded_state import Kept, Part, joined, merged, parted, unkept
from training.vault import FORMAT, FROZEN


class Parts:
    """Where all ranks of a gang keep their parts: a shard of each in one checkpoint. All ranks call, in the same order."""

    is_kept = True

    def __init__(self, gang: Gang, checkpoints: Checkpoints) -> None:
        """All ranks give checkpoints of the same epoch and attempt."""
        self.gang, self._checkpoints = gang, checkpoints
        self._found: Manifest | None = None
        self._own: tuple[str, bytes] = ("", b"")

    def save(
        self,
        data: Buffer,
        *,
        step: int,
        frozen: Frozen | None = None,  # noqa: ARG002  # of parts, all are written each time
        kept: list[Kept] | None = None,
    ) -> None:
        """Durable on return, on all ranks.

        Raises:
            PeerLost: a rank is gone; the checkpoint before it is as it was.
            FabricError: some rank can't save, or a store refuses it: the same error on all ranks.
        """
        said = self._agreed((step, secrets.token_hex(6)), "meeting to save")
        if {at for at, _ in said} != {step}:
            raise Unavailable(
                f"the ranks stand at different steps ({', '.join(str(at) for at, _ in said)}): none of them is saved",
                code="ranks_apart",
            )
        draft = self._checkpoints.begin(step, token=said[0][1])
        own: Any
        try:
            draft.put(self.name(self.gang.rank), data)
            draft.upload()
            own = (draft.shards, kept or [])
        except FabricError as failed:
            own = failed
        everyones = self._agreed(own, "saving parts")
        outcome: FabricError | None = None
        if self.gang.rank == 0:
            try:
                entries = merged(one for _, theirs in everyones for one in theirs)
                draft.put(layout.SHARD, msgspec.json.encode(layout.Layout(entries=entries)))
                draft.upload()
                shards: list[Shard] = [shard for theirs, _ in everyones for shard in theirs]
                self._checkpoints.commit(draft, shards=shards, meta={"made_by": FORMAT}, world=self.gang.world)
            except FabricError as failed:
                outcome = failed
        self._agreed(outcome, "hearing whether it is saved")

    def holds(self, digest: str) -> bool:  # noqa: ARG002
        return False

    def forgo(self, why: FabricError) -> None:
        """Say that this rank can't save now: no other will either. Raises `why`, which they raise too."""
        self._agreed(why, "meeting to save")

    def check(self, parts: list[Part]) -> None:
        """Whether the parts of all ranks are all there is.

        Raises:
            InvalidRequest: `state_not_kept`, on all ranks.
        """
        held = [
            (
                Kept(part._replace(held=None), None if part.held is None else (self.name(self.gang.rank), 0, 0)),
                None if part.held is None or not part.held.numel() else digest(part.held),
            )
            for part in parts
        ]
        everyones = [one for theirs in self._agreed(held, "comparing parts") for one in theirs]
        merged(kept for kept, _ in everyones)
        values: dict[tuple[str, tuple[int, ...]], Any] = {}
        for kept, value in everyones:
            if value is not None and values.setdefault((kept.part.name, kept.part.offsets), value) != value:
                raise unkept(kept.part.name, "is the name of different tensors on different ranks: rename them")

    def load(self) -> bytes | None:
        """The part of this rank in the newest checkpoint that all ranks find whole: or rank 0's, of one from fewer ranks."""
        if self.gang.rank == 0:
            try:
                self._found = self._checkpoints.newest_passing(self._tried)
            except FabricError as failed:
                self._agreed(failed, "looking for a checkpoint")
            self._agreed(None, "looking for a checkpoint")
        else:
            while (manifest := self._agreed(None, "looking for a checkpoint")[0]) is not None:
                self._found = manifest
                self._said_of(manifest)
        if self._found is None:
            return None
        self._tell_other_world(self._found)
        return self._own[1]

    def _tried(self, manifest: Manifest) -> None:
        """For rank 0: have all ranks read what is theirs."""
        self._agreed(manifest, "looking for a checkpoint")
        failed = next((error for error in self._said_of(manifest) if error is not None), None)
        if failed is not None:
            raise failed

    def _said_of(self, manifest: Manifest) -> list[FabricError | None]:
        error: FabricError | None = None
        try:
            self._read_own(manifest)
        except FabricError as failed:
            error = failed
        return self.gang.gather(error, "reading parts")

    def _read_own(self, manifest: Manifest) -> None:
        """Read the part of this rank, and of those that nobody would look at its share."""
        names = [shard.name for shard in manifest.shards]
        name = self.name(self.gang.rank)
        if name not in names:
            name = self.name(0) if self.name(0) in names else "state"
        self._own = (name, self._checkpoints.read(manifest, name))
        for other in manifest.shards[self.gang.rank :: self.gang.world]:
            if other.name not in {self.name(rank) for rank in range(self.gang.world)}:
                self._checkpoints.shelf.verify(other)

    def joined(self, objects: Any, state: Registry) -> Any:
        """What was loaded, as the ranks of now hold it."""
        if self._found is not None and any(shard.name == FROZEN for shard in self._found.shards):
            objects = put_back(objects, self._shard(FROZEN))
        return joined(objects, like=state.counterpart(objects), read=self._shard)

    def _shard(self, name: str) -> bytes:
        assert self._found is not None
        return self._own[1] if name == self._own[0] else self._checkpoints.read(self._found, name)

    def _tell_other_world(self, found: Manifest) -> None:
        if self.gang.rank == 0 and found.world != self.gang.world:
            say(
                f"step {found.step} was saved by {found.world} rank{'s' if found.world > 1 else ''} and goes on with "
                f"{self.gang.world}: weights, moments and schedule are the same bits, but ranks draw other random numbers, and "
                "what each of them computes of a step is the script's to say"
            )

    def _agreed(self, own: Any, doing: str) -> list[Any]:
        """What all ranks say; an error of any of them is raised on all."""
        everyones = self.gang.gather(own, doing)
        failed = next((said for said in everyones if isinstance(said, FabricError)), None)
        if failed is not None:
            raise failed
        return everyones

    @staticmethod
    def name(rank: int) -> str:
        """Of the shard that a rank writes."""
        return f"rank-{rank}/state"


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
            Unavailable: `part_lost`: a rank is gone, so nobody holds its part of the newest boundary.
        """
        is_alone = self._gang.world == 1
        if not (is_alone or leaving or (at_boundary and (self.is_last or self._is_ending()))):
            return self._save_waiting(is_due=not at_boundary)
        self._has_met = False
        try:
            saved = super().save(timeout_s=timeout_s, leaving=leaving, at_boundary=at_boundary or not is_alone)
        except PeerLost as lost:
            raise self._part_lost(lost) from lost
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
            raise self._part_lost(lost) from lost
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

    def _part_lost(self, lost: PeerLost) -> FabricError:
        self._has_met = True
        return Unavailable(
            f"{lost.message.partition(':')[0]}, and nobody else holds its part of step {self.newest_step}: {self.kept}",
            code="part_lost",
        )

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
        name, places = Parts.name(self._gang.rank), {}
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
