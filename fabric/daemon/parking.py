"""What runs is asked to save before a fabric's own cluster ends under it.

Every node is drained, as an operator drains one: each job gets its grace to checkpoint, leaves its devices and stands in
line, to go on when the fabric is up again. Knows the gate by its port; knows neither Ray nor processes.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from fabric.api.gate_port import GatePort
from fabric.gate.events import JobSpec, NodeDrain
from fabric.gate.questions import LeasesOf, NodesOf, SpecOf
from fabric.gate.views import LeaseView
from fabric.units import JobId

POLL_S: Final = 0.1
CLEARING_S: Final = 10.0
"""Beyond the longest grace: for the last meter readings, and for what ignores the deadline to be removed."""
ANSWER_S: Final = 30.0
"""A gate that is silent for so long is ended as it is: the journal has everything."""
_US_PER_S: Final = 1_000_000
_NO_BOUND_US: Final = 2**53


async def park(port: GatePort, *, told: Callable[[int, float], None], pause_s: float = POLL_S) -> int:
    """Ask all that runs to save and leave; wait until it has, or until the longest grace is over.

    Args:
        port: the gate.
        told: how many leases are left, and for how many seconds at most they are waited for; at each change.
        pause_s: between two looks.

    Returns:
        how many are left.

    Raises:
        TimeoutError: the gate doesn't answer.
    """
    left = await _leases(port)
    if not left:
        return 0
    wait_s = max([await _grace_s(port, JobId(lease.job_id)) for lease in left]) + CLEARING_S
    deadline = time.monotonic() + wait_s
    told(len(left), wait_s)
    nodes: Any = await asyncio.wait_for(port.ask(NodesOf()), ANSWER_S)
    drains = [NodeDrain(node_id=node.node_id, grace_us=_NO_BOUND_US, closing=True) for node in nodes]
    await asyncio.wait_for(port.decide(drains), ANSWER_S)
    count = len(left)
    while (left := await _leases(port)) and time.monotonic() < deadline:
        if len(left) != count:
            count = len(left)
            told(count, deadline - time.monotonic())
        await asyncio.sleep(pause_s)
    return len(left)


async def _leases(port: GatePort) -> list[LeaseView]:
    found: Any = await asyncio.wait_for(port.ask(LeasesOf()), ANSWER_S)
    return list(found)


async def _grace_s(port: GatePort, job_id: JobId) -> float:
    """What the job may take; the gate holds it to that, or to less."""
    spec = await asyncio.wait_for(port.ask(SpecOf(job_id=job_id)), ANSWER_S)
    return spec.grace_us / _US_PER_S if isinstance(spec, JobSpec) else 0.0
