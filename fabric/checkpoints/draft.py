"""A checkpoint that is being written: shards go up from any rank and any thread; none of it exists until it is committed."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fabric.checkpoints.directory import Buffer, DirectoryStore
from fabric.checkpoints.records import Shard
from fabric.checkpoints.stores import Quota, Store
from fabric.errors import CheckpointDamaged, Conflict, NotFound, Unavailable
from fabric.storage.keys import checked_key

_PARALLEL: Final = 4
_LARGE_BYTES: Final = 16 * 2**20
"""A shard of so much is hashed while it is written."""


class Draft:
    """The shards of one rank. With a local tier they are staged there first, and sent to the store by `upload`."""

    def __init__(
        self,
        store: Store,
        *,
        prefix: str,
        id: str,  # noqa: A002
        step: int,
        local: DirectoryStore | None = None,
        quota: Quota | None = None,
    ) -> None:
        self.id = id
        self.step = step
        self._store = store
        self._local = local
        self._prefix = prefix
        self._quota = quota
        self._bytes = 0
        self._shards: dict[str, Shard] = {}
        self._staged: dict[str, Shard] = {}
        self._near: set[str] = set()
        """Names of what was taken over, and lies near as well as in the store."""
        self._lock = threading.Lock()

    @property
    def shards(self) -> tuple[Shard, ...]:
        """What this rank has put so far, by name: what other ranks hand to the one that commits."""
        return tuple(self._shards[name] for name in sorted(self._shards))

    def put(self, name: str, data: Buffer | Path) -> Shard:
        """Write one shard: bytes, or a file's. Durable on return, or staged if there is a local tier.

        `name` is a key of plain segments (`rank-0/model`), and no other rank of the same draft uses it.

        Raises:
            Conflict: the name was used already.
            Unavailable: no room, or the store refuses; nothing that was saved before is touched.
            RateLimited: the account keeps all it may; InvalidRequest: the checkpoint is larger than one may be. The same.
        """
        key = checked_key(f"{self._prefix}/data/{self.id}/{name}")
        with self._lock:
            if name in self._shards:
                raise Conflict(f"shard {name!r} was put already", code="shard_exists", name=name)
        with self._room(data.stat().st_size if isinstance(data, Path) else memoryview(data).nbytes):
            near, digest, size = self._kept(key, data)
        shard = Shard(name=name, key=f"data/{self.id}/{name}", size=size, sha256=digest)
        with self._lock:
            self._shards[name] = shard
            if near:
                self._staged[name] = shard
        return shard

    def take(self, shard: Shard) -> Shard:
        """The same bytes under the same name as in a checkpoint that stands, without moving them: a link, or the store's copy.

        Raises:
            NotFound: they are not there any more; what else `put` raises.
        """
        taken = Shard(name=shard.name, key=f"data/{self.id}/{shard.name}", size=shard.size, sha256=shard.sha256)
        key, source = checked_key(f"{self._prefix}/{taken.key}"), f"{self._prefix}/{shard.key}"
        with self._lock:
            if shard.name in self._shards:
                raise Conflict(f"shard {shard.name!r} was put already", code="shard_exists", name=shard.name)
        with self._room(shard.size):
            self._store.copy(source, key)
        if self._local is not None:
            with suppress(NotFound, Unavailable):  # it is durable, and near only if there is room
                self._local.copy(source, key)
                self._near.add(shard.name)
        with self._lock:
            self._shards[shard.name] = taken
        return taken

    def drop(self, name: str) -> None:
        """Forget a shard that is not to be part of it after all."""
        with self._lock:
            shard = self._shards.pop(name)
            near = self._staged.pop(name, None) is not None
            self._bytes -= shard.size
        (self._local if near and self._local is not None else self._store).delete(f"{self._prefix}/{shard.key}")

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        if self._quota is None:
            yield
            return
        with self._lock:
            self._quota.check_checkpoint(self._bytes + size)
            self._bytes += size
        with self._quota.room(size):
            yield

    def _kept(self, key: str, data: Buffer | Path) -> tuple[bool, str, int]:
        """Keep it, near if there is room; whether it is only near, its sha256 and its size."""
        if self._local is not None:
            try:
                return True, *_put(self._local, key, data)
            except Unavailable as error:
                if error.code != "store_full":
                    raise  # else it doesn't fit near, and goes to the store at once
        return False, *_put(self._store, key, data)

    @property
    def is_staged(self) -> bool:
        """Whether every shard so far is near, and none was sent but what was taken over."""
        return bool(self._shards) and self._staged.keys() | self._near == self._shards.keys()

    def upload(self) -> None:
        """Send what is only staged to the store; durable on return. Every rank sends its own."""
        with self._lock:
            waiting = list(self._staged.values())
        if not waiting:
            return
        with ThreadPoolExecutor(min(_PARALLEL, len(waiting))) as pool:
            list(pool.map(self._send, waiting))

    def _send(self, shard: Shard) -> None:
        assert self._local is not None
        send_shard(shard, prefix=self._prefix, local=self._local, store=self._store)
        with self._lock:
            self._staged.pop(shard.name, None)


def send_shard(shard: Shard, *, prefix: str, local: DirectoryStore, store: Store) -> None:
    """Copy a staged shard to the store.

    Raises:
        CheckpointDamaged: the staged copy is not what was put.
        Unavailable: the store refuses.
    """
    kept = store.put_file(f"{prefix}/{shard.key}", local.path_of(f"{prefix}/{shard.key}"))
    if kept != (shard.sha256, shard.size):
        raise CheckpointDamaged(f"the staged copy of {shard.key} is damaged: save again", name=shard.name)


def _put(target: Store, key: str, data: Buffer | Path) -> tuple[str, int]:
    """Keep it; the sha256 and size of what was kept."""
    if isinstance(data, Path):
        return target.put_file(key, data)
    view = memoryview(data).cast("B")
    if len(view) < _LARGE_BYTES:
        target.put(key, view)
        return _sha256(view), len(view)
    with ThreadPoolExecutor(1, thread_name_prefix="fabric-hash") as beside:
        digest = beside.submit(_sha256, view)
        target.put(key, view)
        return digest.result(), len(view)


def _sha256(view: memoryview) -> str:
    return hashlib.sha256(view).hexdigest()
