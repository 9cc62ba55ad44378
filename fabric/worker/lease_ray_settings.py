"""What the Ray of a lease is started with, and how a job's environment says so. Loads no Ray: see `lease_ray`."""

import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Final

import msgspec

from fabric.system.short_links import RAY, short_link

VARIABLE: Final = "FABRIC_RAY"
"""In a job's environment: what its lease has, as JSON."""
START_S: Final = 180
"""For how long a node of Ray may start on a machine that is busy with other things. Ray's own limits are 30 and 60 s."""
TOKEN: Final = "token"  # noqa: S105  # a file
LOOPBACK: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""A variable of Ray's: "0" = a node's address is 127.0.0.1, and Ray listens nowhere else. Made for systems where it can have but
one machine; whoever connects to such a cluster needs it too, as Ray takes 127.0.0.1 for the machine's other address else.
"""
_START_FOLDER: Final = Path(__file__).with_name("python_start")
"""Goes into PYTHONPATH: what is there has every Python of the job look for Ray."""
_STORE_BYTES_MIN: Final = 80 * 2**20
_STORE_BYTES_MAX: Final = 2 * 2**30
_STORE_SHARE: Final = 20
_CPUS_MIN: Final = 4


class LeaseRay(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's."""

    lease: str
    """For people: the lease in words, such as "1 × H100"."""
    devices: dict[str, float]
    """Ray's names of what the lease has: GPU or NPU, and the type."""
    also: dict[str, float] = {}
    """What else the nodes of such a type have in Ray."""
    cpus: int
    """Logical ones, unless the program asks for another number."""
    folder: str
    """Where its sessions are kept: a short path, because sockets lie there."""
    group: str = ""
    """The placement group of the fabric's own cluster that the lease is."""
    nodes: int = 1
    """How many ranks join it."""
    bell: str = ""
    """The socket at which these wait to hear that it has started: see `ray_hosts`."""
    store_bytes: int
    """Of the object store, unless the program asks for another size."""


def lease_ray(
    *, accelerator: str, kind: str, devices: int, share: float, folder: Path, memory_bytes: int, cores: int
) -> LeaseRay:
    """For a rank with so many devices, which are that share of its node's.

    Args:
        accelerator: their type.
        kind: what Ray calls them: GPU or NPU.
        devices: how many.
        share: of the node's devices.
        folder: the rank's own.
        memory_bytes: the node's.
        cores: the node's.
    """
    return LeaseRay(
        lease=f"{devices} × {accelerator}",
        devices={kind: float(devices), accelerator: float(devices)} if devices else {},
        also={f"accelerator_type:{accelerator}": 1.0} if devices else {},
        cpus=max(_CPUS_MIN, round(cores * share)),
        folder=str(short_link(folder, RAY)),
        store_bytes=min(max(round(memory_bytes * share) // _STORE_SHARE, _STORE_BYTES_MIN), _STORE_BYTES_MAX),
    )


def told_ray(environment: Mapping[str, str]) -> LeaseRay | None:
    """The Ray that an environment tells of."""
    said = environment.get(VARIABLE)
    return msgspec.json.decode(said, type=LeaseRay) if said else None


def variables_for(own: LeaseRay, environment: Mapping[str, str], *, given: Container[str] = ()) -> dict[str, str]:
    """A job's environment with this Ray in the place of the fabric's own. What the job was `given` stays."""
    kept = {name: value for name, value in environment.items() if not name.startswith("RAY_") or name in given}
    kept.pop("RAY_ADDRESS", None)  # of a cluster that is not the lease's
    path = [str(_START_FOLDER), *(place for place in kept.get("PYTHONPATH", "").split(os.pathsep) if place)]
    own_variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(Path(own.folder) / TOKEN),
        "RAY_TMPDIR": own.folder,
        # Workers are started when something runs in them: a job is charged for what is started.
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_cap_enabled": "0",
        "RAY_agent_register_timeout_ms": str(1000 * START_S),
        "RAY_gcs_server_port_wait_time_s": str(START_S),
        "RAY_gcs_server_request_timeout_seconds": str(START_S),
        "RAY_worker_register_timeout_seconds": str(START_S),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **({LOOPBACK: "0"} if own.nodes == 1 else {}),
    }
    return {
        **own_variables,
        **kept,
        VARIABLE: msgspec.json.encode(own).decode(),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
    }
