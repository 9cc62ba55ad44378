"""One long-lived stream of the account's job changes for a connection, so that waiting for a job costs no calls.

A thread reads it and resumes it after an interruption from the last revision seen. Small results ride along.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from fabric.client.client import Client, Stream
from fabric.client.failed_calls import closed
from fabric.errors import FabricError, Unavailable
from fabric.wire import fabric_pb2 as pb

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
_HELLO_S: Final = 15.0
_PAUSE_S: Final = 0.2
_PAUSE_MAX_S: Final = 3.0


class Feed:
    """What the connection knows of its jobs. Threads may share it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._changed = threading.Condition()
        self._latest: dict[str, pb.JobUpdate] = {}
        self._ends: dict[str, Future[pb.JobUpdate]] = {}
        self._revision: int | None = None
        self._expecting = 0
        self._failure: FabricError | None = None
        self._thread: threading.Thread | None = None
        self._stream: Stream[pb.JobUpdate] | None = None
        self._closed = False
        self._ending = threading.Event()

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While a job is submitted: what is heard of jobs nobody asked about is kept, it may be this one's."""
        self._start()
        with self._changed:
            self._expecting += 1
        try:
            yield
        finally:
            with self._changed:
                self._expecting -= 1
                if not self._expecting:
                    self._latest = {job_id: update for job_id, update in self._latest.items() if job_id in self._ends}

    def follow(self, job_id: str, *, fresh: bool = False) -> "Future[pb.JobUpdate]":
        """The job's end, when it comes. A `fresh` job was submitted within `expecting`; others are looked up."""
        self._start()
        with self._changed:
            known = job_id in self._ends
            end = self._ends.setdefault(job_id, Future())
            if (update := self._latest.get(job_id)) is not None:
                self._tell(update)
        if not (fresh or known):
            self._hear(pb.JobUpdate(job=self._client.call(pb.GetJobRequest(job_id=job_id), pb.Job)))
        return end

    def latest(self, job_id: str) -> pb.JobUpdate | None:
        """The last that was heard of a job that is followed."""
        with self._changed:
            return self._latest.get(job_id)

    def note(self, job: pb.Job) -> None:
        """What somebody was told who asked: from then on nobody is told an older state, however late the stream is."""
        self._hear(pb.JobUpdate(job=job))

    def wait_for_change(self, job_id: str, *, after_revision: int, deadline: float | None) -> pb.JobUpdate | None:
        """The next update of a followed job, or None at the deadline (of `time.monotonic`)."""
        with self._changed:
            while True:
                update = self._latest.get(job_id)
                if update is not None and update.job.revision > after_revision:
                    return update
                if self._failure is not None:
                    raise self._failure
                if self._closed:
                    raise closed(self._client.profile.address)
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._ending.set()
            self._changed.notify_all()
            stream, thread = self._stream, self._thread
        if stream is not None:
            stream.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)

    def _start(self) -> None:
        with self._changed:
            if self._closed:
                raise closed(self._client.profile.address)
            if self._thread is None or not self._thread.is_alive():
                self._failure = None
                self._thread = threading.Thread(target=self._read, name="fabric-feed", daemon=True)
                self._thread.start()
            told = self._changed.wait_for(
                lambda: self._revision is not None or self._failure is not None, timeout=_HELLO_S
            )
            if self._failure is not None:
                raise self._failure
            if not told:
                raise Unavailable(f"the fabric at {self._client.profile.address} does not answer: try `fabric doctor`")

    def _read(self) -> None:
        pause_s = _PAUSE_S
        while not self._closed:
            try:
                request = pb.WatchJobsRequest(after_revision=self._revision, results=True)
                self._stream = self._client.stream(request, pb.JobUpdate)
                for update in self._stream:
                    self._hear(update)
                    pause_s = _PAUSE_S
            except Unavailable:
                self._ending.wait(pause_s)
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
            except FabricError as error:
                self._fail(error)
                return

    def _hear(self, update: pb.JobUpdate) -> None:
        with self._changed:
            self._revision = max(self._revision or 0, update.revision)
            if update.HasField("job") and (self._expecting or update.job.job_id in self._ends):
                seen = self._latest.get(update.job.job_id)
                if seen is None or seen.job.revision <= update.job.revision:
                    self._latest[update.job.job_id] = update
                    self._tell(update)
            self._changed.notify_all()

    def _tell(self, update: pb.JobUpdate) -> None:
        end = self._ends.get(update.job.job_id)
        if end is not None and not end.done() and update.job.state in ENDED:
            end.set_result(update)

    def _fail(self, error: FabricError) -> None:
        with self._changed:
            self._failure = error
            for end in self._ends.values():
                if not end.done():
                    end.set_exception(error)
            self._ends = {job_id: end for job_id, end in self._ends.items() if end.exception() is None}
            self._changed.notify_all()
