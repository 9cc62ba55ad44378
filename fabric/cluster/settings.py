"""What the Ray side can be told, and what it answers."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir

import msgspec

from fabric.enforcement.unleased import Unleased
from fabric.node.meters import MeterKind
from fabric.storage.quota import ArchiveLimits
from fabric.system.disk_watch import DiskLimits
from fabric.system.processes import FABRIC_VARIABLE, LEASE_VARIABLE
from fabric.worker.strays import fabric_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How the cluster is watched and how leases are kept."""

    namespace: str = "fabric"
    """Ray's namespace for runners and agents."""
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """From which the secrets of runners and agents come: with another one, those that run are not found again."""
    own_cluster: bool = False
    """Whether the Ray cluster is the fabric's own: nobody else's work is on it, nor anything that Ray installs or starts for
    others."""
    meter: MeterKind = "auto"
    """What the node agents read; auto = what the machine has, the CPU stand-in last."""
    tick_s: float = 1.0
    """How often meters are read."""
    watch_s: float = 1.0
    """How often nodes are looked at."""
    reconcile_s: float = 0.5
    """How often unleased use is looked for, which must be found within 2 s; 0 = only when asked."""
    warm_s: float = 30.0
    """How long a released placement group is kept for the next lease of its shape; 0 = not at all."""
    start_timeout_s: float = 120.0
    """How long building a lease may take before it counts as lost."""
    cpus_per_share: float = 2.0
    """Logical CPUs of a bundle: how many CPU-only tasks a job may run beside its devices."""
    work_dir: Path = Path(gettempdir()) / "fabric-work"
    """Where, on every node, logs and working directories live while a job runs; a fabric's own."""
    stage_dir: Path | None = None
    """Where, on every node, checkpoints are staged before they are sent to the archive: memory or NVMe. None = nowhere."""
    cache_bytes: int = 64 * 2**30
    """The most that a node keeps of what the jobs of one account read."""
    limits: ArchiveLimits = field(default_factory=ArchiveLimits)
    """How much an account's jobs may keep in the archive."""
    disk: DiskLimits = field(default_factory=DiskLimits)
    """What one attempt may have on one node's disk."""
    metrics: bool = True

    @property
    def fabric_id(self) -> str:
        """By what this fabric's marks are told from another's."""
        return fabric_id(self.key, self.namespace)

    def marks(self, of: str) -> dict[str, str]:
        """What the environment of a lease's or a runner's processes begins with."""
        return {LEASE_VARIABLE: of, FABRIC_VARIABLE: self.fabric_id}


class ReconcileReport(msgspec.Struct, frozen=True, kw_only=True):
    """What Ray ran, compared with what is leased."""

    reattached: tuple[str, ...] = ()
    """Leases found running that this process did not start: watched again from now on."""
    gone: tuple[str, ...] = ()
    """Leases of which nothing runs any more: reported as lost."""
    unleased: tuple[Unleased, ...] = ()


class BundleInfo(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    node_id: str
    devices: int
    resources: dict[str, float]


class LeaseInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs to schedule its own Ray tasks into its lease. Kept in the archive by `lease_info_key`."""

    lease_id: str
    placement_group_id: str
    """Ray's id, in hexadecimal."""
    namespace: str
    bundles: tuple[BundleInfo, ...]
    env_vars: dict[str, str]
    """To go into the tasks' runtime_env: how the meters find the lease's processes."""
