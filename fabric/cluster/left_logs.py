"""What leases have left on machines whose gate died, or whose archive was away, before their logs were in the archive.

A lease's end may be journaled while its logs are still on the way. So this is done again, from what machines have and what
the gate knows of jobs, for as long as there is something left: at a gate's start, and every few seconds. Doing it twice
changes nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fabric.cluster.services import Services
from fabric.gate.events import LeaseRemoved
from fabric.gate.instructions import Lease
from fabric.gate.views import JobView
from fabric.storage.layout import log_key
from fabric.system.private_folder import attempt_folder
from fabric.units import JobId, LeaseId
from fabric.worker.payload import read_payload
from fabric.worker.rank_order import Order, ranks_of


class Jobs(Protocol):
    """Asks the gate for jobs; those that it doesn't know are left out."""

    def __call__(self, job_ids: Iterable[JobId], /) -> Awaitable[Sequence[JobView]]: ...


async def no_jobs(_: Iterable[JobId], /) -> Sequence[JobView]:
    """Where there is no gate to ask."""
    return ()


async def clear_away(lease_id: LeaseId, lease: Lease | None, around: Services) -> None:
    """End what Ray has started for runners of it that never sat, keep its logs, remove its folders, where it is known what it
    was; and report that it is gone. Nothing else of it runs any more.
    """
    try:
        if lease is not None:
            nodes = [around.nodes[share.node_id] for share in lease.shares if share.node_id in around.nodes]
            addresses = dict.fromkeys(node.address for node in nodes)
            await asyncio.gather(*(around.agents.end(address, str(lease_id), roots=()) for address in addresses))
            await _keep_logs(lease, around)
    finally:
        around.outbox.put(LeaseRemoved(lease_id=lease_id))


async def clear_machines(around: Services, *, living: Callable[[], Iterable[LeaseId]], jobs: Jobs) -> None:
    """Keep the logs that attempts have left on machines, and remove their folders. What can't be moved yet stays there."""
    work_dir = around.settings.work_dir

    def names() -> tuple[str, ...]:
        return tuple(attempt_folder(work_dir, lease_id).name for lease_id in living())

    found = await around.agents.left(work_dir=str(work_dir), living=names())
    asked = {JobId(name.rpartition(".")[0]) for folders in found.values() for name in folders}
    over = {view.job_id: view for view in (await jobs(asked) if asked else ())}

    async def clear(address: str, folders: Mapping[str, tuple[int, ...]]) -> None:
        stays = [name for name, ranks in folders.items() if not await _kept(name, ranks, address, over, around)]
        await around.agents.sweep(address, work_dir=str(work_dir), living=(*names(), *stays))

    await asyncio.gather(*(clear(address, folders) for address, folders in found.items()))


async def _kept(name: str, ranks: Sequence[int], address: str, jobs: Mapping[str, JobView], around: Services) -> bool:
    """Whether nothing of an attempt waits to be kept: that of a job that the gate doesn't know, or of an attempt that it hasn't
    begun, is nobody's.
    """
    job_id, _, epoch = name.rpartition(".")
    view = jobs.get(job_id)
    if view is None or not epoch.isdecimal() or int(epoch) > view.attempts:
        return True
    if view.lease_id == name:
        return False
    folder = attempt_folder(Path(around.settings.work_dir), name)
    kept = [
        await around.agents.tidy(
            address,
            folder=str(folder / str(rank)),
            log_file=str(folder / str(rank) / "log"),
            log_key=log_key(view.account_id, job_id, epoch=int(epoch), rank=rank),
        )
        for rank in ranks
    ]
    return all(kept)


async def _keep_logs(lease: Lease, around: Services) -> None:
    per_device = read_payload(lease.payload).per_device
    for at, share in enumerate(lease.shares):
        node = around.nodes.get(share.node_id)
        order = Order(
            lease=lease,
            rank=at,
            master_addr="",
            master_port=0,
            work_dir=str(around.settings.work_dir),
            per_device=per_device,
        )
        for rank in ranks_of(order):
            if node is None:
                break
            await around.agents.tidy(
                node.address, folder=str(rank.folder), log_file=str(rank.log_file), log_key=rank.log_key
            )
