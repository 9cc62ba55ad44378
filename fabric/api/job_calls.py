"""Calls about jobs: submit, look, watch, stop, read logs and results, and bring what they run."""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any, Final

import msgspec

from fabric.api.keys import Caller
from fabric.api.messages import (
    accepted,
    amount,
    facts_json,
    listed,
    message_of,
    request_id,
    several,
    short,
    spec_of,
)
from fabric.api.payloads import blob_key, payload_of, recorded
from fabric.api.service import ApiService
from fabric.api.why_text import sentence
from fabric.errors import Conflict, InvalidRequest, NotFound, PermissionDenied, Unavailable
from fabric.gate.events import Cancel, JobKind, JobSpec, Pause, RaiseLimit, Resume, SaveNow, Submit
from fabric.gate.key_scopes import KeyScope
from fabric.gate.lifecycle import ON_DEVICES, TERMINAL, JobState
from fabric.gate.questions import JobsOf, ModelsOf, QuoteOf, WhyOf
from fabric.gate.views import JobView, QuoteView, WhyView
from fabric.ledger.scopes import Service
from fabric.storage.layout import PUBLISH_IT, artifact_key, lease_info_key
from fabric.storage.results import inline_result, shown_ref
from fabric.units import JobId, KeyId
from fabric.wire import INLINE_BYTES_MAX
from fabric.wire import fabric_pb2 as pb

LIST_MAX: Final = 1_000
LIST_DEFAULT: Final = 100
CHUNK_BYTES: Final = 1024 * 1024
COUNTED_BYTES: Final = 8 * 1024
"""Of a job as it is recorded; each so many beyond count as a request."""
PAGE_COUNTS: Final = 25
"""As how many requests a page counts of what has changed since."""
UPLOAD_IDLE_S: Final = 30.0
"""How long an upload may wait for its next chunk."""
ARTIFACT_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
_OFFSET_OF: Final = re.compile(r"[0-9]{1,9}/[0-9]{1,9}", re.ASCII)
_OFFSETS_MAX: Final = 4_096


async def submit(door: ApiService, caller: Caller, request: pb.SubmitRequest) -> pb.SubmitReply:
    request_id(request.request_id)
    account = caller.account
    job_id = job_id_of(account, request.request_id)
    # The spec is checked before anything of the payload is kept.
    checked = spec_of(request.spec, payload="")
    _check_role(caller, checked)
    payload = await payload_of(door, account, request.payload, kind=request.spec.kind)
    spec = msgspec.structs.replace(checked, payload=recorded(payload))
    count_size(door, caller, spec)
    await door.shares.check(account)
    event = Submit(
        job_id=job_id,
        account_id=account,
        spec=spec,
        key_id=KeyId(caller.key_id),
        request_id=request.request_id,
    )
    try:
        outcome = await door.gate.decide(event)
    except Conflict as error:
        if error.code == "request_id_reused":
            error.message += f". It has submitted job {job_id}: `fabric job {job_id}` shows that one"
        raise
    return pb.SubmitReply(job_id=job_id, held_uhs=outcome.held_uhs, facts_json=facts_json(outcome.facts))


def _check_role(caller: Caller, spec: JobSpec) -> None:
    """Of the serving host's key nothing is taken but leases for replicas, and only the operator runs in the class of inference:
    it takes reserved nodes back from everybody, and has a price of its own.
    """
    if spec.service is Service.INFERENCE and not caller.operator:
        raise PermissionDenied(
            "service=inference is for the models that the operator serves: submit with service=training or batch, and for"
            " a job that is never evicted with preemptible=False, where the plan has that right",
            code="service_is_operators",
            service=spec.service.value,
        )
    if not caller.may(KeyScope.JOBS_OWN, KeyScope.JOBS_ALL) and (
        spec.kind is not JobKind.LEASE or spec.service is not Service.INFERENCE
    ):
        raise PermissionDenied(
            "the serving host's key leases devices for inference, and submits no jobs: use another one",
            code="restricted_key",
            key_id=caller.key_id,
        )


