"""Calls about jobs: submit, look, watch, stop, read logs and results, and bring what they run."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from fabric.adapters.cluster_settings import lease_info_key
from fabric.adapters.payload import Payload, inlined
from fabric.adapters.results import inline_result, shown_ref
from fabric.api.door import Door
from fabric.api.keys import Caller
from fabric.api.messages import accepted, amount, facts_json, listed, message_of, request_id, spec_of
from fabric.errors import Conflict, InvalidRequest, NotFound
from fabric.gate.events import Cancel, Pause, RaiseLimit, Resume, Submit
from fabric.gate.lifecycle import ON_DEVICES, TERMINAL, JobState
from fabric.gate.questions import JobsOf, QuoteOf
from fabric.gate.views import JobView, QuoteView
from fabric.units import JobId, KeyId
from fabric.wire import INLINE_BYTES_MAX
from fabric.wire import fabric_pb2 as pb

LIST_MAX: Final = 1_000
LIST_DEFAULT: Final = 100
CHUNK_BYTES: Final = 1024 * 1024
JOURNALED_BYTES_MAX: Final = 4 * 1024
"""A pickle up to this size rides in the job's own record: that saves the archive a write and the runner a read."""
UPLOADS_MAX: Final = 4
RUNTIME_ENV_KEYS: Final = ("pip", "uv", "conda", "env_vars", "config")
"""Of Ray's runtime_env, what can't reach beyond the job's own processes."""
_uploads = asyncio.Semaphore(UPLOADS_MAX)


async def submit(door: Door, caller: Caller, request: pb.SubmitRequest) -> pb.SubmitReply:
    request_id(request.request_id)
    account = caller.account
    job_id = job_id_of(account, request.request_id)
    # The spec is checked before anything of the payload is kept.
    spec_of(request.spec, payload="")
    payload = await _payload(door, account, request.payload, kind=request.spec.kind)
    event = Submit(
        job_id=job_id,
        account_id=account,
        spec=spec_of(request.spec, payload=msgspec.json.encode(payload).decode()),
        key_id=KeyId(caller.key_id),
        request_id=request.request_id,
    )
    outcome = await door.gate.decide(event)
    return pb.SubmitReply(job_id=job_id, held_uhs=outcome.held_uhs, facts_json=facts_json(outcome.facts))


def job_id_of(account: str, request: str) -> JobId:
    """A job's id: the same for a repeated request, and nobody can choose another's."""
    return JobId("job-" + hashlib.sha256(f"{account}/{request}".encode()).hexdigest()[:20])


async def quote(door: Door, caller: Caller, request: pb.QuoteRequest) -> pb.QuoteReply:
    spec = spec_of(request.spec, payload="")
    answer = await door.port.ask(QuoteOf(account_id=caller.account, spec=spec, key_id=KeyId(caller.key_id)))
    if not isinstance(answer, QuoteView):
        raise NotFound(f"there is no account {caller.account!r}", account=caller.account)
    return message_of(answer, pb.QuoteReply)


async def get_job(door: Door, caller: Caller, request: pb.GetJobRequest) -> pb.Job:
    return _shown(await door.job(request.job_id, scope=caller.scope))


async def list_jobs(door: Door, caller: Caller, request: pb.ListJobsRequest) -> pb.ListJobsReply:
    states = listed("state", request.states, [state.value for state in JobState])
    limit = min(request.limit if request.limit > 0 else LIST_DEFAULT, LIST_MAX)
    jobs: Any = await door.port.ask(JobsOf(account_id=caller.scope, states=states, limit=limit))
    return pb.ListJobsReply(jobs=[_shown(job) for job in jobs])


