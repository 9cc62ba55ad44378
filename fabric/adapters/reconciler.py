"""Finds what runs without a lease, and removes it: the ledger's word against Ray's.

That is what holds an accelerator outside of our placement groups, whoever started it; and what a job has started over Ray
that no lease holds any more, or never did: a detached actor, a task outside of the job's placement group. What of this runs
in a process that an agent counts to a lease ends with the lease, and is left alone until then.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ray
import structlog
from ray.util.placement_group import PlacementGroup, PlacementGroupID, placement_group_table, remove_placement_group
from ray.util.state import list_actors, list_tasks

from fabric.adapters.cluster_settings import Unleased
from fabric.adapters.nodes import DEVICE_RESOURCES, Node

_TABLE_ROWS: Final = 10_000
_SUPERVISOR: Final = "JobSupervisor"
"""What Ray's jobs API starts for a command, outside of any lease."""
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Runaways:
    """What of our own Ray job's is to be looked for: jobs' actors and tasks that no lease holds."""

    job_id: str
    """The gate's; what its runners start has the same."""
    actors: Callable[[], set[str]]
    """The ids of actors that are ours."""
    used: Callable[[], set[str]]
    """The ids of placement groups that a lease is in."""
    claimed: Mapping[str, set[int]] = field(default_factory=dict)
    """By machine: the processes that an agent counts to a lease."""
    own_cluster: bool = False
    """Whether nobody but us may start anything through Ray: then its jobs, by their supervisors, are nobody's."""
    suspected: set[str] = field(default_factory=set)
    """What was found the last time. Only what is found twice is removed: what is ours may be younger than what we know."""

    def is_one(self, *, job_id: str, own_id: str, group_id: str | None, at: tuple[str, int | None]) -> bool:
        """Whether it is run by a job, in no lease's group, and by no process that is counted to a lease."""
        if job_id != self.job_id or own_id in self.actors() or (group_id or "") in self.used():
            return False
        address, pid = at
        return pid not in self.claimed.get(address, ())


def remove_unleased(
    ours: Callable[[], set[str]],
    nodes: Sequence[Node],
    *,
    kill: Callable[[str, int], None],
    runaways: Runaways | None = None,
) -> list[Unleased]:
    """Remove what no lease holds. Blocks: run it in a thread.

    Args:
        ours: the ids of our placement groups and the names of those being made. Asked again after Ray was, so that a new
            one isn't taken for foreign.
        nodes: the nodes that are sold.
        kill: ends a process of a node, by the node's address and the process' number.
        runaways: what to look for beside uses of accelerators; remembers what is suspected.
    """
    wanted = {*DEVICE_RESOURCES, *(node.accelerator for node in nodes)}
    addresses = {node.ray_id: node.address for node in nodes}
    names = {node.ray_id: str(node.node_id) for node in nodes}
    suspected: set[str] = set()
    own_cluster = runaways is not None and runaways.own_cluster

    def is_runaway(own_id: str, **facts: Any) -> bool:
        if runaways is None or not runaways.is_one(own_id=own_id, **facts):
            return False
        suspected.add(own_id)
        return own_id in runaways.suspected

    found = [
        *_groups(ours, wanted),
        *_actors(ours, wanted, names, addresses=addresses, is_runaway=is_runaway, own_cluster=own_cluster),
        *_tasks(ours, wanted, names, addresses=addresses, kill=kill, is_runaway=is_runaway),
    ]
    if runaways is not None:
        runaways.suspected = suspected
    for unleased in found:
        _log.warning("unleased_use_removed", kind=unleased.kind, id=unleased.id, name=unleased.name)
    return found


def is_vacant(group_id: str) -> bool:
    """Whether no actor is left in a placement group. Blocks."""
    try:
        left = list_actors(_here(), filters=[("placement_group_id", "=", group_id)], detail=True, limit=_TABLE_ROWS)
    except Exception:  # noqa: BLE001 - Ray's tables are away: then nobody knows
        _log.exception("group_not_looked_at", group=group_id)
        return False
    return all(actor.state == "DEAD" for actor in left)


def _groups(ours: Callable[[], set[str]], wanted: set[str]) -> list[Unleased]:
    table = placement_group_table()
    known = ours()
    removed = []
    for group_id, entry in table.items():
        if entry["state"] == "REMOVED" or not known.isdisjoint((group_id, entry["name"])):
            continue
        if not _holds(entry["bundles"].values(), wanted):
            continue
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))
        removed.append(Unleased(kind="placement_group", id=group_id, name=entry["name"]))
    return removed


def _actors(
    ours: Callable[[], set[str]],
    wanted: set[str],
    names: Mapping[str, str],
    *,
    addresses: Mapping[str, str],
    is_runaway: Callable[..., bool],
    own_cluster: bool,
) -> list[Unleased]:
    actors = list_actors(_here(), filters=[("state", "!=", "DEAD")], detail=True, limit=_TABLE_ROWS)
    known = ours()
    removed = []
    for actor in actors:
        is_foreign = actor.state == "ALIVE" and actor.placement_group_id not in known
        has_device = is_foreign and _holds([actor.required_resources or {}], wanted)
        has_device = has_device or (own_cluster and actor.class_name == _SUPERVISOR)
        at = (addresses.get(actor.node_id, ""), actor.pid)
        if not has_device and not is_runaway(
            actor.actor_id, job_id=actor.job_id, group_id=actor.placement_group_id, at=at
        ):
            continue
        worker = ray._private.worker.global_worker  # noqa: SLF001  # an unnamed actor of others has no handle to kill
        worker.core_worker.kill_actor(ray.ActorID(bytes.fromhex(actor.actor_id)), True)  # noqa: FBT003
        removed.append(
            Unleased(kind="actor", id=actor.actor_id, name=actor.class_name, node_id=names.get(actor.node_id, ""))
        )
    return removed


def _tasks(
    ours: Callable[[], set[str]],
    wanted: set[str],
    names: Mapping[str, str],
    *,
    addresses: Mapping[str, str],
    kill: Callable[[str, int], None],
    is_runaway: Callable[..., bool],
) -> list[Unleased]:
    tasks = list_tasks(
        _here(), filters=[("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")], detail=True, limit=_TABLE_ROWS
    )
    known = ours()
    removed = []
    for task in tasks:
        has_device = task.placement_group_id not in known and _holds([task.required_resources or {}], wanted)
        at = (addresses.get(task.node_id, ""), task.worker_pid)
        if not has_device and not is_runaway(task.task_id, job_id=task.job_id, group_id=task.placement_group_id, at=at):
            continue
        if task.node_id in addresses and task.worker_pid:
            kill(addresses[task.node_id], task.worker_pid)
            removed.append(
                Unleased(kind="task", id=task.task_id, name=task.name or "", node_id=names.get(task.node_id, ""))
            )
    return removed


def _here() -> str:
    """The cluster we are in: asked for none, Ray's tables look for one on the machine, and fail or err where there are more."""
    return str(ray.get_runtime_context().gcs_address)


def _holds(resources: Any, wanted: set[str]) -> bool:
    return any(amount > 0 and name in wanted for bundle in resources for name, amount in bundle.items())
