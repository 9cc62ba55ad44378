"""What goes back: refunds, payments that were charged back, and money that nobody knows the purpose of yet.

Tokens go back only as far as they are unused. A refund takes them back before its money leaves: until its provider says so,
that money stands in `suspense/<channel>`, and so does what came in and could not be booked. A payment that was charged back
is gone already: what is unused of its lot is frozen, and the rest is owed in tokens, which the next purchase pays first.
"""

from collections.abc import Iterable
from typing import NotRequired, TypedDict, Unpack

from fabric.ledger import postings
from fabric.ledger.accounts import Account
from fabric.ledger.burning import burn_again, drop_if_spent
from fabric.ledger.lots import Lot
from fabric.ledger.rounding import half_even
from fabric.ledger.state import Ledger
from fabric.ledger.transfers import CNY, LotShare, Transfer


def worth_of(ledger: Ledger, lot_id: str, *, voided_uhs: int) -> int:
    """What so much of a lot was paid with, in 10⁻⁶ CNY: half-even, and all of the price for all of it."""
    lot = ledger.lots[lot_id]
    return half_even(lot.terms.price_microcny * voided_uhs, lot.granted_uhs)


def take_back(ledger: Ledger, lot_id: str, *, amount_uhs: int, amount_microcny: int, now_us: int) -> None:
    """Take unused tokens back for money that is to be paid out; until it is, it stands in suspense.

    Args:
        ledger: what is changed.
        lot_id: a lot of this book.
        amount_uhs: more than 0, and at most what is free of it.
        amount_microcny: what is paid back for them; 0 or more.
        now_us: when.
    """
    lot = ledger.lots[lot_id]
    assert 0 < amount_uhs <= lot.free_uhs, f"of lot {lot_id} {lot.free_uhs} are free, not {amount_uhs}"
    account = ledger.accounts[lot.account_id]
    lot.free_uhs -= amount_uhs
    lot.voided_uhs += amount_uhs
    drop_if_spent(account, lot)
    postings.post(
        ledger,
        "void",
        account_id=account.account_id,
        ref=lot_id,
        at_us=now_us,
        tokens={"available": -amount_uhs, "issued": amount_uhs},
        money={"suspense": -amount_microcny, "revenue": amount_microcny},
        channel=lot.terms.channel,
        lots=(LotShare(lot_id, amount_uhs),),
        flags=("refund",),
    )


class Sum(TypedDict):
    """Money that moves from one place to another, and nothing with it."""

    ref: str
    amount: int
    channel: str
    now_us: int
    currency: NotRequired[str]


def pay_out(ledger: Ledger, account_id: str, **of: Unpack[Sum]) -> Transfer:
    """Money that stood in suspense has left."""
    return _move(ledger, "pay_out", account_id, into="suspense", out_of="cash", **of)


def set_aside(ledger: Ledger, account_id: str, **of: Unpack[Sum]) -> Transfer:
    """Money has come in (or, below 0, gone out) that nothing can be booked for."""
    return _move(ledger, "suspense", account_id, into="cash", out_of="suspense", **of)


def keep(ledger: Ledger, account_id: str, **of: Unpack[Sum]) -> Transfer:
    """What stood in suspense is the operator's (or, below 0, its loss)."""
    return _move(ledger, "suspense", account_id, into="suspense", out_of="revenue", flags=("kept",), **of)


def _move(
    ledger: Ledger,
    kind: str,
    account_id: str,
    *,
    into: str,
    out_of: str,
    flags: tuple[str, ...] = (),
    **of: Unpack[Sum],
) -> Transfer:
    return postings.post(
        ledger,
        kind,
        account_id=account_id,
        ref=of["ref"],
        at_us=of["now_us"],
        tokens={},
        money={into: of["amount"], out_of: -of["amount"]},
        channel=of["channel"],
        currency=of.get("currency", CNY),
        flags=flags,
    )