def count_size(door: ApiService, caller: Caller, spec: JobSpec) -> None:
    """A job that takes much room in the record counts as several requests: it stands there for ever, refused or not.

    Raises:
        RateLimited: there were too many.
    """
    if more := len(msgspec.json.encode(spec)) // COUNTED_BYTES:
        door.rate.spend(caller.counted_as, as_many=more)


def job_id_of(account: str, request: str) -> JobId:
    """A job's id: the same for a repeated request, and nobody can choose another's."""
    return JobId("job-" + hashlib.sha256(f"{account}/{request}".encode()).hexdigest()[:20])


async def quote(door: ApiService, caller: Caller, request: pb.QuoteRequest) -> pb.QuoteReply:
    spec = spec_of(request.spec, payload="")
    answer = await door.port.ask(QuoteOf(account_id=caller.account, spec=spec, key_id=KeyId(caller.key_id)))
    if not isinstance(answer, QuoteView):
        raise NotFound(f"there is no account {caller.account!r}", account=caller.account)
    return message_of(answer, pb.QuoteReply)


async def get_job(door: ApiService, caller: Caller, request: pb.GetJobRequest) -> pb.Job:
    if caller.may(KeyScope.HOST) and caller.own_jobs_only and await _makes_a_model(door, request.job_id):
        return _shown(await door.job(request.job_id, replace(caller, scopes=caller.scopes | {KeyScope.READ})), caller)
    return _shown(await door.job(request.job_id, caller), caller)


async def why(door: ApiService, caller: Caller, request: pb.WhyRequest) -> pb.WhyReply:
    view = await door.job(request.job_id, caller)
    found = await door.port.ask(WhyOf(job_id=JobId(view.job_id), account_id=caller.scope))
    if not isinstance(found, WhyView):
        raise NotFound(f"there is no job {request.job_id!r}", job=request.job_id)
    return pb.WhyReply(
        job_id=found.job_id, state=found.state, sentence=sentence(found), facts_json=msgspec.json.encode(found).decode()
    )


async def _makes_a_model(door: ApiService, job_id: str) -> bool:
    """Whether a model that is offered was made by this job: then the serving host must know whose it is."""
    offered: Any = await door.port.ask(ModelsOf())
    return any(view.source.startswith("job:") and view.source.endswith(job_id) for view in offered)


async def list_jobs(door: ApiService, caller: Caller, request: pb.ListJobsRequest) -> pb.ListJobsReply:
    if request.of_request:
        return pb.ListJobsReply(jobs=[await _of_request(door, caller, request.of_request)])
    states = listed("state", request.states, [state.value for state in JobState])
    if request.after:
        await door.job(request.after, caller)
    limit = min(request.limit if request.limit > 0 else LIST_DEFAULT, LIST_MAX)
    is_host = caller.may(KeyScope.HOST)
    question = JobsOf(
        account_id=caller.scope,
        states=states,
        limit=limit + 1,
        name=short("name", request.name),
        tags=several("tags", request.tags),
        from_us=max(request.from_us, 0),
        until_us=request.until_us if request.HasField("until_us") else None,
        beginning=short("beginning", request.beginning),
        after=JobId(request.after) if request.after else None,
        key_id=KeyId(caller.key_id) if caller.own_jobs_only and not is_host else None,
        of_operators=caller.own_jobs_only and is_host,
    )
    jobs: Any = await door.port.ask(question)
    if not jobs:
        await door.check_customer(caller)
    following = jobs[limit - 1].job_id if len(jobs) > limit else ""
    return pb.ListJobsReply(jobs=[_shown(job, caller) for job in jobs[:limit]], next=following)


async def _of_request(door: ApiService, caller: Caller, given: str) -> pb.Job:
    """The job that the account has submitted with this request id."""
    request_id(given)
    job_id = job_id_of(caller.account, given)
    try:
        return _shown(await door.job(job_id, caller), caller)
    except NotFound:
        raise NotFound(
            f"no job was submitted with the request id {given!r}: submit it, with the same id", code="no_such_request"
        ) from None


