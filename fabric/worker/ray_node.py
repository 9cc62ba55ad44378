"""Starts a node of a Ray cluster on this machine, and waits for it as long as its raylet starts. Knows nothing of its labels,
nor whose cluster it is: the fabric's own, or that of a job's program.
"""

import logging
import random
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any, Final, TypeVar

import psutil
from ray._private import node as ray_node
from ray._private import services
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, GcsClient, NodeID, persist_port  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster

from fabric.worker.lease_ray_settings import START_S
from fabric.worker.ray_start import STARTS
from fabric.worker.stop_notice import is_rays

__all__ = ["START_S", "patience", "start_node", "started"]
_log = logging.getLogger(__name__)
_NEEDED: Final = (PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET)
_LOOK_S: Final = 0.1
_LOOK_MS: Final = 200
_PORTS: Final = range(20_000, 30_000)
_HTTP: Final = "dashboard_agent_listen_port"
_AGENT_PORTS: Final = (_HTTP, "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
"""What a raylet's two agents listen on, as `services.start_raylet` calls it."""
_KEPT: Final = 64
"""For so many nodes that this process has started it keeps the agents' ports: older ones have long begun."""
_kept: Final[deque[socket.socket]] = deque(maxlen=_KEPT * len(_AGENT_PORTS))
_CRASHES: Final = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTERM)
"""At which Ray's own handler in this process sets its alarm."""


def start_node(cluster: Cluster, **wanted: Any) -> Any:
    """Start a node and wait until Ray knows it: as long as its raylet starts, and again where that has ended instead."""
    return started(lambda: cluster.add_node(wait=False, **wanted), again_on=Exception)


T = TypeVar("T")


def started(start: Callable[[], T], *, again_on: type[Exception] = ChildProcessError) -> T:
    """Start a node of this process, with patience, and once more where that fails as by `again_on`, or one of Ray's processes has
    ended meanwhile, whatever Ray made of that: what has started of it is ended before.

    Raises:
        ChildProcessError: one has ended, each time.
        Exception: whatever `start` raises.
    """
    this = psutil.Process()
    for tries_left in reversed(range(STARTS)):
        before = this.children()
        try:
            with patience():
                return start()
        except Exception as error:
            begun = set(this.children()) - set(before)
            ended = _ended_of(begun)
            if not isinstance(error, again_on) and not ended:
                raise
            for left in begun:
                with suppress(psutil.NoSuchProcess):
                    if is_rays(left.cmdline()):
                        left.kill()
            if not tries_left:
                if isinstance(error, again_on):
                    raise
                raise ChildProcessError(f"its {ended} has ended: {error}") from error
            _log.warning("a node of Ray did not start, once more: %s", error)
    raise AssertionError("unreachable")


def _ended_of(begun: Iterable[psutil.Process]) -> str:
    """Which of the processes that a node is nothing without has ended; "" if none has."""
    for process in begun:
        with suppress(psutil.NoSuchProcess):
            if process.name() in _NEEDED and process.status() == psutil.STATUS_ZOMBIE:
                return process.name()
    return ""


@contextmanager
def patience() -> Iterator[None]:
    """Ray gives a node 30 s to appear, a number in its code: on a busy machine it takes longer. Inside, it may take
    `START_S` while its raylet runs. And Ray waits two minutes for the port of a control store that has ended as it began:
    inside, that fails at once. A raylet ends where its agents, two Pythons, have not told their ports within 30 s, a number in
    its code, too: inside, they are told them, and it needn't wait. And what is started lives as it began: see `_started_well`.
    """
    ask, wait, start = services.get_node, ray_node.wait_for_persisted_port, services.start_raylet
    popen = services.ConsolePopen
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
    services.start_raylet, services.ConsolePopen = _telling_ports(start), _started_well(popen)
    try:
        yield
    finally:
        services.get_node, ray_node.wait_for_persisted_port = ask, wait
        services.start_raylet, services.ConsolePopen = start, popen


def _started_well(popen: Callable[..., T]) -> Callable[..., T]:
    """Have a process of Ray's end at once or not at all of what this process is made of.

    Ray forks to start one. In the copy gRPC begins its threads anew, and now and then one of them aborts; Ray's handler of
    crashes then sets an alarm. Where the copy has become Ray's process by then, that is killed three seconds later.
    """

    def begin(as_meant: Callable[[], object]) -> None:
        for number in _CRASHES:
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(0)
        as_meant()

    def started(*words: Any, preexec_fn: Callable[[], object] = lambda: None, **options: Any) -> T:
        return popen(*words, preexec_fn=lambda: begin(preexec_fn), **options)

    return started


def _telling_ports(start: Callable[..., T]) -> Callable[..., T]:
    """Have a raylet and its agents told the agents' ports."""

    def told(*words: Any, **options: Any) -> T:
        unset = [name for name in _AGENT_PORTS if not options.get(name)]
        asked = signature(start).bind(*words, **options | dict(zip(unset, _free_ports(len(unset)), strict=True)))
        where = asked.arguments  # the one port that Ray tells the agent, and not the raylet, that one finds so
        persist_port(where["session_dir"], where["node_id"], DASHBOARD_AGENT_LISTEN_PORT_NAME, where[_HTTP])
        return start(*asked.args, **asked.kwargs)

    return told


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has now, nor soon: systems give away others by themselves, Ray has others for workers, and these are bound
    here until the agents listen, late on a busy machine: so nobody else finds them free meanwhile. An agent whose port another
    node's has taken ends, and its raylet with it.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        kept = socket.socket()
        try:
            kept.bind(("", port))
        except OSError:
            kept.close()
            continue
        # From now on who sets it, too, may listen there: the agent.
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _kept.append(kept)
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"of the ports {_PORTS.start} to {_PORTS.stop - 1} fewer than {count} are free")


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
