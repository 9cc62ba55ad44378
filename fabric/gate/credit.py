"""Holds that clients keep themselves (an inference gateway's slices): credit control as in RFC 8506.

Every word of the client carries a `seq`, so it may say it again. A hold always has a validity, and what it held is set
aside for a settlement window after that, so none can leak and none that was cut off finds its tokens spent. A gateway
reports the calls that were paid from its hold; what they cost is reckoned here, never there.
"""

from typing import Final

from fabric.gate import calls, keys, limits, packages, prices_then, refusals, standing, usage
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold, UpdateHold
from fabric.gate.views import RoomView
from fabric.ledger import Granted, Refused, Settled
from fabric.ledger.holds import Hold
from fabric.ledger.own_holds import OWN, STANDING_MAX
from fabric.units import AccountId, KeyId

OF_JOBS: Final = "#"
"""Marks the names of holds that the gate keeps for jobs: clients can neither make nor touch one."""
TTL_MAX_US: Final = 86_400_000_000
"""A hold lapses at the latest a day after it was last extended."""


def authorize(core: Core, event: Authorize) -> Outcome:
    if known := _malformed(event) or _asked_before(core, event) or _too_many(core, event):
        return known
    if refusal := standing.barred(core, event.account_id):
        return refusal
    within_uhs = _within_limits(core, event)
    if isinstance(within_uhs, Refusal):
        return within_uhs
    more = packages.more(
        core,
        event.account_id,
        use=event.use,
        wanted=event.wanted,
        amount_uhs=event.amount_uhs,
        minimum_uhs=event.amount_uhs if event.minimum_uhs is None else event.minimum_uhs,
        ceiling_uhs=within_uhs,
    )
    answer = core.book.authorize(
        event.account_id,
        hold_id=event.hold_id,
        amount_uhs=more.amount_uhs,
        use=event.use,
        now_us=core.now_us,
        expires_at_us=core.now_us + event.ttl_us,
        minimum_uhs=more.minimum_uhs if more.units else event.minimum_uhs,
        ceiling_uhs=within_uhs,
        key_id=event.key_id or "",
        beside=bool(more.units),
    )
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer, remedy="the amount")
    packages.authorize(core, event.hold_id, more.units)
    keys.holds(core, event.key_id or "", answer.granted_uhs)
    return Accepted(granted_uhs=answer.granted_uhs, held_uhs=answer.held_uhs, final=answer.final)


def update(core: Core, event: UpdateHold) -> Outcome:
    if event.ttl_us is not None and not 0 < event.ttl_us <= TTL_MAX_US:
        return _bad_ttl(event.ttl_us)
    if _is_over(core, event):
        outcome = _late(core, event)
        return Accepted(final=True) if isinstance(outcome, Accepted) else outcome
    hold = _own(core, event.account_id, event.hold_id)
    if hold is None:
        return refusals.not_found("hold", event.hold_id)
    billed = _bill(core, event, hold)
    if isinstance(billed, Refusal):
        return billed
    held_uhs, is_new, used_uhs = hold.held_uhs, event.seq > hold.seq, event.used_uhs + billed.charged_uhs
    ceiling_uhs = _ceiling(core, hold, used_uhs=used_uhs)
    more = packages.more(
        core,
        event.account_id,
        use=hold.use,
        wanted=event.wanted if is_new and ceiling_uhs != 0 else None,
        amount_uhs=event.more_uhs,
        minimum_uhs=event.minimum_uhs,
        ceiling_uhs=ceiling_uhs,
        used=billed.units,
        held=packages.held(core, hold),
    )
    owed_uhs = core.book.accounts[hold.account_id].debt_uhs
    answer = core.book.update(
        event.hold_id,
        seq=event.seq,
        used_uhs=used_uhs,
        more_uhs=more.amount_uhs,
        now_us=core.now_us,
        expires_at_us=None if event.ttl_us is None else core.now_us + event.ttl_us,
        minimum_uhs=more.minimum_uhs,
        ceiling_uhs=ceiling_uhs,
    )
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer)
    if is_new:
        lost_uhs = answer.written_off_uhs
        _price(core, event, billed, owed_uhs=owed_uhs, lost_uhs=lost_uhs)
        shares = packages.update(core, hold, seq=event.seq, used=billed.units, give=more.units)
        _note(
            core,
            hold,
            billed,
            used_uhs=event.used_uhs,
            held_uhs=hold.held_uhs - held_uhs,
            lost_uhs=lost_uhs,
            shares=shares,
        )
    return Accepted(granted_uhs=answer.granted_uhs, held_uhs=answer.held_uhs, final=answer.final)


