"""Holds that clients keep themselves (an inference gateway's slices): credit control as in RFC 8506.

Every word of the client carries a `seq`, so it may say it again. A hold always has a validity, so none can leak.
"""

from typing import Final

from fabric.gate import refusals
from fabric.gate.core import Core
from fabric.gate.events import Authorize, ReleaseHold, SettleHold, UpdateHold
from fabric.gate.instructions import Accepted, Outcome
from fabric.ledger import Granted, Refused, Settled
from fabric.units import INT64_MAX, AccountId

OF_JOBS: Final = "#"
"""Marks the names of holds that the gate keeps for jobs: clients can neither make nor touch one."""
TTL_MAX_US: Final = 86_400_000_000
"""A hold lapses at the latest a day after it was last extended."""


def authorize(core: Core, event: Authorize) -> Outcome:
    if not 0 < event.ttl_us <= TTL_MAX_US:
        return _bad_ttl(event.ttl_us)
    if not event.hold_id or OF_JOBS in event.hold_id:
        return refusals.invalid(
            f"{event.hold_id!r} can't name a hold: it needs a name without {OF_JOBS!r}", code="invalid_hold_id"
        )
    if not 0 < event.amount_uhs <= INT64_MAX:
        return refusals.invalid(
            f"a hold is of more than 0 and at most {INT64_MAX} µHs, not {event.amount_uhs}", code="invalid_amount"
        )
    answer = core.book.authorize(
        event.account_id,
        hold_id=event.hold_id,
        amount_uhs=event.amount_uhs,
        use=event.use,
        now_us=core.now_us,
        expires_at_us=core.now_us + event.ttl_us,
        minimum_uhs=event.minimum_uhs,
    )
    if isinstance(answer, Granted):
        return Accepted(granted_uhs=answer.granted_uhs, held_uhs=answer.held_uhs, final=answer.final)
    return refusals.from_ledger(answer, remedy="the amount")


def update(core: Core, event: UpdateHold) -> Outcome:
    if event.ttl_us is not None and not 0 < event.ttl_us <= TTL_MAX_US:
        return _bad_ttl(event.ttl_us)
    if not _owns(core, event.account_id, event.hold_id):
        return refusals.not_found("hold", event.hold_id)
    answer = core.book.update(
        event.hold_id,
        seq=event.seq,
        used_uhs=event.used_uhs,
        more_uhs=event.more_uhs,
        now_us=core.now_us,
        expires_at_us=None if event.ttl_us is None else core.now_us + event.ttl_us,
    )
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer)
    return Accepted(granted_uhs=answer.granted_uhs, held_uhs=answer.held_uhs, final=answer.final)


def settle(core: Core, event: SettleHold) -> Outcome:
    if not _owns(core, event.account_id, event.hold_id):
        return refusals.not_found("hold", event.hold_id)
    answer = core.book.settle(event.hold_id, seq=event.seq, used_uhs=event.used_uhs, now_us=core.now_us)
    return _ended(answer)


def release(core: Core, event: ReleaseHold) -> Outcome:
    if not _owns(core, event.account_id, event.hold_id):
        return refusals.not_found("hold", event.hold_id)
    return _ended(core.book.release(event.hold_id, seq=event.seq, now_us=core.now_us))


def _ended(answer: Settled | Refused) -> Outcome:
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer)
    return Accepted(
        facts={
            "captured_uhs": answer.captured_uhs,
            "released_uhs": answer.released_uhs,
            "debt_uhs": answer.debt_uhs,
            "over_hold": answer.over_hold,
            "late": answer.late,
        }
    )


def _owns(core: Core, account_id: AccountId, hold_id: str) -> bool:
    """A client's hold of this account. Another tenant's, and those the gate keeps for jobs, don't exist for it."""
    book = core.book
    hold = book.holds.get(hold_id) or book.lapsed.get(hold_id) or book.ended.get(hold_id)
    return hold is not None and hold.account_id == account_id and OF_JOBS not in hold_id


def _bad_ttl(ttl_us: int) -> Outcome:
    return refusals.invalid(
        f"a hold is valid for more than 0 and at most {TTL_MAX_US} µs, not {ttl_us}", code="invalid_ttl", ttl_us=ttl_us
    )
