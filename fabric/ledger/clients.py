"""Holds that clients keep: words with sequence numbers, each heard once, and what they say was used.

Holds follow the credit control of RFC 8506: authorise, update, settle or release, each with `(hold_id, seq)`. What a client
says it used has happened and is always booked: from what is held, then from what is free, credit included; what nothing
covers the operator writes off, so that a customer never owes what no hold or credit had allowed. Unless nobody could have
used so much: then one account would leave no room in the totals for the others. A job's own hold has no client and no
seq: see `holding`.
"""

from typing import Final

from fabric.ledger import balances, holding, sweeping, vault
from fabric.ledger.accounts import Account
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.outcomes import (
    BEYOND_INT64,
    HOLD_ENDED,
    IMPLAUSIBLE_USAGE,
    INVALID_AMOUNT,
    STALE_SEQ,
    UNKNOWN_ACCOUNT,
    UNKNOWN_HOLD,
    Balance,
    Granted,
    Refused,
    Settled,
)
from fabric.ledger.scopes import Use
from fabric.ledger.state import Ledger
from fabric.units import INT64_MAX

WRITE_OFF_UHS_MAX: Final = 2**50
"""What clients' words can make the operator write off for one account: 312 000 tokens, one part in 8 000 of the totals."""


def update(
    ledger: Ledger,
    hold_id: str,
    *,
    seq: int,
    used_uhs: int,
    more_uhs: int,
    now_us: int,
    expires_at_us: int | None = None,
    minimum_uhs: int = 1,
    ceiling_uhs: int | None = None,
) -> Granted | Refused:
    """Capture what was used and hold more, in one step. Never refused for lack of tokens: what was used is booked,
    and `final` says that less than `more_uhs` was granted, be it nothing.

    Args:
        ledger: what is changed.
        hold_id: which.
        seq: counts the client's words up from 1, gaps allowed. The last one again gets its answer again.
        used_uhs: used since the last word; beyond what is held it is booked all the same, flagged over_hold.
            What was set aside for a hold that has lapsed still covers it, and a new validity opens such a hold again.
        more_uhs: how much to hold on top of what is left.
        now_us: when.
        expires_at_us: the new validity; None leaves it.
        minimum_uhs: take less than `more_uhs` if that is all there is, but nothing if it is less than this.
        ceiling_uhs: hold at most so much more, whatever is asked for and free.
    """
    sweeping.catch_up(ledger, now_us)
    hold = listen(ledger, hold_id, seq=seq, used_uhs=used_uhs, more_uhs=more_uhs, now_us=now_us)
    if not isinstance(hold, Hold):
        return hold if isinstance(hold, Granted | Refused) else Refused(STALE_SEQ, {"seq": seq, "last_seq": seq})
    account = ledger.accounts[hold.account_id]
    _, lost = book_usage(ledger, account, hold, used_uhs=used_uhs, now_us=now_us)
    if hold.state is HoldState.LAPSED and expires_at_us is not None:
        sweeping.revive(ledger, hold)
    if expires_at_us is not None and hold.state is HoldState.OPEN:
        sweeping.renew(ledger, hold, expires_at_us=expires_at_us, now_us=now_us)
    granted = 0
    asked = more_uhs if ceiling_uhs is None else min(more_uhs, ceiling_uhs)
    if asked > 0 and asked >= min(minimum_uhs, more_uhs) and hold.state is HoldState.OPEN:
        least = max(1, min(minimum_uhs, asked))
        more = holding.hold_more(ledger, account, hold, amount_uhs=asked, minimum_uhs=least, now_us=now_us)
        granted = more.granted_uhs if isinstance(more, Granted) else 0
    answer = Granted(granted, hold.held_uhs, granted < more_uhs or hold.state is not HoldState.OPEN, lost)
    hold.seq, hold.answer = seq, answer
    return answer


def settle(ledger: Ledger, hold_id: str, *, seq: int, used_uhs: int, now_us: int) -> Settled | Refused:
    """Capture what was used since the last word, free the rest, end the hold. Late is accepted."""
    return finish(ledger, hold_id, seq=seq, used_uhs=used_uhs, state=HoldState.SETTLED, now_us=now_us)


def release(ledger: Ledger, hold_id: str, *, seq: int, now_us: int) -> Settled | Refused:
    """Free all that is still held, end the hold."""
    return finish(ledger, hold_id, seq=seq, used_uhs=0, state=HoldState.RELEASED, now_us=now_us)


def charge_late(ledger: Ledger, hold_id: str, *, used_uhs: int, now_us: int) -> Settled | Refused:
    """Book use that no word of the hold's client told of, such as one that is heard of when the hold has ended.

    From what it holds, if it still does, then from what is free; the rest is written off. The hold must be known.
    """
    sweeping.catch_up(ledger, now_us)
    hold = ledger.hold(hold_id)
    assert hold is not None, f"there is no hold {hold_id}"
    if refused := unbelievable(ledger, hold, used_uhs=used_uhs, now_us=now_us):
        return refused
    late, over = hold.state is not HoldState.OPEN, used_uhs > hold.held_uhs
    debt, lost = book_usage(ledger, ledger.accounts[hold.account_id], hold, used_uhs=used_uhs, now_us=now_us)
    if hold_id in ledger.ended:
        hold.pieces = []
    return Settled(used_uhs - lost, 0, debt, over, late, lost)