def settle(core: Core, event: SettleHold) -> Outcome:
    if _is_over(core, event):
        return _late(core, event)
    hold = _own(core, event.account_id, event.hold_id)
    if hold is None:
        return refusals.not_found("hold", event.hold_id)
    billed = _bill(core, event, hold)
    if isinstance(billed, Refusal):
        return billed
    held_uhs, is_new = hold.held_uhs, event.seq > hold.seq
    used_uhs = event.used_uhs + billed.charged_uhs
    owed_uhs = core.book.accounts[hold.account_id].debt_uhs
    answer = core.book.settle(event.hold_id, seq=event.seq, used_uhs=used_uhs, now_us=core.now_us)
    if is_new and isinstance(answer, Settled):
        lost_uhs = answer.written_off_uhs
        _price(core, event, billed, owed_uhs=owed_uhs, lost_uhs=lost_uhs)
        shares = packages.end(core, hold, seq=event.seq, used=billed.units)
        _note(core, hold, billed, used_uhs=event.used_uhs, held_uhs=-held_uhs, lost_uhs=lost_uhs, shares=shares)
    return _ended(answer)


def release(core: Core, event: ReleaseHold) -> Outcome:
    hold = _own(core, event.account_id, event.hold_id)
    if hold is None:
        return refusals.not_found("hold", event.hold_id)
    held_uhs, is_new = hold.held_uhs, event.seq > hold.seq
    answer = core.book.release(event.hold_id, seq=event.seq, now_us=core.now_us)
    if is_new and isinstance(answer, Settled):
        packages.end(core, hold, seq=event.seq, used={})
        keys.holds(core, hold.key_id, -held_uhs)
    return _ended(answer)


def room(core: Core, account_id: AccountId, hold_id: str, now_us: int) -> RoomView:
    """What the hold could be given more: what is free for its use, within what the limit of its key leaves."""
    hold = _own(core, account_id, hold_id)
    if hold is None:
        return RoomView()
    within_uhs = _ceiling(core, hold, used_uhs=0, now_us=now_us)
    free = core.book.free(account_id, now_us=now_us, use=hold.use)
    beside = packages.room(core, hold, now_us)
    if within_uhs is None or free <= within_uhs:
        return RoomView(free_uhs=free, packages=beside)
    return RoomView(free_uhs=within_uhs, within_key=True, packages=beside)


def _malformed(event: Authorize) -> Refusal | None:
    if not 0 < event.ttl_us <= TTL_MAX_US:
        return _bad_ttl(event.ttl_us)
    if not event.hold_id or OF_JOBS in event.hold_id:
        return refusals.invalid(
            f"{event.hold_id!r} can't name a hold: it needs a name without {OF_JOBS!r}", code="invalid_hold_id"
        )
    return refusals.bad_amount("a hold is of", event.amount_uhs)


def _too_many(core: Core, event: Authorize) -> Refusal | None:
    """Why the customer can't keep one more hold of its own."""
    if not event.hold_id.startswith(OWN) or core.book.own_standing(event.account_id) < STANDING_MAX:
        return None
    return refusals.conflict(
        f"account {event.account_id} has {STANDING_MAX} holds that are neither settled nor released, which is all it may:"
        " settle some, or hold more with each",
        code="too_many_holds",
        limit=STANDING_MAX,
    )


def _asked_before(core: Core, event: Authorize) -> Accepted | None:
    """The answer again, for a hold of that name of which nothing more was said: one without a request id is known by it."""
    book = core.book
    hold = None if event.request_id else book.holds.get(event.hold_id) or book.lapsed.get(event.hold_id)
    if hold is None or hold.seq or not isinstance(hold.answer, Granted):
        return None
    if (hold.account_id, hold.use, hold.key_id) != (event.account_id, event.use, event.key_id or ""):
        return None
    granted_uhs = hold.answer.granted_uhs
    final = hold.answer.final if packages.held(core, hold) else granted_uhs < event.amount_uhs
    return Accepted(granted_uhs=granted_uhs, held_uhs=hold.answer.held_uhs, final=final)


def _within_limits(core: Core, event: Authorize) -> int | Refusal | None:
    """How much may be held for the key, if not less than the least that is of use; None = as much as there is."""
    if event.key_id is not None and (refusal := keys.no_models(core, event.key_id, account_id=event.account_id)):
        return refusal
    key_id = event.key_id or ""
    least_uhs = event.amount_uhs if event.minimum_uhs is None else max(1, event.minimum_uhs)
    found = limits.room(core, event.account_id, key_id, least_uhs=least_uhs, models=event.use.models)
    if found is None or event.amount_uhs <= found.left_uhs:
        return None if found is None else event.amount_uhs
    if found.left_uhs < least_uhs:
        return limits.refused(core, found, needed_uhs=least_uhs, key_id=key_id)
    return found.left_uhs


