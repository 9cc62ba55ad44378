"""Open usage: calls that were used and could not be charged. Kept here until an operator settles them or writes them off.

A meter reports calls by the hold that pays for them. What the gate refuses there for what it says (no rate, counts that
can't be) the meter has kept here instead, one call at a time, so that no refusal is the end of what was used.
"""

from typing import Final

from fabric.gate import calls, keys, packages, prices_then, refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.serving_events import KeepUsage, SettleUsage, WriteOffUsage
from fabric.gate.state import OpenUsage
from fabric.ledger import Refused
from fabric.ledger.holds import Hold
from fabric.units import AccountId

OPEN_MAX: Final = 10_000
"""Beyond so many open calls, meters keep theirs."""
TEXT_MAX: Final = 500


def decide(core: Core, event: KeepUsage | SettleUsage | WriteOffUsage) -> Outcome:
    """Keep a call as open, or close one."""
    match event:
        case KeepUsage():
            return keep(core, event)
        case SettleUsage():
            return settle(core, event)
        case WriteOffUsage():
            return write_off(core, event)


def keep(core: Core, event: KeepUsage) -> Outcome:
    """Keep a call as open. Said again, or of a call that was charged, it changes nothing."""
    known_as = _known_as(event.account_id, event.call.call_id)
    if known_as in core.state.open_usage or calls.was_charged(core, event.account_id, event.call):
        return Accepted()
    if len(core.state.open_usage) >= OPEN_MAX:
        return refusals.unavailable(
            f"{OPEN_MAX} calls are open already: an operator settles them (`fabric ops usage`)",
            code="too_much_open_usage",
        )
    core.state.open_usage[known_as] = OpenUsage(
        account_id=event.account_id,
        hold_id=event.hold_id,
        call=event.call,
        code=event.code[:TEXT_MAX],
        reason=event.reason[:TEXT_MAX],
        kept_at_us=core.now_us,
    )
    return Accepted()


def settle(core: Core, event: SettleUsage) -> Outcome:
    """Charge it by the rates there are now; refused as long as it can't be rated."""
    found = _find(core, event.account_id, event.call_id)
    if isinstance(found, Refusal):
        return found
    return _close(core, found, bears="customer")


def write_off(core: Core, event: WriteOffUsage) -> Outcome:
    """Close it at the operator's cost; a call that can't be rated costs nothing that could be booked."""
    found = _find(core, event.account_id, event.call_id)
    if isinstance(found, Refusal):
        return found
    outcome = _close(core, found, bears="operator")
    if isinstance(outcome, Refusal):
        calls.close_unrated(core, found.account_id, found.call)
        del core.state.open_usage[_known_as(found.account_id, found.call.call_id)]
        return Accepted(facts={"captured_uhs": 0, "written_off_uhs": 0})
    return outcome


def _close(core: Core, found: OpenUsage, *, bears: str) -> Outcome:
    account_id = found.account_id
    if account_id not in core.state.accounts:
        return refusals.not_found("account", account_id)
    there = packages.there(core, _own(core, account_id, found.hold_id)) if bears == "customer" else {}
    billed = calls.bill(core, (found.call,), account_id=account_id, hold_id=found.hold_id, kept=True, there=there)
    if isinstance(billed, Refusal):
        return billed
    booked = charge(core, billed, account_id=account_id, hold_id=found.hold_id, bears=bears)
    if not isinstance(booked, Refusal):
        core.state.open_usage.pop(_known_as(account_id, found.call.call_id), None)
    return booked


def charge(
    core: Core, billed: calls.Bill, *, account_id: AccountId, hold_id: str, bears: str = "customer"
) -> Accepted | Refusal:
    """Book calls of a hold that is over: from what is free, or written off where no hold of that name is known any more.

    Args:
        core: whose books.
        billed: what the calls come to.
        account_id: whose calls.
        hold_id: what was to pay for them.
        bears: "operator" writes all of it off.
    """
    book, amount_uhs = core.book, billed.charged_uhs
    hold = _own(core, account_id, hold_id)
    shares: packages.Shares = {}
    if bears == "customer" and hold is not None:
        held_uhs, owed_uhs = hold.held_uhs, book.accounts[account_id].debt_uhs
        answer = book.charge_late(hold_id, used_uhs=amount_uhs, now_us=core.now_us)
        if isinstance(answer, Refused):
            return refusals.from_ledger(answer)
        uses = prices_then.uses_of(billed.records, beside_uhs=0, now_us=core.now_us)
        prices_then.note_debt(core, account_id, uses, owed_uhs=owed_uhs, lost_uhs=answer.written_off_uhs)
        shares = packages.charge_late(core, hold, used=billed.units)
        keys.holds(core, hold.key_id, hold.held_uhs - held_uhs)
        captured_uhs, lost_uhs = answer.captured_uhs, answer.written_off_uhs
    else:
        refused = book.write_off(account_id, ref=hold_id, amount_uhs=amount_uhs, now_us=core.now_us)
        if refused is not None:
            return refusals.from_ledger(refused)
        captured_uhs, lost_uhs = 0, amount_uhs
    if refusal := write_off_too_late(core, billed, account_id=account_id, hold_id=hold_id):
        return refusal
    calls.book(core, billed, lost_uhs=lost_uhs, shares=shares)
    lost_uhs += billed.too_late_uhs
    return Accepted(facts={"captured_uhs": captured_uhs, "written_off_uhs": lost_uhs, "late": True})


def _own(core: Core, account_id: AccountId, hold_id: str) -> Hold | None:
    hold = core.book.hold(hold_id)
    return hold if hold is not None and hold.account_id == account_id else None


def write_off_too_late(core: Core, billed: calls.Bill, *, account_id: AccountId, hold_id: str) -> Refusal | None:
    """Book at the operator's cost what was reported after anybody could tell whether it had been charged."""
    amount_uhs = billed.too_late_uhs
    refused = core.book.write_off(
        account_id, ref=hold_id, amount_uhs=amount_uhs, now_us=core.now_us, flags=("late", "forgotten")
    )
    return None if refused is None else refusals.from_ledger(refused)


def _find(core: Core, account_id: AccountId, call_id: str) -> OpenUsage | Refusal:
    found = core.state.open_usage.get(_known_as(account_id, call_id))
    return refusals.not_found("open call", call_id) if found is None else found


def _known_as(account_id: AccountId, call_id: str) -> str:
    return f"{account_id}/{call_id}"
