"""The fabric as a gateway's directory: asked over gRPC with the key of gateways, through `serving.fabric_client`."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

import msgspec
import structlog

from fabric.charging.rates import Rate
from fabric.wire import fabric_pb2 as pb
from fabric.wire.structs import struct_of
from serving.fabric_client import FabricClient
from serving.gateway.directory import (
    Board,
    Entitlement,
    KeyFacts,
    LimitFacts,
    ModelFacts,
    QueueLength,
    Replica,
    ReplicaState,
)
from serving.gateway.server import is_loopback

MODELS_S: Final = 2.0
"""How old the offer may be."""
_STATES: Final[dict[str, ReplicaState]] = {"ready": "ready", "draining": "draining", "starting": "starting"}
_log = structlog.get_logger("gateway")


class FabricDirectory:
    """Asks the door."""

    def __init__(self, ledger: FabricClient, *, name: str, endpoint: str) -> None:
        """Wire it up.

        Args:
            ledger: the connection; whoever made it closes it.
            name: the gateway's, by which its reports replace each other.
            endpoint: where clients reach it, as a URL.
        """
        self._ledger = ledger
        self._name = name
        self._endpoint = endpoint
        self._warned: set[str] = set()

    async def key(self, key_id: str) -> KeyFacts | None:
        """As `Directory`."""
        found = await self._ledger.caller(key_id)
        if found is None:
            return None
        return KeyFacts(
            key_id=found.key_id,
            secret_sha256=found.secret_sha256,
            account_id=found.account_id,
            tier_rank=found.tier_rank,
            operator=found.operator,
            limited=found.limited,
            may_call=found.may_call,
            role=found.role,
            project=found.project,
            member=found.member,
            revoked=found.revoked,
            dead=found.dead,
            suspended=found.suspended,
            expires_at_us=found.expires_at_us if found.HasField("expires_at_us") else None,
            free_uhs=found.free_uhs,
            name=found.name,
            limit_uhs=found.limit_uhs if found.HasField("limit_uhs") else None,
            spent_uhs=found.spent_uhs,
            requests_per_min=found.requests_per_min,
            tokens_per_min=found.tokens_per_min,
            price_microcny_per_ct=found.price_microcny_per_ct,
            held_uhs=found.held_uhs,
            limits=tuple(struct_of(limit, LimitFacts) for limit in found.limits),
            models={
                each.model: Entitlement(
                    model=each.model, free_uhs=each.free_uhs, covered=each.covered, packaged=each.packaged
                )
                for each in found.models
            },
            packages={each.asset: each.free for each in found.packages},
            tags=tuple(found.tags),
        )

    async def boards(self) -> AsyncIterator[Board]:
        """As `Directory`."""
        models, asked_at = await self._models(), time.monotonic()
        async for board in self._ledger.watch():
            if time.monotonic() - asked_at > MODELS_S:
                models, asked_at = await self._models(), time.monotonic()
            replicas = tuple(_replica(replica) for replica in board.replicas)
            yield Board(
                models=_as_their_parents(_with_abilities(_with_contexts(models, replicas), replicas)),
                replicas=tuple(replica for replica in replicas if self._may_be_asked(replica)),
            )

    async def notice(self, provider: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """As `Directory`."""
        return await self._ledger.notice(provider, headers, body)

    async def focus(
        self, key: str, *, dataset: str, form: str, from_us: int, until_us: int | None
    ) -> AsyncIterator[bytes]:
        """As `Directory`."""
        request = pb.ExportFocusRequest(dataset=dataset, format=form, from_us=from_us, until_us=until_us)
        async for piece in self._ledger.focus(request, key=key):
            yield piece

    async def report(self, queues: Sequence[QueueLength]) -> None:
        """As `Directory`."""
        lines = [pb.ModelQueue(**queue._asdict()) for queue in queues]
        await self._ledger.report(pb.ReportServingRequest(reporter=self._name, queues=lines, endpoint=self._endpoint))

    async def _models(self) -> dict[str, ModelFacts]:
        return {model.name: _model(model) for model in await self._ledger.models()}

    def _may_be_asked(self, replica: Replica) -> bool:
        """The secret that gateways and replicas share doesn't cross a network in the clear. One that only starts has no
        address yet.
        """
        if not replica.address:
            return False
        address = urlsplit(replica.address)
        safe = address.scheme == "https" if replica.tls_sha256 else is_loopback(address.hostname or "")
        if not safe and replica.replica_id not in self._warned:
            self._warned.add(replica.replica_id)
            _log.warning("replica_without_tls", replica=replica.replica_id, address=replica.address)
        return safe


def _model(model: pb.Model) -> ModelFacts:
    options = {option.name: option.value for option in model.spec.engine_args}
    return ModelFacts(
        name=model.name,
        parent=model.parent,
        created_at_us=model.offered_at_us,
        max_context=model.max_context if model.HasField("max_context") else None,
        rates=tuple(struct_of(rate, Rate) for rate in model.rates),
        calls_tools=options.get("enable-auto-tool-choice") == "true" and bool(options.get("tool-call-parser")),
        reasons=bool(options.get("reasoning-parser")),
        state=model.state,
        why=model.reason,
    )


def _with_contexts(models: dict[str, ModelFacts], replicas: Sequence[Replica]) -> dict[str, ModelFacts]:
    """What an operator didn't say of a model's context, its replicas do."""
    said: dict[str, int] = {}
    for replica in replicas:
        if replica.max_context:
            said[replica.model] = min(replica.max_context, said.get(replica.model, replica.max_context))
    return {
        name: msgspec.structs.replace(model, max_context=said[name])
        if model.max_context is None and name in said
        else model
        for name, model in models.items()
    }


def _with_abilities(models: dict[str, ModelFacts], replicas: Sequence[Replica]) -> dict[str, ModelFacts]:
    """What a model can be asked for its replicas say."""
    said = {replica.model: replica.abilities for replica in replicas if replica.abilities}
    return {
        name: msgspec.structs.replace(model, abilities=said[name]) if name in said else model
        for name, model in models.items()
    }


def _as_their_parents(models: dict[str, ModelFacts]) -> dict[str, ModelFacts]:
    """What adapters can do is what their parents can."""
    found = dict(models)
    for name, model in models.items():
        if (parent := models.get(model.parent)) is not None:
            found[name] = msgspec.structs.replace(
                model,
                max_context=parent.max_context,
                abilities=parent.abilities,
                calls_tools=parent.calls_tools,
                reasons=parent.reasons,
            )
    return found


def _replica(replica: pb.Replica) -> Replica:
    return Replica(
        replica_id=replica.replica_id,
        model=replica.model,
        address=replica.address.rstrip("/"),
        state=_STATES.get(replica.state, "gone"),
        tls_sha256=replica.tls_fingerprint.replace(":", "").lower(),
        accelerator=replica.accelerator,
        max_context=replica.max_context,
        capacity=max(1, replica.capacity),
        running=replica.running,
        waiting=replica.waiting,
        dedicated_to=replica.dedicated_to,
        adapters=frozenset(replica.adapters),
        abilities=frozenset(replica.abilities),
    )
