"""The board at the fabric's door: reads what is offered and how much waits for it, says which replicas there are."""

from collections.abc import Sequence

from fabric.charging.rates import Rate
from fabric.wire import fabric_pb2 as pb
from fabric.wire.structs import struct_of
from serving.fabric_client import FabricClient
from serving.host.pool import Asked, Model, Offer, Replica

_STATES = {"leasing": "starting"}


class DoorBoard:
    """A `serving.host.pool.Board` over gRPC.

    Args:
        reporter: whose word on the board this is; it replaces what the same one said before.
    """

    def __init__(self, ledger: FabricClient, *, reporter: str) -> None:
        self._ledger, self._reporter = ledger, reporter

    async def asked(self) -> list[Asked]:
        """Every model, with the calls that wait at gateways for it."""
        return [_asked(model) for model in await self._ledger.models()]

    async def say(self, replicas: Sequence[Replica], models: Sequence[Model]) -> None:
        await self._ledger.report(
            pb.ReportServingRequest(
                reporter=self._reporter,
                replicas=[_replica(each) for each in replicas],
                models=[
                    pb.ModelStatus(model=each.offer.name, state=each.state, reason=each.reason, wanted=each.wanted)
                    for each in models
                ],
            )
        )


def offer_of(model: pb.Model) -> Offer:
    """A model of the door's list, as the pool needs it; only an operator is told all of it."""
    spec = model.spec
    return struct_of(
        spec,
        Offer,
        name=model.name,
        devices=max(1, spec.devices),
        replicas_max=max(1, spec.replicas_max),
        engine=spec.engine or "vllm",
        engine_args=tuple((arg.name, arg.value) for arg in spec.engine_args),
        rates=tuple(struct_of(rate, Rate, model=model.name, version=model.rate_version) for rate in model.rates),
    )


def _asked(model: pb.Model) -> Asked:
    return Asked(offer_of(model), queued=model.waiting, changed=model.changed)


def _replica(each: Replica) -> pb.Replica:
    standing = each.standing
    said = pb.Replica(
        replica_id=each.replica_id,
        model=each.offer.name,
        version=each.version,
        state=_STATES.get(each.state, each.state),
        reason="waiting for devices" if each.state == "leasing" else each.reason,
        accelerator=each.accelerator,
        lease_id=each.lease_id,
        started_at_us=each.started_at_us,
    )
    if each.offer.dedicated_to:
        said.dedicated_to = each.offer.dedicated_to
    if standing is not None:
        said.address, said.tls_fingerprint = standing.address, standing.tls_sha256
        said.running, said.waiting, said.capacity = standing.running, standing.waiting, standing.capacity
        said.unreported_calls = standing.unreported_calls
        said.max_context = standing.max_context
        said.abilities.extend(standing.abilities)
        said.adapters.extend(each.name for each in standing.adapters if each.serves)
        said.ttft_p50_us, said.ttft_p99_us = standing.ttft_p50_us, standing.ttft_p99_us
    return said
