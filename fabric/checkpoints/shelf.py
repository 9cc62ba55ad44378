"""Where one job's shards lie: in the store, where they are durable, and perhaps nearer, where they are quick to read.

Whatever is read is compared with what its manifest says, at every reading; a near copy that isn't whole is no copy.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fabric.checkpoints.directory import DirectoryStore
from fabric.checkpoints.draft import send_shard
from fabric.checkpoints.records import Manifest, Shard, decoded, encoded
from fabric.checkpoints.stores import Store
from fabric.errors import CheckpointDamaged, NotFound


@dataclass(frozen=True, slots=True)
class Shelf:
    """One job's shards. `local` is this machine's memory or disk; None = there is only the store."""

    store: Store
    local: DirectoryStore | None
    prefix: str

    def read(self, shard: Shard) -> bytes:
        """The shard's bytes, from near if they are whole there.

        Raises:
            CheckpointDamaged: they are missing, or not what was saved.
        """
        key = f"{self.prefix}/{shard.key}"
        if self.local is not None:
            with suppress(NotFound, CheckpointDamaged):
                return verified(self.local.get(key), shard)
        try:
            return verified(self.store.get(key), shard)
        except NotFound:
            raise _damaged(shard, "it is missing") from None

    def fetch(self, shard: Shard, path: Path) -> None:
        """Write the shard into a new file, from near if it is whole there; raises like `read`."""
        if self.local is not None:
            with suppress(NotFound, CheckpointDamaged):
                self._copy(self.local, shard, path)
                return
        self._copy(self.store, shard, path)

    def verify(self, shard: Shard) -> None:
        """Read the shard in the store, piece by piece, and compare; raises like `read`."""
        self._checked(self.store, shard, lambda _: None)

    def _copy(self, tier: Store, shard: Shard, path: Path) -> None:
        with path.open("wb") as file:
            self._checked(tier, shard, file.write)

    def _checked(self, tier: Store, shard: Shard, take: Callable[[bytes], object]) -> None:
        digest, size = hashlib.sha256(), 0
        try:
            for chunk in tier.chunks(f"{self.prefix}/{shard.key}"):
                digest.update(chunk)
                size += len(chunk)
                take(chunk)
        except NotFound:
            raise _damaged(shard, "it is missing") from None
        if (size, digest.hexdigest()) != (shard.size, shard.sha256):
            raise _damaged(shard, f"it has {size} bytes that are not the {shard.size} that were saved")

    def stage(self, manifest: Manifest) -> None:
        """Note near by that all shards of this checkpoint are there: the process may now end, but not the machine."""
        assert self.local is not None
        self.local.put(f"{self.prefix}/staged", encoded(manifest))

    def staged(self) -> Manifest | None:
        """What was staged last, if every byte of it is still there."""
        if self.local is None:
            return None
        try:
            found = decoded(self.local.get(f"{self.prefix}/staged"), prefix=self.prefix, slot=None)
            if not isinstance(found, Manifest):
                return None
            for shard in found.shards:
                verified(self.local.get(f"{self.prefix}/{shard.key}"), shard)
        except (NotFound, CheckpointDamaged):
            return None
        return found

    def send(self, manifest: Manifest) -> None:
        """Copy what was staged to the store; durable on return."""
        assert self.local is not None
        for shard in manifest.shards:
            send_shard(shard, prefix=self.prefix, local=self.local, store=self.store)

    def drafts(self) -> set[str]:
        """Every draft of which the store or this machine keeps anything."""
        return set(self.store.folders(f"{self.prefix}/data")) | self.local_drafts()

    def local_drafts(self) -> set[str]:
        """Those of which this machine keeps anything."""
        return set() if self.local is None else set(self.local.folders(f"{self.prefix}/data"))

    def delete(self, draft: str) -> None:
        """All that was written of a draft."""
        self.store.delete_folder(f"{self.prefix}/data/{draft}")
        self.delete_local(draft)

    def delete_local(self, draft: str) -> None:
        """The near copy of it."""
        if self.local is not None:
            self.local.delete_folder(f"{self.prefix}/data/{draft}")


def verified(data: bytes, shard: Shard) -> bytes:
    """The same bytes, if they are the shard's.

    Raises:
        CheckpointDamaged: they are not.
    """
    if len(data) != shard.size or hashlib.sha256(data).hexdigest() != shard.sha256:
        raise _damaged(shard, f"it has {len(data)} bytes that are not the {shard.size} that were saved")
    return data


def _damaged(shard: Shard, why: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"shard {shard.key} is damaged: {why}", name=shard.name, key=shard.key)
