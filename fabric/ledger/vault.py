"""The vault: lots, and the four ways tokens move between free, held, captured and expired.

Every move changes the lots, the hold, the account and the postings together, so no two of them can disagree. The vault
never asks whether a move is allowed: that was decided before it is made.
"""

from typing import Final

from msgspec.structs import replace

from fabric.ledger import paybacks, postings
from fabric.ledger.accounts import Account, Priced
from fabric.ledger.burning import burn_again, drop_if_spent
from fabric.ledger.holds import Hold, HoldState, Piece, piece_of
from fabric.ledger.lots import Lot, Origin, Terms, new_lot
from fabric.ledger.own_holds import OWN
from fabric.ledger.scopes import Use
from fabric.ledger.state import Ledger
from fabric.ledger.transfers import LotShare

_DAY_US: Final = 86_400_000_000
REFUND_LIFE_US: Final = 30 * _DAY_US
"""How long a refund is good that found its lot gone, or nearly."""
CREDIT = ""
"""The lot id of what no lot covers."""

Plan = list[tuple[Lot, int]]
"""How much to take of which lot, in burn order."""


def planned(ledger: Ledger, account: Account, *, use: Use, amount_uhs: int, now_us: int) -> tuple[Plan, int]:
    """What to take of which lots for `use`, and how much is missing."""
    plan: Plan = []
    lots = ledger.lots
    origins = account.spending_for(use).origins if account.spending else ()
    missing = amount_uhs
    for lot_id in account.burning:
        lot = lots[lot_id]
        free = lot.free_uhs
        if free and lot.spendable(now_us, use) and (not origins or lot.terms.origin in origins):
            if free >= missing:
                plan.append((lot, missing))
                return plan, 0
            plan.append((lot, free))
            missing -= free
    return plan, missing


def take(
    ledger: Ledger,
    account: Account,
    hold: Hold,
    *,
    plan: Plan,
    credit_uhs: int,
    now_us: int,
    flags: tuple[str, ...] = (),
) -> None:
    """Free → held, as planned, and the rest on credit."""
    pieces = hold.pieces
    shares = []
    taken = 0
    for lot, amount in plan:
        lot.free_uhs -= amount
        lot.held_uhs += amount
        taken += amount
        piece_of(pieces, lot.lot_id).held_uhs += amount
        shares.append(LotShare(lot.lot_id, amount))
    hold.held_uhs += taken + credit_uhs
    account.held_uhs += taken + credit_uhs
    name, ref = account.account_id, hold.hold_id
    if not credit_uhs:
        postings.move(ledger, "hold", name, ref, taken, now_us, lots=tuple(shares), flags=flags)
        return
    account.credit_held_uhs += credit_uhs
    piece_of(pieces, CREDIT).held_uhs += credit_uhs
    tokens = {"available": -taken, "debt": -credit_uhs, "held": taken + credit_uhs}
    postings.post(
        ledger, "hold", account_id=name, ref=ref, at_us=now_us, tokens=tokens, lots=tuple(shares), flags=flags
    )


def capture(
    ledger: Ledger, account: Account, hold: Hold, *, amount_uhs: int, now_us: int, flags: tuple[str, ...] = ()
) -> int:
    """Held → redeemed, in the order in which it was held; at most what is held. Returns what became debt."""
    shares = []
    debt = 0
    missing = amount_uhs
    for piece in hold.pieces:
        part = piece.held_uhs
        if part:
            part = min(part, missing)
            piece.held_uhs -= part
            piece.captured_uhs += part
            if piece.lot_id == CREDIT:
                debt += part
            else:
                lot = ledger.lots[piece.lot_id]
                lot.held_uhs -= part
                lot.captured_uhs += part
                shares.append(LotShare(piece.lot_id, part))
                drop_if_spent(account, lot)
            missing -= part
            if not missing:
                break
    assert missing == 0, f"hold {hold.hold_id} holds {missing} µHs less than is captured"
    account.credit_held_uhs -= debt
    account.debt_uhs += debt
    account.held_uhs -= amount_uhs
    hold.held_uhs -= amount_uhs
    hold.captured_uhs += amount_uhs
    postings.move(
        ledger, "capture", account.account_id, hold.hold_id, amount_uhs, now_us, lots=tuple(shares), flags=flags
    )
    return debt


def overuse(
    ledger: Ledger, account: Account, hold: Hold, *, amount_uhs: int, now_us: int, flags: tuple[str, ...]
) -> tuple[int, int]:
    """Available, then credit, straight to redeemed: usage that happened and no hold covers. What nothing covers is the
    operator's loss. Returns what became debt, and what was written off.
    """
    plan, missing = planned(ledger, account, use=hold.use, amount_uhs=amount_uhs, now_us=now_us)
    debt = min(missing, account.credit_free_uhs) if account.spending_for(hold.use).credit else 0
    lost = missing - debt
    if amount_uhs > lost:
        capture_free(
            ledger, account, hold, plan=plan, debt_uhs=debt, amount_uhs=amount_uhs - lost, now_us=now_us, flags=flags
        )
    if lost:
        write_off(ledger, account, ref=hold.hold_id, amount_uhs=lost, now_us=now_us, flags=flags)
    return debt, lost


