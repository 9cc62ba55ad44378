"""Starts a node of a Ray cluster on this machine, and waits for it as long as its raylet starts. Knows nothing of its labels,
nor whose cluster it is: the fabric's own, or that of a job's program.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

import psutil
from ray._private import node as ray_node
from ray._private import services
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from ray._raylet import GcsClient, NodeID  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster

from fabric.worker.lease_ray_settings import START_S
from fabric.worker.stop_notice import is_rays

__all__ = ["START_S", "patience", "start_node", "started"]
_log = logging.getLogger(__name__)
_STARTS: Final = 3
"""How often a node is started whose raylet ends while it starts, as when another process has taken its port."""
_LOOK_S: Final = 0.1
_LOOK_MS: Final = 200


def start_node(cluster: Cluster, **wanted: Any) -> Any:
    """Start a node and wait until Ray knows it: as long as its raylet starts, and again where that has ended instead."""
    return started(lambda: cluster.add_node(wait=False, **wanted), again_on=Exception)


T = TypeVar("T")


def started(start: Callable[[], T], *, again_on: type[Exception] = ChildProcessError) -> T:
    """Start a node of this process, with patience, and once more where that fails as by `again_on`: what has started of it is
    ended before.
    """
    this = psutil.Process()
    for tries_left in reversed(range(_STARTS)):
        before = this.children()
        try:
            with patience():
                return start()
        except again_on as error:
            for left in set(this.children()) - set(before):
                with suppress(psutil.NoSuchProcess):
                    if is_rays(left.cmdline()):
                        left.kill()
            if not tries_left:
                raise
            _log.warning("a node of Ray did not start, once more: %s", error)
    raise AssertionError("unreachable")


@contextmanager
def patience() -> Iterator[None]:
    """Ray gives a node 30 s to appear, a number in its code: on a busy machine it takes longer. Inside, it may take
    `START_S` while its raylet runs. And Ray waits two minutes for the port of a control store that has ended as it began (a
    fork of a process that has gRPC now and then aborts): inside, that fails at once.
    """
    ask, wait = services.get_node, ray_node.wait_for_persisted_port
    give_up_at = time.monotonic() + START_S

    def ask_once_it_is_there(gcs_address: str, node_id: str) -> Any:
        store = GcsClient(address=gcs_address)
        while store.check_alive([NodeID.from_hex(node_id)], timeout=START_S) != [True]:
            if not _has_raylet(node_id):
                raise ChildProcessError("its raylet has ended")
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"it has not appeared within {START_S} s")
            time.sleep(_LOOK_S)
        return ask(gcs_address, node_id)

    def wait_while_it_runs(*where: Any, timeout_ms: int) -> int:
        while True:
            give_up_ms = min(timeout_ms, _LOOK_MS)
            timeout_ms -= give_up_ms
            try:
                return int(wait(*where, timeout_ms=give_up_ms))
            except RuntimeError:  # not yet
                if timeout_ms <= 0:
                    raise
                if not _has_control_store():
                    raise ChildProcessError("its control store has ended") from None

    services.get_node, ray_node.wait_for_persisted_port = ask_once_it_is_there, wait_while_it_runs
    try:
        yield
    finally:
        services.get_node, ray_node.wait_for_persisted_port = ask, wait


def _has_control_store() -> bool:
    """Whether a control store, a child of this process, runs."""
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if process.name() == PROCESS_TYPE_GCS_SERVER and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def _has_raylet(node_id: str) -> bool:
    """Whether the raylet of that node, a child of this process, runs."""
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if process.name() == PROCESS_TYPE_RAYLET and node_id in " ".join(process.cmdline()):
                return True
    return False