def _is_over(core: Core, event: UpdateHold | SettleHold) -> bool:
    """Whether calls are reported of a hold that has ended for good, or that nobody remembers: they were used all the same."""
    if not event.calls or event.used_uhs or event.hold_id in core.book.holds or OF_JOBS in event.hold_id:
        return False
    hold = core.book.hold(event.hold_id)
    if hold is None:
        return event.account_id in core.state.accounts
    return hold.account_id == event.account_id and event.hold_id in core.book.ended and event.seq > hold.seq


def _late(core: Core, event: UpdateHold | SettleHold) -> Accepted | Refusal:
    """Calls reported of a hold that is over."""
    hold = core.book.hold(event.hold_id)
    key_id = "" if hold is None else hold.key_id
    there = packages.there(core, hold)
    billed = calls.bill(
        core, event.calls, account_id=event.account_id, hold_id=event.hold_id, key_id=key_id, there=there
    )
    if isinstance(billed, Refusal):
        return billed
    return usage.charge(core, billed, account_id=event.account_id, hold_id=event.hold_id)


def _bill(core: Core, event: UpdateHold | SettleHold, hold: Hold) -> calls.Bill | Refusal:
    """What the calls of a new word come to; an old word is answered as it was, whatever it says."""
    if event.seq <= hold.seq:
        return calls.NOTHING
    there = packages.there(core, hold) if event.calls else {}
    return calls.bill(
        core, event.calls, account_id=event.account_id, hold_id=event.hold_id, key_id=hold.key_id, there=there
    )


def _ceiling(core: Core, hold: Hold, *, used_uhs: int, now_us: int | None = None) -> int | None:
    """What the limits of the hold's key and account leave for more, once what was used is booked. A key that counts no more has
    none to give.
    """
    account_id = AccountId(hold.account_id)
    if standing.barred(core, account_id):
        return 0
    key = core.state.keys.get(KeyId(hold.key_id)) if hold.key_id else None
    if key is not None and keys.unusable(core, key.key_id, account_id=account_id):
        return 0
    found = limits.room(core, account_id, hold.key_id, now_us=now_us, models=hold.use.models)
    return None if found is None else max(0, found.left_uhs - max(used_uhs - hold.held_uhs, 0))


def _price(core: Core, event: UpdateHold | SettleHold, billed: calls.Bill, *, owed_uhs: int, lost_uhs: int) -> None:
    """What a word told of costs what it cost when it was used."""
    if core.state.plan_prices:
        uses = prices_then.uses_of(billed.records, beside_uhs=event.used_uhs, now_us=core.now_us)
        prices_then.note_debt(core, event.account_id, uses, owed_uhs=owed_uhs, lost_uhs=lost_uhs)


def _note(
    core: Core,
    hold: Hold,
    billed: calls.Bill,
    *,
    used_uhs: int,
    held_uhs: int,
    lost_uhs: int,
    shares: packages.Shares,
) -> None:
    """What was booked counts against the keys: each call its own, the rest the hold's. What was written off does not."""
    if billed.too_late_uhs:
        usage.write_off_too_late(core, billed, account_id=AccountId(hold.account_id), hold_id=hold.hold_id)
    of_calls_uhs = min(lost_uhs, billed.charged_uhs)
    calls.book(core, billed, lost_uhs=of_calls_uhs, shares=shares)
    used_uhs -= lost_uhs - of_calls_uhs
    keys.spends(core, hold.key_id, account_id=AccountId(hold.account_id), amount_uhs=used_uhs)
    if used_uhs:
        now_us = core.now_us
        limits.count(core, AccountId(hold.account_id), hold.key_id, used_uhs, from_us=now_us, until_us=now_us)
    keys.holds(core, hold.key_id, held_uhs)


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
            "written_off_uhs": answer.written_off_uhs,
        }
    )


def _own(core: Core, account_id: AccountId, hold_id: str) -> Hold | None:
    """A client's hold of this account. Another tenant's, and those the gate keeps for jobs, don't exist for it."""
    hold = core.book.hold(hold_id)
    return hold if hold is not None and hold.account_id == account_id and OF_JOBS not in hold_id else None


def _bad_ttl(ttl_us: int) -> Refusal:
    return refusals.invalid(
        f"a hold is valid for more than 0 and at most {TTL_MAX_US} µs, not {ttl_us}", code="invalid_ttl", ttl_us=ttl_us
    )
