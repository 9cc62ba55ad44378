"""How often a job is tried again: never for ever, if it gets nowhere."""

from typing import Final

from fabric.gate.state import Job

LOSSES_IN_A_ROW: Final = 5
"""How often an attempt may be lost before it started, or end by itself where the last one did, until the job has failed."""


def gets_on(job: Job) -> bool:
    """Whether a job that asks to be queued anew is worth it: it has got farther, or has not tried too often."""
    farther = job.saved_step > job.again_step
    job.again_step = max(job.again_step, job.saved_step)
    job.again_in_a_row = 0 if farther else job.again_in_a_row + 1
    return job.again_in_a_row < LOSSES_IN_A_ROW
