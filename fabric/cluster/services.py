"""What every lease works with: one of each, shared by all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.cluster.agents import Agents
from fabric.cluster.free_waits import FreeWaits
from fabric.cluster.placement_groups import Groups
from fabric.cluster.progress import Newest
from fabric.cluster.reports import Reports
from fabric.cluster.settings import ClusterSettings
from fabric.inventory.control_store import ControlStore
from fabric.inventory.nodes import Node
from fabric.storage.archive import Archive
from fabric.units import NodeId


@dataclass(frozen=True, slots=True)
class Services:
    """The nodes as they are now, and what is shared to build, watch and remove leases on them."""

    nodes: Mapping[NodeId, Node]
    groups: Groups
    agents: Agents
    outbox: Reports
    archive: Archive
    settings: ClusterSettings
    gone: set[str]
    """Ray's ids of nodes that were seen to be gone."""
    control: ControlStore = field(default_factory=ControlStore)
    progress: Newest = field(default_factory=Newest)
    free_waits: FreeWaits = field(default_factory=FreeWaits)
