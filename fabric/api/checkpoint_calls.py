"""Calls about a job's checkpoints: what there is, going back to one, and a new job that goes on from one.

They lie in the archive, not in the gate, so a call here reads and writes there. What a job that runs would do next makes no
difference: going back is for jobs that are off their devices.
"""

from functools import partial
from typing import Any, Final

import msgspec

from fabric.api.job_calls import count_size, job_id_of
from fabric.api.keys import Caller
from fabric.api.messages import amount, at_least, facts_json, job_name, request_id
from fabric.api.service import ApiService
from fabric.checkpoints import Checkpoints, Manifest
from fabric.errors import Conflict, FabricError, InvalidRequest, NotFound
from fabric.gate.events import JobSpec, RolledBack, Submit
from fabric.gate.lifecycle import TERMINAL, JobState
from fabric.gate.questions import JobOf, SpecOf
from fabric.gate.views import JobView
from fabric.storage.archive import Stored
from fabric.system.client_threads import aside
from fabric.units import AccountId, JobId, KeyId
from fabric.wire import fabric_pb2 as pb

_SHOWN_MAX: Final = 1_000


async def list_checkpoints(
    door: ApiService, caller: Caller, request: pb.ListCheckpointsRequest
) -> pb.ListCheckpointsReply:
    job = await door.job(request.job_id, caller)
    found = await door.port.from_archive(aside(_of(door, job).ls))
    return pb.ListCheckpointsReply(checkpoints=[shown(manifest) for manifest in found[:_SHOWN_MAX]])


async def roll_back(door: ApiService, caller: Caller, request: pb.RollBackRequest) -> pb.Checkpoint:
    """The job resumes from an older checkpoint; those after it are void."""
    asked = request_id(request.request_id)
    job = await door.job_to_change(request.job_id, caller)
    step = at_least(0, "step", request.step)
    if job.lease_id is not None:
        raise Conflict(
            f"job {job.job_id} is {job.state}: pause it, roll back, then resume it", code="job_runs", state=job.state
        )
    if job.state in TERMINAL:
        raise Conflict(
            f"job {job.job_id} has {job.state} and resumes no more, so nothing of it is made void: begin a new job at step {step}"
            f" with `fabric checkpoints fork {job.job_id} --step {step}` (`job.fork(step={step})`)",
            code="job_ended",
            state=job.state,
        )
    manifest = await door.lengthy.run(caller.counted_as, _of(door, job).rollback, step)
    await door.gate.decide(
        RolledBack(
            job_id=JobId(job.job_id),
            account_id=AccountId(job.account_id),
            step=manifest.step,
            bytes=manifest.bytes,
            request_id=asked,
        )
    )
    return shown(manifest)


async def delete(door: ApiService, caller: Caller, request: pb.DeleteCheckpointsRequest) -> pb.DeleteCheckpointsReply:
    """Delete all but the newest ones of a job that is parked; of one that has ended also those, and the rest if wanted."""
    request_id(request.request_id)
    job = await door.job_to_change(request.job_id, caller)
    keep = 0 if request.everything else at_least(0, "keep", request.keep)
    has_ended = job.state in TERMINAL and job.settled
    if not has_ended and (job.lease_id is not None or job.state != JobState.PARKED):
        raise Conflict(
            f"job {job.job_id} is {job.state}: pause it, or wait for its end, and delete then",
            code="job_runs",
            state=job.state,
        )
    if not has_ended and (keep < 1 or request.everything):
        raise InvalidRequest(
            f"job {job.job_id} is parked and resumes from what it saved: keep at least 1, or cancel it first",
            code="keep_invalid",
        )
    deleted = await door.lengthy.run(
        caller.counted_as, partial(_deleted, _of(door, job), keep=keep, everything=request.everything)
    )
    door.shares.forget(AccountId(job.account_id))
    left = await door.port.from_archive(aside(_of(door, job).ls))
    return pb.DeleteCheckpointsReply(deleted_bytes=deleted, left=len(left))


def _deleted(checkpoints: Checkpoints, *, keep: int, everything: bool) -> int:
    """Delete them; how many bytes that were."""
    if keep:
        return sum(found.bytes for found in checkpoints.thin(keep=keep))
    weight = sum(found.bytes for found in checkpoints.ls())
    job_prefix = checkpoints.prefix.rpartition("/")[0]
    checkpoints.store.delete_folder(job_prefix if everything else checkpoints.prefix)
    return weight


async def fork(door: ApiService, caller: Caller, request: pb.ForkRequest) -> pb.SubmitReply:
    """A new job of the same code that begins where another has been. Its checkpoint is there before the job is."""
    asked = request_id(request.request_id)
    job = await door.job_to_change(request.job_id, caller)
    spec: Any = await door.port.ask(SpecOf(job_id=JobId(job.job_id), account_id=caller.scope))
    if not isinstance(spec, JobSpec):
        raise NotFound(f"there is no job {request.job_id!r}", job=request.job_id)
    count_size(door, caller, spec)
    owner = caller.account
    name = job_name(request.name) if request.name else spec.name
    made = job_id_of(owner, asked)
    step = at_least(0, "step", request.step) if request.HasField("step") else None
    source, target = _of(door, job), door.port.checkpoints_of(owner, made)
    # Of a job that there is already nothing is touched: the gate says whether it is this fork, or what it is.
    is_there = isinstance(await door.port.ask(JobOf(job_id=made, account_id=owner)), JobView)
    if not is_there:
        found = await door.port.from_archive(aside(source.ls))
        await door.shares.check(owner, more=Stored(max((each.bytes for each in found), default=0), 1))
    forked = not is_there and await door.lengthy.run(caller.counted_as, _forked, source, target, step)
    event = Submit(
        job_id=made,
        account_id=owner,
        spec=msgspec.structs.replace(
            spec,
            limit_uhs=amount("limit_uhs", request.limit_uhs) if request.limit_uhs else spec.limit_uhs,
            name=name,
        ),
        key_id=KeyId(caller.key_id),
        request_id=asked,
    )
    try:
        outcome = await door.gate.decide(event)
    except FabricError as error:
        if forked and error.http_status < 500:  # noqa: PLR2004  # it was refused, and will not be tried again as it is
            await door.port.from_archive(aside(_forget, target))
        raise
    return pb.SubmitReply(job_id=made, held_uhs=outcome.held_uhs, facts_json=facts_json(outcome.facts))


def _forked(source: Checkpoints, target: Checkpoints, step: int | None) -> bool:
    """Copy the checkpoint; whether that was done now. A call that is repeated finds the copy."""
    try:
        source.fork(target.prefix, step=step)
    except Conflict as error:
        if error.code != "fork_target_in_use":
            raise
        return False
    return True


def _forget(checkpoints: Checkpoints) -> None:
    checkpoints.store.delete_folder(checkpoints.prefix)


def _of(door: ApiService, job: JobView) -> Checkpoints:
    return door.port.checkpoints_of(job.account_id, job.job_id)


def shown(manifest: Manifest) -> pb.Checkpoint:
    return pb.Checkpoint(
        step=manifest.step,
        bytes=manifest.bytes,
        attempt=manifest.epoch,
        world=manifest.world,
        shards=len(manifest.shards),
        origin=manifest.origin,
        model=manifest.model,
    )