def charge_back(
    ledger: Ledger,
    lot_id: str,
    *,
    ref: str,
    amount_microcny: int,
    owed_uhs: int,
    now_us: int,
    price_microcny: int | None = None,
    is_money: bool = True,
) -> tuple[int, int]:
    """A part of what was paid for a lot is gone: of as much of the lot the unused is frozen, and the rest owed.

    Args:
        ledger: what is changed.
        lot_id: a lot of this book that was paid for.
        ref: what the payment is called.
        amount_microcny: more than 0, and at most the price.
        owed_uhs: what is owed already for an earlier part.
        now_us: when.
        price_microcny: of all that was paid for at once; None = the lot's own.
        is_money: whether the money is booked, too; once for all lots that were paid for at once.

    Returns:
        What was frozen, and what is owed more.
    """
    lot = ledger.lots[lot_id]
    account = ledger.accounts[lot.account_id]
    share_uhs = -(-lot.granted_uhs * amount_microcny // (price_microcny or lot.terms.price_microcny))
    frozen_uhs = min(lot.free_uhs, share_uhs)
    more_uhs = max(0, min(share_uhs - frozen_uhs, lot.held_uhs + lot.captured_uhs - owed_uhs))
    lot.charged_back = True
    if frozen_uhs:
        lot.free_uhs -= frozen_uhs
        lot.frozen_uhs += frozen_uhs
        drop_if_spent(account, lot)
        postings.post(
            ledger,
            "void",
            account_id=account.account_id,
            ref=lot_id,
            at_us=now_us,
            tokens={"available": -frozen_uhs, "issued": frozen_uhs},
            lots=(LotShare(lot_id, frozen_uhs),),
            flags=("frozen",),
        )
    account.charged_back_uhs += more_uhs
    if more_uhs or is_money:
        postings.post(
            ledger,
            "charge_back",
            account_id=account.account_id,
            ref=ref,
            at_us=now_us,
            tokens={"debt": -more_uhs, "issued": more_uhs},
            money={"cash": -amount_microcny, "revenue": amount_microcny} if is_money else {},
            channel=lot.terms.channel,
        )
    return frozen_uhs, more_uhs


def reinstate(
    ledger: Ledger, lot_id: str, *, ref: str, amount_microcny: int, thaw_uhs: int, forgive_uhs: int, now_us: int
) -> int:
    """Money that was charged back has come again (0: it is booked with another lot): what was frozen is free, as far as the lot
    is still good, and what was owed isn't any more.

    Returns how much of `forgive_uhs` had been paid meanwhile: the account has it to get back.
    """
    lot = ledger.lots[lot_id]
    account = ledger.accounts[lot.account_id]
    thaw_uhs = thaw_uhs if lot.alive(now_us) else 0
    forgiven_uhs = min(forgive_uhs, account.charged_back_uhs)
    account.charged_back_uhs -= forgiven_uhs
    if thaw_uhs:
        lot.frozen_uhs -= thaw_uhs
        if not lot.free_uhs:
            ledger.deadlines.watch_lot(lot)
        lot.free_uhs += thaw_uhs
        burn_again(ledger, account, lot)
    if amount_microcny or forgiven_uhs or thaw_uhs:
        postings.post(
            ledger,
            "reinstate",
            account_id=account.account_id,
            ref=ref,
            at_us=now_us,
            tokens={"debt": forgiven_uhs, "available": thaw_uhs, "issued": -forgiven_uhs - thaw_uhs},
            money={"cash": amount_microcny, "revenue": -amount_microcny},
            channel=lot.terms.channel,
            lots=(LotShare(lot_id, thaw_uhs),) if thaw_uhs else (),
        )
    return forgive_uhs - forgiven_uhs


def repay_of(ledger: Ledger, account: Account, freed: Iterable[LotShare], *, now_us: int) -> None:
    """What has come free of lots whose payment was charged back pays what is owed for that."""
    if account.charged_back_uhs:
        for share in freed:
            if ledger.lots[share.lot_id].charged_back:
                repay(ledger, account, ledger.lots[share.lot_id], now_us=now_us)


def repay(ledger: Ledger, account: Account, lot: Lot, *, now_us: int) -> None:
    """Pay what is owed for payments that were charged back, as far as the lot goes."""
    amount = min(lot.free_uhs, account.charged_back_uhs)
    if not amount:
        return
    lot.free_uhs -= amount
    lot.captured_uhs += amount
    account.charged_back_uhs -= amount
    drop_if_spent(account, lot)
    postings.post(
        ledger,
        "repay",
        account_id=account.account_id,
        ref=lot.lot_id,
        at_us=now_us,
        tokens={"available": -amount, "debt": amount},
        lots=(LotShare(lot.lot_id, amount),),
        flags=("charged_back",),
    )
