"""What a gang of several types is called and weighs.

Its devices are metered together, so they are charged at the mean of their weights by their mean use: the weight of a lease
is one number in its record, which anybody can reckon again. What the mean leaves over (under a millionth) is the customer's.
"""

from fabric.gate import holds
from fabric.gate.core import Core
from fabric.gate.instructions import Lease, Share
from fabric.gate.state import Job
from fabric.placement import Placed


def shares(placed: Placed) -> tuple[Share, ...]:
    """The lease's shares; each says its type where they differ."""
    if not placed.kinds:
        return tuple([Share(node_id, devices) for node_id, devices in placed.shares])
    kinds = placed.kinds
    return tuple([Share(node_id, devices, kind) for (node_id, devices), kind in zip(placed.shares, kinds, strict=True)])


def name(placed: Placed) -> str:
    """The type of all devices, or "H100+A100"."""
    return "+".join(dict.fromkeys(placed.kinds)) if placed.kinds else placed.accelerator


def weight_ppm(core: Core, job: Job, placed: Placed) -> int:
    """What a device of the gang weighs: the mean of all of them, rounded down."""
    if not placed.kinds:
        return holds.weight_of(core, job, placed.accelerator)
    devices = [devices for _, devices in placed.shares]
    weights = [holds.weight_of(core, job, kind) for kind in placed.kinds]
    return sum(count * weight for count, weight in zip(devices, weights, strict=True)) // sum(devices)


def kinds(lease: Lease) -> tuple[tuple[str, int], ...]:
    """Its types, and how many devices it has of each."""
    if len(lease.shares) == 1:
        (share,) = lease.shares
        return ((share.accelerator or lease.accelerator, share.devices),)
    found: dict[str, int] = {}
    for share in lease.shares:
        kind = share.accelerator or lease.accelerator
        found[kind] = found.get(kind, 0) + share.devices
    return tuple(found.items())
