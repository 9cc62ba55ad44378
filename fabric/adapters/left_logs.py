"""What a lease has left on its machines that ended as the gate died: nobody has moved its logs into the archive."""

from fabric.adapters.payload import read_payload
from fabric.adapters.rank_order import Order, ranks_of
from fabric.adapters.surroundings import Surroundings
from fabric.gate.events import LeaseRemoved
from fabric.gate.instructions import Lease
from fabric.units import LeaseId


async def clear_away(lease_id: LeaseId, lease: Lease | None, around: Surroundings) -> None:
    """Keep its logs, remove its folders, where it is known what it was; and report that it is gone. Nothing of it runs any
    more.
    """
    try:
        if lease is not None:
            await _keep_logs(lease, around)
    finally:
        around.outbox.put(LeaseRemoved(lease_id=lease_id))


async def _keep_logs(lease: Lease, around: Surroundings) -> None:
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
