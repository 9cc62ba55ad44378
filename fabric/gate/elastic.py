"""Elastic gangs that grow back: with more devices where some are idle and nobody waits, if that is worth a start.

Another size is another attempt: the job saves, leaves, and begins anew with what there is then, at the step after its last
save. That costs a save and a restore on all its devices, so it is asked only when a checkpoint has just become durable, not
before the gang has run for as long as nobody is evicted, and where what the further devices would do in as long again as it
has run by now is many times what it costs. How a gang shrinks: it is evicted like others, and takes what there is.
"""

from typing import Final

from fabric.gate import grace
from fabric.gate.core import Core
from fabric.gate.state import Job, LeaseRecord

WORTH: Final = 8
"""So many times what a start costs the further devices must bring."""


def should_grow(core: Core, job: Job, record: LeaseRecord) -> bool:
    """Whether the gang, which has just saved, is to begin anew with more devices."""
    has, spec = record.lease.devices, job.spec
    if spec.devices_least is None or record.state != "running" or record.started_at_us is None or has >= spec.devices:
        return False
    stayed_us = core.now_us - record.started_at_us
    needed_us = grace.needed_us(job.saves_us) or 0
    if stayed_us < core.state.placement.policy.run_us_min or needed_us > spec.grace_us:
        return False
    more = core.planner.could_grow(job.job_id)
    remaining_us = job.ran_us + stayed_us
    if spec.time_limit_us is not None:
        remaining_us = min(remaining_us, spec.time_limit_us - remaining_us)
    costs_us = needed_us + max(job.restore_us, needed_us)
    return more * remaining_us >= WORTH * (has + more) * costs_us and more > 0
