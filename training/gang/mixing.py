"""Workers of unequal speed in one gang: who computes how much, and whether it is worth it at all.

A step is as long as its slowest worker, so equal shares reach N·min(speeds) of sum(speeds): with an H100 beside an Ascend
910B, 48 %. Here shares follow measured speeds, and a gang that would still waste more than 15 % is refused with the
better alternative. Pure: speeds are arguments, in micro-batches a second or any other unit, and nothing is measured here.

Across vendors say the truth: NCCL and HCCL don't interoperate, so one synchronous gang of both would reduce its gradients
through host memory (7B parameters over 25 GbE: 9 s a step). The answer there is to move between kinds through the
checkpoint, which is portable; `mix="islands"` (experimental, `training.gang.islands`) trains an island per kind instead.
"""

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Final

from fabric.accelerators import vendor_of
from fabric.errors import InvalidRequest

EFFICIENCY_MIN: Final = 0.85
HYSTERESIS: Final = 0.05
"""A new split must make the step shorter by this much, or the old one stays."""
_RECENT: Final = 3
"""Laps of a worker that count: the one in the middle, so that one that something else held up moves nobody."""


class Mix(StrEnum):
    """What a gang may be made of."""

    NEVER = "never"
    SAME_VENDOR = "same-vendor"
    ISLANDS = "islands"


def assign(speeds: Sequence[float], count: int, *, caps: Sequence[int] | None = None) -> tuple[int, ...]:
    """Shares of `count` equal micro-batches that end soonest: at least one each, at most `caps`.

    Greedy is optimal here: all pieces are alike, so each goes to whoever would have finished it first.

    Raises:
        InvalidRequest: fewer pieces than workers, or more than the caps hold, or a speed that is not positive.
    """
    limits = list(caps) if caps is not None else [count] * len(speeds)
    if not len(speeds) <= count <= sum(limits) or min(limits) < 1 or not all(speed > 0 for speed in speeds):
        raise InvalidRequest(
            f"{count} micro-batches don't fit {len(speeds)} workers of speeds {list(speeds)} that hold {limits}: "
            "use at least one for each and no more than all hold together",
            code="shares_invalid",
        )
    shares = [1] * len(speeds)
    queue = [(2 / speed, rank) for rank, speed in enumerate(speeds) if limits[rank] > 1]
    heapq.heapify(queue)
    for _ in range(count - len(speeds)):
        _, rank = heapq.heappop(queue)
        shares[rank] += 1
        if shares[rank] < limits[rank]:
            heapq.heappush(queue, ((shares[rank] + 1) / speeds[rank], rank))
    return tuple(shares)


def step_time(shares: Sequence[int], speeds: Sequence[float]) -> float:
    """When the last worker is done, without communication: in the unit that speeds are per."""
    return max(share / speed for share, speed in zip(shares, speeds, strict=True))


def efficiency(shares: Sequence[int], speeds: Sequence[float], *, exposed: float = 0.0) -> float:
    """The speed of the gang against the sum of its workers' speeds: 1 = nobody ever waits.

    `exposed` is the time of a step that communication adds and computing does not hide.
    """
    return sum(shares) / (step_time(shares, speeds) + exposed) / sum(speeds)


@dataclass(slots=True)
class Balance:
    """Follows the speeds of a running gang and says when to split anew.

    Every worker feeds the same numbers in the same order and so arrives at the same shares, without asking.
    """

    shares: tuple[int, ...]
    caps: tuple[int, ...] | None = None
    speeds: list[float] = field(default_factory=list)
    recent: list[list[float]] = field(default_factory=list)
    """Of each worker, its last few speeds."""

    def observe(self, lap_us: Sequence[int]) -> bool:
        """Note how long each worker computed its share (µs; 0 = not measured). True if `shares` changed."""
        laps = zip(self.shares, lap_us, strict=True)
        measured = [share * 1e6 / lap if lap > 0 else 0.0 for share, lap in laps]
        self.recent = self.recent or [[] for _ in measured]
        for known, speed in zip(self.recent, measured, strict=True):
            known.extend([speed] if speed > 0 else [])
            del known[:-_RECENT]
        if not all(self.recent):
            return False
        self.speeds = [median(known) for known in self.recent]
        wanted = assign(self.speeds, sum(self.shares), caps=self.caps)
        if step_time(wanted, self.speeds) > step_time(self.shares, self.speeds) * (1 - HYSTERESIS):
            return False
        self.shares = wanted
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Some workers of one kind. `speed` is one worker's, measured or from the tariff's weights."""

    accelerator: str
    speed: float
    count: int = 1

    @property
    def vendor(self) -> str:
        """An accelerator we don't know is a vendor of its own."""
        return vendor_of(self.accelerator)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a gang would do: `shares` in the order of its workers, `speed` in the unit of the members' speeds."""

    shares: tuple[int, ...]
    speed: float
    efficiency: float


