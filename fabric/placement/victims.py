"""Which jobs give way: those whose loss is least for the devices they free.

loss(job) = devices × (restore + work since its last checkpoint), or devices × (restore + writing one) if that fits its
grace. A job that reports no checkpoints counts what it ran, but at most the median of its group, so hiding them protects
nobody. Nor does saying much of oneself: a restore counts at most what 95 in 100 of the others report, and work since the
last checkpoint at most as much as lies between two of theirs (or of its own); of one that hasn't saved for twice as long,
as of one that reports none. A gang counts once and frees all its nodes. Greedy, then whoever turned out not to be needed is
dropped in reverse. Knows nothing of who may evict whom.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final

from fabric.placement.fitting import Shape
from fabric.placement.jobs import Shares
from fabric.placement.state import NodeState, Running
from fabric.units import JobId

_RATIO: Final = 1024
_BELIEVED_PERCENT: Final = 95
_FAR_BEYOND: Final = 2
_SMALL: Final = 320
"""Nodes: on fewer the search for less is repeated."""
_TRIES: Final = 4
"""So many of the dearest victims are tried to do without: what greed can't see is one gang that is in the way of better ones."""


def losses(jobs: Iterable[Running], *, reporters: list[Running], now_us: int) -> dict[JobId, int]:
    """What evicting each job would lose, in device-µs; `reporters` are the jobs whose checkpoints are known."""
    restores = sorted([running.restore_us for running in reporters])
    cadences = sorted([running.every_us for running in reporters if running.every_us])
    ages = sorted([now_us - (running.saved_at_us or 0) for running in reporters])
    lost = {}
    for running in jobs:
        devices = sum([devices for _, devices in running.shares])
        if running.saved_at_us is None:
            ran_us = now_us - running.since_us
            redo_us = said_us = _median(restores) + min(ran_us, _median(ages) if ages else ran_us)
        else:
            said_us, redo_us = _redo_us(running, restores, cadences, ages, now_us)
        # Between equals, who is believed less than it says stays.
        lost[running.request.job_id] = devices * redo_us + (redo_us < said_us)
    return lost


def expected_us(reporters: list[Running]) -> int:
    """What an eviction loses of each device's work if nobody looks at the moment: half of the time between two checkpoints, and a
    restore. 0 where nobody has reported two.
    """
    cadences = sorted([running.every_us for running in reporters if running.every_us])
    if not cadences:
        return 0
    return _median(cadences) // 2 + _median(sorted([running.restore_us for running in reporters]))


def _redo_us(
    running: Running, restores: list[int], cadences: list[int], ages: list[int], now_us: int
) -> tuple[int, int]:
    """What each device of the job must do once more after an eviction: by its own reports, and as far as they are believed."""
    assert running.saved_at_us is not None
    said_us = age_us = now_us - running.saved_at_us
    often_us = max(running.every_us, _most_of_others(cadences, running.every_us))
    if often_us and age_us > often_us:
        age_us = often_us if age_us <= _FAR_BEYOND * often_us else min(often_us, _median(ages))
    if running.write_us <= running.request.grace_us:
        said_us, age_us = min(running.write_us, said_us), min(running.write_us, age_us)
    restore_us = min(running.restore_us, _most_of_others(restores, running.restore_us) or running.restore_us)
    return running.restore_us + said_us, restore_us + age_us


def _most_of_others(ordered: list[int], own: int) -> int:
    """What 95 in 100 of the others' values don't exceed; 0 if there are no others."""
    others = len(ordered) - 1
    if others < 1:
        return 0
    nth = (others * _BELIEVED_PERCENT + 99) // 100 - 1
    return ordered[nth + (bisect_left(ordered, own) <= nth)]


