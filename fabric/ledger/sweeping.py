"""Sweeping: what is due happens, dated when it fell due.

A hold whose validity is over lapses: what it holds stays set aside, and can't be spent, until its client reports or its
settlement window ends. Only then is it free again. So a client that was cut off finds covered what it used.

A lot is good at most until the use ends that held it when it expired. A hold that nothing runs on keeps no lot beyond its
expiry, and one that is renewed keeps it no longer than it would have without: it is held anew of what is good, if there is.

Availability filters on time, so sweeping late never lets anybody spend what has expired; it is only when breakage is
booked and lapsed holds are given back.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Final

from fabric.ledger import vault
from fabric.ledger.expiry import HOLD, count_due
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.state import Ledger
from fabric.ledger.vault import CREDIT
from fabric.units import INT64_MAX

_DAY_US: Final = 86_400_000_000
REMEMBER_ENDED_US: Final = _DAY_US
"""How long a settled or released hold can still repeat its last answer."""
REMEMBER_LAPSED_US: Final = 30 * _DAY_US
"""How long a hold that was given up can still be settled, from what is free then."""


def sweep(ledger: Ledger, *, now_us: int, most: int | None = None) -> bool:
    """Let holds lapse and lots expire that are due by now, each dated when it fell due; doing it again is nothing.

    Args:
        ledger: whose.
        now_us: up to when.
        most: so many of them at most, those due first; None = all.

    Returns whether there are holds that were given up, or hold less, and that nobody has asked about.
    """
    while (most is None or most > 0) and (due := ledger.deadlines.pop(now_us)) is not None:
        most = None if most is None else most - 1
        at_us, kind, name = due
        if kind == HOLD:
            hold = ledger.holds.get(name)
            if hold is not None and hold.stale_at_us is not None and hold.stale_at_us <= at_us:
                hold_anew(ledger, hold, now_us=at_us)
            elif hold is not None:
                lapse(ledger, hold, at_us=at_us)
            else:
                give_up(ledger, ledger.lapsed[name], at_us=at_us)
        elif ledger.lots[name].free_uhs:
            vault.break_lot(ledger, ledger.lots[name], at_us=at_us)
    if ledger.forgets_at_us <= now_us:
        forget(ledger, ledger.ended, before_us=now_us - REMEMBER_ENDED_US)
        forget(ledger, ledger.expired, before_us=now_us - REMEMBER_LAPSED_US)
        ledger.forgets_at_us = next_forgotten_us(ledger)
    for package in ledger.packages.values():
        if is_due(package, now_us):
            sweep(package, now_us=now_us, most=most)
            package.just_given_up, package.just_shrunk = [], []
    return bool(ledger.just_given_up or ledger.just_shrunk)


def due_count(ledger: Ledger, now_us: int, *, most: int) -> int:
    """About how many deadlines have passed, counted no farther than `most`."""
    own = ledger.deadlines.heap if ledger.deadlines.is_due(now_us) else []
    count = count_due(own, now_us, most=most)
    return count + sum(due_count(package, now_us, most=most - count) for package in ledger.packages.values())


def own_standing(ledger: Ledger, account_id: str) -> int:
    """How many holds that the customer keeps itself are open, or set aside for its report."""
    return ledger.own.standing[account_id]


def take_given_up(ledger: Ledger) -> list[Hold]:
    """The holds that were given up since the last call, for whoever keeps count of them elsewhere."""
    given_up, ledger.just_given_up = ledger.just_given_up, []
    return given_up


def take_shrunk(ledger: Ledger) -> list[tuple[Hold, int]]:
    """The holds that hold less since the last call, because a lot expired and nothing else covered it; and how much."""
    shrunk, ledger.just_shrunk = ledger.just_shrunk, []
    return shrunk


def carry(ledger: Ledger, lot_ids: Sequence[str], into: str, *, now_us: int) -> None:
    """Let what is held of lots be held of another one of their account, as far as that is free."""
    lot = ledger.lots[into]
    account = ledger.accounts[lot.account_id]
    if not any(ledger.lots[lot_id].held_uhs for lot_id in lot_ids):
        return
    for hold in (*ledger.holds.values(), *ledger.lapsed.values()):
        if hold.account_id != account.account_id or not lot.free_uhs:
            continue
        room, parts = lot.free_uhs, []
        for piece in hold.pieces:
            if piece.lot_id in lot_ids and piece.held_uhs and room:
                part = min(piece.held_uhs, room)
                parts.append((piece, part))
                room -= part
        if parts:
            carried = vault.expire_held(ledger, account, hold, parts=parts, now_us=now_us, flags=("carried",))
            vault.take(ledger, account, hold, plan=[(lot, carried)], credit_uhs=0, now_us=now_us, flags=("carried",))
            watch(ledger, hold)


def hold_anew(ledger: Ledger, hold: Hold, *, now_us: int) -> int:
    """Hold of good lots, or on credit, what it holds of expired ones that it can't keep; how much it holds less."""
    account = ledger.accounts[hold.account_id]
    parts = [
        (piece, piece.held_uhs)
        for piece in hold.pieces
        if piece.held_uhs
        and piece.lot_id != CREDIT
        and not ledger.lots[piece.lot_id].alive(now_us)
        and (hold.waiting or (piece.good_until_us is not None and piece.good_until_us <= now_us))
    ]
    short = 0
    if parts:
        lost = vault.expire_held(ledger, account, hold, parts=parts, now_us=now_us, flags=("anew",))
        plan, missing = vault.planned(ledger, account, use=hold.use, amount_uhs=lost, now_us=now_us)
        credit = min(missing, account.credit_free_uhs) if account.spending_for(hold.use).credit else 0
        short = missing - credit
        if lost > short:
            vault.take(ledger, account, hold, plan=plan, credit_uhs=credit, now_us=now_us, flags=("anew",))
        if short:
            ledger.just_shrunk.append((hold, short))
    watch(ledger, hold)
    return short


