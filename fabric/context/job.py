"""A job as its own code sees it, and which one runs in this process: `fabric.context`, which says how it is used."""

import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from fabric.checkpoints import Checkpoints, Manifest
from fabric.checkpoints.checkpoints import STEP_MAX
from fabric.checkpoints.single import save_one
from fabric.progress import Progress, Reports
from fabric.storage import artifacts
from fabric.storage.shard_cache import ShardCache
from fabric.storage.shard_sources import source_of

REPORT_S: Final = 0.25
"""A job's news are passed on at most this often, however often it tells."""
_STATE: Final = "state"
"""The one shard that `save` writes."""


EXIT_SAVED: Final = 75
"""With this code a process says that what counts is saved, and that it wants to be queued anew."""
LINK_VARIABLE: Final = "FABRIC_CONTEXT"


class Saved(SystemExit):
    """The state is durable, so the attempt may end here. Not an `Exception`: a job's own handlers let it pass. A process
    that it ends has the exit code 75.
    """

    def __init__(self) -> None:
        super().__init__(EXIT_SAVED)


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which attempt of which job this is, and what it runs on."""

    job_id: str = ""
    account_id: str = ""
    attempt: int = 1
    rank: int = 0
    world_size: int = 1
    devices: tuple[str, ...] = ()
    accelerator: str = ""


class Context:
    """One attempt of one job, as its own code sees it. Safe to use from any thread."""

    def __init__(
        self,
        place: Place,
        *,
        checkpoints: Checkpoints | None = None,
        on_saved: Callable[[int, int, int], None] | None = None,
        on_report: Callable[[], None] | None = None,
        on_listen: Callable[[], None] | None = None,
        on_listen_no_more: Callable[[], None] | None = None,
        on_checkpoints: Callable[[], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
        on_leave: Callable[[str], None] | None = None,
        publish: Callable[[str, bytes], None] | None = None,
        cache: ShardCache | None = None,
        prefixes: Sequence[str] = (),
        folder: Path | None = None,
    ) -> None:
        """One attempt's context.

        Args:
            place: who and where it is.
            checkpoints: where it saves; None = nowhere.
            on_saved: told of every durable checkpoint: (step, µs it took to write, bytes).
            on_report: told that there is news of its progress, at most every `REPORT_S` seconds.
            on_listen: told that the job's code looks whether it should stop, or has to do with checkpoints.
            on_listen_no_more: told that it does so no more.
            on_checkpoints: told, once, that the job's code has to do with checkpoints.
            on_refused: told when a save is not kept for want of room.
            on_leave: told why the attempt ends, if nobody has asked it to.
            publish: keeps what the job publishes, by name; None = nothing is kept.
            cache: what the node keeps of what jobs read; None = nothing.
            prefixes: of the job's datasets.
            folder: for copies of what it reads; None = one that goes with this process.
        """
        self._place = place
        self.owns_process = False
        """Whether the process is this attempt's alone, so that ending it ends nothing else. The runner says so."""
        self._checkpoints = checkpoints
        self._on_saved = on_saved
        self._on_report = on_report
        self._on_listen, self._on_listen_no_more = on_listen, on_listen_no_more
        self._listens = False
        self._on_checkpoints = on_checkpoints
        self._on_refused = on_refused
        self._on_leave = on_leave
        self._publish = publish
        if checkpoints is not None:
            checkpoints.on_durable = self._committed
            if checkpoints.quota is not None:
                checkpoints.quota.on_refused = self.refuse
        self._stop = threading.Event()
        self._stop_reason = ""
        self._save_wanted = True
        self._save_asked = threading.Event()
        self._deadline: float | None = None
        self._reports = Reports()
        self._reporting = threading.Lock()
        self._told_at = -REPORT_S
        self._cache = cache
        self._prefixes = prefixes
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._saved_us = 0
        self.refused = ""
        """Why the last save was not kept, if that was for want of room: what ends now is parked, and goes on from the one
        before."""
        self.leaves_for = ""
        """Why the attempt ends, if nobody has asked it to."""

    @property
    def _fetched(self) -> Path:
        if self._folder is not None:
            return self._folder
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fabric-data-")
        return Path(self._temporary.name)

    @property
    def job_id(self) -> str:
        """Empty outside the fabric."""
        return self._place.job_id

    @property
    def attempt(self) -> int:
        """Counts the job's attempts from 1."""
        return self._place.attempt

    @property
    def rank(self) -> int:
        return self._place.rank

    @property
    def world_size(self) -> int:
        """How many ranks the gang has: one per node share."""
        return self._place.world_size

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of this rank, as the node numbers them."""
        return self._place.devices

    @property
    def accelerator(self) -> str:
        return self._place.accelerator

    @property
    def stop_requested(self) -> bool:
        """Whether the fabric asks the job to save and end: look at it at every step."""
        self._listen()
        return self._stop.is_set()

    @property
    def stop_reason(self) -> str:
        """evicted, limit_reached, out_of_tokens, cancelled, paused, drained, fabric_down, time_limit or idle; "" while nobody asks."""
        return self._stop_reason

    @property
    def save_wanted(self) -> bool:
        """Whether a job that is asked to stop should save: not one that is cancelled and whose state nobody wants."""
        return self._save_wanted

    @property
    def save_requested(self) -> bool:
        """Whether a checkpoint is wanted now (`fabric checkpoint JOB`): save at the next step, and go on."""
        return self._save_asked.is_set()

    @property
    def progress(self) -> Progress:
        """What the job has told of its progress."""
        return self._reports.latest

    def report(self, facts: Mapping[str, object] | None = None, **more: object) -> None:
        """Tell how far the job is: shown in `fabric top` and `fabric job`. Costs next to nothing, so tell every step.

        Known are `step`, `steps_total`, `loss`, `throughput` (in whatever the job counts, a second), and the seconds that
        went into `waiting_data`, `collective`, `checkpoint` and `idle`. Anything else is left out. Outside the fabric, and
        on other ranks than 0, nobody is told.
        """
        with self._reporting:
            self._reports.take({**(facts or {}), **more})
            now = time.monotonic()
            if self._on_report is None or self.rank != 0 or now - self._told_at < REPORT_S:
                return
            self._told_at = now
        self._on_report()

    def tell(self) -> None:
        """For whoever ends this process: pass on what was told last."""
        if self._on_report is not None and self.rank == 0 and self._reports.count:
            self._on_report()

    def deadline_s_left(self) -> float | None:
        """Seconds until the job is ended anyway; None while nobody asks it to stop."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def wait_for_stop(self, timeout_s: float) -> bool:
        """Sleep, but wake as soon as the job is asked to stop."""
        self._listen()
        return self._stop.wait(timeout_s)

    def _listen(self) -> None:
        if not self._listens:
            self._listens = True
            if self._on_listen is not None:
                self._on_listen()

    def listen_no_more(self) -> None:
        """Nothing in this process looks any more whether it should stop, until somebody does again: the notice finds it as one
        that can't save.
        """
        if self._listens:
            self._listens = False
            if self._on_listen_no_more is not None:
                self._on_listen_no_more()

    def save(self, data: bytes, *, step: int = 0) -> None:
        """Keep the job's state: durable on return, and what was burned so far is never lost work. Rank 0 saves.

        Raises:
            Conflict: a newer attempt of this job has begun; this one is over.
            TypeError: the step is not a whole number.
            OverflowError: it is negative, or has more than 64 bits.
            RateLimited: the account keeps all it may; InvalidRequest: `data` is larger than a checkpoint may be. What was
                saved before is kept.
        """
        step = int(index(step))
        if not 0 <= step <= STEP_MAX:
            raise OverflowError(f"step {step}: count from 0 to at most {STEP_MAX}")
        if self.checkpoints is None or self.rank != 0:
            return
        save_one(self.checkpoints, _STATE, data, step=step, world=self.world_size)

    def durable(self, *, step: int, write_us: int, size: int) -> None:
        """A checkpoint is durable, so the fabric may count on it. Said by whatever `checkpoints` commits."""
        self._save_asked.clear()
        self.refused = ""
        if self._on_saved is not None:
            self._on_saved(step, write_us, size)

    def refuse(self, message: str) -> None:
        """A save was not kept for want of room. Said by whatever saves; the job's owner sees it while the job runs."""
        self.refused = message
        if self._on_refused is not None:
            self._on_refused(message)
        self.warn(f"what was done since the last checkpoint is not saved: {message}")

    def leave(self, why: str) -> None:
        """Say why this attempt ends, which nobody has asked it to. Said by whatever ends it; the job's owner is told."""
        self.leaves_for = why
        if self._on_leave is not None:
            self._on_leave(why)

    def warn(self, message: str) -> None:
        """For the platform: what the job's owner should see to while there is time; "" = nothing any more."""
        with self._reporting:
            if not self._reports.warn(message):
                return
        if message:
            print(f"fabric: warning: {message}", file=sys.stderr, flush=True)  # noqa: T201  # into the job's own log
        if self._on_report is not None and self.rank == 0:
            self._on_report()

    def _committed(self, manifest: Manifest, took_us: int) -> None:
        self.durable(step=manifest.step, write_us=took_us, size=manifest.bytes)
        quota = self._checkpoints.quota if self._checkpoints is not None else None
        self.warn(quota.warning(manifest.bytes) if quota is not None else "")

    def publish(self, data: bytes, *, name: str = "model") -> None:
        """Keep what the job has made under a name, for whoever may see the job: `fabric artifact`, or a model to be offered
        as `job:ID` (see `training.parcels`). Said again, it replaces what was there. Rank 0 publishes.

        Raises:
            InvalidRequest: the name is not 1 to 64 letters, digits, '-', '_' and '.', `data` has more than 512 MiB, or the
                job has published under as many names as it may.
            RateLimited: the account keeps all it may.
        """
        artifacts.check(name, data)
        if self._publish is not None and self.rank == 0:
            self._publish(name, data)

    def load(self) -> bytes | None:
        """What the job saved last, in this attempt or an earlier one; None at the very start.

        Raises:
            CheckpointDamaged: there are checkpoints, and none of them is whole.
            Conflict: they are of another version.
            InvalidRequest: the last one was not made by `save`.
        """
        if self.checkpoints is None or (found := self.checkpoints.load()) is None:
            return None
        manifest, shards = found
        return shards[manifest.shard(_STATE).name]

    @property
    def checkpoints(self) -> Checkpoints | None:
        """The job's checkpoints, for code that saves in shards; None outside the fabric. One rank commits."""
        self._listen()  # who has to do with them can save, and isn't ended before it has looked whether it should stop
        told, self._on_checkpoints = self._on_checkpoints, None
        if told is not None:
            told()
        return self._checkpoints

    def fetch(self, address: str) -> Path:
        """A local copy of `s3://bucket/key` or `file:///path`: from this node's cache, where other jobs left it, or fetched.

        The copy is the job's own until its attempt ends. Count it as belonging to the longest `data=` prefix it begins
        with: nodes that hold much of those are preferred when the job is placed. Outside the fabric nothing is cached.

        Raises:
            InvalidRequest: another kind of address.
            NotFound: there is nothing there.
            Unavailable: it can't be read, or not be kept.
        """
        name, fetch = source_of(address)
        to = self._fetched / hashlib.sha256(name.encode()).hexdigest()[:32] / address.rstrip("/").rpartition("/")[2]
        if to.exists():
            return to
        if self._cache is None:
            to.parent.mkdir(parents=True, exist_ok=True)
            fetch(to)
            return to
        fitting = [prefix for prefix in self._prefixes if address.startswith(prefix)]
        got = self._cache.get(name, fetch, prefix=max(fitting, key=len, default=""), to=to)
        with self._reporting:
            self._saved_us += got.saved_us
        self.report(staging_saved=self._saved_us / 1_000_000)
        return got.path

    def park(self) -> NoReturn:
        """End the attempt here, because everything worth keeping is saved. The job resumes in a new attempt."""
        raise Saved

    def begin(self) -> None:
        """For the runner: this attempt begins, so no older one may save any more; what one left here is made durable."""
        if self._checkpoints is not None:
            self._checkpoints.recover()

    def relay(self, progress: Progress) -> None:
        """For the runner: what the process told that the job runs in."""
        self._reports.relay(progress)
        if self._on_report is not None:
            self._on_report()

    def ask_to_save(self) -> None:
        """For the runner: somebody wants a checkpoint."""
        self._save_asked.set()

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool = True) -> None:
        """For the runner: the fabric wants the job to end."""
        self._stop_reason, self._save_wanted = reason, save
        self._deadline = time.monotonic() + seconds_left
        self._stop.set()


