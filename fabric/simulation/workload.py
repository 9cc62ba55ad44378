"""What a simulation is given: jobs of a trace, the shape of a cluster, and how jobs behave.

Times are µs since the trace's beginning, durations µs on a device of the reference type. Nothing here decides anything.
"""

from typing import Final

import msgspec

from fabric.units import MICROS_PER_S, PPM

HOUR_US: Final = 3_600 * MICROS_PER_S
DAY_US: Final = 24 * HOUR_US
TIERS: Final = ("enterprise", "professional", "starter")
"""By rank: 0 goes first."""
SIZES: Final = ((1, "1"), (7, "2-7"), (8, "8"), (15, "9-15"), (1 << 60, "16+"))
"""Classes of gangs that tables show: up to so many devices, and how it is written."""


class Work(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One job of a trace."""

    work_id: str
    submit_us: int
    duration_us: int
    """How long it computes on the reference type, if nothing interrupts it."""
    devices: int
    user: str = ""
    tier: int = 2
    """0 Enterprise, 1 Professional, 2 Starter."""
    service: str = "training"
    """inference (reserved nodes, never moved) | training | batch"""
    per_node: int | None = None
    types: tuple[str, ...] = ()
    """() = any."""
    name: str = ""
    """What it is called by its owner: what is measured of jobs of one name is used for the next. "" = its id."""
    speeds: tuple[tuple[str, int], ...] = ()
    """How fast it is on a type, in ppm of the reference; on what is not named as `Behaviour` says."""
    prefer: str = ""
    """Of the types with room: tokens | soonest; only our gate knows it."""
    alone_us: int | None = None
    """How long it would take with its part of the cluster for itself. None = reckoned from how much is asked for meanwhile."""

    @property
    def is_reserved(self) -> bool:
        """Whether it is what reserved nodes are kept for."""
        return self.service == "inference"


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    """So many equal nodes."""

    count: int
    devices: int = 8
    accelerator: str = "H100"
    pool: str = "spot"
    """spot | reserved"""


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """What jobs do, and what happens to them."""

    checkpoint_us: int = HOUR_US
    """How often a job saves."""
    write_us: int = 20 * MICROS_PER_S
    """How long after its beginning a save is durable. The job computes on meanwhile."""
    restore_us: tuple[int, int] = (40 * MICROS_PER_S, 60 * MICROS_PER_S)
    """How long a start takes that goes on from a checkpoint: on one node, on several."""
    grace_us: int = 0
    """How long a job that must go is given to save."""
    speeds: tuple[tuple[str, int], ...] = ()
    """How fast a type computes, in ppm of the reference; what is not named is as fast."""
    node_mtbf_us: int | None = None
    """How long a node lasts on average until it fails. None = for ever."""
    repair_us: int = 2 * HOUR_US
    offers: tuple[tuple[int, int], ...] = ()
    """How many spot nodes there are: (µs since the first arrival, nodes from then on). () = all, always."""
    notice_us: int = 0
    """How long before a spot node goes it says so."""

    def speed_ppm(self, accelerator: str) -> int:
        """How fast it is for a job, in ppm of the reference."""
        return dict(self.speeds).get(accelerator, PPM)

    def restores_us(self, nodes: int) -> int:
        """How long a job on so many nodes takes until it computes again."""
        return self.restore_us[0 if nodes == 1 else 1]


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes."""

    nodes: tuple[Nodes, ...]

    @property
    def devices(self) -> int:
        return sum(each.count * each.devices for each in self.nodes)


def size_class(devices: int) -> str:
    """The class of gangs it is of, as tables write it."""
    return next(name for most, name in SIZES if devices <= most)


def load(works: list[Work], devices: int) -> float:
    """Device-time that is asked for, by what there is from the first arrival to the last."""
    span_us = works[-1].submit_us - works[0].submit_us
    return sum(work.devices * work.duration_us for work in works) / max(devices * span_us, 1)