def forecast(members: Sequence[Member], count: int, *, exposed_s: float = 0.0) -> Forecast:
    """Predict a gang of these members with `count` virtual ranks."""
    speeds = [member.speed for member in members for _ in range(member.count)]
    shares = assign(speeds, count)
    return Forecast(
        shares=shares,
        speed=count / (step_time(shares, speeds) + exposed_s),
        efficiency=efficiency(shares, speeds, exposed=exposed_s),
    )


def admit(
    members: Sequence[Member], *, mix: Mix, count: int, exposed_s: float = 0.0, exposed_alone_s: float = 0.0
) -> Forecast:
    """Whether these workers may be one gang.

    Args:
        members: of each kind, how many and how fast.
        mix: what the job opted in to.
        count: virtual ranks of the job.
        exposed_s: communication that a step of the whole gang adds, in the time unit of the speeds.
        exposed_alone_s: the same for a gang of one kind, which has its own fast links.

    Raises:
        InvalidRequest: code `mix_not_asked`, `mix_across_vendors` or `mix_inefficient`, with the better alternative. A gang
            that wastes much and is still faster than any of its kinds alone is admitted.
    """
    kinds = Counter({member.accelerator: 0 for member in members})
    for member in members:
        kinds[member.accelerator] += member.count
    if len(kinds) > 1 and mix is Mix.NEVER:
        raise InvalidRequest(
            f"a gang of {_named(kinds)} mixes accelerators, and the job did not ask for that: set mix=same-vendor, or "
            f"ask for one kind ({_alternative(members, count, exposed_alone_s)})",
            code="mix_not_asked",
        )
    vendors = sorted({member.vendor for member in members})
    if len(vendors) > 1 and mix is not Mix.ISLANDS:
        raise InvalidRequest(
            f"a gang of {_named(kinds)} spans {' and '.join(vendors)}, whose collectives (NCCL, HCCL) don't "
            f"interoperate: run on one vendor and move by checkpoint ({_alternative(members, count, exposed_alone_s)}), or try "
            "mix=islands, which is experimental",
            code="mix_across_vendors",
        )
    found = forecast(members, count, exposed_s=exposed_s)
    is_slow = len(kinds) > 1 and mix is Mix.SAME_VENDOR and found.efficiency < EFFICIENCY_MIN
    if is_slow and best_alone(members, count, exposed_s=exposed_alone_s).speed > found.speed:
        raise InvalidRequest(
            f"a gang of {_named(kinds)} would run at {found.efficiency:.0%} of its workers' speed, under the "
            f"{EFFICIENCY_MIN:.0%} it must reach: {_alternative(members, count, exposed_alone_s, against=found.speed)}",
            code="mix_inefficient",
            efficiency_ppm=round(found.efficiency * 1e6),
        )
    return found


def _named(kinds: Mapping[str, int]) -> str:
    return " + ".join(f"{count} × {accelerator}" for accelerator, count in kinds.items())


def _alternative(members: Sequence[Member], count: int, exposed_s: float, *, against: float = 0.0) -> str:
    """The fastest of the gangs of one kind, against the gang that was asked for where that is known."""
    best = best_alone(members, count, exposed_s=exposed_s)
    than = f"gives {best.speed / against:.2f} × this" if against else "is the fastest"
    return f"{best.count} × {best.accelerator} alone {than}"


def best_alone(members: Sequence[Member], count: int, *, exposed_s: float = 0.0) -> Member:
    """The fastest of the gangs of one kind that these workers hold; its speed is the whole gang's."""
    alone: dict[str, list[Member]] = {}
    for member in members:
        alone.setdefault(member.accelerator, []).append(member)
    speed, kind = max((forecast(gang, count, exposed_s=exposed_s).speed, kind) for kind, gang in alone.items())
    return Member(accelerator=kind, speed=speed, count=sum(member.count for member in alone[kind]))