async def watch_jobs(door: ApiService, caller: Caller, request: pb.WatchJobsRequest) -> AsyncIterator[pb.JobUpdate]:
    if request.job_id:
        await door.job(request.job_id, caller)
    after = request.after_revision if request.HasField("after_revision") else None

    async def pace() -> None:
        await door.rate.pace(caller.counted_as, as_many=PAGE_COUNTS)

    watching = door.feed.watch(caller.scope, after_revision=after, pace=pace)
    async with contextlib.aclosing(watching) as changes:
        async for change in changes:
            if isinstance(change, int):
                yield pb.JobUpdate(revision=change)
                if not request.job_id:
                    continue
                view = await door.job(request.job_id, caller)
            elif request.job_id and change.job_id != request.job_id:
                continue
            else:
                view = change
                if not await door.sees(caller, view):
                    continue
            await door.updates.pace(caller.counted_as, as_many=1)
            yield await _update(door, caller, view, with_result=request.results)
            if request.job_id and view.settled and view.state in TERMINAL:
                return


async def cancel(door: ApiService, caller: Caller, request: pb.CancelRequest) -> pb.Accepted:
    job = await door.job_to_change(request.job_id, caller)
    event = Cancel(
        at_once=not request.save,
        job_id=_id(job),
        account_id=_owner(job),
        save=request.save,
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def pause(door: ApiService, caller: Caller, request: pb.PauseRequest) -> pb.Accepted:
    job = await door.job_to_change(request.job_id, caller)
    event = Pause(job_id=_id(job), account_id=_owner(job), request_id=request_id(request.request_id))
    return accepted(await door.gate.decide(event))


async def resume(door: ApiService, caller: Caller, request: pb.ResumeRequest) -> pb.Accepted:
    job = await door.job(request.job_id, caller)
    caller.check_may_spend_on(job)
    event = Resume(job_id=_id(job), account_id=_owner(job), request_id=request_id(request.request_id))
    return accepted(await door.gate.decide(event))


async def save_now(door: ApiService, caller: Caller, request: pb.SaveNowRequest) -> pb.Accepted:
    job = await door.job_to_change(request.job_id, caller)
    event = SaveNow(job_id=_id(job), account_id=_owner(job), request_id=request_id(request.request_id))
    return accepted(await door.gate.decide(event))


async def raise_limit(door: ApiService, caller: Caller, request: pb.RaiseLimitRequest) -> pb.Accepted:
    job = await door.job(request.job_id, caller)
    caller.check_may_spend_on(job)
    event = RaiseLimit(
        job_id=_id(job),
        account_id=_owner(job),
        limit_uhs=amount("limit_uhs", request.limit_uhs),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def logs(door: ApiService, caller: Caller, request: pb.LogsRequest) -> AsyncIterator[pb.LogChunk]:
    await door.job(request.job_id, caller)
    offsets = _offsets(request.offsets.items())
    async for chunk in door.port.logs(request.job_id, offsets=offsets, follow=request.follow):
        await door.bytes.pace(caller.counted_as, as_many=len(chunk.data))
        for start in range(0, len(chunk.data), CHUNK_BYTES):
            yield pb.LogChunk(
                rank=chunk.rank,
                attempt=chunk.attempt,
                offset=chunk.offset + start,
                data=chunk.data[start : start + CHUNK_BYTES],
            )


async def artifact(door: ApiService, caller: Caller, request: pb.ArtifactRequest) -> AsyncIterator[pb.Chunk]:
    job = await door.job(request.job_id, caller)
    if not ARTIFACT_NAME.fullmatch(request.name):
        raise InvalidRequest("an artifact's name has 1 to 64 letters, digits, '-', '_' and '.'", code="bad_artifact")
    key = artifact_key(job.account_id, job.job_id, name=request.name)
    try:
        async with contextlib.aclosing(door.blobs.parts(key)) as parts:
            async for part in parts:
                yield pb.Chunk(data=part)
    except NotFound:
        raise NotFound(
            f"job {job.job_id} has published nothing as {request.name!r}: {PUBLISH_IT}",
            code="no_artifact",
            job=job.job_id,
        ) from None


async def result(door: ApiService, caller: Caller, request: pb.ResultRequest) -> AsyncIterator[pb.Chunk]:
    job = await door.job(request.job_id, caller)
    key = _result_key(job)
    if not key:
        if job.state in TERMINAL:
            raise NotFound(f"job {job.job_id} {job.state} and left no result", code="no_result", job=job.job_id)
        raise Conflict(f"job {job.job_id} is {job.state}: it has no result yet", code="not_ended", state=job.state)
    found = inline_result(key)
    if found is not None:
        yield pb.Chunk(data=found)
        return
    async with contextlib.aclosing(door.blobs.parts(key)) as parts:
        async for part in parts:
            yield pb.Chunk(data=part)


async def put_blob(door: ApiService, caller: Caller, request: AsyncIterator[pb.Chunk]) -> pb.PutBlobReply:
    account, limit = caller.account, door.limits.blob_bytes
    expected = ""
    async with door.blobs.upload(account) as upload:
        async for chunk in _in_time(request):
            expected = expected or chunk.sha256
            if upload.size + len(chunk.data) > limit:
                raise InvalidRequest(
                    f"a blob may have {limit} bytes, this one has more: read large data from where it lies",
                    code="blob_too_large",
                    limit_bytes=limit,
                )
            await upload.add(chunk.data)
        sha256 = upload.sha256
        if not upload.size and expected and (kept := door.blobs.fresh(upload.room, blob_key(account, expected))):
            return pb.PutBlobReply(sha256=expected, size=kept.bytes)  # only asked whether it is there
        if expected and expected != sha256:
            raise InvalidRequest(
                f"the blob hashes to {sha256}, not to {expected[:64]}: send it again", code="blob_corrupt"
            )
        await door.blobs.keep(blob_key(account, sha256), upload)
        return pb.PutBlobReply(sha256=sha256, size=upload.size)


async def _in_time(request: AsyncIterator[pb.Chunk]) -> AsyncIterator[pb.Chunk]:
    """The chunks, if none of them is long in coming."""
    while True:
        try:
            async with asyncio.timeout(UPLOAD_IDLE_S):
                chunk = await anext(request)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Unavailable(
                f"nothing came for {UPLOAD_IDLE_S:g} s: send the blob again", code="upload_stalled"
            ) from None
        yield chunk


async def chunks(data: bytes) -> AsyncIterator[pb.Chunk]:
    """Bytes of any size as messages."""
    for start in range(0, max(len(data), 1), CHUNK_BYTES):
        yield pb.Chunk(data=data[start : start + CHUNK_BYTES])


def _offsets(given: Iterable[tuple[str, int]]) -> dict[str, int]:
    offsets = dict(given)
    if len(offsets) > _OFFSETS_MAX or not all(_OFFSET_OF.fullmatch(of) and at >= 0 for of, at in offsets.items()):
        raise InvalidRequest(
            f"offsets are at most {_OFFSETS_MAX}, each 'attempt/rank' with a number of bytes", code="invalid_offsets"
        )
    return offsets


async def _update(door: ApiService, caller: Caller, view: JobView, *, with_result: bool) -> pb.JobUpdate:
    update = pb.JobUpdate(revision=view.revision, job=_shown(view, caller))
    key = _result_key(view)
    if with_result and key:
        with contextlib.suppress(NotFound):
            found = inline_result(key)
            if found is None:
                found = await door.port.small_blob(key, limit_bytes=INLINE_BYTES_MAX)
            if found is not None:
                update.result = found
    return update


def _shown(view: JobView, caller: Caller) -> pb.Job:
    """A job as its owner sees it: a result that is in its record is fetched like any other."""
    job = message_of(view, pb.Job)
    job.shown_to_operator = caller.operator
    job.result_ref = shown_ref(job.result_ref)
    return job


def _result_key(view: JobView) -> str:
    if view.state in TERMINAL:
        return view.result_ref
    return lease_info_key(view.account_id, view.job_id) if view.kind == "lease" and view.state in ON_DEVICES else ""


def _id(job: JobView) -> JobId:
    return JobId(job.job_id)


def _owner(job: JobView) -> Any:
    return job.account_id
