"""What a runner says, made fit for the journal: the process is its tenant's own, and its words are kept for ever.

A word that the journal could not read again would keep the gate from ever starting anew, for everybody. So a number is
one of 64 bits, a text has an encoding and an end, and a result is where this job's result may be. And nobody is a witness
in his own case: that the platform has lost a job, so that it owes a refund, the process of that job can't say. It is no
defence against code that wants to harm the cluster it runs in; it is one against everything short of that.
"""

from typing import Final

import msgspec

from fabric.gate.events import LeaseOutcome
from fabric.gate.instructions import Lease
from fabric.storage.layout import result_key
from fabric.storage.results import JOURNALED_BYTES_MAX, inline_result
from fabric.units import INT32_MAX, INT64_MAX
from fabric.worker.stage import JobEnd

ERROR_CHARS_MAX: Final = 8_000


def end_of(said: object, *, lease: Lease, asked: bool = False) -> JobEnd:
    """How a rank ended, as far as what it says makes sense.

    Args:
        said: what its process says.
        lease: the attempt.
        asked: whether the platform had asked it to leave. Then an end without result or checkpoint is the platform's doing.
    """
    try:
        end = msgspec.convert(msgspec.to_builtins(said, builtin_types=(bytes,)), JobEnd)
    except (TypeError, ValueError, RecursionError):
        return JobEnd(outcome=LeaseOutcome.FAILED, error="worker_died: what it said of its end makes no sense")
    outcome, error = end.outcome, end.error
    if outcome is LeaseOutcome.LOST:
        outcome, error = LeaseOutcome.FAILED, f"its process says that it was lost, which nobody saw: {error}"
    if outcome is LeaseOutcome.INTERRUPTED and asked:
        outcome = LeaseOutcome.LOST
    return msgspec.structs.replace(
        end,
        outcome=outcome,
        error=text(error),
        result_ref=end.result_ref if _is_result_of(lease, end.result_ref) else "",
        step=end.step if is_number(end.step) else 0,
        exit_code=end.exit_code if is_number(end.exit_code, most=INT32_MAX) else None,
    )


def is_number(said: object, *, most: int = INT64_MAX) -> bool:
    """Whether it is a count that every reader of the journal can read, and that fits where it is shown."""
    return type(said) is int and 0 <= said <= most


def text(said: str) -> str:
    """The end of a text, with marks in the place of what has no encoding."""
    return said[-ERROR_CHARS_MAX:].encode(errors="replace").decode()


def _is_result_of(lease: Lease, result_ref: str) -> bool:
    if result_ref in ("", result_key(lease.account_id, lease.job_id)):
        return True
    try:
        found = inline_result(result_ref)
    except ValueError:
        return False
    return found is not None and len(found) <= JOURNALED_BYTES_MAX