def capture_free(
    ledger: Ledger,
    account: Account,
    hold: Hold,
    *,
    plan: Plan,
    debt_uhs: int,
    amount_uhs: int,
    now_us: int,
    flags: tuple[str, ...],
) -> None:
    for lot, part in plan:
        lot.free_uhs -= part
        lot.captured_uhs += part
        drop_if_spent(account, lot)
        piece_of(hold.pieces, lot.lot_id).captured_uhs += part
    if debt_uhs:
        account.debt_uhs += debt_uhs
        piece_of(hold.pieces, CREDIT).captured_uhs += debt_uhs
    hold.captured_uhs += amount_uhs
    postings.post(
        ledger,
        "capture",
        account_id=account.account_id,
        ref=hold.hold_id,
        at_us=now_us,
        tokens={"available": debt_uhs - amount_uhs, "debt": -debt_uhs, "redeemed": amount_uhs},
        lots=tuple(LotShare(lot.lot_id, part) for lot, part in plan),
        flags=flags,
    )


def write_off(
    ledger: Ledger, account: Account, *, ref: str, amount_uhs: int, now_us: int, flags: tuple[str, ...] = ()
) -> None:
    """Written off → redeemed: used by the account, and borne by the operator."""
    account.written_off_uhs += amount_uhs
    postings.post(
        ledger,
        "write_off",
        account_id=account.account_id,
        ref=ref,
        at_us=now_us,
        tokens={"written_off": -amount_uhs, "redeemed": amount_uhs},
        flags=flags,
    )


def uncapture(
    ledger: Ledger,
    account: Account,
    hold: Hold,
    *,
    amount_uhs: int,
    now_us: int,
    used_at: list[Priced],
    todays: int,
) -> None:
    """Redeemed → held, last captured first: exactly the way back. `used_at` and `todays` as in `Account.take_back`."""
    shares: list[LotShare] = []
    missing = amount_uhs
    invoiced = 0
    late: list[tuple[Lot, int]] = []
    for piece in reversed(hold.pieces):
        part = min(piece.captured_uhs, missing)
        if not part:
            continue
        missing -= part
        piece.captured_uhs -= part
        if piece.lot_id != CREDIT and not ledger.lots[piece.lot_id].alive(now_us + ledger.refund_margin_us):
            late.append((ledger.lots[piece.lot_id], part))
        elif piece.lot_id == CREDIT:
            owed = min(part, account.debt_uhs)
            account.take_back(owed, used_at, todays=todays)
            account.credit_held_uhs += owed
            piece.held_uhs += owed
            invoiced += part - owed
        else:
            piece.held_uhs += part
            lot = ledger.lots[piece.lot_id]
            lot.captured_uhs -= part
            lot.held_uhs += part
            burn_again(ledger, account, lot)
            shares.append(LotShare(piece.lot_id, part))
    assert missing == 0, f"hold {hold.hold_id} has captured {missing} µHs less than is refunded"
    for lot, part in late:
        terms = replace(
            lot.terms,
            origin=Origin.REFUND,
            effective_at_us=now_us,
            expires_at_us=now_us + REFUND_LIFE_US,
            price_microcny=0,
            parent_lots=(lot.lot_id,),
            channel="",
        )
        shares.insert(0, refund_lot(ledger, account, hold, amount_uhs=part, terms=terms, now_us=now_us))
    if invoiced:
        terms = Terms(origin=Origin.REFUND, tier="", effective_at_us=now_us, expires_at_us=None)
        shares.insert(0, refund_lot(ledger, account, hold, amount_uhs=invoiced, terms=terms, now_us=now_us))
    account.held_uhs += amount_uhs
    hold.held_uhs += amount_uhs
    hold.captured_uhs -= amount_uhs
    postings.post(
        ledger,
        "refund",
        account_id=account.account_id,
        ref=hold.hold_id,
        at_us=now_us,
        tokens={"redeemed": -amount_uhs, "held": amount_uhs},
        lots=tuple(reversed(shares)),
    )


