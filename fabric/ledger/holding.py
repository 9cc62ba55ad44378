"""Holding: tokens are set aside, captured, given back and let go.

These are the moves as the gate makes them for a job, which answers for its own hold: no client, no sequence numbers.
Every one first brings the book up to `now_us`, so holds lapse and lots expire at their time whether or not anybody sweeps.
"""

from typing import Final

from fabric.ledger import sweeping, vault
from fabric.ledger.accounts import Account, Priced
from fabric.ledger.balances import barred_uhs, free_uhs
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.outcomes import (
    BEYOND_INT64,
    HOLD_EXISTS,
    INSUFFICIENT_TOKENS,
    INVALID_AMOUNT,
    UNKNOWN_ACCOUNT,
    Granted,
    Refused,
)
from fabric.ledger.own_holds import OWN
from fabric.ledger.scopes import Use
from fabric.ledger.state import Ledger
from fabric.units import INT64_MAX

_NOTHING: Final = Granted(0, 0, False)  # noqa: FBT003


def authorize(
    ledger: Ledger,
    account_id: str,
    *,
    hold_id: str,
    amount_uhs: int,
    use: Use,
    now_us: int,
    expires_at_us: int | None,
    minimum_uhs: int | None = None,
    ceiling_uhs: int | None = None,
    key_id: str = "",
    beside: bool = False,
) -> Granted | Refused:
    """Set tokens aside for `use`, in burn order, lots first and then credit.

    Args:
        ledger: what is changed.
        account_id: who pays.
        hold_id: never used before.
        amount_uhs: how much is wanted, more than 0.
        use: what for: only lots whose scope admits it are taken from.
        now_us: when.
        expires_at_us: when the hold lapses by itself; None = never, somebody answers for closing it.
        minimum_uhs: be content with less, but not with less than this; None = all or nothing.
        ceiling_uhs: hold at most so much, whatever is asked for and free: then it is final.
        key_id: remembered with the hold.
        beside: it stands beside one in a package, so it may hold nothing: where `minimum_uhs` is 0 it isn't refused.
    """
    heap = ledger.deadlines.heap
    if heap and heap[0][0] <= now_us:
        sweeping.catch_up(ledger, now_us)
    account = ledger.accounts.get(account_id)
    if account is None:
        return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
    if amount_uhs < (0 if beside else 1):
        return Refused(INVALID_AMOUNT, {"amount_uhs": amount_uhs})
    if hold_id in ledger.holds or hold_id in ledger.ended or hold_id in ledger.lapsed or hold_id in ledger.expired:
        return Refused(HOLD_EXISTS, {"hold_id": hold_id})
    hold = Hold(
        hold_id=hold_id,
        account_id=account_id,
        use=use,
        opened_at_us=now_us,
        expires_at_us=expires_at_us if expires_at_us is None or expires_at_us > now_us else now_us,
        pieces=[],
        held_uhs=0,
        answer=_NOTHING,
        key_id=key_id,
    )
    asked_uhs = amount_uhs if ceiling_uhs is None else min(amount_uhs, ceiling_uhs)
    hold_some = _hold_or_nothing if beside else hold_more
    answer = hold_some(ledger, account, hold, amount_uhs=asked_uhs, minimum_uhs=minimum_uhs, now_us=now_us)
    if isinstance(answer, Granted):
        if asked_uhs < amount_uhs:
            answer = Granted(answer.granted_uhs, answer.held_uhs, True)  # noqa: FBT003
        hold.answer = answer
        ledger.holds[hold_id] = hold
        if hold_id.startswith(OWN):
            ledger.own.began(hold)
        if expires_at_us is not None:
            ledger.deadlines.watch_hold(hold)
    return answer


def capture(ledger: Ledger, hold_id: str, *, amount_uhs: int, now_us: int, flags: tuple[str, ...] = ()) -> int:
    """Capture up to what is held; returns how much that was. The hold must be open."""
    sweeping.catch_up(ledger, now_us)
    hold = ledger.holds[hold_id]
    part = min(amount_uhs, hold.held_uhs)
    if part > 0:
        vault.capture(ledger, ledger.accounts[hold.account_id], hold, amount_uhs=part, now_us=now_us, flags=flags)
    return max(part, 0)


def extend(
    ledger: Ledger, hold_id: str, *, amount_uhs: int, now_us: int, minimum_uhs: int | None = None
) -> Granted | Refused:
    """Hold more, like `authorize`. The hold must be open."""
    sweeping.catch_up(ledger, now_us)
    hold = ledger.holds[hold_id]
    if amount_uhs <= 0:
        return Refused(INVALID_AMOUNT, {"amount_uhs": amount_uhs})
    account = ledger.accounts[hold.account_id]
    return hold_more(ledger, account, hold, amount_uhs=amount_uhs, minimum_uhs=minimum_uhs, now_us=now_us)