def write_off(
    ledger: Ledger,
    account_id: str,
    *,
    ref: str,
    amount_uhs: int,
    now_us: int,
    flags: tuple[str, ...] = ("late", "no_hold"),
) -> Refused | None:
    """Book use that no hold is known for any more, or that may have been charged before: the operator bears it."""
    sweeping.catch_up(ledger, now_us)
    account = ledger.accounts.get(account_id)
    if account is None:
        return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
    limit_uhs = WRITE_OFF_UHS_MAX - account.written_off_uhs
    if amount_uhs > min(limit_uhs, INT64_MAX - ledger.tokens_uhs["redeemed"]):
        return Refused(IMPLAUSIBLE_USAGE, {"used_uhs": amount_uhs, "limit_uhs": limit_uhs})
    if amount_uhs > 0:
        vault.write_off(ledger, account, ref=ref, amount_uhs=amount_uhs, now_us=now_us, flags=flags)
    return None


def free(ledger: Ledger, account_id: str, *, now_us: int, use: Use | None = None) -> int:
    """What a hold for `use` could get now, credit included; 0 for an unknown account."""
    account = ledger.accounts.get(account_id)
    return 0 if account is None else balances.free_uhs(ledger, account, now_us=now_us, use=use)


def balance(ledger: Ledger, account_id: str, *, now_us: int) -> Balance | None:
    """An account as of now; None if there is none."""
    account = ledger.accounts.get(account_id)
    return None if account is None else balances.balance(ledger, account, now_us=now_us)


def listen(
    ledger: Ledger, hold_id: str, *, seq: int, used_uhs: int, more_uhs: int, now_us: int
) -> Hold | Granted | Settled | Refused:
    """The hold that a client's new word is about; or the answer to an old word, or to a bad one."""
    hold = ledger.hold(hold_id)
    if hold is None:
        return Refused(UNKNOWN_HOLD, {"hold_id": hold_id})
    if seq <= hold.seq:
        return hold.answer if seq == hold.seq else Refused(STALE_SEQ, {"seq": seq, "last_seq": hold.seq})
    if hold_id in ledger.ended:
        return Refused(HOLD_ENDED, {"hold_id": hold_id, "state": hold.state.value})
    if used_uhs < 0 or more_uhs < 0:
        return Refused(INVALID_AMOUNT, {"used_uhs": used_uhs, "more_uhs": more_uhs})
    return unbelievable(ledger, hold, used_uhs=used_uhs, now_us=now_us) or hold


def unbelievable(ledger: Ledger, hold: Hold, *, used_uhs: int, now_us: int) -> Refused | None:
    if used_uhs > INT64_MAX - ledger.tokens_uhs["redeemed"]:
        return Refused(BEYOND_INT64, {"used_uhs": used_uhs, "limit_uhs": INT64_MAX})
    limit_uhs = plausible_uhs(ledger, hold, used_uhs=used_uhs, now_us=now_us)
    if used_uhs > limit_uhs:
        return Refused(IMPLAUSIBLE_USAGE, {"used_uhs": used_uhs, "limit_uhs": limit_uhs})
    return None


def plausible_uhs(ledger: Ledger, hold: Hold, *, used_uhs: int, now_us: int) -> int:
    """What a client's word about this hold is believed up to: all that is held and free, and a large loss."""
    account = ledger.accounts[hold.account_id]
    limit_uhs = hold.held_uhs + max(0, WRITE_OFF_UHS_MAX - account.written_off_uhs)
    return (
        limit_uhs
        if used_uhs <= limit_uhs
        else limit_uhs + balances.free_uhs(ledger, account, now_us=now_us, use=hold.use)
    )


def finish(
    ledger: Ledger, hold_id: str, *, seq: int, used_uhs: int, state: HoldState, now_us: int
) -> Settled | Refused:
    sweeping.catch_up(ledger, now_us)
    hold = listen(ledger, hold_id, seq=seq, used_uhs=used_uhs, more_uhs=0, now_us=now_us)
    if not isinstance(hold, Hold):
        return hold if isinstance(hold, Settled | Refused) else Refused(STALE_SEQ, {"seq": seq, "last_seq": seq})
    account = ledger.accounts[hold.account_id]
    late = hold.state is not HoldState.OPEN
    over = used_uhs > max(hold.lapsed_uhs, hold.held_uhs)
    debt, lost = book_usage(ledger, account, hold, used_uhs=used_uhs, now_us=now_us)
    released = vault.set_free(ledger, account, hold, now_us=now_us)
    vault.end(ledger, hold, state=state, at_us=now_us)
    answer = Settled(used_uhs - lost, released, debt, over, late, lost)
    hold.seq, hold.answer = seq, answer
    return answer


def book_usage(ledger: Ledger, account: Account, hold: Hold, *, used_uhs: int, now_us: int) -> tuple[int, int]:
    """Held, then free, then written off. Returns what became debt, and what was written off."""
    late = ("late",) * (hold.state is not HoldState.OPEN)
    covered = min(used_uhs, hold.held_uhs)
    debt = vault.capture(ledger, account, hold, amount_uhs=covered, now_us=now_us, flags=late) if covered else 0
    lost = 0
    if used_uhs > covered:
        beyond = hold.lapsed_uhs
        flags = (*late, "over_hold") if used_uhs - covered > beyond else late
        more, lost = vault.overuse(ledger, account, hold, amount_uhs=used_uhs - covered, now_us=now_us, flags=flags)
        debt += more
        hold.lapsed_uhs = max(0, beyond - used_uhs)
    return debt, lost
