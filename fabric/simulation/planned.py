"""The same packing by the planner that places jobs: what it gives away of a cluster's devices, in parts or whole.

It knows devices and their types, and neither cores nor memory: a pod of openb that finds no room for these on a machine is kept
off it here, as a reservation keeps jobs off nodes, and a pod that wants no device goes where best fit puts it. Counted is what pods asked for; where devices are had only whole, a pod
that wants a part of one gets all of it, and counts as what it asked for (true demand) or as what it got.
"""

import random
from collections.abc import Iterable
from dataclasses import replace
from math import gcd
from typing import NamedTuple

from fabric.placement import Node, NodeFree, Placed, PlacementState, Planner, Request
from fabric.placement.jobs import RANKS
from fabric.simulation.packing import ARRIVED, WHOLE, Machine, Pod, best_fit, inflated
from fabric.units import AccountId, JobId, NodeId

_ACCOUNT = AccountId("openb")


class Given(NamedTuple):
    """Percent of all devices."""

    asked: float
    """As what pods asked for that were placed,"""
    taken: float
    """and as what they were given."""


class PlannedCluster:
    """A planner with the machines as nodes, and what it doesn't know of them."""

    def __init__(self, machines: Iterable[Machine], *, parts: bool, cores: bool) -> None:
        self._planner = Planner(PlacementState())
        self._parts, self._cores, self._count = parts, cores, 0
        self._hosts: dict[NodeId, Machine] = {}
        for machine in machines:
            if machine.parts:
                node_id = NodeId(f"n{machine.at:06}")
                units = WHOLE if parts else 1
                node = Node(node_id, machine.kind, len(machine.parts), "spot", units=units)
                self._planner.add_node(node, now_us=0)
                self._hosts[node_id] = replace(machine, parts=machine.parts[:])

    def nodes(self) -> tuple[NodeFree, ...]:
        """What is free."""
        return self._planner.nodes()

    def put(self, pod: Pod) -> bool:
        """Have the pod placed, or passed over for good."""
        if not pod.devices:
            return self._put_without_devices(pod)
        self._count += 1
        job_id = JobId(f"p{self._count}")
        is_part = pod.parts < WHOLE
        divisor = gcd(pod.parts, WHOLE)
        request = Request(
            job_id=job_id,
            account_id=_ACCOUNT,
            devices=pod.devices,
            devices_per_node=pod.devices,
            accelerators=tuple(sorted(pod.types)),
            preemptible=False,
            submitted_at_us=0,
            fraction=(pod.parts // divisor, WHOLE // divisor) if is_part and self._parts else None,
        )
        if self._planner.check(request) is not None:
            return False
        if self._cores:
            self._keep_off(pod)
        self._planner.enqueue(request, now_us=0)
        placed = [step for step in self._planner.plan(now_us=0) if isinstance(step, Placed)]
        if not placed:
            self._planner.withdraw(job_id)
            return False
        for node_id, _ in placed[0].shares:
            host = self._hosts[node_id]
            host.cpu -= pod.cpu
            host.memory -= pod.memory
            host.free -= pod.asked
        return True

    def _put_without_devices(self, pod: Pod) -> bool:
        choice = best_fit(pod, list(self._hosts.values()), random.Random(0)) if self._cores else None
        if choice is not None:
            choice[0].cpu -= pod.cpu
            choice[0].memory -= pod.memory
        return choice is not None

    def _keep_off(self, pod: Pod) -> None:
        cluster = self._planner._cluster  # noqa: SLF001 - what the planner can't know is said to it as a reservation is
        for group in cluster.groups.values():
            lacking = 0
            for node in group.nodes:
                if node is not None:
                    host = self._hosts[node.node.node_id]
                    if pod.cpu > host.cpu or pod.memory > host.memory:
                        lacking |= group.bits[node.slot]
            group.pinned = [lacking] * RANKS


def planned(
    machines: Iterable[Machine],
    pods: list[Pod],
    *,
    seed: int,
    parts: bool = True,
    cores: bool = True,
    arrived: float = ARRIVED,
) -> Given:
    """How much is given away once so much of all devices has been asked for."""
    here = [machine for machine in machines if machine.parts]
    cluster = PlannedCluster(here, parts=parts, cores=cores)
    total = sum(len(each.parts) for each in here) * WHOLE
    asked = taken = 0
    for pod in inflated(pods, int(total * arrived), random.Random(seed)):
        if cluster.put(pod) and pod.devices:
            asked += pod.asked
            taken += pod.asked if parts else pod.devices * WHOLE
    return Given(asked / total * 100, taken / total * 100)
