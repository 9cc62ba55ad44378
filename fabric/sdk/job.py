"""A job as its owner holds it: future-like, to wait on from threads and from asyncio alike."""

import asyncio
import concurrent.futures
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

from fabric.client.client import Client, new_request_id
from fabric.client.profile import Profile
from fabric.errors import JobFailed, NotFound, PermissionDenied, Unavailable
from fabric.log_text import LogText, with_line_ends
from fabric.results import Parcel, ResultUnreadable, read_parcel
from fabric.sdk.answers import Cost, FetchedCheckpoint, cost_of
from fabric.sdk.feed import ENDED, Feed
from fabric.sdk.request import Tokens
from fabric.units import parse_ct
from fabric.visible import visible_lines
from fabric.wire import fabric_pb2 as pb
from fabric.wire import parse_key

_POLL_S: Final = 0.01
SETTLES_S: Final = 10.0
"""How long `cost` waits for the last meter reading of a job that has ended."""


class Job:
    """A submitted job. `await job` is `job.result()` without blocking the event loop."""

    def __init__(self, client: Client, feed: Feed, job_id: str, *, fresh: bool = False) -> None:
        self.id = job_id
        self.facts: dict[str, str | int | bool | None] = {}
        """What was told when it was submitted: `barred_pools` and `grace_max_us` where its grace is longer than they give."""
        self._client = client
        self._feed = feed
        self._end = feed.follow(job_id, fresh=fresh)

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    @property
    def state(self) -> str:
        """One of queued | starting | running | stopping | parked | succeeded | failed | cancelled"""
        update = self._feed.latest(self.id)
        return update.job.state if update is not None else self.info().state

    def info(self) -> pb.Job:
        """Everything there is to know of the job, now."""
        found = self._client.call(pb.GetJobRequest(job_id=self.id), pb.Job)
        self._feed.note(found)
        return found

    @property
    def timeline(self) -> str:
        """What became of it, in a line: RUNNING on 2 × H100 → EVICTED at step 140, durable in 20 ms, 0 steps lost, ... → ..."""
        return self.info().timeline

    def done(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self._end.done()

    def wait(self, timeout: float | None = None) -> str:
        """The state the job ended in.

        Raises:
            TimeoutError: it has not ended in so many seconds.
        """
        return self._ended(timeout).job.state

    def result(self, timeout: float | None = None, *, trust: bool = False) -> Any:
        """What the function returned; None for a script.

        Plain values, arrays and tensors come as data. Anything else is a pickle, which runs code of the job's choice
        where it is opened: that is done with the key that submitted the job alone, or with `trust`, and never for an operator.

        Raises:
            JobFailed: the job failed or was cancelled. `__cause__` is the exception itself where it can be rebuilt here.
            PermissionDenied: the result is a pickle and was not opened (`result_not_opened`); `facts` say what it is.
            TimeoutError: it has not ended in so many seconds.
        """
        return self._outcome(self._ended(timeout), trust=trust)

    def artifact(self, name: str = "model") -> bytes:
        """What the job published under a name, from within, by `fabric.context`. `NotFound` if there is nothing."""
        return self._client.fetch(pb.ArtifactRequest(job_id=self.id, name=name))

    def exception(self, timeout: float | None = None, *, trust: bool = False) -> JobFailed | None:
        """What `result` would raise of the job's failure, or None."""
        update = self._ended(timeout)
        return None if update.job.state == "succeeded" else self._failure(update, trust=trust)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        update = await asyncio.wrap_future(self._end)
        return await asyncio.to_thread(self._outcome, update)

    def cancel(self, *, save: bool = False) -> None:
        """End the job; what it burned is charged. `Conflict` if it has ended already.

        With `save` it is asked for a checkpoint first, which `fabric checkpoints` shows and a fork can go on from.
        """
        self._client.call(pb.CancelRequest(request_id=new_request_id(), job_id=self.id, save=save), pb.Accepted)

    def why(self) -> str:
        """Why the job is where it is, in a sentence: what it waits for, where it stands in line, what would let it start, and
        what was evicted for it or for whom it was itself.
        """
        return str(self._client.call(pb.WhyRequest(job_id=self.id), pb.WhyReply).sentence)

    def save_now(self) -> None:
        """Ask the job for a checkpoint; it goes on. `Conflict` if it doesn't run."""
        self._client.call(pb.SaveNowRequest(request_id=new_request_id(), job_id=self.id), pb.Accepted)

    def pause(self) -> None:
        """Ask the job to checkpoint, and park it until `resume`."""
        self._client.call(pb.PauseRequest(request_id=new_request_id(), job_id=self.id), pb.Accepted)

    def resume(self) -> None:
        self._client.call(pb.ResumeRequest(request_id=new_request_id(), job_id=self.id), pb.Accepted)

    def checkpoints(self) -> list[pb.Checkpoint]:
        """What it has saved, newest first: the first is what it resumes from."""
        return list(self._client.call(pb.ListCheckpointsRequest(job_id=self.id), pb.ListCheckpointsReply).checkpoints)

    def checkpoint(
        self,
        to: str | os.PathLike[str],
        *,
        step: int | None = None,
        force: bool = False,
        told: Callable[[int, int], None] = lambda _here, _of: None,
    ) -> FetchedCheckpoint:
        """Fetch the newest checkpoint, or that of a step, into a new folder: whole and compared, or not there.

        What a command kept is its folder again. What its own code saved becomes a run's folder, from which a session goes on here
        (`training.session(directory=to)`) and `python -m training.export TO MODEL` writes safetensors; nothing in it is a pickle that
        runs code. Broken off, it goes on where it was when it is called again.

        Args:
            to: a folder that isn't there, or is empty.
            step: see `checkpoints`; None = the newest, with all sessions of the job.
            force: the folder may have something in it: files of the same names, and what a run has saved there, are written over.
            told: how many bytes are here, and of how many.

        Raises:
            NotFound: `no_checkpoint`, or `checkpoint_gone`: a newer one has taken its place meanwhile.
            InvalidRequest: `folder_in_use`.
            CheckpointDamaged: what came is not what was saved.
            RateLimited: `too_many_fetches`: an account has 4 under way.
        """
        from fabric.sdk.checkpoint_files import fetch_checkpoint  # noqa: PLC0415  # stores, which few scripts need

        return fetch_checkpoint(self._client, self.id, Path(to), step=step, force=force, told=told)

    def roll_back(self, step: int) -> None:
        """Let it resume from an older checkpoint; those after it are void. `Conflict` unless it is paused or parked."""
        self._client.call(pb.RollBackRequest(request_id=new_request_id(), job_id=self.id, step=step), pb.Checkpoint)

    def delete_checkpoints(self, *, keep: int = 1, everything: bool = False) -> int:
        """Delete all but the newest `keep`, of a job that is parked or has ended; how many bytes that were.

        Of one that has ended none need stay, and with `everything` its logs, its result and what it published go, too.
        """
        request = pb.DeleteCheckpointsRequest(
            request_id=new_request_id(), job_id=self.id, keep=keep, everything=everything
        )
        return int(self._client.call(request, pb.DeleteCheckpointsReply).deleted_bytes)

    def fork(self, *, step: int | None = None, tokens: Tokens | None = None, name: str = "") -> "Job":
        """A new job of the same code that begins with a copy of the newest checkpoint, or of a step's."""
        request = pb.ForkRequest(
            request_id=new_request_id(),
            job_id=self.id,
            step=step,
            limit_uhs=parse_ct(tokens) if tokens is not None else 0,
            name=name,
        )
        with self._feed.expecting():
            return Job(self._client, self._feed, self._client.call(request, pb.SubmitReply).job_id, fresh=True)

    def raise_limit(self, tokens: Tokens) -> None:
        """A new `tokens=`: the most the job may burn altogether. A job parked at its limit resumes."""
        request = pb.RaiseLimitRequest(request_id=new_request_id(), job_id=self.id, limit_uhs=parse_ct(tokens))
        self._client.call(request, pb.Accepted)

    def logs(self, *, follow: bool = False, on_away: Callable[[Unavailable], None] | None = None) -> Iterator[str]:
        """What the job has written, in pieces; with `follow` until it ends. `on_away` is told where the fabric is waited for."""
        texts = LogText()
        for chunk in self._client.logs(self.id, follow=follow, on_away=on_away):
            if text := texts.take(attempt=chunk.attempt, rank=chunk.rank, data=chunk.data):
                yield text
        yield from (text for _, _, text in texts.rest())

    def print_logs(
        self,
        *,
        follow: bool = True,
        file: TextIO | None = None,
        on_away: Callable[[Unavailable], None] | None = None,
    ) -> None:
        """Write the logs to a file, or to standard output; of another key's job with control characters written out."""
        raw = is_own(self.info(), self._client.profile)
        for text in self.logs(follow=follow, on_away=on_away):
            print(text if raw else visible_lines(with_line_ends(text)), end="", file=file or sys.stdout, flush=True)

    def cost(self) -> Cost:
        """What the job has burned so far. Of a job that has ended it waits for the final charge, which takes some ms."""
        info = self.info()
        if info.state in ENDED and not info.settled:
            deadline = time.monotonic() + SETTLES_S
            while not info.settled and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                info = self.info()
        return cost_of(info)

    def events(self, timeout: float | None = None) -> Iterator[pb.Job]:
        """The job at each change from now on, its present state first, until it has ended and is settled."""
        deadline = _deadline(timeout)
        revision = -1
        while (update := self._feed.wait_for_change(self.id, after_revision=revision, deadline=deadline)) is not None:
            revision = update.job.revision
            yield update.job
            if update.job.state in ENDED and update.job.settled:
                return

    def _ended(self, timeout: float | None) -> pb.JobUpdate:
        try:
            return self._end.result(timeout)
        except concurrent.futures.TimeoutError:
            raise TimeoutError(f"job {self.id} is {self.state} after {timeout} s") from None

    def _outcome(self, update: pb.JobUpdate, *, trust: bool = False) -> Any:
        job = update.job
        if job.state != "succeeded":
            raise self._failure(update, trust=trust)
        if not job.result_ref:
            return None
        parcel = read_parcel(self._result_bytes(update))
        if parcel.is_data and not parcel.is_error:
            return parcel.value()
        if parcel.pickle is None or not self._opens(job, trust=trust):
            raise self._unopened(job, parcel)
        return parcel.unpickled()

    def _failure(self, update: pb.JobUpdate, *, trust: bool) -> JobFailed:
        """What became of the job, with its own exception as the cause: made anew, or unpickled where that may be."""
        job = update.job
        facts: dict[str, str | int] = {}
        cause: BaseException | None = None
        try:
            parcel = read_parcel(self._result_bytes(update)) if job.result_ref else None
            if parcel is not None and (parcel.is_error or not parcel.type_name):
                facts = {"error_type": parcel.type_name, "error_text": parcel.text} if parcel.is_error else {}
                cause = self._cause(job, parcel, trust=trust)
        except (ResultUnreadable, NotFound):  # the text of the traceback must do
            pass
        if job.HasField("exit_code"):
            facts["exit_code"] = job.exit_code
        failure = JobFailed(
            visible_lines(f"job {job.job_id} {job.state}: {_summary(job.error or job.reason, facts)}"),
            code="job_cancelled" if job.state == "cancelled" else "job_failed",
            job_id=job.job_id,
            state=job.state,
            reason=job.reason,
            **facts,
        )
        failure.__cause__ = cause
        return failure

    def _cause(self, job: pb.Job, parcel: Parcel, *, trust: bool) -> BaseException | None:
        """The exception with its own causes where they may be opened; else itself, where it is data."""
        if parcel.pickle is not None and self._opens(job, trust=trust):
            with suppress(Exception):  # a foreign class, another version
                found = parcel.unpickled()
                return found if isinstance(found, BaseException) else None
        found = parcel.value() if parcel.is_data else None
        return found if isinstance(found, BaseException) else None

    def _opens(self, job: pb.Job, *, trust: bool) -> bool:
        """Whether a pickle of the job's may be opened here."""
        return is_own(job, self._client.profile, trust=trust)

    def _unopened(self, job: pb.Job, parcel: Parcel) -> PermissionDenied:
        operator = job.shown_to_operator or bool(self._client.profile.account)
        remedy = (
            "an operator opens none; ask the customer, or submit such a job, and read it, with a key of the account's"
            " (`fabric keys create`)"
            if operator
            else f"use the key that submitted the job, {job.key_id or 'which is not known'}, or say trust=True (--trust) if you"
            " trust its code as your own"
        )
        what = f"a pickle of {parcel.type_name or 'something'} with {parcel.size} bytes"
        return PermissionDenied(
            f"the result of job {job.job_id} is {what}, which runs code of the job's choice where it is opened, and was not"
            f" opened: {remedy}",
            code="result_not_opened",
            job_id=job.job_id,
            type=parcel.type_name,
            bytes=parcel.size,
            text=parcel.text,
        )

    def _result_bytes(self, update: pb.JobUpdate) -> bytes:
        return update.result if update.HasField("result") else self._client.fetch(pb.ResultRequest(job_id=self.id))


def is_own(job: pb.Job, profile: Profile, *, trust: bool = False) -> bool:
    """Whether what the job made may do here what it likes: it was submitted with this key, or is trusted all the same. For
    an operator, who sees what customers' jobs made, never.
    """
    if job.shown_to_operator or profile.account:
        return False
    own = parse_key(profile.api_key)
    return trust or (own is not None and bool(job.key_id) and own.key_id == job.key_id)


def _summary(error: str, facts: Mapping[str, str | int]) -> str:
    """What is told of a failure: its first line says what it was, where a traceback begins with other words."""
    if not error.startswith("Traceback") or "error_type" not in facts:
        return error
    name, text = str(facts["error_type"]).removeprefix("builtins."), str(facts["error_text"])
    return f"{name}: {text.partition(chr(10))[0]}\n{error}"


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout
