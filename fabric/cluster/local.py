"""A Ray cluster of simulated mixed accelerators on this machine: for `fabric up --local`, demos and tests.

The devices are numbers to Ray and CPU time to the meters; all else is real. Start it in the main thread of a process of
its own choosing: the cluster ends with that process. Ray's own ports, its metrics too, which ask nobody for anything, are
reached from this machine alone; the others answer who knows the token of this cluster: it is made at the start and kept in a
file that its owner alone may read. While the cluster runs, the environment of this process, and so of those that it starts,
names the file (`RAY_AUTH_MODE`, `RAY_AUTH_TOKEN_PATH`), and has Ray take this machine's address for loopback (`LOOPBACK`).
"""

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
from ray._common.utils import env_bool, get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster

from fabric.accelerators import TYPE_LABEL, resource_of
from fabric.inventory.nodes import BY_CPU, DEDICATED_LABEL, METER_LABEL, NODE_LABEL, NOTICE_LABEL, POOL_LABEL
from fabric.parts import PARTS_LABEL
from fabric.system.inheritance import passed_on
from fabric.system.ports import free_port
from fabric.worker.lease_ray_settings import LOOPBACK
from fabric.worker.ray_node import START_S, start_node

_STORE_BYTES: Final = 80 * 1024 * 1024
_CPUS: Final = 64
"""Logical: whatever the machine has, a simulated gang must never wait for a CPU."""
TOKEN_NAME: Final = "token"  # noqa: S105 - a file
"""The file beside the session, where no other is asked for."""
_TOKEN_BYTES: Final = 32
_CONTROL_STORE: Final = "gcs"
"""Where Ray keeps its control store, below the cluster's folder: killed, it is started again with all that it knew."""
_SESSIONS: Final = "r"
"""Where Ray keeps its sessions, below the cluster's folder: a short name, because sockets live there."""
AWAY_S: Final = 24 * 3_600
"""For how long Ray's processes, and with them jobs, outlive its control store: it comes back, or the cluster is ended."""
_PATIENCE: Final = {
    "RAY_agent_register_timeout_ms": str(1000 * START_S),
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(AWAY_S),
}
"""Each process reads it before it has heard anything from the control store, so that it can't be told from there."""
_ENVIRONMENT: Final = {
    **_PATIENCE,
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_cap_enabled": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_LOG_TO_DRIVER": "0",
    # A node starts five processes of Python: without cached bytecode each would compile all of Ray again.
    "PYTHONDONTWRITEBYTECODE": "",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNode:
    """A simulated node."""

    node_id: str
    accelerator: str
    devices: int
    pool: str = "spot"
    dedicated_to: str = ""
    notice_s: int | None = None
    parts: str = ""
    """How its devices are divided: `time-slice.4`. "" = they are had whole."""


MIXED: Final = (
    LocalNode(node_id="h100-1", accelerator="H100", devices=4),
    LocalNode(node_id="h100-2", accelerator="H100", devices=2, pool="reserved"),
    LocalNode(node_id="a100-1", accelerator="A100", devices=4),
    LocalNode(node_id="910b-1", accelerator="910B", devices=8),
)


class LocalCluster:
    """A running cluster, to which this process is connected."""

    def __init__(
        self,
        cluster: Any,
        *,
        temp_dir: Path,
        idle_dir: Path,
        surroundings: Mapping[str, str],
        owned: Sequence[Path],
        dashboard_url: str,
        before: Mapping[str, str | None],
    ) -> None:
        self._cluster = cluster
        self._before = before
        self._temp_dir = temp_dir
        self._idle_dir = idle_dir
        self._surroundings = surroundings
        self._owned = owned
        self._raylets: dict[str, Any] = {}
        self._nodes: dict[str, LocalNode] = {}
        self._away: dict[str, LocalNode] = {}
        """By Ray's id of what has ended: what is to come back."""
        self.dashboard_url = dashboard_url

    @classmethod
    def start(
        cls,
        *,
        nodes: Sequence[LocalNode] = MIXED,
        temp_dir: Path | None = None,
        dashboard_port: int | None = None,
        dashboard: bool = True,
        token_file: Path | None = None,
        idle_dir: Path | None = None,
        namespace: str = "fabric",
        loopback: bool = True,
        told: Callable[[str], None] = lambda _: None,
    ) -> "LocalCluster":
        """Start a head without accelerators and the simulated nodes, and connect to them.

        Args:
            nodes: what to simulate.
            temp_dir: a folder that becomes its owner's alone, below which Ray keeps its session; its path must be short (Ray's
                sockets live there). None = a new one.
            dashboard_port: None = a free one.
            dashboard: whether Ray's dashboard runs.
            token_file: where to write the token that Ray's ports ask for; None = beside the session.
            idle_dir: where Ray's processes stand, and with them a job's own Ray tasks; None = a new one.
            namespace: Ray's namespace for this process.
            loopback: whether Ray listens on this machine alone; False = as on a machine of many.
            told: is handed a line for every step, to show progress.
        """
        private = temp_dir or Path(tempfile.mkdtemp(prefix="fabric-"))
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        private.chmod(0o700)
        # Ray opens its own folder, and the sockets and logs in it, to everybody: so it lies in one that nobody else enters.
        folder = private / _SESSIONS
        folder.mkdir(exist_ok=True)
        port = dashboard_port or free_port()
        token_file = token_file or folder / TOKEN_NAME
        _write_token(token_file)
        before = _use_token(token_file, loopback=loopback)
        # Ray's processes, and the jobs' among them, find the token where their session is, and are told of no other place.
        own_token = folder.absolute() / TOKEN_NAME
        if not own_token.exists():
            own_token.write_bytes(b"")
            own_token.chmod(0o600)
            own_token.write_bytes(token_file.read_bytes())
        owned = [] if idle_dir else [Path(tempfile.mkdtemp(prefix="fabric-idle-"))]
        idle_dir = idle_dir or owned[0]
        idle_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        surroundings = {"RAY_AUTH_TOKEN_PATH": str(own_token)}
        # Ray notes the address of the newest cluster there, and on a machine that never ran Ray it isn't made by anybody.
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
        owned += [private] if temp_dir is None else []
        with _environment(idle_dir, surroundings):
            told("starting Ray's head")
            cluster = Cluster()
            start_node(
                cluster,
                num_cpus=_CPUS,
                object_store_memory=_STORE_BYTES,
                include_dashboard=dashboard,
                dashboard_port=port,
                include_log_monitor=False,
                no_monitor=True,
                temp_dir=str(folder),
                _system_config=_kept_in(private / _CONTROL_STORE),
            )
            local = cls(
                cluster,
                temp_dir=folder,
                idle_dir=idle_dir,
                surroundings=surroundings,
                owned=owned,
                dashboard_url=f"http://127.0.0.1:{port}" if dashboard else "",
                before=before,
            )
            try:
                for node in nodes:
                    told(f"starting node {node.node_id}: {node.devices} × {node.accelerator}")
                    local.add(node)
            except BaseException:
                local.stop()
                raise
        try:
            ray.init(address=cluster.address, namespace=namespace, log_to_driver=False, logging_level="warning")
            cluster.wait_for_nodes(60)
        except BaseException:
            local.stop()
            raise
        return local

    @property
    def address(self) -> str:
        """Where `ray.init` finds the cluster."""
        return str(self._cluster.address)

    @property
    def folder(self) -> Path:
        """Where Ray keeps its session and its logs."""
        return self._temp_dir

    def add(self, node: LocalNode) -> None:
        """Add a simulated node."""
        kind = resource_of(node.accelerator)
        self._nodes[node.node_id] = node
        labels = {NODE_LABEL: node.node_id, POOL_LABEL: node.pool, TYPE_LABEL: node.accelerator, METER_LABEL: BY_CPU}
        if node.dedicated_to:
            labels[DEDICATED_LABEL] = node.dedicated_to
        if node.notice_s is not None:
            labels[NOTICE_LABEL] = str(node.notice_s)
        if node.parts:
            labels[PARTS_LABEL] = node.parts
        with _environment(self._idle_dir, self._surroundings):
            self._raylets[node.node_id] = start_node(
                self._cluster,
                num_cpus=_CPUS,
                num_gpus=node.devices if kind == "GPU" else 0,
                resources={node.accelerator: node.devices, **({"NPU": node.devices} if kind == "NPU" else {})},
                object_store_memory=_STORE_BYTES,
                include_log_monitor=False,
                labels=labels,
            )

    def kill(self, node_id: str) -> None:
        """Take a node away without notice."""
        del self._nodes[node_id]
        self._cluster.remove_node(self._raylets.pop(node_id), allow_graceful=False)

    def mend(self) -> list[str]:
        """Start Ray's control store again where it has ended by itself: nodes and jobs go on meanwhile. Take away nodes that
        have ended; `return_nodes` brings them back. Call it in the main thread. Says what was found.
        """
        told = []
        head = self._cluster.head_node
        if (ended := _ended(head, PROCESS_TYPE_GCS_SERVER)) is not None:
            head.kill_gcs_server(check_alive=False)
            with _environment(self._idle_dir, self._surroundings):
                head.start_gcs_server()
            told.append(f"Ray's control store had ended with {ended}, and was started again")
        for node in list(self._nodes.values()):
            raylet = self._raylets[node.node_id]
            if (ended := _ended(raylet, PROCESS_TYPE_RAYLET)) is not None:
                self.kill(node.node_id)
                self._away[raylet.node_id] = node
                told.append(f"Ray's node {node.node_id} had ended with {ended}: it is started again")
        return told

    @property
    def is_gone(self) -> bool:
        """Whether its head has ended, and with it the node on which the gate is: only a new cluster can go on."""
        return _ended(self._cluster.head_node, PROCESS_TYPE_RAYLET) is not None

    @property
    def away(self) -> bool:
        """Whether nodes have ended that are to come back."""
        return bool(self._away)

    def return_nodes(self, alive: Collection[str]) -> None:
        """Start nodes that have ended again, once Ray knows that they had: two of one name would be taken for each other.

        Args:
            alive: the nodes that Ray takes for alive, by its ids.
        """
        for ray_id in [each for each in self._away if each not in alive]:
            self.add(self._away.pop(ray_id))

    def leave(self) -> None:
        """Have this process' environment as it was. What runs goes on running."""
        _set(self._before)

    def stop(self) -> None:
        """End the cluster and all that runs in it."""
        with suppress(Exception):
            ray.shutdown()
        self._cluster.shutdown()
        _set(self._before)
        for folder in self._owned:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _environment(folder: Path, more: Mapping[str, str]) -> Iterator[None]:
    """Ray's processes inherit what they may know and where they stand from here, and a job inherits it from them: no secret
    of whoever starts the fabric, and no place that is ours. This process is as it was afterwards.

    Only Python is told so, which hands it to what it starts: threads of Ray's look variables up in the C library at any time,
    and where one is set meanwhile, the process may end by SIGSEGV.
    """
    logging.getLogger("ray._private.accelerators.npu").setLevel(logging.CRITICAL)  # it looks for a real NPU, in vain
    before, here = os.environ, Path.cwd()
    os.environ = {**passed_on(before), **_ENVIRONMENT, **more}  # type: ignore[assignment]  # noqa: B003 - as said above
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ = before  # noqa: B003


@contextmanager
def token_from(file: Path) -> Iterator[None]:
    """Inside, this process and those that it starts know the token of the cluster whose token that is."""
    before = _use_token(file)
    try:
        yield
    finally:
        _set(before)


def _ended(node: Any, kind: str) -> int | None:
    """What a node's process of that kind has ended with; None while it runs."""
    (started,) = node.all_processes[kind]
    ended: int | None = started.process.poll()
    return ended


def _kept_in(folder: Path) -> dict[str, Any]:
    """Ray's own settings with which its control store survives its process."""
    return {"gcs_storage": "rocksdb", "gcs_storage_path": str(folder)}


def _write_token(file: Path) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(secrets.token_hex(_TOKEN_BYTES))
    draft.replace(file)


def _use_token(file: Path, *, loopback: bool = True) -> Mapping[str, str | None]:
    """Have Ray ask for the token and show it, in this process and those that it starts, wait for its control store, and stay
    on this machine. Returns the variables as they were.
    """
    wanted: dict[str, str | None] = {
        **_PATIENCE,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(file.absolute()),
        "RAY_AUTH_TOKEN": None,
        **({LOOPBACK: "0"} if loopback else {}),
    }
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    return before


def _set(variables: Mapping[str, str | None]) -> None:
    """Ray's parts in this process look at these once, and have to be told that they have changed."""
    _put(variables)
    ray_constants.ENABLE_RAY_CLUSTER = env_bool(LOOPBACK, not ray_constants.IS_WINDOWS_OR_OSX)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _put(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if os.environ.get(name) == value:
            continue  # what is as it should be isn't set again under threads that look at it
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
