"""Which jobs give way: those whose loss is least for the devices they free.

loss(job) = devices × (restore + work since its last checkpoint), or devices × (restore + writing one) if that fits its
grace. A job that reports no checkpoints counts at the median of its group, so hiding them protects nobody. A gang counts
once and frees all its nodes. Greedy, then whoever turned out not to be needed is dropped in reverse; against a solver's
optimum this loses about 1 % (synthetic gangs, up to 640 nodes). Knows nothing of who may evict whom.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping

from fabric.placement.fitting import Shape
from fabric.placement.jobs import Shares
from fabric.placement.state import NodeState, Running
from fabric.units import JobId

_RATIO = 1024


def losses(jobs: Iterable[Running], *, reporters: list[Running], now_us: int) -> dict[JobId, int]:
    """What evicting each job would lose, in device-µs; `reporters` are the jobs whose checkpoints are known."""
    age_us = _median([now_us - (running.saved_at_us or 0) for running in reporters])
    restore_us = _median([running.restore_us for running in reporters]) or 0
    lost = {}
    for running in jobs:
        if running.saved_at_us is None:
            ran_us = now_us - (running.placed_at_us if running.started_at_us is None else running.started_at_us)
            redo_us = restore_us + (ran_us if age_us is None else age_us)
        elif running.write_us <= running.request.grace_us:
            redo_us = running.restore_us + min(running.write_us, now_us - running.saved_at_us)
        else:
            redo_us = running.restore_us + now_us - running.saved_at_us
        lost[running.request.job_id] = sum(devices for _, devices in running.shares) * redo_us
    return lost


class Selection:
    """One search for victims among some nodes."""

    def __init__(self, rooms: Mapping[int, int], nodes: Mapping[int, NodeState], lost: Mapping[JobId, int]) -> None:
        """Search `nodes` by slot, with `rooms` devices for the taking on each, among the jobs of `lost`."""
        self._room = dict(rooms)
        self._nodes = nodes
        self._slot_of = {node.node.node_id: slot for slot, node in nodes.items()}
        self._lost = lost
        self._victims: list[JobId] = []
        self._chosen: dict[JobId, None] = {}

    def choose(self, shape: Shape, jobs: Mapping[JobId, Running]) -> tuple[list[JobId], Shares] | None:
        """The victims, and the shares the gang gets once they have left; None if even all of them don't make room."""
        each = shape.each
        if not each and any(node.node.devices >= shape.devices for node in self._nodes.values()):
            each = shape.devices
        return self._choose_even(shape.nodes, each, jobs) if each else self._choose_packed(shape.devices, jobs)

    def _choose_even(self, nodes: int, each: int, jobs: Mapping[JobId, Running]) -> tuple[list[JobId], Shares] | None:
        heap = []
        for slot in self._nodes:
            cost = self._price(slot, each)
            if cost is not None:
                heap.append((cost[0], slot))
        heapq.heapify(heap)
        ready: dict[int, None] = {}
        while len(ready) < nodes:
            if not heap:
                return None
            _, slot = heapq.heappop(heap)
            if slot in ready:
                continue
            cost = self._price(slot, each)
            assert cost is not None
            ready[slot] = None
            for job_id in cost[1]:
                for other in self._take(job_id, jobs[job_id]):
                    cheaper = self._price(other, each)
                    if other not in ready and cheaper is not None:
                        heapq.heappush(heap, (cheaper[0], other))
        self._prune(jobs, lambda: sum(room >= each for room in self._room.values()) >= nodes)
        fit = sorted((room, slot) for slot, room in self._room.items() if room >= each)[:nodes]
        return self._victims, tuple((self._nodes[slot].node.node_id, each) for _, slot in fit)

    def _choose_packed(self, devices: int, jobs: Mapping[JobId, Running]) -> tuple[list[JobId], Shares] | None:
        gains: dict[JobId, int] = {}
        for node in self._nodes.values():
            for job_id, share in node.shares.items():
                if job_id in self._lost:
                    gains[job_id] = gains.get(job_id, 0) + share
        for job_id in sorted(
            gains, key=lambda job_id: (self._lost[job_id] * _RATIO // gains[job_id], jobs[job_id].seq)
        ):
            if sum(self._room.values()) >= devices:
                break
            self._take(job_id, jobs[job_id])
        if sum(self._room.values()) < devices:
            return None
        self._prune(jobs, lambda: sum(self._room.values()) >= devices)
        shares, left = [], devices
        for room, slot in sorted(((room, slot) for slot, room in self._room.items()), key=lambda at: (-at[0], at[1])):
            if left:
                shares.append((self._nodes[slot].node.node_id, min(room, left)))
                left -= min(room, left)
        return self._victims, tuple(shares)

    def _price(self, slot: int, each: int) -> tuple[int, list[JobId]] | None:
        """The least that must be lost for `each` devices on one node, and by whom; None if it cannot be."""
        gap = each - self._room[slot]
        if gap <= 0:
            return 0, []
        shares = self._nodes[slot].shares
        there = [job_id for job_id in shares if job_id in self._lost and job_id not in self._chosen]
        there.sort(key=lambda job_id: (self._lost[job_id] * _RATIO // shares[job_id], job_id))
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
        return sum(self._lost[job_id] for job_id in victims), victims

    def _take(self, job_id: JobId, running: Running) -> list[int]:
        """Make the job a victim; the slots where that makes room."""
        self._victims.append(job_id)
        self._chosen[job_id] = None
        return self._shift(running, 1)

    def _prune(self, jobs: Mapping[JobId, Running], enough: Callable[[], bool]) -> None:
        for job_id in self._victims[::-1]:
            self._shift(jobs[job_id], -1)
            if enough():
                self._victims.remove(job_id)
            else:
                self._shift(jobs[job_id], 1)

    def _shift(self, running: Running, sign: int) -> list[int]:
        slots = []
        for node_id, devices in running.shares:
            slot = self._slot_of.get(node_id)
            if slot is not None:
                self._room[slot] += sign * devices
                slots.append(slot)
        return slots


def _median(values: list[int]) -> int | None:
    return sorted(values)[(len(values) - 1) // 2] if values else None