class Selection:
    """One search for victims among some nodes."""

    def __init__(self, rooms: Mapping[int, int], nodes: Mapping[int, NodeState], lost: Mapping[JobId, int]) -> None:
        """Search `nodes` by slot, with `rooms` devices for the taking on each, among the jobs of `lost`."""
        self._rooms = rooms
        self._room = dict(rooms)
        self._nodes = nodes
        self._slot_of = {node.node.node_id: slot for slot, node in nodes.items()}
        self._lost = lost
        self._victims: list[JobId] = []
        self._chosen: dict[JobId, None] = {}
        self._jobs: Mapping[JobId, Running] = {}
        self._nodes_wanted, self._lasting = 1, False
        self._asked: dict[bool, dict[int, int]] = {}

    def choose(
        self, shape: Shape, jobs: Mapping[JobId, Running], *, lasting: bool = False
    ) -> tuple[list[JobId], Shares] | None:
        """The victims, and the shares the gang gets once they have left; None if even all of them don't make room.

        The least is lost in all; or, if `lasting`, for each device that is freed: where who asks today asks for more
        tomorrow, what is freed beyond the gang is an eviction less then.
        """
        each = shape.each
        if not each and any(node.node.devices >= shape.devices for node in self._nodes.values()):
            each = shape.devices
        if not each:
            return self._choose_packed(shape.devices, jobs)
        best = self._evict_even(shape.nodes, each, jobs, lasting=lasting)
        if best is None:
            return None
        if not lasting:
            best = self._improved(shape.nodes, each, jobs, best)
        return best, self._even_shares(shape.nodes, each, jobs, best)

    def _improved(self, nodes: int, each: int, jobs: Mapping[JobId, Running], victims: list[JobId]) -> list[JobId]:
        """Less loss, if there is, without one of those that lose most."""
        best = victims
        for _ in range(_TRIES if len(self._nodes) <= _SMALL else 1):
            before = best
            dearest = sorted(best, key=lambda job_id: (-self._lost[job_id], job_id))
            for job_id in dearest[:_TRIES]:
                best = self._less(best, self._evict_even(nodes, each, jobs, without=job_id))
            if best is before:
                break
        return best

    def _less(self, one: list[JobId], other: list[JobId] | None) -> list[JobId]:
        return one if other is None or self._loss(one) <= self._loss(other) else other

    def _loss(self, victims: list[JobId]) -> int:
        return sum([self._lost[job_id] for job_id in victims])

    def _even_shares(self, nodes: int, each: int, jobs: Mapping[JobId, Running], victims: list[JobId]) -> Shares:
        self._begin()
        for job_id in victims:
            self._take(job_id, jobs[job_id])
        fit = sorted((room, slot) for slot, room in self._room.items() if room >= each)[:nodes]
        return tuple((self._nodes[slot].node.node_id, each) for _, slot in fit)

    def _evict_even(
        self,
        nodes: int,
        each: int,
        jobs: Mapping[JobId, Running],
        *,
        lasting: bool = False,
        without: JobId | None = None,
    ) -> list[JobId] | None:
        """Node by node whichever is made room on at the least price; what a gang leaves elsewhere is had for nothing then."""
        self._begin()
        self._nodes_wanted, self._lasting, self._jobs = nodes, lasting, jobs
        prices = self._prices(each, lasting=lasting)
        if without is not None:
            self._chosen[without] = None  # as if it had been taken, but it makes no room
            prices = prices.copy()
            for slot, _ in self._slots_of(jobs[without]):
                prices.pop(slot, None)
                if (price := self._price(slot, each)) is not None:
                    prices[slot] = price[0]
        heap = [(price, slot) for slot, price in prices.items()]
        heapq.heapify(heap)
        ready: dict[int, None] = {}
        while len(ready) < nodes:
            if not heap:
                return None
            _, slot = heapq.heappop(heap)
            if slot in ready:
                continue
            price = self._price(slot, each)
            assert price is not None
            ready[slot] = None
            for job_id in price[1]:
                for other in self._take(job_id, jobs[job_id]):
                    cheaper = self._price(other, each)
                    if other not in ready and cheaper is not None:
                        heapq.heappush(heap, (cheaper[0], other))
        self._drop_unneeded(nodes, each)
        return self._victims

    def _drop_unneeded(self, nodes: int, each: int) -> None:
        full = sum([room >= each for room in self._room.values()])
        for job_id in self._victims[::-1]:
            slots = self._shift(self._jobs[job_id], -1)
            full -= sum([self._room[slot] < each <= self._room[slot] + devices for slot, devices in slots])
            if full >= nodes:
                self._victims.remove(job_id)
            else:
                slots = self._shift(self._jobs[job_id], 1)
                full += sum([self._room[slot] - devices < each <= self._room[slot] for slot, devices in slots])

    def _choose_packed(self, devices: int, jobs: Mapping[JobId, Running]) -> tuple[list[JobId], Shares] | None:
        self._begin()
        gains = self._gains()
        room = sum(self._room.values())
        for job_id in sorted(
            gains, key=lambda job_id: (self._lost[job_id] * _RATIO // gains[job_id], jobs[job_id].seq)
        ):
            if room >= devices:
                break
            self._take(job_id, jobs[job_id])
            room += gains[job_id]
        if room < devices:
            return None
        for job_id in self._victims[::-1]:
            if room - gains[job_id] >= devices:
                room -= gains[job_id]
                self._shift(jobs[job_id], -1)
                self._victims.remove(job_id)
        return self._victims, self._packed_shares(devices)

    def _gains(self) -> dict[JobId, int]:
        """What each job has on these nodes."""
        gains: dict[JobId, int] = {}
        for node in self._nodes.values():
            for job_id, share in node.shares.items():
                if job_id in self._lost:
                    gains[job_id] = gains.get(job_id, 0) + share
        return gains

    def _packed_shares(self, devices: int) -> Shares:
        shares, left = [], devices
        for free, slot in sorted(((free, slot) for slot, free in self._room.items()), key=lambda at: (-at[0], at[1])):
            if left:
                shares.append((self._nodes[slot].node.node_id, min(free, left)))
                left -= min(free, left)
        return tuple(shares)

    def _prices(self, each: int, *, lasting: bool) -> dict[int, int]:
        """Of all nodes where room can be made, while nobody has been chosen."""
        if lasting not in self._asked:
            found = {slot: self._price(slot, each) for slot in self._nodes}
            self._asked[lasting] = {slot: price[0] for slot, price in found.items() if price is not None}
        return self._asked[lasting]

    def _price(self, slot: int, each: int) -> tuple[int, list[JobId]] | None:
        """What must be lost for `each` devices on one node, for all that it gains, and by whom; None if it cannot be."""
        gap = each - self._room[slot]
        if gap <= 0:
            return 0, []
        shares, lost, chosen = self._nodes[slot].shares, self._lost, self._chosen
        there = [job_id for job_id in shares if job_id in lost and job_id not in chosen]
        there.sort(key=lambda job_id: (lost[job_id] * _RATIO // shares[job_id], job_id))
        victims: list[JobId] = []
        for job_id in there:
            if gap <= 0:
                break
            victims.append(job_id)
            gap -= shares[job_id]
        if gap > 0:
            return None
        for job_id in reversed(victims[:-1]):
            if gap + shares[job_id] <= 0:
                gap += shares[job_id]
                victims.remove(job_id)
        return self._loss(victims) * _RATIO // self._gain(victims, each), victims

    def _gain(self, victims: list[JobId], each: int) -> int:
        """The devices that these free anywhere, if the choice is to last; else the nodes, of those wanted, with room then."""
        shares = [share for job_id in victims for share in self._jobs[job_id].shares]
        if self._lasting:
            return sum([devices for _, devices in shares])
        if len(shares) == len(victims):
            return 1
        more: dict[int, int] = {}
        for node_id, devices in shares:
            at = self._slot_of.get(node_id)
            if at is not None:
                more[at] = more.get(at, 0) + devices
        gained = sum([self._room[at] < each <= self._room[at] + devices for at, devices in more.items()])
        return max(min(gained, self._nodes_wanted), 1)

    def _begin(self) -> None:
        self._room, self._victims, self._chosen = dict(self._rooms), [], {}

    def _take(self, job_id: JobId, running: Running) -> list[int]:
        """Make the job a victim; the slots where that makes room."""
        self._victims.append(job_id)
        self._chosen[job_id] = None
        return [slot for slot, _ in self._shift(running, 1)]

    def _shift(self, running: Running, sign: int) -> list[tuple[int, int]]:
        """The job leaves, or stays after all: where that changes the room, and by how much."""
        slots = self._slots_of(running)
        for slot, devices in slots:
            self._room[slot] += sign * devices
        return slots

    def _slots_of(self, running: Running) -> list[tuple[int, int]]:
        slot_of = self._slot_of
        return [(slot_of[node_id], devices) for node_id, devices in running.shares if node_id in slot_of]


def _median(ordered: list[int]) -> int:
    return ordered[(len(ordered) - 1) // 2] if ordered else 0