async def watch_jobs(door: Door, caller: Caller, request: pb.WatchJobsRequest) -> AsyncIterator[pb.JobUpdate]:
    if request.job_id:
        await door.job(request.job_id, scope=caller.scope)
    after = request.after_revision if request.HasField("after_revision") else None
    async with contextlib.aclosing(door.feed.watch(caller.scope, after_revision=after)) as changes:
        async for change in changes:
            if isinstance(change, int):
                yield pb.JobUpdate(revision=change)
                if not request.job_id:
                    continue
                view = await door.job(request.job_id, scope=caller.scope)
            elif request.job_id and change.job_id != request.job_id:
                continue
            else:
                view = change
            yield await _update(door, view, with_result=request.results)
            if request.job_id and view.settled and view.state in TERMINAL:
                return


async def cancel(door: Door, caller: Caller, request: pb.CancelRequest) -> pb.Accepted:
    job = await door.job(request.job_id, scope=caller.scope)
    event = Cancel(job_id=_id(job), account_id=_owner(job), request_id=request_id(request.request_id))
    return accepted(await door.gate.decide(event))


async def pause(door: Door, caller: Caller, request: pb.PauseRequest) -> pb.Accepted:
    job = await door.job(request.job_id, scope=caller.scope)
    event = Pause(job_id=_id(job), account_id=_owner(job), request_id=request_id(request.request_id))
    return accepted(await door.gate.decide(event))


async def resume(door: Door, caller: Caller, request: pb.ResumeRequest) -> pb.Accepted:
    job = await door.job(request.job_id, scope=caller.scope)
    event = Resume(job_id=_id(job), account_id=_owner(job), request_id=request_id(request.request_id))
    return accepted(await door.gate.decide(event))


