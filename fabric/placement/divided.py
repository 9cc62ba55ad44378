"""Divided devices: jobs that have units of a device, and the share of one whole device that stands for all of them.

To everybody else a divided device is one job with one device: it may be evicted, left, claimed and counted like that, and
whole devices are planned as if there were no others. It is of the best class that is on it, gives way only if all that are on
it would, counts as started when the last of them did, and as placed when the first was: who waits for whole devices is passed
by nobody who came onto a device that was taken already. The last one that leaves gives the device back.
"""

from collections.abc import Iterable, Iterator

import msgspec

from fabric.placement.fitting import Group, Picks
from fabric.placement.jobs import Request
from fabric.placement.state import Divided, NodeState, PlacementState, Running
from fabric.placement.units import units_of
from fabric.units import JobId


def is_divided(group: Group, request: Request) -> bool:
    """Whether the request has a part of a device there that is whole as long as nobody has one."""
    return request.fraction is not None and group.fraction is None


def could_take(group: Group, request: Request) -> int:
    """The nodes that have devices as the request needs them, all where that is whole ones."""
    if request.fraction is None or group.fraction is not None:
        return -1
    return group.units.nodes_for(request.fraction)


def find_fraction(group: Group, request: Request, *, avoid: int = 0, divides: bool = True) -> Picks | None:
    """Room for a fraction outside the nodes of `avoid`: of a divided device, or, if one may be divided, of a whole one."""
    fraction = request.fraction
    assert fraction is not None
    at = group.units.room(fraction, avoid=avoid)
    if at is not None:
        return [(at, 0)]
    at = group.units.whole(fraction, group.fit, avoid=avoid) if divides else None
    return None if at is None else [(at, 1)]


class DividedDevices:
    """All of them."""

    def __init__(self, state: PlacementState) -> None:
        self._state = state

    def node_of(self, running: Running) -> NodeState:
        """Where the job that has units is, or the divided device."""
        return self._state.nodes[running.shares[0][0]]

    def members(self, name: JobId) -> Iterator[Running]:
        """Who is on a divided device."""
        running = self._state.running
        for job_id in self.node_of(running[name]).divided[name].jobs:
            yield running[job_id]

    def jobs_of(self, names: Iterable[JobId]) -> tuple[JobId, ...]:
        """The same shares by jobs alone: for each divided device those that are on it."""
        running = self._state.running
        found: list[JobId] = []
        for name in names:
            if running[name].is_divided:
                found += self.node_of(running[name]).divided[name].jobs
            else:
                found.append(name)
        return tuple(found)

    def tightest(self, node: NodeState, request: Request) -> JobId | None:
        """Of the node's divided devices the one that has room, and least over."""
        assert request.fraction is not None
        needs = units_of(request.fraction, node.node.units)
        there = [(each.free, name) for name, each in node.divided.items() if each.free >= needs and not each.closed]
        return min(there)[1] if there else None

    def divide(self, group: Group, node: NodeState, first: Running) -> JobId:
        """A device that is taken for it is divided from now on; nobody is on it yet."""
        self._state.divided += 1
        name = JobId(f"{node.node.node_id}#{self._state.divided}")
        node.divided[name] = Divided(free=node.node.units)
        node.shares[name] = 1
        self._state.running[name] = Running(
            request=msgspec.structs.replace(first.request, job_id=name, fraction=None, prefers=(), speeds=()),
            seq=first.seq,
            rank=first.rank,
            group=group.name,
            shares=((node.node.node_id, 1),),
            preemptible=first.preemptible,
            placed_at_us=first.placed_at_us,
            within=name,
        )
        group.enter(name, self._state.running[name], 1)
        return name

    def enter(self, group: Group, name: JobId, running: Running) -> None:
        """The job has units of the device from now on."""
        assert running.request.fraction is not None
        node = self.node_of(running)
        job_id, divided = running.request.job_id, node.divided[name]
        divided.jobs[job_id] = needs = units_of(running.request.fraction, node.node.units)
        divided.free -= needs
        running.within = name
        self._state.running[job_id] = running
        self.restate(group, name)

    def leave(self, group: Group, running: Running) -> JobId | None:
        """The job has none any more. The device, if nobody is on it now."""
        assert running.within is not None
        name, node = running.within, self.node_of(running)
        divided = node.divided[name]
        divided.free += divided.jobs.pop(running.request.job_id)
        group.touched = True
        if running.saved_at_us is not None:
            del group.reporters[running.request.job_id]
        if divided.jobs:
            self.restate(group, name)
            return None
        del node.divided[name]
        group.units.note(node, group.bits[node.slot])
        return name

    def lose(self, group: Group, node: NodeState) -> tuple[JobId, ...]:
        """The node is gone: those that had units, which are returned, have nothing until they are released."""
        lost = self.jobs_of(node.divided)
        for name, divided in node.divided.items():
            device = self._state.running.pop(name)
            group.leave(name, device, 1)
            del node.shares[name]
            for job_id in divided.jobs:
                running = self._state.running[job_id]
                running.within, running.shares, running.evicting = None, (), True
                group.enter(job_id, running, 0)
        node.divided = {}
        return lost

    def close(self, group: Group, name: JobId) -> None:
        """All that are on it are leaving, and nobody comes onto it any more."""
        node = self.node_of(self._state.running[name])
        node.divided[name].closed = True
        group.units.note(node, group.bits[node.slot])
        for running in self.members(name):
            running.evicting = True

    def restate(self, group: Group, name: JobId) -> None:
        """The device is what those that are on it make it."""
        device, members = self._state.running[name], list(self.members(name))
        group.leave(name, device, 1)
        at_home = [each for each in members if not group.is_guest(each)] or members
        best = min(at_home, key=lambda each: each.rank)
        typed = next((each.request.accelerators for each in members if each.request.accelerators), ())
        device.request = msgspec.structs.replace(
            device.request,
            account_id=best.request.account_id,
            tier_rank=best.request.tier_rank,
            service=best.request.service,
            accelerators=typed,
            preemptible=all(each.request.preemptible for each in members),
            grace_us=max(each.request.grace_us for each in members),
        )
        device.rank = best.rank
        device.preemptible = all(each.preemptible for each in members)
        device.placed_at_us = min(each.placed_at_us for each in members)
        device.started_at_us = max(each.since_us for each in members)
        device.pinned_at_us = min(each.passed_us for each in members) + 1
        device.evicting = all(each.evicting for each in members)
        node = self.node_of(device)
        node.divided[name].closed = device.evicting
        self._state.running[name] = self._state.running.pop(name)
        group.enter(name, device, 1)
        group.units.note(node, group.bits[node.slot])
