"""What a door needs of the gate, so that the doors know neither Ray nor the journal."""

from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import IO, Any, Protocol, TypeVar

from fabric.checkpoints import Checkpoints
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import Outcome
from fabric.gate.questions import AnyAnswer, AnyQuestion
from fabric.gate.views import JobView, LogChunk
from fabric.storage.archive import Kept, Stored

__all__ = ["GatePort", "LogChunk"]

T = TypeVar("T")


class GatePort(Protocol):
    """The gate as the doors see it. Every method raises `Unavailable` while the gate can't be reached."""

    async def decide(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        """Hand events in; the answers come when they are durable, in the same order."""

    async def ask(self, question: AnyQuestion) -> AnyAnswer:
        """Look something up."""

    async def changes(self, *, account_id: str | None, after_revision: int, timeout_s: float) -> list[JobView]:
        """Jobs that changed after a revision, oldest change first, at most `CHANGES_MAX`; waits up to the timeout for one,
        then [].
        """

    def logs(self, job_id: str, *, offsets: dict[str, int], follow: bool) -> AsyncIterator[LogChunk]:
        """A job's logs, from `offsets` ("attempt/rank" → bytes already had) on; with `follow` until the job ends."""

    async def put_blob(self, key: str, data: bytes) -> None:
        """Keep a payload (a pickled function, a zipped working directory) or a result in the archive."""

    async def kept_blobs(self, prefix: str) -> tuple[Kept, ...]:
        """What the archive keeps below a key: how large each is, and since when."""

    async def archive_stored(self, prefix: str) -> Stored:
        """How much that is, together."""

    async def delete_blob(self, key: str) -> None:
        """Forget one; fine if it isn't there."""

    async def fetch_blob(self, key: str, into: IO[bytes]) -> None:
        """Write one to a file: whole on return. `NotFound` if there is none."""

    async def small_blob(self, key: str, *, limit_bytes: int) -> bytes | None:
        """The same in memory; None if it has more bytes than that."""

    def checkpoints_of(self, account_id: str, job_id: str) -> Checkpoints:
        """Where a job's checkpoints are. Its methods block."""

    async def from_archive(self, work: Coroutine[Any, Any, T]) -> T:
        """What some work comes to that asks the archive; `Unavailable` soon where that doesn't answer. The work goes on."""

    def export(self, *, account_id: str | None, since: int | None = None) -> AsyncIterator[bytes]:
        """The audit export, a line of JSON at a time: what `fabric audit verify` checks offline."""
