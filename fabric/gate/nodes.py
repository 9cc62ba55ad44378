"""Nodes that join, leave and drain, and what that means for the leases on them."""

from typing import Final

from fabric.gate import leases, refusals, specs
from fabric.gate.core import Core
from fabric.gate.events import LeaseOutcome, NodeDown, NodeDrain, NodeHolds, NodeUp
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.lifecycle import StopReason
from fabric.gate.state import LeaseRecord
from fabric.placement import Node
from fabric.units import FRACTION_MAX, JobId

DEVICES_MAX: Final = 1024
"""More than any machine has: a typing error, not a node."""
DIVISION_CHARACTERS: Final = 63


def up(core: Core, event: NodeUp) -> Outcome:
    """A node is there. One that came back as something else has lost what ran on it."""
    if core.price_list is None:
        return refusals.not_configured()
    if refusal := _malformed(event):
        return refusal
    if event.accelerator not in core.prices.accelerators:
        return refusals.unknown_accelerator(event.accelerator, tuple(core.prices.accelerators))
    node = Node(
        node_id=event.node_id,
        accelerator=event.accelerator,
        devices=event.devices,
        pool=event.pool.value,
        dedicated_to=event.dedicated_to,
        notice_us=event.notice_us,
        units=event.units,
        fraction=event.fraction,
        division=event.division[:DIVISION_CHARACTERS],
    )
    for job_id in core.planner.add_node(node, now_us=core.now_us):
        _lose(core, job_id, event.node_id)
    core.replan = True
    return Accepted()


def _malformed(event: NodeUp) -> Refusal | None:
    if not 1 <= event.devices <= DEVICES_MAX or not event.node_id:
        return refusals.invalid(
            f"a node has a name and 1 to {DEVICES_MAX} devices; {event.node_id!r} has {event.devices}",
            code="invalid_devices",
            devices=event.devices,
        )
    if not 1 <= event.units <= FRACTION_MAX or (event.fraction is not None and event.units > 1):
        return refusals.invalid(
            f"a device has 1 to {FRACTION_MAX} units, and 1 where it is a part of one itself; those of {event.node_id!r} have"
            f" {event.units}",
            code="invalid_fraction",
            units=event.units,
        )
    if event.notice_us is not None and event.notice_us < 0:
        return refusals.invalid(f"a notice is 0 µs or more, not {event.notice_us}", code="invalid_notice")
    return None if event.fraction is None else specs.bad_fraction(event.fraction)


def down(core: Core, event: NodeDown) -> None:
    """The node is gone and everything on it."""
    core.state.holdings.pop(event.node_id, None)
    for job_id in core.planner.remove_node(event.node_id):
        _lose(core, job_id, event.node_id)
    core.replan = True


def drain(core: Core, event: NodeDrain) -> Outcome:
    """Nothing new on the node; who is there is asked to leave within the grace, or within its own if that is shorter; with a
    cordon nobody is asked.
    """
    if event.grace_us < 0:
        return refusals.invalid(f"a grace is 0 µs or more, not {event.grace_us}", code="invalid_grace")
    if event.undo:
        core.planner.undrain_node(event.node_id)
        core.replan = True
        return Accepted()
    if event.cordon:
        core.planner.cordon_node(event.node_id)
        core.replan = True
        return Accepted()
    reason = StopReason.FABRIC_DOWN if event.closing else StopReason.DRAINED
    for job_id in core.planner.drain_node(event.node_id):
        if record := _record_of(core, job_id):
            leases.stop(core, record, reason, grace_us=event.grace_us)
    core.replan = True
    return Accepted()


def holds(core: Core, event: NodeHolds) -> Outcome:
    """Remember what the node has. Who waits goes by what was known when it was queued."""
    if event.node_id not in {node.node_id for node in core.planner.nodes()}:
        return refusals.not_found("node", event.node_id)
    core.state.holdings[event.node_id] = event.holdings
    return Accepted()


def _lose(core: Core, job_id: JobId, node_id: str) -> None:
    record = _record_of(core, job_id)
    if record is not None and record.state != "removing":
        leases.finish(core, record, LeaseOutcome.LOST, error=f"node {node_id} was lost")


def _record_of(core: Core, job_id: JobId) -> LeaseRecord | None:
    job = core.state.jobs[job_id]
    return core.state.leases.get(job.lease_id) if job.lease_id else None