async def raise_limit(door: Door, caller: Caller, request: pb.RaiseLimitRequest) -> pb.Accepted:
    job = await door.job(request.job_id, scope=caller.scope)
    event = RaiseLimit(
        job_id=_id(job),
        account_id=_owner(job),
        limit_uhs=amount("limit_uhs", request.limit_uhs),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def logs(door: Door, caller: Caller, request: pb.LogsRequest) -> AsyncIterator[pb.LogChunk]:
    await door.job(request.job_id, scope=caller.scope)
    async for chunk in door.port.logs(request.job_id, offsets=dict(request.offsets), follow=request.follow):
        whole = message_of(chunk, pb.LogChunk) if not chunk.data else None
        if whole is not None:
            yield whole
        for start in range(0, len(chunk.data), CHUNK_BYTES):
            yield pb.LogChunk(
                rank=chunk.rank,
                attempt=chunk.attempt,
                offset=chunk.offset + start,
                data=chunk.data[start : start + CHUNK_BYTES],
                end=chunk.end and start + CHUNK_BYTES >= len(chunk.data),
            )


async def result(door: Door, caller: Caller, request: pb.ResultRequest) -> AsyncIterator[pb.Chunk]:
    job = await door.job(request.job_id, scope=caller.scope)
    key = _result_key(job)
    if not key:
        if job.state in TERMINAL:
            raise NotFound(f"job {job.job_id} {job.state} and left no result", code="no_result", job=job.job_id)
        raise Conflict(f"job {job.job_id} is {job.state}: it has no result yet", code="not_ended", state=job.state)
    async for chunk in chunks(await _result(door, key)):
        yield chunk


async def put_blob(door: Door, caller: Caller, request: AsyncIterator[pb.Chunk]) -> pb.PutBlobReply:
    account, limit = caller.account, door.limits.blob_bytes
    data, expected = bytearray(), ""
    async with _uploads:
        async for chunk in request:
            expected = expected or chunk.sha256
            data += chunk.data
            if len(data) > limit:
                raise InvalidRequest(
                    f"a blob may have {limit} bytes, this one has more: read large data from where it lies",
                    code="blob_too_large",
                    limit_bytes=limit,
                )
        sha256 = hashlib.sha256(data).hexdigest()
        if expected and expected != sha256:
            raise InvalidRequest(f"the blob hashes to {sha256}, not to {expected}: send it again", code="blob_corrupt")
        await door.port.put_blob(blob_key(account, sha256), bytes(data))
    return pb.PutBlobReply(sha256=sha256, size=len(data))


def blob_key(account: str, sha256: str) -> str:
    """Where the archive keeps what a customer sent: below the account, by content."""
    return f"blobs/{account}/{sha256}"


async def chunks(data: bytes) -> AsyncIterator[pb.Chunk]:
    """Bytes of any size as messages."""
    for start in range(0, max(len(data), 1), CHUNK_BYTES):
        yield pb.Chunk(data=data[start : start + CHUNK_BYTES])


async def _payload(door: Door, account: str, given: pb.Payload, *, kind: str) -> Payload:
    """What the runner is told. Every key in it is made here, from the caller's account."""
    ways = sum(map(bool, (given.function, given.function_sha256, given.command)))
    if ways != (0 if kind == "lease" else 1):
        wanted = "no payload" if kind == "lease" else "a function or a command, and one of them"
        raise InvalidRequest(f"a job of kind {kind!r} has {wanted}", code="invalid_payload")
    blob = inline = ""
    if given.function:
        if len(given.function) > INLINE_BYTES_MAX:
            raise InvalidRequest(
                f"an inline function may have {INLINE_BYTES_MAX} bytes, this one has {len(given.function)}: send it"
                " with PutBlob",
                code="payload_too_large",
                limit_bytes=INLINE_BYTES_MAX,
            )
        if len(given.function) <= JOURNALED_BYTES_MAX:
            inline = inlined(given.function)
        else:
            blob = blob_key(account, hashlib.sha256(given.function).hexdigest())
            await door.port.put_blob(blob, given.function)
    elif given.function_sha256:
        blob = blob_key(account, _sha256(given.function_sha256))
    return Payload(
        blob=blob,
        inline=inline,
        entrypoint=tuple(given.command),
        working_dir_blob=blob_key(account, _sha256(given.working_dir_sha256)) if given.working_dir_sha256 else "",
        env=dict(given.env),
        runtime_env=_runtime_env(given.runtime_env_json),
    )


def _sha256(given: str) -> str:
    if len(given) != hashlib.sha256().digest_size * 2 or not set(given) <= set("0123456789abcdef"):
        raise InvalidRequest(
            "name a blob by the sha256 that PutBlob answered, in lower-case hex", code="invalid_sha256"
        )
    return given


def _runtime_env(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InvalidRequest("runtime_env is a JSON object", code="invalid_runtime_env")
    unknown = [key for key in given if key not in RUNTIME_ENV_KEYS]
    if unknown:
        raise InvalidRequest(
            f"runtime_env may not have {unknown[0]!r}: allowed are {', '.join(RUNTIME_ENV_KEYS)}; files go with working_dir=",
            code="invalid_runtime_env",
            given=str(unknown[0])[:100],
        )
    return given


async def _update(door: Door, view: JobView, *, with_result: bool) -> pb.JobUpdate:
    update = pb.JobUpdate(revision=view.revision, job=_shown(view))
    key = _result_key(view)
    if with_result and key:
        try:
            data = await _result(door, key)
        except NotFound:
            return update
        if len(data) <= INLINE_BYTES_MAX:
            update.result = data
    return update


def _shown(view: JobView) -> pb.Job:
    """A job as its owner sees it: a result that is in its record is fetched like any other."""
    job = message_of(view, pb.Job)
    job.result_ref = shown_ref(job.result_ref)
    return job


async def _result(door: Door, result_ref: str) -> bytes:
    found = inline_result(result_ref)
    return await door.port.get_blob(result_ref) if found is None else found


def _result_key(view: JobView) -> str:
    if view.state in TERMINAL:
        return view.result_ref
    return lease_info_key(view.account_id, view.job_id) if view.kind == "lease" and view.state in ON_DEVICES else ""


def _id(job: JobView) -> JobId:
    return JobId(job.job_id)


def _owner(job: JobView) -> Any:
    return job.account_id
