"""What a planner keeps beside its state: indexes, lanes and keys, every one of them implied by the state.

Here they are put into a form in which a planner that has lived can be compared with one that is made anew from its state:
the same for both, however each came by it. What an attribute is derived from is told in `fabric.gate.derived`, which
lists all of them. A heap counts as what stands in it, not as how it came to lie.
"""

from typing import Any

from fabric.placement.cluster import Cluster
from fabric.placement.fitting import Group
from fabric.placement.jobs import RANKS
from fabric.placement.lane import Lane
from fabric.placement.queue import Queue
from fabric.placement.quotas import Fairness
from fabric.placement.waiting import Waiting

View = dict[str, Any]
AT_REST = ("parked", "wanted", ": typed", "touched")
"""Same only when all that can be done has been planned: before, a planner made anew looks at everything once more."""


def view(cluster: Cluster, queue: Queue, fairness: Fairness, waiting: Waiting) -> View:
    """All that is derived, by name."""
    found: View = {
        "owners": sorted(queue.owners),
        "keys": dict(fairness.keys),
        "cohort_keys": dict(fairness.cohort_keys),
        "members": {cohort: sorted(members) for cohort, members in fairness.members.items() if members},
        "present": dict(fairness.present),
        "epoch_us": fairness.epoch_us,
    }
    found |= cluster.guarantees.view()
    for group in cluster.groups.values():
        found |= {f"group {group.name}: {name}": each for name, each in _of_group(group).items()}
    for rank in range(RANKS):
        found[f"class {rank}: needs of those that are parked"] = queue.needs(rank)
    for name, times in waiting.alarms().items():
        found[f"{name}, of those that are parked"] = times
    for lane in queue.named.values():
        if lane.jobs:
            found |= {f"lane {lane.name}: {name}": each for name, each in _of_lane(lane, queue).items()}
    return found


def assert_same(one: View, other: View, *, at_rest: bool) -> None:
    """Raise AssertionError, naming what differs."""
    differing = {
        name: (one.get(name), other.get(name))
        for name in one.keys() | other.keys()
        if one.get(name) != other.get(name) and (at_rest or not name.endswith(AT_REST))
    }
    assert not differing, f"what is derived is not what the state says: {differing}"


def _of_group(group: Group) -> View:
    seated = [node for node in group.nodes if node is not None]
    return {
        "nodes": {node.slot: node.node.node_id for node in seated},
        "ids": {node.slot: group.ids[node.slot] for node in seated},
        "fit": {free: bits for free, bits in enumerate(group.fit) if bits},
        "sizes": {size: count for size, count in group.sizes.items() if count},
        "standing": {size: count for size, count in group.standing.items() if count},
        "free": group.free,
        "units": dict(group.units.nodes),
        "opened": {units: opened for units, opened in group.units.opened.items() if opened},
        "notices": dict(group.notices),
        "notice_us": group.notice_us,
        "pinned": list(group.pinned),
        "reservations": list(group.reservations),
        "loose": [list(jobs) for jobs in group.loose],
        "loose_devices": list(group.loose_devices),
        "leaving": sorted(group.leaving),
        "leaving_devices": group.leaving_devices,
        "reporters": sorted(group.reporters),
        "touched": group.touched,
        "wanted": group.wanted,
        "typed": group.typed,
        "kept": dict(group.kept),
        "typed_devices": group.typed_devices,
    }


def _of_lane(lane: Lane, queue: Queue) -> View:
    first = queue.first(lane)
    in_line = {
        job_id
        for line in lane.lines.values()
        for order, job_id in line
        if (queued := lane.jobs.get(job_id)) is not None and queued.order == order
    }
    return {
        "jobs": list(lane.jobs),
        "in line": sorted(in_line),
        "first": first and first.request.job_id,
        "parked": lane.parked and [group.name for group in lane.groups],
    }
