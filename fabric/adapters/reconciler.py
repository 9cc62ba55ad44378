"""Finds what holds an accelerator without a lease, and removes it: the ledger's word against Ray's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import ray
import structlog
from ray.util.placement_group import PlacementGroup, PlacementGroupID, placement_group_table, remove_placement_group
from ray.util.state import list_actors, list_tasks

from fabric.adapters.cluster_settings import Unleased
from fabric.adapters.nodes import DEVICE_RESOURCES, Node

_TABLE_ROWS: Final = 10_000
_log = structlog.get_logger(__name__)


def remove_unleased(
    ours: Callable[[], set[str]], nodes: Sequence[Node], *, kill: Callable[[str, int], None]
) -> list[Unleased]:
    """Remove every use of a sold accelerator outside our placement groups. Blocks: run it in a thread.

    Args:
        ours: the ids of our placement groups and the names of those being made. Asked again after Ray was, so that a new
            one isn't taken for foreign.
        nodes: the nodes that are sold.
        kill: ends a process of a node, by the node's address and the process' number.
    """
    wanted = {*DEVICE_RESOURCES, *(node.accelerator for node in nodes)}
    addresses = {node.ray_id: node.address for node in nodes}
    names = {node.ray_id: str(node.node_id) for node in nodes}
    found = [
        *_groups(ours, wanted),
        *_actors(ours, wanted, names),
        *_tasks(ours, wanted, names, addresses=addresses, kill=kill),
    ]
    for unleased in found:
        _log.warning("unleased_use_removed", kind=unleased.kind, id=unleased.id, name=unleased.name)
    return found


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


def _actors(ours: Callable[[], set[str]], wanted: set[str], names: Mapping[str, str]) -> list[Unleased]:
    actors = list_actors(_here(), filters=[("state", "=", "ALIVE")], detail=True, limit=_TABLE_ROWS)
    known = ours()
    removed = []
    for actor in actors:
        if actor.placement_group_id in known or not _holds([actor.required_resources or {}], wanted):
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
) -> list[Unleased]:
    tasks = list_tasks(
        _here(), filters=[("state", "=", "RUNNING"), ("type", "=", "NORMAL_TASK")], detail=True, limit=_TABLE_ROWS
    )
    known = ours()
    removed = []
    for task in tasks:
        if task.placement_group_id in known or not _holds([task.required_resources or {}], wanted):
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
