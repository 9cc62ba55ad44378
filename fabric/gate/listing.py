"""Which jobs a question means: newest first, by what it says of them, from one page's end to the next."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice

from fabric.gate import keys
from fabric.gate.core import Core
from fabric.gate.questions import JobsOf
from fabric.gate.state import Job


def jobs(core: Core, question: JobsOf) -> list[Job]:
    """At most as many as it wants."""
    account_id = question.account_id
    known = list(core.state.jobs.values()) if account_id is None else core.jobs_of.get(account_id, [])
    found = (job for job in _newest(core, known, question) if _is_meant(core, job, question))
    return list(islice(found, max(question.limit, 0)))


def _newest(core: Core, known: Sequence[Job], question: JobsOf) -> Iterator[Job]:
    """From the newest of the times that are meant to the oldest. Jobs are kept in the order of their submission."""
    after = core.state.jobs.get(question.after) if question.after is not None else None
    end = len(known)
    if question.until_us is not None:
        end = bisect_left(known, question.until_us, key=_submitted)
    if after is not None:
        end = min(end, _place(known, after))
    for at in range(end - 1, -1, -1):
        if known[at].submitted_at_us < question.from_us:
            return
        yield known[at]


def _place(known: Sequence[Job], job: Job) -> int:
    """Where it is among them, or where those begin that were submitted with or after it."""
    first = bisect_left(known, job.submitted_at_us, key=_submitted)
    for at in range(first, len(known)):
        if known[at].submitted_at_us > job.submitted_at_us:
            break
        if known[at].job_id == job.job_id:
            return at
    return first


def _is_meant(core: Core, job: Job, question: JobsOf) -> bool:
    return (
        (not question.states or job.state.value in question.states)
        and question.key_id in (None, job.key_id)
        and not (question.of_operators and not keys.is_operators(core, job.key_id))
        and job.job_id.startswith(question.beginning)
        and _is_named(job.spec.name, question.name)
        and all(tag in job.spec.tags for tag in question.tags)
    )


def _is_named(name: str, wanted: str) -> bool:
    return not wanted or (name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted)


def _submitted(job: Job) -> int:
    return job.submitted_at_us
