"""A job's checkpoint on its way to whoever owns it: what it is made of, and the bytes of that, from any place on.

The bytes are read where they lie as far as the reader takes them, a span at a time, so a checkpoint of any size costs the door little. Nothing
is compared here: the reader has the digest of each shard. What newer checkpoints have taken the place of is said to be gone.
"""

import json
from collections.abc import AsyncIterator
from typing import Final

from fabric.api.checkpoint_calls import shown
from fabric.api.keys import Caller
from fabric.api.messages import at_least
from fabric.api.service import ApiService
from fabric.checkpoints import Checkpoints, Manifest
from fabric.errors import CheckpointDamaged, NotFound
from fabric.system.client_threads import aside
from fabric.wire import fabric_pb2 as pb

SPAN_BYTES: Final = 4 * 2**20
"""Read at a time, and in memory for each reader."""
_CHUNK_BYTES: Final = 2**20
_PAGE: Final = 1_000


async def list_shards(door: ApiService, caller: Caller, request: pb.ListShardsRequest) -> AsyncIterator[pb.ShardsPage]:
    """What the newest checkpoint is made of, or that of a step."""
    checkpoints = await _of(door, caller, request.job_id, request.session)
    step = at_least(0, "step", request.step) if request.HasField("step") else None
    found = await door.port.from_archive(aside(checkpoints.ls))
    manifest = next((each for each in found if step in {None, each.step}), None)
    if manifest is None:
        steps = ", ".join(dict.fromkeys(str(each.step) for each in found)) or "none"
        wanted = "a checkpoint" if step is None else f"one of step {step}"
        raise NotFound(f"job {request.job_id} has not saved {wanted}: it has {steps}", code="no_checkpoint")
    sessions = [] if request.session else await door.port.from_archive(aside(checkpoints.sessions))
    for start in range(0, len(manifest.shards), _PAGE):
        yield pb.ShardsPage(
            checkpoint=shown(manifest),
            draft=manifest.draft,
            meta_json="" if start else json.dumps(manifest.meta),
            shards=[
                pb.Shard(name=shard.name, bytes=shard.size, sha256=shard.sha256)
                for shard in manifest.shards[start : start + _PAGE]
            ],
            sessions=sessions,
        )


async def fetch(
    door: ApiService, caller: Caller, request: pb.FetchCheckpointRequest
) -> AsyncIterator[pb.CheckpointChunk]:
    """The bytes of its shards, from a place in one of them on."""
    checkpoints = await _of(door, caller, request.job_id, request.session)
    with door.fetches.one_more(caller.counted_as):
        manifest = await _standing(door, checkpoints, request.draft)
        first, offset = at_least(0, "shard", request.shard), at_least(0, "offset", request.offset)
        for number, shard in enumerate(manifest.shards[first:], first):
            at = offset if number == first else 0
            while at < shard.size:
                size = min(SPAN_BYTES, shard.size - at)
                try:
                    data = await door.port.from_archive(aside(checkpoints.span, shard, at, size))
                except NotFound:
                    await _standing(door, checkpoints, request.draft)
                    data = b""
                if len(data) < size:
                    raise CheckpointDamaged(
                        f"shard {shard.name} of step {manifest.step} is not all there", name=shard.name
                    )
                for start in range(0, size, _CHUNK_BYTES):
                    part = data[start : start + _CHUNK_BYTES]
                    await door.checkpoint_bytes.pace(caller.counted_as, as_many=len(part))
                    yield pb.CheckpointChunk(shard=number, offset=at + start, data=part)
                at += size


async def _of(door: ApiService, caller: Caller, job_id: str, session: str) -> Checkpoints:
    """Where a job that the caller sees keeps the state of its first session, or of a later one."""
    job = await door.job(job_id, caller)
    own = door.port.checkpoints_of(job.account_id, job.job_id)
    return own.below(session) if session else own


async def _standing(door: ApiService, checkpoints: Checkpoints, draft: str) -> Manifest:
    found = await door.port.from_archive(aside(checkpoints.ls))
    manifest = next((each for each in found if each.draft == draft), None)
    if manifest is None:
        raise NotFound(
            "this checkpoint is not kept any more: newer ones have taken its place, or it was rolled back. Fetch the newest",
            code="checkpoint_gone",
        )
    return manifest