_OUTSIDE: Final = Context(Place())
_running: Context = _OUTSIDE
_leave_link: Callable[[], None] | None = None
_linking = threading.Lock()


def current() -> Context:
    """The job this process runs for."""
    if _running is _OUTSIDE and LINK_VARIABLE in os.environ:
        _link(os.environ[LINK_VARIABLE])
    return _running


def enter(context: Context | None) -> None:
    """For the runner: from now on this process runs for that job (None: for nobody)."""
    global _running  # noqa: PLW0603  # one process runs one job at a time, and all its threads must see it
    _running = context or _OUTSIDE


def _link(address: str) -> None:
    global _running, _leave_link  # noqa: PLW0603  # as above
    from fabric.context.link import left_behind, linked  # noqa: PLC0415  # it makes contexts of this module's

    with _linking:
        if _running is _OUTSIDE and (found := linked(address)) is not None:
            _running, talk = found
            _leave_link = partial(left_behind, talk)


def _forked() -> None:
    """A child that was forked from a linked process is another process of the job's."""
    global _running, _leave_link, _linking  # noqa: PLW0603
    _linking = threading.Lock()
    if _leave_link is not None:
        _leave_link()
        _running, _leave_link = _OUTSIDE, None


if hasattr(os, "register_at_fork"):  # on Windows nothing forks
    os.register_at_fork(after_in_child=_forked)