def refund_lot(ledger: Ledger, account: Account, hold: Hold, *, amount_uhs: int, terms: Terms, now_us: int) -> LotShare:
    """A refund as a lot of its own: of debt that was invoiced or repaid since, which can't be forgiven again; and of a
    lot in which it could hardly be spent any more.
    """
    lot_id = f"refund/{hold.hold_id}/{ledger.daybook.count + 1}"
    while lot_id in ledger.lots:
        lot_id += "+"
    lot = new_lot(account.account_id, lot_id=lot_id, amount_uhs=amount_uhs, terms=terms, now_us=now_us)
    lot.free_uhs, lot.held_uhs = 0, amount_uhs
    ledger.lots[lot_id] = lot
    burn_again(ledger, account, lot)
    piece_of(hold.pieces, lot_id).held_uhs += amount_uhs
    return LotShare(lot_id, amount_uhs)


def set_free(ledger: Ledger, account: Account, hold: Hold, *, now_us: int, flags: tuple[str, ...] = ()) -> int:
    """Held → free, all that is left; → breakage where the lot has expired meanwhile. Returns what was left."""
    rest = hold.held_uhs
    if not rest:
        return 0
    freed: list[LotShare] = []
    broken: list[LotShare] = []
    credit = 0
    for piece in hold.pieces:
        part = piece.held_uhs
        if not part:
            continue
        piece.held_uhs = 0
        if piece.lot_id == CREDIT:
            credit += part
            continue
        lot = ledger.lots[piece.lot_id]
        lot.held_uhs -= part
        if lot.alive(now_us):
            if not lot.free_uhs:
                ledger.deadlines.watch_lot(lot)
            lot.free_uhs += part
            freed.append(LotShare(piece.lot_id, part))
        else:
            lot.expired_uhs += part
            broken.append(LotShare(piece.lot_id, part))
            drop_if_spent(account, lot)
    hold.held_uhs = 0
    account.held_uhs -= rest
    account.credit_held_uhs -= credit
    name, ref = account.account_id, hold.hold_id
    lost = sum([share.amount_uhs for share in broken]) if broken else 0
    if not (lost or credit):
        postings.move(ledger, "release", name, ref, rest, now_us, lots=tuple(freed), flags=flags)
    elif rest > lost:
        tokens = {"held": lost - rest, "available": rest - lost - credit, "debt": credit}
        postings.post(
            ledger, "release", account_id=name, ref=ref, at_us=now_us, tokens=tokens, lots=tuple(freed), flags=flags
        )
    if lost:
        tokens = {"held": -lost, "breakage": lost}
        postings.post(ledger, "expire", account_id=name, ref=ref, at_us=now_us, tokens=tokens, lots=tuple(broken))
    paybacks.repay_of(ledger, account, freed, now_us=now_us)
    return rest


def expire_held(
    ledger: Ledger, account: Account, hold: Hold, *, parts: list[tuple[Piece, int]], now_us: int, flags: tuple[str, ...]
) -> int:
    """Held → breakage: so much of these pieces of the hold. Returns how much that is."""
    shares = []
    for piece, part in parts:
        lot = ledger.lots[piece.lot_id]
        piece.held_uhs -= part
        lot.held_uhs -= part
        lot.expired_uhs += part
        shares.append(LotShare(piece.lot_id, part))
        drop_if_spent(account, lot)
    lost = sum(share.amount_uhs for share in shares)
    hold.held_uhs -= lost
    account.held_uhs -= lost
    postings.post(
        ledger,
        "expire",
        account_id=account.account_id,
        ref=hold.hold_id,
        at_us=now_us,
        tokens={"held": -lost, "breakage": lost},
        lots=tuple(shares),
        flags=flags,
    )
    return lost


def end(ledger: Ledger, hold: Hold, *, state: HoldState, at_us: int) -> None:
    """A hold, with nothing held any more, is over."""
    hold_id = hold.hold_id
    stood = ledger.holds.pop(hold_id, None) or ledger.lapsed.pop(hold_id, None)
    if stood is None and hold_id in ledger.expired:
        del ledger.expired[hold_id]
        ledger.forgets_at_us = 0
    hold.state = state
    hold.ended_at_us = at_us
    hold.settle_by_us = hold.stale_at_us = None
    hold.pieces.clear()
    over = ledger.expired if state is HoldState.EXPIRED else ledger.ended
    if not over:
        ledger.forgets_at_us = 0
    over[hold_id] = hold
    if hold_id.startswith(OWN):
        for forgotten in ledger.own.ended(hold, stood=stood is not None):
            del over[forgotten]
            ledger.forgets_at_us = 0


def break_lot(ledger: Ledger, lot: Lot, *, at_us: int) -> None:
    """Free → breakage: a lot has expired, and what is held of it stays good until the hold ends."""
    lost = lot.free_uhs
    lot.free_uhs = 0
    lot.expired_uhs += lost
    drop_if_spent(ledger.accounts[lot.account_id], lot)
    postings.post(
        ledger,
        "expire",
        account_id=lot.account_id,
        ref=lot.lot_id,
        at_us=at_us,
        tokens={"available": -lost, "breakage": lost},
        lots=(LotShare(lot.lot_id, lost),),
    )
