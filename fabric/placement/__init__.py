"""Which job runs where, and which gives way: pure, integers only, time as a parameter.

`Planner` holds nodes and jobs in one `PlacementState` and says what can be done now. Knows nothing of tokens, prices, Ray
or the journal; usage is handed in, evictions are handed out.
"""

from fabric.placement.checks import NodeFree
from fabric.placement.decisions import Step
from fabric.placement.jobs import Evict, Placed, Request, Shares, Unplaceable
from fabric.placement.planner import Planner
from fabric.placement.quotas import Policy
from fabric.placement.state import Node, PlacementState

__all__ = [
    "Evict",
    "Node",
    "NodeFree",
    "Placed",
    "PlacementState",
    "Planner",
    "Policy",
    "Request",
    "Shares",
    "Step",
    "Unplaceable",
]
