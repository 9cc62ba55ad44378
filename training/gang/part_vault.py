"""Where a gang of which each rank holds a part of the state keeps it: a shard of each in one checkpoint, all or none.

All ranks save the same boundary or none does. They meet before (each says whether it can) and after (each says what it
has written), and only then does rank 0 commit. So a rank that dies, or whose disk is full, leaves the checkpoint before it
as it was.
"""

import secrets
import threading
from typing import Any

import msgspec

from fabric.checkpoints import Checkpoints, Manifest, Shard
from fabric.checkpoints.directory import Buffer
from fabric.errors import FabricError, Unavailable
from training.gang.members import Gang
from training.gang.peer_copies import PeerCopies
from training.progress import say
from training.state import layout
from training.state.frozen import Frozen, put_back
from training.state.plain import digest
from training.state.registry import Registry
from training.state.sharded_state import Kept, Part, joined, merged, part_name, unkept
from training.state.vault import FORMAT, FROZEN


class Parts:
    """Where all ranks of a gang keep their parts: a shard of each in one checkpoint. All ranks call, in the same order."""

    is_kept = True

    def __init__(self, gang: Gang, checkpoints: Checkpoints) -> None:
        """All ranks give checkpoints of the same epoch and attempt."""
        self.gang, self.checkpoints = gang, checkpoints
        self.committing = threading.Lock()
        """Of this process's threads one commits at a time."""
        self.copies: PeerCopies | None = None
        """What this rank holds of others, and they of it."""
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
        draft = self.checkpoints.begin(step, token=said[0][1])
        own: Any
        try:
            draft.put(part_name(self.gang.rank), data)
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
                with self.committing:
                    self.checkpoints.commit(draft, shards=shards, meta={"made_by": FORMAT}, world=self.gang.world)
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
                Kept(part._replace(held=None), None if part.held is None else (part_name(self.gang.rank), 0, 0)),
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
                self._found = self.checkpoints.newest_passing(self._tried)
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
        name = part_name(self.gang.rank)
        if name not in names:
            name = part_name(0) if part_name(0) in names else "state"
        self._own = (name, self.checkpoints.read(manifest, name))
        for other in manifest.shards[self.gang.rank :: self.gang.world]:
            if other.name not in {part_name(rank) for rank in range(self.gang.world)}:
                self.checkpoints.shelf.verify(other)

    def joined(self, objects: Any, state: Registry) -> Any:
        """What was loaded, as the ranks of now hold it."""
        if self._found is not None and any(shard.name == FROZEN for shard in self._found.shards):
            objects = put_back(objects, self._shard(FROZEN))
        return joined(objects, like=state.counterpart(objects), read=self._shard)

    def _shard(self, name: str) -> bytes:
        assert self._found is not None
        return self._own[1] if name == self._own[0] else self.checkpoints.read(self._found, name)

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