def refund(
    ledger: Ledger,
    hold_id: str,
    *,
    amount_uhs: int,
    now_us: int,
    used_at: list[Priced] | None = None,
    todays: int = 0,
) -> int:
    """Take captures back into the open hold, last first, at most what it has captured; returns how much. What had become debt is
    taken off it at the prices of its use (`Account.take_back`), where these are known.
    """
    sweeping.catch_up(ledger, now_us)
    hold = ledger.holds[hold_id]
    part = min(amount_uhs, hold.captured_uhs)
    if part > 0:
        vault.uncapture(
            ledger,
            ledger.accounts[hold.account_id],
            hold,
            amount_uhs=part,
            now_us=now_us,
            used_at=[] if used_at is None else used_at,
            todays=todays,
        )
    return max(part, 0)


def wait(ledger: Ledger, hold_id: str, *, now_us: int) -> int:
    """Nothing runs on the open hold (any more): of lots that expire it holds anew what is good. How much less it holds."""
    sweeping.catch_up(ledger, now_us)
    hold = ledger.holds[hold_id]
    hold.waiting = True
    short = sweeping.hold_anew(ledger, hold, now_us=now_us)
    if short:
        ledger.just_shrunk.pop()
    return short


def note_waiting(ledger: Ledger, hold: Hold, *, now_us: int) -> None:
    """Nothing runs on the open hold: from the next event on, not before, it lets go of what it holds of expired lots."""
    hold.waiting = True
    sweeping.watch(ledger, hold)
    if hold.stale_at_us is not None and hold.stale_at_us < now_us:
        hold.stale_at_us = now_us
        ledger.deadlines.watch_hold(hold)


def run(ledger: Ledger, hold_id: str) -> None:
    """Something runs on the open hold: what it holds stays good until that ends."""
    hold = ledger.holds[hold_id]
    if not hold.waiting:
        return
    hold.waiting = False
    if hold.stale_at_us is not None:
        hold.stale_at_us = None
        if hold.expires_at_us is not None:
            ledger.deadlines.watch_hold(hold)


def close(ledger: Ledger, hold_id: str, *, now_us: int) -> int:
    """Free what is left and end the open hold; returns how much that was."""
    sweeping.catch_up(ledger, now_us)
    hold = ledger.holds[hold_id]
    freed = vault.set_free(ledger, ledger.accounts[hold.account_id], hold, now_us=now_us)
    vault.end(ledger, hold, state=HoldState.SETTLED, at_us=now_us)
    return freed


def _hold_or_nothing(
    ledger: Ledger, account: Account, hold: Hold, *, amount_uhs: int, minimum_uhs: int | None, now_us: int
) -> Granted | Refused:
    """As `hold_more`; but nothing is held where nothing is asked for, or may be."""
    if not amount_uhs:
        return _NOTHING
    answer = hold_more(ledger, account, hold, amount_uhs=amount_uhs, minimum_uhs=minimum_uhs, now_us=now_us)
    short = isinstance(answer, Refused) and answer.code == INSUFFICIENT_TOKENS and minimum_uhs == 0
    return Granted(0, 0, True) if short else answer  # noqa: FBT003


def hold_more(
    ledger: Ledger, account: Account, hold: Hold, *, amount_uhs: int, minimum_uhs: int | None, now_us: int
) -> Granted | Refused:
    if amount_uhs > INT64_MAX:
        return Refused(BEYOND_INT64, {"amount_uhs": amount_uhs, "limit_uhs": INT64_MAX})
    plan, missing = vault.planned(ledger, account, use=hold.use, amount_uhs=amount_uhs, now_us=now_us)
    credit = min(missing, account.credit_free_uhs) if missing and account.spending_for(hold.use).credit else 0
    missing -= credit
    granted = amount_uhs - missing
    if granted > INT64_MAX - ledger.tokens_uhs["held"]:
        return Refused(BEYOND_INT64, {"amount_uhs": amount_uhs, "limit_uhs": INT64_MAX})
    if not missing and not credit:
        vault.take(ledger, account, hold, plan=plan, credit_uhs=0, now_us=now_us)
        if hold.waiting:
            sweeping.watch(ledger, hold)
        return Granted(amount_uhs, hold.held_uhs, False)  # noqa: FBT003
    if missing and (minimum_uhs is None or granted < max(1, minimum_uhs)):
        needed = amount_uhs if minimum_uhs is None else minimum_uhs
        anywhere = free_uhs(ledger, account, now_us=now_us, use=None)
        barred = barred_uhs(ledger, account, now_us=now_us, use=hold.use)
        return Refused(
            INSUFFICIENT_TOKENS,
            {
                "needed_uhs": needed,
                "free_uhs": granted,
                "free_out_of_scope_uhs": anywhere - granted - barred,
                "short_uhs": needed - granted,
                **({"barred_uhs": barred} if barred else {}),
            },
        )
    flags = ("final",) if missing else ()
    vault.take(ledger, account, hold, plan=plan, credit_uhs=credit, now_us=now_us, flags=flags)
    if hold.waiting:
        sweeping.watch(ledger, hold)
    return Granted(granted, hold.held_uhs, missing > 0)
