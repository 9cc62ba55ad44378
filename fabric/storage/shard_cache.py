"""A node's cache of what jobs read: by content, shared by the jobs of an account, with a limit on its bytes.

A shard is named by where it lies and what it is (its ETag, or its size and time), so a changed object is another shard, and
nothing is ever stale. What was used longest ago goes first. A job gets a hard link of its own, so nothing disappears under
its hands. Several processes share a cache without a server: a shard appears by rename, and one process fetches it while the
others wait. Knows where shards come from only by a function that writes one.
"""

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from fabric.errors import Unavailable

LIMIT_BYTES: Final = 64 * 2**30
_RATE_KEEPS: Final = 0.8
_MEASURED_BYTES_MIN: Final = 2**16
"""Smaller fetches say more of the round trip than of the bandwidth."""


class _About(msgspec.Struct, frozen=True):
    """What is known of a shard, beside it."""

    name: str
    prefix: str
    bytes: int
    took_us: int


class Got(msgspec.Struct, frozen=True, kw_only=True):
    """One shard, as a job got it."""

    path: Path
    bytes: int
    hit: bool
    saved_us: int = 0
    """What fetching it would have taken, at the rate at which it came the first time."""


class ShardCache:
    """One folder. Any number of processes may have it open."""

    def __init__(self, root: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Nothing is made yet: most jobs read nothing through it."""
        self.root = root
        self.limit_bytes = limit_bytes

    def get(self, name: str, fetch: Callable[[Path], None], *, prefix: str, to: Path) -> Got:
        """Link the shard to `to`, fetching it if it isn't here. `name` says where it lies and which version it is.

        Raises:
            Unavailable: it can't be fetched, or there is no room for it even in an empty cache.
        """
        key = hashlib.sha256(name.encode()).hexdigest()
        for part in ("shards", "about", "locks", "drafts"):
            (self.root / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._alone(f"locks/{key[:2]}"):
            found = self._linked(key, to)
            if found is not None:
                return found
            about = self._fetched(key, name, fetch, prefix=prefix)
            _link(self.root / "shards" / key, to)
        self._make_room(but=key)
        return Got(path=to, bytes=about.bytes, hit=False)

    def holdings(self) -> tuple[dict[str, int], int]:
        """Bytes here, by prefix, and how many a second the rest would come at (0 = not measured)."""
        held: dict[str, int] = {}
        for about, _ in self._shards():
            held[about.prefix] = held.get(about.prefix, 0) + about.bytes
        return held, self._rate()

    def _linked(self, key: str, to: Path) -> Got | None:
        shard = self.root / "shards" / key
        try:
            about = msgspec.json.decode((self.root / "about" / key).read_bytes(), type=_About)
            whole = shard.stat().st_size == about.bytes
            if whole:
                os.utime(shard)
                _link(shard, to)
        except (OSError, ValueError):
            return None  # never here, or on its way out
        if not whole:
            return None  # torn by a crash: it is fetched as if it had never been
        return Got(path=to, bytes=about.bytes, hit=True, saved_us=about.took_us)

    def _fetched(self, key: str, name: str, fetch: Callable[[Path], None], *, prefix: str) -> _About:
        draft = self.root / "drafts" / secrets.token_hex(8)
        began = time.monotonic_ns()
        try:
            fetch(draft)
            size = draft.stat().st_size
            about = _About(name=name, prefix=prefix, bytes=size, took_us=(time.monotonic_ns() - began) // 1000)
            beside = draft.with_suffix(".about")
            beside.write_bytes(msgspec.json.encode(about))
            beside.replace(self.root / "about" / key)
            draft.replace(self.root / "shards" / key)
        except OSError as error:
            raise Unavailable(f"{name} can't be cached: {error.strerror}", code="cache_failed") from error
        finally:
            draft.unlink(missing_ok=True)
        self._measure(about)
        return about

    def _make_room(self, *, but: str) -> None:
        """Forget what was used longest ago, until the rest fits. Whoever has a link keeps it."""
        with self._alone("locks/room"):
            kept = sorted(self._shards(), key=lambda shard: shard[1].stat().st_mtime_ns if shard[1].exists() else 0)
            total = sum(about.bytes for about, _ in kept)
            for about, path in kept:
                if total <= self.limit_bytes:
                    return
                if path.name != but:
                    path.unlink(missing_ok=True)
                    (self.root / "about" / path.name).unlink(missing_ok=True)
                    total -= about.bytes

    def _shards(self) -> Iterator[tuple[_About, Path]]:
        try:
            there = list(os.scandir(self.root / "shards"))
        except FileNotFoundError:
            return
        for entry in there:
            try:
                yield (
                    msgspec.json.decode((self.root / "about" / entry.name).read_bytes(), type=_About),
                    Path(entry.path),
                )
            except (OSError, msgspec.DecodeError):
                continue

    def _rate(self) -> int:
        try:
            return int((self.root / "rate").read_text())
        except (OSError, ValueError):
            return 0

    def _measure(self, about: _About) -> None:
        if about.bytes < _MEASURED_BYTES_MIN:
            return
        seen = about.bytes * 1_000_000 // max(about.took_us, 1)
        before = self._rate()
        now = round(_RATE_KEEPS * before + (1 - _RATE_KEEPS) * seen) if before else seen
        draft = self.root / "drafts" / secrets.token_hex(8)
        draft.write_text(str(now))
        draft.replace(self.root / "rate")

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """While nobody else has this lock, in any process; a process that dies lets go of it."""
        handle = os.open(self.root / name, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            _lock(handle)
            yield
        finally:
            os.close(handle)


def _lock(handle: int) -> None:
    """Waits for the others. Elsewhere than on POSIX there are none: no node of a cluster is there, only a script on trial."""
    with contextlib.suppress(ImportError):
        import fcntl  # noqa: PLC0415

        fcntl.flock(handle, fcntl.LOCK_EX)


def _link(shard: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.with_name(f".{to.name}.{secrets.token_hex(4)}")
    os.link(shard, draft)
    draft.replace(to)
