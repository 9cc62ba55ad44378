"""What a submission may say beyond the few things that most say: named groups, each with what belongs together.

    fabric.submit(train, tokens="2", accelerators="H100:8", limits=fabric.Limits(grace=60, auto_park=300))

Every field may also be given to `submit` by its own name, as before 0.2: `fabric.submit(train, tokens="2", grace=60)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from fabric.errors import InvalidRequest
from fabric.sdk.request import Seconds


@dataclass(frozen=True)
class Resources:
    """What a job runs on, beyond how many devices of which type."""

    devices_per_node: int | None = None
    """For gangs; if not given, on one node where one is that large, else, or after a long wait, packed on as few as fit."""
    mix: Literal["never", "same-vendor", "islands"] = "never"
    """What a gang may be made of where no type alone has room for it: "never" several types, those of the "same-vendor" (a
    session's shares follow their speeds), or "islands" of any types, which train apart and meet now and then (experimental: see
    `training.gang.island_gang`). Its devices are charged at the mean of their weights.
    """
    prefer: Literal["", "tokens", "soonest"] = ""
    """Of several types, or any, that have room, which it takes: that on which it burns fewest "tokens", or is done "soonest", by what
    its earlier runs of the same name were measured at; "" = the first of those it names, or the fastest that nobody must have.
    """
    ranks: Literal["node", "device"] = "node"
    """"node" runs it once for each node's share of the devices, "device" once for each device, as torchrun does (RANK,
    WORLD_SIZE, LOCAL_RANK); that needs torch, and preloads it.
    """
    preload: Literal["torch", ""] | None = None
    """"torch" forks it from a process that has torch imported: it starts in a fraction of a second, in a process of its own that
    has no connection to Ray. None = so if it is a script that imports torch, and not ray; "" = never.
    """
    ray_program: bool = False
    """The function has a Ray of its own, made of the devices that the job gets: its tasks, actors, placement groups and Ray's
    libraries hold them. So it is also where its code uses one of these; scripts always have one. Its folder
    $FABRIC_CHECKPOINT_DIR is there again when it resumes, as is that of a function with `preload`.
    """
    data: Mapping[str, int] | None = None
    """What it reads, as prefixes with their sizes in bytes: nodes that hold it already are preferred."""
    estimate: Seconds | None = None
    """Seconds it may run: at most a tenth of that, and a minute, is waited for a node that holds its data."""


@dataclass(frozen=True)
class Limits:
    """How long a job may run, and what becomes of it when it is to give way or fails."""

    time_limit: Seconds | None = None
    """Seconds on devices, after which it is parked."""
    grace: Seconds | None = None
    """Seconds it is given to checkpoint."""
    stop_signal: str = "TERM"
    """Which signal a program gets as the notice to save: TERM, INT, HUP, USR1 or USR2."""
    auto_park: Seconds | None = None
    """Seconds of idle devices after which it is asked to checkpoint and is parked, burning nothing."""
    max_retries: int = 0
    """How often its own failure is tried again."""
    preemptible: bool = True
    """Whether it may be parked for others; otherwise it may wait longer."""


class More(TypedDict, total=False):
    """The fields of `Resources` and `Limits`, each by its own name."""

    devices_per_node: int | None
    mix: Literal["never", "same-vendor", "islands"]
    prefer: Literal["", "tokens", "soonest"]
    ranks: Literal["node", "device"]
    preload: Literal["torch", ""] | None
    ray_program: bool
    data: Mapping[str, int] | None
    estimate: Seconds | None
    time_limit: Seconds | None
    grace: Seconds | None
    stop_signal: str
    auto_park: Seconds | None
    max_retries: int
    preemptible: bool


def merged(resources: Resources, limits: Limits, more: Mapping[str, Any]) -> tuple[Resources, Limits]:
    """The groups, with what was given by its own name.

    Raises:
        InvalidRequest: `given_twice`: something is said in a group and by its own name.
        TypeError: there is no such name.
    """
    for name, value in more.items():
        group = next((each for each in (resources, limits) if name in _names(each)), None)
        if group is None:
            raise TypeError(f"submit() got an unexpected keyword argument {name!r}")
        if getattr(group, name) != getattr(type(group)(), name):
            raise InvalidRequest(
                f"{name}= is said twice, by itself and in {type(group).__name__}: say it once", code="given_twice"
            )
        if isinstance(group, Resources):
            resources = replace(group, **{name: value})
        else:
            limits = replace(group, **{name: value})
    return resources, limits


def _names(group: Resources | Limits) -> set[str]:
    return {each.name for each in fields(group)}
