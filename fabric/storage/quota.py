"""What one account's jobs may keep in the archive: a bound in bytes and in number, looked at before anything is written.

The archive itself is asked how much there is, at most so often that the asking stays cheap; in between a process counts what
it writes itself. So several processes of an account together may exceed the bound by what they write in between, and no
more. It runs where the job's code runs: it is a bound for everybody who uses the platform's own ways to the archive, and a
job that goes another way has a cluster, and credentials, of its own (see the threat model).
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from fabric.errors import FabricError, InvalidRequest, RateLimited
from fabric.storage.archive import Archive, Stored

GIB: Final = 2**30
MEASURE_S: Final = 60.0
"""How long it is believed what an account keeps; longer where asking takes long."""
MEASURE_AGAIN_S: Final = 5.0
"""The same, before somebody is refused."""
_SHARE_OF_TIME: Final = 50
"""At most one part in so many of the time goes into asking."""
_NEARLY: Final = 10
"""Less than one part in so many is left."""

ARCHIVE_FULL: Final = "archive_full"
NO_ROOM: Final = frozenset({ARCHIVE_FULL, "checkpoint_too_large", "checkpoint_too_many_files", "checkpoint_too_deep"})
"""The codes of what isn't kept because it is too much: the job is parked with what it saved before."""
REMEDY: Final = (
    "delete what isn't needed (`fabric checkpoints rm JOB`), or ask the operator to raise it (`storage` in the cluster file);"
    " then resume the job"
)


class ArchiveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much an account's jobs may keep."""

    account_bytes: int = 2**40
    """Of all its jobs together: checkpoints, results, logs, and what they published."""
    account_values: int = 500_000
    """How many values that may be."""
    checkpoint_bytes: int = 256 * 2**30
    """Of one checkpoint, of all ranks together, as it is stored: holes in files are not."""
    artifacts: int = 32
    """Names under which one job may publish."""


def jobs_prefix(account_id: str) -> str:
    """Below which the archive keeps what an account's jobs leave."""
    return f"jobs/{account_id}"


class ArchiveQuota:
    """One process's view of what one account keeps. From any thread."""

    def __init__(
        self,
        archive: Archive,
        account_id: str,
        limits: ArchiveLimits,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.on_refused: Callable[[str], None] = lambda _: None
        self._archive = archive
        self._prefix = jobs_prefix(account_id)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._found = Stored(0, 0)
        self._added = self._coming = Stored(0, 0)
        self._measured_at: float | None = None
        self._took_s = 0.0

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Set room aside for a value while it is written.

        Raises:
            RateLimited: `archive_full`: the account keeps all it may.
        """
        one = Stored(size, 1)
        with self._lock:
            if not self._is_fresh(MEASURE_S):
                self._measure()
            if not self._fits(one) and not self._is_fresh(MEASURE_AGAIN_S):
                self._measure()
            if not self._fits(one):
                raise self._told_of(self._full(size))
            self._coming += one
        try:
            yield
        except BaseException:
            with self._lock:
                self._coming -= one
            raise
        with self._lock:
            self._coming -= one
            self._added += one

    def check_checkpoint(self, size: int) -> None:
        """Refuse a checkpoint that is too large, as soon as that is known.

        Raises:
            InvalidRequest: `checkpoint_too_large`.
        """
        if size > self.limits.checkpoint_bytes:
            error = InvalidRequest(
                f"the checkpoint has {size:,} bytes so far, and may have {self.limits.checkpoint_bytes:,}: save less, or ask"
                " the operator to raise it (`storage` in the cluster file); then resume the job",
                code="checkpoint_too_large",
                size_bytes=size,
                limit_bytes=self.limits.checkpoint_bytes,
            )
            raise self._told_of(error)

    def warning(self, size: int) -> str:
        """What is to be said while there is still room, after a checkpoint of that size; "" = nothing."""
        if size * 5 >= self.limits.checkpoint_bytes * 4:
            return (
                f"the last checkpoint has {size:,} bytes, of at most {self.limits.checkpoint_bytes:,}: a larger one isn't"
                " kept. Save less, or ask the operator to raise it"
            )
        with self._lock:
            if not self._is_nearly_full(size):
                return ""
            if not self._is_fresh(MEASURE_AGAIN_S):
                with suppress(
                    FabricError
                ):  # the checkpoint is durable; how full the archive is can be asked the next time
                    self._measure()
            if not self._is_nearly_full(size):
                return ""
            return f"the archive is nearly full for this account: {self._told()}. Before the next checkpoint, {REMEDY}"

    def check_artifact(self, job_id: str, name: str) -> None:
        """Refuse one name too many.

        Raises:
            InvalidRequest: `too_many_artifacts`.
        """
        prefix = f"{self._prefix}/{job_id}/artifacts"
        there = {key.rpartition("/")[2] for key in self._archive.list(prefix)}
        if name not in there and len(there) >= self.limits.artifacts:
            raise InvalidRequest(
                f"the job has published under {len(there)} names, which is all it may: publish again under one of them, or"
                " pack several things into one",
                code="too_many_artifacts",
                limit=self.limits.artifacts,
            )

    @property
    def _used(self) -> Stored:
        return self._found + self._added + self._coming

    def _fits(self, more: Stored) -> bool:
        after = self._used + more
        return after.bytes <= self.limits.account_bytes and after.values <= self.limits.account_values

    def _is_nearly_full(self, size: int) -> bool:
        used, limits = self._used, self.limits
        left = limits.account_bytes - used.bytes
        return left < max(size + size // 4, limits.account_bytes // _NEARLY) or limits.account_values - used.values < (
            limits.account_values // _NEARLY
        )

    def _is_fresh(self, for_s: float) -> bool:
        if self._measured_at is None:
            return False
        return self._monotonic() - self._measured_at < max(for_s, _SHARE_OF_TIME * self._took_s)

    def _measure(self) -> None:
        began = self._monotonic()
        self._found, self._added = self._archive.stored(self._prefix), Stored(0, 0)
        self._measured_at = self._monotonic()
        self._took_s = self._measured_at - began

    def _told(self) -> str:
        used, limits = self._used, self.limits
        return (
            f"it keeps {used.bytes:,} bytes in {used.values:,} values, and may keep {limits.account_bytes:,} in"
            f" {limits.account_values:,}"
        )

    def _told_of(self, error: FabricError) -> FabricError:
        self.on_refused(error.message)
        return error

    def _full(self, size: int) -> RateLimited:
        return RateLimited(
            f"the archive takes no {size:,} bytes more of this account: {self._told()}. What was saved before is kept:"
            f" {REMEDY}",
            code=ARCHIVE_FULL,
            limit_bytes=self.limits.account_bytes,
            limit_values=self.limits.account_values,
            used_bytes=self._used.bytes,
            used_values=self._used.values,
        )
