"""How a placement group ends without its node.

Ray ends what it was told to be in a group, and gives the group's devices back. What got in by the names alone that the
group's resources have, as Serve's replicas do, it doesn't know of: they keep their share, and the node's raylet, which
can't give the devices back, dies of that, and with it all that runs on the node. So who is in by name is ended first.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import grpc
import structlog

from fabric.adapters.nodes import Node
from fabric.adapters.ray_tables import ActorRow, RayTables, WorkerRow
from fabric.errors import Unavailable

_WITHIN_S: Final = 10.0
_LOOK_S: Final = 0.1
_BY_NAME: Final = "_group_"
_log = structlog.get_logger(__name__)


class Tables(Protocol):
    """What is asked of Ray: see `RayTables`."""

    def actors(self) -> list[ActorRow]: ...
    def workers(self, address: str, port: int) -> list[WorkerRow]: ...
    def kill_actor(self, actor_id: str) -> None: ...


def end_group(
    group_id: str,
    nodes: Iterable[Node],
    *,
    remove: Callable[[], None],
    kill: Callable[[str, int], None],
    tables: Callable[[], Tables] = RayTables.here,
    sleep: Callable[[float], None] = time.sleep,
    within_s: float = _WITHIN_S,
) -> None:
    """Remove a placement group, once nobody holds any of it by name. Blocks.

    Args:
        group_id: Ray's, in hexadecimal digits.
        nodes: those that there are.
        remove: has Ray remove it.
        kill: ends a process of a machine, soon.
        tables: opens Ray's.
        sleep: waits so many seconds.
        within_s: for how long it is tried.

    Raises:
        Unavailable: somebody holds it still: it is to be tried again.
    """
    asked, by_id = tables(), {node.ray_id: node for node in nodes}
    ended: dict[str, ActorRow] = {}
    for _ in range(max(1, round(within_s / _LOOK_S))):
        there = [row for row in asked.actors() if row.group_id != group_id and _names(row, group_id)]
        for row in there:
            if row.id not in ended:
                _log.info("ended_in_group", group=group_id, actor=row.id, name=row.name)
                asked.kill_actor(row.id)
                if row.node_id in by_id and row.pid:
                    kill(by_id[row.node_id].address, row.pid)
            ended[row.id] = row
        if not there and not any(_holds(asked, row, by_id) for row in ended.values()):
            remove()
            return
        sleep(_LOOK_S)
    raise Unavailable(
        f"placement group {group_id} is held by {len(ended)} actors that do not end within {within_s:g} s: it stays until"
        " they have",
        code="group_held",
    )


def _names(row: ActorRow, group_id: str) -> bool:
    return any(_BY_NAME in name and name.endswith(group_id) for name in row.required)


def _holds(tables: Tables, row: ActorRow, nodes: dict[str, Node]) -> bool:
    """Whether its node still counts its process: until then it holds its share, whatever the control store says."""
    node = nodes.get(row.node_id)
    if node is None:
        return False  # it went with its node
    try:
        return any(worker.actor_id == row.id for worker in tables.workers(node.address, node.port))
    except grpc.RpcError as error:
        # Nothing listens there: it can't die of it any more. Else it may wait for a process that stands still.
        return not (isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE)
