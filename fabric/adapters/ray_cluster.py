"""The cluster behind the gate: carries out its instructions on Ray, and reports what happens there as events."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from fabric.adapters.archive import Archive
from fabric.adapters.cluster_settings import ClusterSettings, LeaseInfo, ReconcileReport, Unleased
from fabric.clock import Clock
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import AnyInstruction
from fabric.gate.views import JobView, LeaseView, LogChunk

__all__ = ["ClusterSettings", "LeaseInfo", "RayCluster", "ReconcileReport", "Unleased"]

Report = Callable[[Sequence[AnyEvent]], Awaitable[object]]


class RayCluster:
    """Lives in the gate's process, on its event loop, which it never blocks. Needs an initialised Ray."""

    def __init__(
        self, *, report: Report, archive: Archive, settings: ClusterSettings, clock: Clock | None = None
    ) -> None: ...

    async def start(self) -> None:
        """Find the nodes (`NodeUp` for each) and start watching. Call before `carry_out`."""

    async def carry_out(self, instructions: Sequence[AnyInstruction]) -> None:
        """Begin to carry them out; returns at once. Saying an instruction again is harmless."""

    async def reconcile(self, leases: Sequence[LeaseView]) -> ReconcileReport:
        """Compare what Ray runs with what is leased: watch survivors again, report what is gone, remove the rest."""
        raise NotImplementedError

    async def publish(self, jobs: Sequence[JobView]) -> None:
        """Show the jobs on Ray's dashboard and in its metrics."""

    def lease_info(self, lease_id: str) -> LeaseInfo | None:
        """How a client schedules into a running lease."""
        raise NotImplementedError

    def logs(
        self, job_id: str, *, account_id: str, offsets: Mapping[str, int], follow: bool
    ) -> AsyncIterator[LogChunk]:
        """A job's logs from `offsets` ("attempt/rank" → bytes already had) on."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop watching. What runs goes on running."""