def watch(ledger: Ledger, hold: Hold) -> None:
    """Reckon anew when a part of what an open hold holds stops being good."""
    stale_at_us: int | None = None
    for piece in hold.pieces:
        if piece.held_uhs and piece.lot_id != CREDIT:
            until = ledger.lots[piece.lot_id].expires_at_us if hold.waiting else piece.good_until_us
            if until is not None and (stale_at_us is None or until < stale_at_us):
                stale_at_us = until
    if stale_at_us != hold.stale_at_us:
        hold.stale_at_us = stale_at_us
        ledger.deadlines.watch_hold(hold)


def renew(ledger: Ledger, hold: Hold, *, expires_at_us: int, now_us: int) -> None:
    """A new validity. What is held of lots that have expired is good no longer than the old one."""
    before_us = now_us if hold.expires_at_us is None else max(hold.expires_at_us, now_us)
    for piece in hold.pieces:
        dead = piece.held_uhs and piece.lot_id != CREDIT and not ledger.lots[piece.lot_id].alive(now_us)
        if dead and piece.good_until_us is None:
            piece.good_until_us = before_us
    hold.expires_at_us = max(expires_at_us, now_us)
    watch(ledger, hold)
    ledger.deadlines.watch_hold(hold)


def retire(ledger: Ledger, lot_id: str, *, now_us: int) -> None:
    """Let what is free of a lot expire before its time: something else stands in its place."""
    if ledger.lots[lot_id].free_uhs:
        vault.break_lot(ledger, ledger.lots[lot_id], at_us=now_us)


def is_due(ledger: Ledger, now_us: int) -> bool:
    """Whether `sweep` has anything to do by now, or anything to tell that nobody has asked about."""
    heap = ledger.deadlines.heap
    if heap and heap[0][0] <= now_us and ledger.deadlines.is_due(now_us):
        return True
    if ledger.forgets_at_us <= now_us:
        ledger.forgets_at_us = next_forgotten_us(ledger)
        if ledger.forgets_at_us <= now_us:
            return True
    if ledger.just_given_up or ledger.just_shrunk:
        return True
    return any(is_due(package, now_us) for package in ledger.packages.values()) if ledger.packages else False


def next_due_us(ledger: Ledger) -> int | None:
    """When the next hold lapses or lot expires."""
    if not ledger.packages:
        return ledger.deadlines.next_us()
    each_us = (one.deadlines.next_us() for one in (ledger, *ledger.packages.values()))
    return min((due_us for due_us in each_us if due_us is not None), default=None)


def lapse(ledger: Ledger, hold: Hold, *, at_us: int) -> None:
    del ledger.holds[hold.hold_id]
    ledger.lapsed[hold.hold_id] = hold
    hold.state, hold.settle_by_us = HoldState.LAPSED, at_us + ledger.settlement_window_us
    ledger.deadlines.watch_hold(hold)


def give_up(ledger: Ledger, hold: Hold, *, at_us: int) -> None:
    hold.lapsed_uhs = hold.held_uhs
    vault.set_free(ledger, ledger.accounts[hold.account_id], hold, now_us=at_us, flags=("lapsed",))
    vault.end(ledger, hold, state=HoldState.EXPIRED, at_us=at_us)
    ledger.just_given_up.append(hold)


def revive(ledger: Ledger, hold: Hold) -> None:
    """A lapsed hold is open again: all that it held is still there."""
    del ledger.lapsed[hold.hold_id]
    ledger.holds[hold.hold_id] = hold
    hold.state, hold.settle_by_us = HoldState.OPEN, None


def catch_up(ledger: Ledger, now_us: int) -> None:
    heap = ledger.deadlines.heap
    if heap and heap[0][0] <= now_us:
        sweep(ledger, now_us=now_us)


def next_forgotten_us(ledger: Ledger) -> int:
    """When the next hold that is over is forgotten; they stand in the order in which they ended."""
    next_us = INT64_MAX
    for holds, remember_us in ((ledger.ended, REMEMBER_ENDED_US), (ledger.expired, REMEMBER_LAPSED_US)):
        for hold in islice(holds.values(), 1):
            if hold.ended_at_us is not None:
                next_us = min(next_us, hold.ended_at_us + remember_us + 1)
    return next_us


def forget(ledger: Ledger, holds: dict[str, Hold], *, before_us: int) -> None:
    """Drop the oldest."""
    gone = []
    for hold in holds.values():
        if hold.ended_at_us is None or hold.ended_at_us >= before_us:
            break
        gone.append(hold)
    for hold in gone:
        del holds[hold.hold_id]
        ledger.own.forgotten(hold)
