"""Nodes and what is on them: who owns which devices, which are set aside, and which are owed to whom.

A device has one owner, or is set aside for one claim, or is free. When an owner is released its devices go first to the
claims they are owed to, in the order in which the claims were made, and only then to everybody: otherwise whoever comes
by takes what an eviction freed, and evictions loop.
"""

from collections.abc import Mapping

import msgspec

from fabric.placement import places
from fabric.placement.divided import DividedDevices, find_fraction, is_divided
from fabric.placement.fitting import Group, Picks, Shape, name_of
from fabric.placement.guarantees import Guarantees
from fabric.placement.jobs import RANKS, Request, Shares
from fabric.placement.state import Claim, GroupState, Node, NodeState, PlacementState, Queued, Running
from fabric.units import JobId, NodeId


class Cluster:
    """The planner's nodes, with the indexes that make them quick to search."""

    def __init__(self, state: PlacementState) -> None:
        self._state = state
        self.groups: dict[str, Group] = {}
        self.version = 0
        """Grows when a group appears, or gives another notice: what may go where has changed."""
        self.layout = 0
        """Grows when a node comes or becomes another, or with another policy: what fits into an empty cluster has changed."""
        self.pins_version = 0
        """Grows when a group's pins, or how many of its devices are up, become others."""
        self.divided = DividedDevices(state)
        for name, at in state.groups.items():
            self.groups[name] = Group(at.pool, at.accelerator, at.owner, at.fraction)
        for node in state.nodes.values():
            group = self._group_of(node.node)
            group.seat(node)
            if node.kept_until_us > max(state.planned_at_us, 0):
                group.keep(node, node.kept_until_us)
        for job_id, running in state.running.items():
            if running.within is not None and not running.is_divided:
                if running.saved_at_us is not None:
                    self.groups[running.group].reporters[job_id] = running
                continue
            for group, devices in self._parts(running):
                group.enter(job_id, running, devices)
        self.guarantees = Guarantees(state)
        for name in dict.fromkeys(pin.group for pin in state.pins.values()):
            self._reserve(self.groups[name])

    def add(self, node: Node) -> None:
        """A node that is new, or was removed."""
        if node.accelerator not in self._state.accelerators:
            self._state.accelerators.append(node.accelerator)
            self.version += 1
        known = self._state.nodes.get(node.node_id)
        group = self._group_of(node)
        if known is not None and known.node == node:
            self._return(group, known)
            return
        if known is not None:
            assert known.status == "down"
            former = self._group_of(known.node)
            self.version += former.unseat(known)
            self.mark(former)
        fresh = self._state.nodes[node.node_id] = NodeState(node=node, slot=0, free=node.devices)
        given_us = group.notice_us
        self.version += group.insert(fresh)
        self.mark(group)
        self.layout += 1
        self.version += group.notice_us != given_us

    def announce(self, known: NodeState, node: Node) -> bool:
        """Take another notice of a node that is otherwise what it was. False if it isn't."""
        if msgspec.structs.replace(known.node, notice_us=node.notice_us) != node:
            return False
        group = self._group_of(node)
        self._hear(group, known.node.notice_us, -1)
        known.node = node
        self._hear(group, node.notice_us, 1)
        self._return(group, known)
        return True

    def close(self, node_id: NodeId, *, status: str) -> NodeState:
        """Take no more jobs on the node."""
        node = self._state.nodes[node_id]
        self._turn(self._group_of(node.node), node, status)
        return node

    def clear(self, node: NodeState) -> None:
        """The node is gone, and everything on it: its jobs own only what they have elsewhere."""
        group = self._group_of(node.node)
        assert not node.owed
        assert not node.held
        if node.divided:
            for job_id in self.divided.lose(group, node):
                self.guarantees.note(job_id)
        for job_id, devices in node.shares.items():
            running = self._state.running[job_id]
            self.evict(running)
            group.shrink(running, devices)
            running.shares = tuple(share for share in running.shares if share[0] != node.node.node_id)
            self.guarantees.note(job_id)
        node.shares = {}
        node.free = node.node.devices
        node.kept_until_us = 0
        group.kept.pop(node.node.node_id, None)

    def groups_for(self, request: Request, *, preemptible: bool, guests: bool = True) -> tuple[Group, ...]:
        """Where a request may go, best first: see `places`."""
        return places.groups_for(self._state, self.groups, request, preemptible=preemptible, guests=guests)

    def by_need(self, groups: tuple[Group, ...], queued: Queued) -> tuple[Group, ...]:
        """For who may have any type, the types that others need least first: see `places`."""
        if queued.request.accelerators or len(groups) < 2:  # noqa: PLR2004
            return groups
        return places.by_need(groups, queued)

    def find(self, group: Group, shape: Shape, queued: Queued, *, strictly: bool = True) -> Picks | None:
        """Room for a job. Borrowers leave the headroom, and leave when wanted; `strictly`, they leave what of quotas isn't lent."""
        if queued.request.fraction is not None and is_divided(group, queued.request):
            return self._find_fraction(group, queued, strictly=strictly)
        is_all_s = group.owner is None and group.pool != "reserved" and not self.guarantees.types
        if shape.devices > group.free or not (is_all_s or self._is_lent(group, shape, queued, strictly)):
            return None
        pinned, kept = group.pinned[queued.rank], group.kept_from(queued) if group.kept else 0
        avoid = pinned | kept
        if shape.nodes == 1 and (picks := group.find_one(shape.each or shape.devices, avoid)) is not None:
            return picks
        strewn = places.may_be_strewn(self._state, queued)
        picks = group.find(shape, avoid=avoid, strewn=strewn)
        if picks is not None or not pinned:
            return picks
        if not queued.preemptible and queued.request.job_id not in self._state.pins:
            return None
        return group.find(shape, avoid=kept, strewn=strewn)

    def _is_lent(self, group: Group, shape: Shape, queued: Queued, strictly: bool) -> bool:
        """Whether so much of what is free may be lent to the job, or is its by right."""
        if not self.guarantees.admits(group, queued, shape.devices, strictly=strictly):
            return False
        headroom = self._state.policy.headroom_devices if group.owner is None else 0
        is_lent = not group.wanted and group.free - headroom >= shape.devices
        return is_lent or group.is_home_of(queued.request.account_id, queued.rank)

    def _find_fraction(self, group: Group, queued: Queued, *, strictly: bool) -> Picks | None:
        """The same for a part of a device. What is divided already is nobody's headroom."""
        if not self.guarantees.admits(group, queued, 1, strictly=False):
            return None
        divides = self.guarantees.admits(group, queued, 1, strictly=strictly)
        if not group.is_home_of(queued.request.account_id, queued.rank):
            headroom = self._state.policy.headroom_devices if group.owner is None else 0
            divides = divides and group.free > headroom
            if group.wanted:
                return None
        pinned, kept = group.pinned[queued.rank], group.kept_from(queued)
        picks = find_fraction(group, queued.request, avoid=pinned | kept, divides=divides)
        if picks is None and pinned and (queued.preemptible or queued.request.job_id in self._state.pins):
            return find_fraction(group, queued.request, avoid=kept, divides=divides)
        return picks

    def bit_of(self, group: Group, node_id: NodeId) -> int:
        """The node's bit in the group; 0 if it isn't of it."""
        node = self._state.nodes.get(node_id)
        if node is None or group.name != name_of(node.node):
            return 0
        return group.bits[node.slot]

    def own(self, group: Group, job_id: JobId, running: Running) -> None:
        """The job owns its shares, which were free."""
        nodes = self._state.nodes
        if running.request.fraction is not None and is_divided(group, running.request):
            self._own_fraction(group, running)
            return
        mixed = bool(running.groups)
        for node_id, devices in running.shares:
            node = nodes[node_id]
            (self._group_of(node.node) if mixed else group).shift(node, -devices)
            node.shares[job_id] = devices
        self._state.running[job_id] = running
        self.guarantees.note(job_id)
        if not mixed:
            group.enter(job_id, running, _devices(running.shares))
            return
        for part, devices in self._parts(running):
            part.enter(job_id, running, devices)

    def _own_fraction(self, group: Group, running: Running) -> None:
        node, divided = self.divided.node_of(running), self.divided
        name = divided.tightest(node, running.request)
        if name is None:
            group.shift(node, -1)
            name = divided.divide(group, node, running)
        divided.enter(group, name, running)
        self.guarantees.note(running.request.job_id)

    def own_claimed(self, job_id: JobId, running: Running) -> None:
        """The job owns its shares, which were set aside for it."""
        del self._state.claims[job_id]
        group = self.groups[running.group]
        for node_id, devices in running.shares:
            node = self._state.nodes[node_id]
            node.held -= devices
            if is_divided(group, running.request):
                self.divided.enter(group, self.divided.divide(group, node, running), running)
                self.guarantees.note(job_id)
                return
            node.shares[job_id] = devices
        self._state.running[job_id] = running
        self.guarantees.note(job_id)
        group.enter(job_id, running, _devices(running.shares))

    def disown(self, job_id: JobId) -> Running | None:
        """The job's devices go to whom they are owed, or are free."""
        running = self._state.running.pop(job_id, None)
        if running is None:
            return None
        self.guarantees.note(job_id)
        nodes, home = self._state.nodes, self.groups[running.group]
        if running.within is not None and not running.is_divided:
            if (name := self.divided.leave(home, running)) is not None:
                self.disown(name)
            return running
        mixed = bool(running.groups)
        for node_id, devices in running.shares:
            node = nodes[node_id]
            group = self._group_of(node.node) if mixed else home
            del node.shares[job_id]
            if node.owed:
                self._hand_on(group, node, devices)
            else:
                group.shift(node, devices)
        for part, devices in self._parts(running):
            part.leave(job_id, running, devices)
            part.touched = True
        return running

    def evict(self, running: Running) -> None:
        """The job is leaving; it owns its devices until it has left, and is not asked again."""
        if running.evicting:
            return
        if running.within is not None and not running.is_divided:
            running.evicting = True
            self.divided.restate(self.groups[running.group], running.within)
            return
        job_id, parts = running.request.job_id, self._parts(running)
        for group, devices in parts:
            group.leave(job_id, running, devices)
        running.evicting = True
        for group, devices in parts:
            group.enter(job_id, running, devices)
        if running.is_divided:
            self.divided.close(parts[0][0], job_id)

    def start(self, running: Running, *, now_us: int) -> None:
        """Its code runs."""
        running.started_at_us = now_us
        if running.within is not None:
            self.divided.restate(self.groups[running.group], running.within)

    def save(self, job_id: JobId, *, now_us: int, write_us: int, restore_us: int) -> None:
        """What the job has done is durable."""
        running = self._state.running.get(job_id)
        if running is None:
            return
        running.every_us = max(now_us - (running.saved_at_us or running.since_us), 0)
        running.saved_at_us, running.write_us, running.restore_us = now_us, write_us, restore_us
        for group, _ in self._parts(running):
            group.reporters[job_id] = running

    def claim(self, job_id: JobId, group: Group, shares: Shares) -> None:
        """Set aside what is free of these shares, and take note of what is owed."""
        claim = Claim(group=group.name, shares=shares, owed=0)
        self._state.claims[job_id] = claim
        for node_id, devices in shares:
            node = self._state.nodes[node_id]
            now = min(node.free, devices)
            group.shift(node, -now)
            node.held += now
            if now < devices:
                node.owed[job_id] = devices - now
                claim.owed += devices - now
        self.guarantees.note(job_id)
        group.touched = group.touched or bool(self.guarantees.types)  # what was kept free for it may be lent

    def unclaim(self, job_id: JobId) -> None:
        """Give up a claim: what was set aside goes to the next claim, or is free."""
        claim = self._state.claims.pop(job_id)
        group = self.groups[claim.group]
        for node_id, devices in claim.shares:
            node = self._state.nodes[node_id]
            held = devices - node.owed.pop(job_id, 0)
            node.held -= held
            self._hand_on(group, node, held)
        self.guarantees.note(job_id)
        group.touched = True

    def mark(self, group: Group) -> None:
        """The group's pins have become others, or its nodes."""
        self._reserve(group)
        group.touched = True

    def _reserve(self, group: Group) -> None:
        """Take note of the nodes of the group's pins."""
        self.pins_version += 1
        group.pinned, group.reservations = [0] * RANKS, [(0, 0)] * RANKS
        for job_id, pin in self._state.pins.items():
            if pin.group == group.name:
                bits = 0
                for node_id in pin.nodes:
                    bits |= group.bits[self._state.nodes[node_id].slot]
                queued = self._state.queue[job_id]
                for rank in range(queued.rank, RANKS):
                    group.pinned[rank] |= bits
                    pins, devices = group.reservations[rank]
                    group.reservations[rank] = pins + 1, devices + queued.request.least

    def rooms(self, group: Group, nodes: Mapping[int, NodeState]) -> dict[int, int]:
        """`room` of nodes of a group, by their slots. Whoever is leaving is looked at once, not once a node."""
        found = {slot: node.free - sum(node.owed.values()) if node.owed else node.free for slot, node in nodes.items()}
        known = self._state.nodes
        for running in group.leaving.values():
            for node_id, devices in running.shares:
                node = known[node_id]
                if nodes.get(node.slot) is node:
                    found[node.slot] += devices
        return found

    def room(self, node: NodeState) -> int:
        """What the node has for one more claim: free, or about to be and owed to nobody."""
        leaving = sum(devices for job_id, devices in node.shares.items() if self._state.running[job_id].evicting)
        return node.free + leaving - sum(node.owed.values())

    def _return(self, group: Group, node: NodeState) -> None:
        if node.status != "up":
            self._turn(group, node, "up")
            group.touched = True

    def _turn(self, group: Group, node: NodeState, status: str) -> None:
        """The one place where a node's status changes, and with it all that depends on it."""
        before, node.status = node.status, status
        if before == status:
            return
        self.pins_version += 1
        if before == "up":
            group.hide(node)
        if status == "up":
            group.show(node)
        if "down" in {before, status}:
            self._hear(group, node.node.notice_us, -1 if status == "down" else 1)

    def _hear(self, group: Group, notice_us: int | None, change: int) -> None:
        given_us = group.notice_us
        group.hear(notice_us, change)
        self.version += group.notice_us != given_us

    def _hand_on(self, group: Group, node: NodeState, devices: int) -> None:
        left = devices
        if node.owed:
            for job_id in list(node.owed):
                given = min(left, node.owed[job_id])
                node.held += given
                self._state.claims[job_id].owed -= given
                left -= given
                if given == node.owed[job_id]:
                    del node.owed[job_id]
                else:
                    node.owed[job_id] -= given
        if left:
            group.shift(node, left)

    def _parts(self, running: Running) -> list[tuple[Group, int]]:
        """The groups that the job is in, and with how many devices in each: one, unless its gang is of several types.

        A group that it has lost its last share in is still one of them.
        """
        if not running.groups:
            return [(self.groups[running.group], _devices(running.shares))]
        counted = dict.fromkeys(running.groups, 0)
        for node_id, devices in running.shares:
            counted[self._group_of(self._state.nodes[node_id].node).name] += devices
        return [(self.groups[name], devices) for name, devices in counted.items()]

    def _group_of(self, node: Node) -> Group:
        name = name_of(node)
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(node.pool, node.accelerator, node.dedicated_to, node.fraction)
            self._state.groups[name] = GroupState(
                node.pool, node.accelerator, node.dedicated_to, [0] * RANKS, node.fraction
            )
            self.version += 1
        return group


def _devices(shares: Shares) -> int:
    if len(shares) == 1:
        return shares[0][1]
    return sum([devices for _, devices in shares])
