"""Lanes of which somebody may have waited too long, found by how much they need: nobody looks at those that couldn't be pinned."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Final

from fabric.placement.fitting import Group
from fabric.placement.jobs import INFERENCE, RANKS
from fabric.placement.lane import Lane
from fabric.placement.queue import LAST

_UNKNOWN: Final = -1


class Ripe:
    """Lanes of which somebody may be overdue, or passed too often, if they are parked; of the others nobody is."""

    __slots__ = ("_full", "_lanes", "_named")

    def __init__(self, named: Mapping[str, Lane]) -> None:
        self._named = named
        self._lanes: list[dict[tuple[Group, ...], list[tuple[int, str]]]] = [{} for _ in range(RANKS)]
        """By class and groups, those that need least first."""
        self._full = [_UNKNOWN] * RANKS
        """By class, the version of the pins in which none of them could be pinned."""

    def add(self, lane: Lane) -> None:
        """Somebody of the lane may be overdue. One device is never pinned for: nobody passes what fits wherever one is free."""
        if lane.shape.devices > 1 or lane.rank == INFERENCE:
            ripe, entry = self._lanes[lane.rank].setdefault(lane.groups, []), (lane.shape.devices, lane.name)
            at = bisect_left(ripe, entry)
            if ripe[at : at + 1] != [entry]:
                ripe.insert(at, entry)
                self._full[lane.rank] = _UNKNOWN

    def drop(self, lane: Lane) -> None:
        """Nobody of the lane is, or its groups become others."""
        if ripe := self._lanes[lane.rank].get(lane.groups):
            entry = (lane.shape.devices, lane.name)
            at = bisect_left(ripe, entry)
            if ripe[at : at + 1] == [entry]:
                del ripe[at]

    def parked(self, rank: int) -> None:
        """A lane of the class is parked that wasn't."""
        self._full[rank] = _UNKNOWN

    def clear(self) -> None:
        self._full = [_UNKNOWN] * RANKS
        for ripe in self._lanes:
            ripe.clear()

    def is_full(self, rank: int, version: int) -> bool:
        """Whether it is known that nobody of the class could be pinned, with the pins as they are."""
        return self._full[rank] == version

    def with_room(self, rank: int, room: Mapping[str, int], *, version: int) -> list[Lane]:
        """The parked lanes of a class that could be pinned where so many devices more may be, by group."""
        found: list[Lane] = []
        for groups, ripe in self._lanes[rank].items():
            most = max([room[group.name] for group in groups], default=0)
            if ripe and ripe[0][0] <= most:
                lanes = [self._named[name] for _, name in ripe[: bisect_right(ripe, (most, LAST))]]
                found += [lane for lane in lanes if lane.parked]
        if not found:
            self._full[rank] = version
        return found
