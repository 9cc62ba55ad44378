"""What one rank of a lease is told to do."""

from pathlib import Path
from typing import Final

import msgspec

from fabric.gate.instructions import Lease
from fabric.storage.layout import log_key
from fabric.storage.quota import ArchiveLimits
from fabric.storage.shard_cache import LIMIT_BYTES
from fabric.system.private_folder import attempt_folder
from fabric.worker.stage import JobEnd

ARE_YOU_CLEAN: Final = b""
"""Asked of a runner where an order would be, when its job has ended."""
CLEAN: Final = b"\x01"
LEFT_SOMETHING: Final = b"\x00"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's part of a lease."""

    lease: Lease
    rank: int
    master_addr: str
    master_port: int
    work_dir: str
    cache_bytes: int = LIMIT_BYTES
    """The most that the node keeps of what the account's jobs read."""
    limits: ArchiveLimits = ArchiveLimits()
    """How much the account's jobs may keep in the archive."""
    zygote: str = ""
    """The socket of the machine's zygote, if the job wants to be forked from it."""
    stage_dir: str = ""
    """Where checkpoints are staged on this node; "" = nowhere."""
    environment: str = ""
    """The folder of the packages that the job wants; "" = it wants none."""
    furnishes: bool = False
    """Whether these are to be installed now, and the job is not to be run yet."""
    devices_are: str = "GPU"
    """What Ray calls the devices of this rank's node."""
    devices_of_node: int = 0
    """How many its node has; 0 = as many as the rank's."""
    ray_word: str = ""
    """By which the ranks know each other whose nodes make up a program's Ray; "" = it has one rank's."""
    per_device: bool = False
    """Whether the job has a rank for each device. Then `rank` is the first of this runner's until it is among `ranks_of`."""
    local: tuple[int, int] | None = None
    """Which of how many ranks of this runner it is, once they are told apart."""

    @property
    def world_size(self) -> int:
        shares = self.lease.shares
        return sum(share.devices for share in shares) if self.per_device else len(shares)

    @property
    def folder(self) -> Path:
        """Where this rank's files are while it runs."""
        return attempt_folder(Path(self.work_dir), self.lease.lease_id) / str(self.rank)

    @property
    def log_file(self) -> Path:
        return self.folder / "log"

    @property
    def log_key(self) -> str:
        lease = self.lease
        return log_key(lease.account_id, lease.job_id, epoch=lease.epoch, rank=self.rank)


def ranks_of(order: Order) -> tuple[Order, ...]:
    """The ranks that a runner with this order has: one, or one for each device of its share, numbered over all shares."""
    if not order.per_device or order.local is not None:
        return (order,)
    before = sum(share.devices for share in order.lease.shares[: order.rank])
    count = order.lease.shares[order.rank].devices
    return tuple(msgspec.structs.replace(order, rank=before + at, local=(at, count)) for at in range(count))


def accelerator_of(order: Order) -> str:
    """The type of the rank's devices: the lease's, or its share's where they differ."""
    lease = order.lease
    if order.per_device:
        of_rank = [share.accelerator for share in lease.shares for _ in range(share.devices)]
    else:
        of_rank = [share.accelerator for share in lease.shares]
    return (of_rank[order.rank] if order.rank < len(of_rank) else "") or lease.accelerator


encode_order: Final = msgspec.msgpack.Encoder().encode
decode_order: Final = msgspec.msgpack.Decoder(Order).decode
encode_end: Final = msgspec.msgpack.Encoder().encode
decode_end: Final = msgspec.msgpack.Decoder(JobEnd).decode
