"""What every lease works with: one of each, shared by all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.adapters.agents import Agents
from fabric.adapters.archive import Archive
from fabric.adapters.cluster_settings import ClusterSettings
from fabric.adapters.control_store import ControlStore
from fabric.adapters.free_waits import FreeWaits
from fabric.adapters.groups import Groups
from fabric.adapters.newest import Newest
from fabric.adapters.nodes import Node
from fabric.adapters.outbox import Outbox
from fabric.units import NodeId


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The nodes as they are now, and what is shared to build, watch and remove leases on them."""

    nodes: Mapping[NodeId, Node]
    groups: Groups
    agents: Agents
    outbox: Outbox
    archive: Archive
    settings: ClusterSettings
    gone: set[str]
    """Ray's ids of nodes that were seen to be gone."""
    control: ControlStore = field(default_factory=ControlStore)
    progress: Newest = field(default_factory=Newest)
    free_waits: FreeWaits = field(default_factory=FreeWaits)
