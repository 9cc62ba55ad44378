"""What a command may say about a simulation, in words: nodes, policies, tiers and times."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fabric.accelerators import canonical_accelerator
from fabric.config.cluster import ClusterConfig, RayLocal, load_cluster
from fabric.errors import InvalidRequest
from fabric.placement.quotas import Policy as Numbers
from fabric.simulation.gate_policy import GatePolicy
from fabric.simulation.peers.names import PEERS
from fabric.simulation.workload import Cluster, Nodes, Work, load
from fabric.simulation.world import Policy
from fabric.units import MICROS_PER_S

OURS: Final = "fabric"
NODE_DEVICES: Final = 8
LOAD: Final = 0.95
"""How much of the cluster is asked for, where nobody says how large it is."""
_NODES: Final = re.compile(r"(\d+)x(\d+)(?::(?!spot$|reserved$)([A-Za-z0-9_.-]+?))?(?::(spot|reserved))?")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)?")
_UNITS: Final = {None: 1, "s": 1, "min": 60, "m": 60, "h": 3_600, "d": 86_400}


def nodes(words: list[str]) -> Cluster:
    """Nodes such as `64x8`, `16x8:A100` or `48x8:H100:reserved`."""
    found = []
    for word in words:
        match = _NODES.fullmatch(word)
        if match is None or not int(match[1]) or not int(match[2]):
            raise InvalidRequest(
                f"nodes {word!r}: write COUNTxDEVICES, and after colons a type and a pool, as in 48x8:H100:reserved",
                code="invalid_nodes",
            )
        kind = canonical_accelerator(match[3]) if match[3] else "H100"
        found.append(Nodes(count=int(match[1]), devices=int(match[2]), accelerator=kind, pool=match[4] or "spot"))
    return Cluster(nodes=tuple(found))


def large_enough(works: list[Work]) -> Cluster:
    """As many nodes of eight as are asked for at a load of 0.95, or as the largest gang needs; a third of those that
    inference needs are reserved.
    """
    asked = load(works, NODE_DEVICES)
    most = max(work.devices for work in works)
    count = max(round(asked / LOAD), -(-most // NODE_DEVICES), 1)
    return Cluster(nodes=(Nodes(count=count, devices=NODE_DEVICES),))


def cluster_of(config: ClusterConfig) -> Cluster:
    """The nodes of a cluster file."""
    if not isinstance(config.ray, RayLocal):
        raise InvalidRequest(
            "the cluster file joins a Ray cluster, whose nodes it doesn't say: give them with --nodes", code="no_nodes"
        )
    counted: dict[tuple[int, str, str], int] = {}
    for node in config.ray.nodes:
        pool = "reserved" if node.pool == "reserved" else "spot"
        kind = (node.devices, canonical_accelerator(node.accelerator), pool)
        counted[kind] = counted.get(kind, 0) + 1
    return Cluster(
        nodes=tuple(
            Nodes(count=count, devices=devices, accelerator=name, pool=pool)
            for (devices, name, pool), count in counted.items()
        )
    )


def policies(words: list[str], *, numbers: Numbers | None = None) -> dict[str, Callable[[], Policy]]:
    """Policies by name: `fabric`, a peer's, `all`, or a cluster file by whose `scheduling:` the gate decides."""
    found: dict[str, Callable[[], Policy]] = {}
    for word in words:
        if word == "all":
            found |= {OURS: _gate(numbers), **PEERS}
        elif word == OURS:
            found[OURS] = _gate(numbers)
        elif word in PEERS:
            found[word] = PEERS[word]
        elif word.endswith((".yaml", ".yml")):
            found[Path(word).stem] = _gate(load_cluster(word).scheduling.policy)
        else:
            raise InvalidRequest(
                f"there is no policy {word!r}: choose of {OURS}, {', '.join(PEERS)}, all, or name a cluster file",
                code="unknown_policy",
            )
    return found


def tiers(word: str) -> tuple[int, ...]:
    """Percent of users in each tier, such as 60/30/10: Starter, Professional, Enterprise."""
    if not word:
        return ()
    parts = word.split("/")
    if not (1 <= len(parts) <= 3 and all(part.isdigit() for part in parts) and sum(map(int, parts)) == 100):  # noqa: PLR2004
        raise InvalidRequest(
            f"tiers {word!r}: write percent of users that add up to 100, Starter first, as in 60/30/10",
            code="invalid_tiers",
        )
    return tuple(map(int, parts))


def micros(word: str, *, what: str) -> int:
    """A duration such as 3600, 30s, 5min, 1h or 2d, in µs."""
    match = _DURATION.fullmatch(word.strip())
    if match is None:
        raise InvalidRequest(f"{what} {word!r}: write a duration such as 30s, 5min, 1h or 2d", code="invalid_duration")
    return round(float(match[1]) * _UNITS[match[2]] * MICROS_PER_S)


def _gate(numbers: Numbers | None) -> Callable[[], Policy]:
    return lambda: GatePolicy(numbers)
