"""What jobs of the same name have cost before: the estimate of one that is to come. From memory, and only of its account."""

from collections.abc import Sequence
from itertools import islice
from typing import Final

import msgspec

from fabric.gate.core import Core
from fabric.gate.lifecycle import JobState
from fabric.units import AccountId

_LOOKED_AT: Final = 10_000
"""Of the account's newest jobs: a quote is no reason to read through a year."""
_RUNS_MAX: Final = 100


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Of the newest runs that succeeded."""

    runs: int = 0
    burned_p50_uhs: int = 0
    burned_p90_uhs: int = 0
    took_p50_us: int = 0
    """From the submission to the end, waiting and evictions included."""
    took_p90_us: int = 0
    attempts_p90: int = 0


def of(core: Core, account_id: AccountId, name: str) -> History:
    """What is known; nothing of a name that never succeeded."""
    newest = islice(reversed(core.jobs_of.get(account_id, [])), _LOOKED_AT)
    same = (job for job in newest if job.spec.name == name)
    runs = list(islice((job for job in same if job.state is JobState.SUCCEEDED), _RUNS_MAX))
    if not runs:
        return History()
    burned = [job.burned_uhs for job in runs]
    took = [(job.ended_at_us or job.submitted_at_us) - job.submitted_at_us for job in runs]
    return History(
        runs=len(runs),
        burned_p50_uhs=_quantile(burned, 50),
        burned_p90_uhs=_quantile(burned, 90),
        took_p50_us=_quantile(took, 50),
        took_p90_us=_quantile(took, 90),
        attempts_p90=_quantile([job.attempts for job in runs], 90),
    )


def _quantile(values: Sequence[int], percent: int) -> int:
    """The least value that so many percent don't exceed."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]
