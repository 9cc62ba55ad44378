"""Calls about language models: what is offered, who serves it, and who asks for it."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from statistics import median_low
from typing import Any, Final

from fabric.api.keys import Caller
from fabric.api.messages import NAME_CHARS_MAX, accepted, at_least, identifier, message_of, request_id, several, short
from fabric.api.service import ApiService
from fabric.charging.packages import PAYERS_MAX, Limit
from fabric.charging.rates import Rate
from fabric.charging.tags import clipped
from fabric.checkpoints import is_of_folder
from fabric.config import engines
from fabric.errors import InvalidRequest, NotFound, PermissionDenied
from fabric.gate.lifecycle import TERMINAL
from fabric.gate.questions import CallerOf, ModelsOf, NodesOf, PricesOf
from fabric.gate.serving_events import (
    CallUsed,
    KeepUsage,
    ModelSpec,
    OfferModel,
    RecordCalls,
    ScaleModel,
    WithdrawModel,
)
from fabric.gate.views import CallerView, ModelView
from fabric.storage.layout import PUBLISH_IT, artifact_key
from fabric.system.client_threads import aside
from fabric.units import AccountId, HoldId, KeyId
from fabric.wire import fabric_pb2 as pb
from fabric.wire.structs import struct_of

RATES_MAX: Final = 64
ENGINE_ARGS_MAX: Final = 64
REASON_CHARS_MAX: Final = 500
_DIGEST_CHARS: Final = 24
_JOB: Final = "job:"
_MODEL: Final = "model"
"""As what a job publishes one."""


async def list_models(door: ApiService, caller: Caller, _: pb.ListModelsRequest) -> pb.ListModelsReply:
    offered: Any = await door.port.ask(ModelsOf(account_id=caller.scope))
    board = door.board.shown()
    models = [_model(view, board, to_operator=caller.operator) for view in offered]
    return pb.ListModelsReply(models=models, endpoints=board.endpoints)


async def offer_model(door: ApiService, caller: Caller, request: pb.OfferModelRequest) -> pb.Accepted:
    if len(request.rates) > RATES_MAX:
        raise InvalidRequest(f"a model has at most {RATES_MAX} rates, not {len(request.rates)}", code="invalid_rate")
    await _leaves_a_model(door, caller, request.spec.source)
    spec = _spec_of(request.spec)
    await _has_a_node(door, spec)
    event = OfferModel(
        spec=spec,
        rates=tuple(_rate_of(rate) for rate in request.rates),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def _has_a_node(door: ApiService, spec: ModelSpec) -> None:
    """Refuse a model of which no replica would ever start: its devices are one node's. An adapter has its parent's.

    Raises:
        InvalidRequest: no node that it may have is large enough, also if all that are down come back (code `replica_too_large`).
    """
    there: Any = await door.port.ask(NodesOf())
    prices: Any = await door.port.ask(PricesOf())
    is_unknown = not {weight.accelerator for weight in prices.tariffs.weights}.issuperset(spec.accelerators)
    if spec.parent or not there or is_unknown:  # the gate says what is wrong with a type that it doesn't know
        return
    sizes: dict[str, int] = {}
    for node in there:
        if node.accelerator in (spec.accelerators or (node.accelerator,)) and node.dedicated_to in (
            None,
            spec.dedicated_to,
        ):
            sizes[node.accelerator] = max(node.devices, sizes.get(node.accelerator, 0))
    if spec.devices <= max(sizes.values(), default=0):
        return
    has = ", ".join(f"{sizes.get(name, 0)} of {name}" for name in spec.accelerators or sorted(sizes)) or "0"
    raise InvalidRequest(
        f"a replica of {spec.name} needs {spec.devices} devices of one node, and the largest node that it may have has {has}:"
        " offer it with fewer --devices or on another --accelerator, or add such a node first (`fabric ops nodes` shows"
        " which there are)",
        code="replica_too_large",
        devices=spec.devices,
        largest=max(sizes.values(), default=0),
    )


async def _leaves_a_model(door: ApiService, caller: Caller, source: str) -> None:
    """Refuse a job that there isn't, and one that has ended and left no model: no replica would ever load it.

    Raises:
        NotFound: there is no such job.
        InvalidRequest: it published none, and its last checkpoint is no folder (code `no_model`).
    """
    if not source.startswith(_JOB):
        return
    job = await door.job(source.removeprefix(_JOB).rpartition("/")[2], replace(caller, acts_for=None))
    if job.state not in TERMINAL:
        return
    with contextlib.suppress(NotFound):
        await door.port.small_blob(artifact_key(job.account_id, job.job_id, name=_MODEL), limit_bytes=0)
        return
    saved = await door.port.from_archive(aside(door.port.checkpoints_of(job.account_id, job.job_id).ls))
    if not (saved and is_of_folder(saved[0])):
        raise InvalidRequest(
            f"job {job.job_id} {job.state} and has left no model: {PUBLISH_IT}", code="no_model", job=job.job_id
        )


async def scale_model(door: ApiService, _: Caller, request: pb.ScaleModelRequest) -> pb.Accepted:
    event = ScaleModel(
        model=short("model", request.model),
        replicas_min=at_least(0, "replicas_min", request.replicas_min),
        replicas_max=at_least(1, "replicas_max", request.replicas_max),
        request_id=request_id(request.request_id),
    )
    return accepted(await door.gate.decide(event))


async def withdraw_model(door: ApiService, _: Caller, request: pb.WithdrawModelRequest) -> pb.Accepted:
    event = WithdrawModel(model=short("model", request.model), request_id=request_id(request.request_id))
    return accepted(await door.gate.decide(event))


async def record_calls(door: ApiService, caller: Caller, request: pb.RecordCallsRequest) -> pb.Accepted:
    event = RecordCalls(
        account_id=caller.account,
        calls=calls_of(caller, request.calls),
    )
    return accepted(await door.gate.decide(event))


async def keep_usage(door: ApiService, caller: Caller, request: pb.KeepUsageRequest) -> pb.Accepted:
    """Whatever it says is taken as it was said: this is the last way in which a meter can report a call."""
    event = KeepUsage(
        account_id=caller.account,
        hold_id=HoldId(_clipped(request.hold_id)),
        call=_as_said(request.call),
        code=_clipped(request.code),
        reason=request.reason[:REASON_CHARS_MAX],
    )
    return accepted(await door.gate.decide(event))


async def report_serving(door: ApiService, _: Caller, request: pb.ReportServingRequest) -> pb.ReportServingReply:
    identifier("reporter", request.reporter)
    door.board.report(request)
    return pb.ReportServingReply()


async def watch_serving(door: ApiService, _: Caller, __: pb.WatchServingRequest) -> AsyncIterator[pb.ServingBoard]:
    async for board in door.board.watch():
        yield board


async def caller_of(door: ApiService, _: Caller, request: pb.CallerOfRequest) -> pb.CallerOfReply:
    found = await door.port.ask(CallerOf(key_id=KeyId(short("key_id", request.key_id))))
    if not isinstance(found, CallerView):
        raise NotFound(f"there is no key {request.key_id!r}", key=request.key_id)
    return message_of(found, pb.CallerOfReply)


def calls_of(caller: Caller, given: Iterable[pb.Call]) -> tuple[CallUsed, ...]:
    """Calls as the gate takes them. Only an operator's meter is believed: a call makes a charging record.

    Raises:
        PermissionDenied: a tenant reports calls.
    """
    calls = tuple(_call_of(call) for call in given)
    if calls and not caller.operator:
        raise PermissionDenied("only an operator's meter reports calls", code="operator_only")
    return calls


def _call_of(call: pb.Call) -> CallUsed:
    return CallUsed(
        call_id=call.call_id,
        model=short("model", call.model),
        accelerator=short("accelerator", call.accelerator),
        prompt_tokens=call.prompt_tokens,
        cached_tokens=call.cached_tokens,
        completion_tokens=call.completion_tokens,
        reasoning_tokens=call.reasoning_tokens,
        started_at_us=at_least(0, "started_at_us", call.started_at_us),
        ended_at_us=at_least(0, "ended_at_us", call.ended_at_us),
        ended=short("ended", call.ended),
        key_id=KeyId(short("key_id", call.key_id)) if call.key_id else None,
        rate_version=at_least(0, "rate_version", call.rate_version),
        covered=call.covered,
        packages=_limits_of(call),
        tags=clipped(call.tags),
    )


def _limits_of(call: pb.Call) -> tuple[Limit, ...]:
    return tuple((short("asset", each.asset), at_least(0, "most", each.most)) for each in call.packages)


def _as_said(call: pb.Call) -> CallUsed:
    """A call with whatever is wrong with it, but no name longer than the gate keeps."""
    return CallUsed(
        call_id=_clipped(call.call_id),
        model=_clipped(call.model),
        accelerator=_clipped(call.accelerator),
        prompt_tokens=call.prompt_tokens,
        cached_tokens=call.cached_tokens,
        completion_tokens=call.completion_tokens,
        reasoning_tokens=call.reasoning_tokens,
        started_at_us=call.started_at_us,
        ended_at_us=call.ended_at_us,
        ended=_clipped(call.ended),
        key_id=KeyId(_clipped(call.key_id)) if call.key_id else None,
        rate_version=call.rate_version,
        covered=call.covered,
        packages=tuple((_clipped(each.asset), each.most) for each in call.packages[:PAYERS_MAX]),
        tags=clipped(call.tags),
    )


def _clipped(name: str) -> str:
    """A name as it is, or what is left of a longer one with a digest, so that no two become one."""
    if len(name) <= NAME_CHARS_MAX:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:_DIGEST_CHARS]
    return f"{name[: NAME_CHARS_MAX - _DIGEST_CHARS - 1]}~{digest}"


def _spec_of(spec: pb.ModelSpec) -> ModelSpec:
    if len(spec.engine_args) > ENGINE_ARGS_MAX:
        raise InvalidRequest(f"engine_args may name {ENGINE_ARGS_MAX} options", code="invalid_engine_arg")
    return struct_of(
        spec,
        ModelSpec,
        name=short("name", spec.name),
        parent=short("parent", spec.parent) if spec.parent else "",
        accelerators=several("accelerators", spec.accelerators),
        devices=spec.devices or 1,
        replicas_max=spec.replicas_max or max(1, spec.replicas_min),
        dedicated_to=AccountId(spec.dedicated_to) if spec.dedicated_to else None,
        engine=_engine_of(spec),
        engine_args=tuple((arg.name, arg.value) for arg in spec.engine_args),
    )


def _engine_of(spec: pb.ModelSpec) -> str:
    """The name of what runs it.

    Raises:
        InvalidRequest: there is no such engine, or none that takes the model from there (code `invalid_engine`).
    """
    engine = short("engine", spec.engine) if spec.engine else engines.DEFAULT
    if spec.parent and spec.engine:
        raise InvalidRequest(
            f"{spec.name} is an adapter, and runs in the engine of {spec.parent}: leave the engine out",
            code="invalid_engine",
        )
    if flaw := engines.flaw_of(engine, spec.source):
        raise InvalidRequest(flaw, code="invalid_engine", engine=engine)
    return engine


def _rate_of(rate: pb.Rate) -> Rate:
    """The gate says of which model and version."""
    return struct_of(rate, Rate, accelerator=short("accelerator", rate.accelerator), model="", version=0)


# -- a model as people see it ------------------------------------------------------------------------------------------


def _model(view: ModelView, board: pb.ServingBoard, *, to_operator: bool) -> pb.Model:
    """What is offered, beside how it gets on. An adapter's replicas are those of its parent that have loaded it."""
    home = view.parent or view.name
    replicas = [replica for replica in board.replicas if replica.model == home]
    if view.parent:
        replicas = [each for each in replicas if view.name in each.adapters or each.state != "ready"]
    status = next((each for each in board.models if each.model == view.name), None)
    queues = [queue for queue in board.queues if queue.model == view.name]
    first_tokens_us = [each.ttft_p50_us for each in replicas if each.state == "ready" and each.HasField("ttft_p50_us")]
    state, reason = _state_of(replicas, status)
    model = message_of(view, pb.Model)
    model.state, model.reason = state, reason
    model.replicas = len(replicas)
    model.replicas_ready = sum(replica.state == "ready" for replica in replicas)
    model.running = sum(replica.running for replica in replicas)
    model.waiting = sum(replica.waiting for replica in replicas) + sum(queue.waiting for queue in queues)
    if first_tokens_us:
        model.ttft_p50_us = median_low(first_tokens_us)
    if to_operator:
        model.spec.CopyFrom(message_of(view, pb.ModelSpec))
    return model


def _state_of(replicas: Sequence[pb.Replica], status: pb.ModelStatus | None) -> tuple[str, str]:
    """In one word, and why: the best that any replica can say, or else what its host says of the model."""
    states = {replica.state: replica.reason for replica in replicas}
    if "ready" in states:
        return "ready", ""
    if status is not None and status.state == "failed":
        return "failed", status.reason
    for state in ("starting", "draining", "failed"):
        if state in states:
            return state, states[state]
    if status is not None:
        return status.state or "idle", status.reason
    return "waiting", "nobody serves models here now: is the serving host up?"
