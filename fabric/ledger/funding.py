"""Funding: how tokens come in, and how debt is paid for.

It books both sides of a purchase in one transfer: tokens from `issued` to the customer, money from the customer to
`revenue`. It doesn't know what a plan or a price list is.
"""

from typing import Final

from fabric.ledger import paybacks, postings, sweeping
from fabric.ledger.accounts import Account, Invoice, Spending
from fabric.ledger.burning import burn_again, drop_if_spent
from fabric.ledger.lots import Lot, Origin, Terms, new_lot
from fabric.ledger.outcomes import (
    ACCOUNT_EXISTS,
    BEYOND_INT64,
    INVALID_AMOUNT,
    INVALID_TERMS,
    LOT_EXISTS,
    PERIOD_CLOSED,
    UNKNOWN_ACCOUNT,
    Refused,
)
from fabric.ledger.rounding import half_even
from fabric.ledger.state import Ledger, Period
from fabric.ledger.transfers import LotShare, Transfer
from fabric.units import INT64_MAX, UHS_PER_CT

_SOLD: Final = (Origin.TOP_UP, Origin.BUNDLE, Origin.SUBSCRIPTION)
_ON_ACCOUNT: Final = "receivable"
FEN_MICROCNY: Final = 10_000
"""A hundredth of a yuan: what documents of money count in."""


def open_account(ledger: Ledger, account_id: str, *, now_us: int, credit_limit_uhs: int = 0) -> Refused | None:
    """A new customer; with a credit limit it is postpaid."""
    if account_id in ledger.accounts:
        return Refused(ACCOUNT_EXISTS, {"account_id": account_id})
    if not 0 <= credit_limit_uhs <= INT64_MAX:
        return Refused(INVALID_AMOUNT, {"credit_limit_uhs": credit_limit_uhs})
    ledger.accounts[account_id] = Account(account_id=account_id, opened_at_us=now_us, credit_limit_uhs=credit_limit_uhs)
    return None


def set_credit_limit(ledger: Ledger, account_id: str, *, credit_limit_uhs: int) -> Refused | None:
    """How far holds may go beyond the lots from now on; what is owed already stays owed."""
    account = ledger.accounts.get(account_id)
    if account is None:
        return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
    if not 0 <= credit_limit_uhs <= INT64_MAX:
        return Refused(INVALID_AMOUNT, {"credit_limit_uhs": credit_limit_uhs})
    account.credit_limit_uhs = credit_limit_uhs
    account.excuse()
    return None


def set_spending(ledger: Ledger, account_id: str, *, spending: tuple[Spending, ...]) -> None:
    """From now on uses are met by these rules, first come first served; what is held stays held."""
    ledger.accounts[account_id].spending = spending


def grant(
    ledger: Ledger,
    account_id: str,
    *,
    lot_id: str,
    amount_uhs: int,
    terms: Terms,
    now_us: int,
    linked_to: int | None = None,
) -> Transfer | Refused:
    """A new lot. Where it may be spent on anything, it pays at once for what was charged back, if it was bought, and for debt
    beyond the credit limit.

    Args:
        ledger: what is changed.
        account_id: whose lot it is.
        lot_id: never used before in this book.
        amount_uhs: more than 0.
        terms: origin, life, scope and price.
        now_us: when.
        linked_to: the first transfer of the purchase that this lot is a part of.
    """
    sweeping.catch_up(ledger, now_us)
    account = ledger.accounts.get(account_id)
    if account is None:
        return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
    refusal = grantable(ledger, lot_id, amount_uhs=amount_uhs, terms=terms, now_us=now_us)
    if refusal is not None:
        return refusal
    lot = new_lot(account_id, lot_id=lot_id, amount_uhs=amount_uhs, terms=terms, now_us=now_us)
    ledger.lots[lot_id] = lot
    burn_again(ledger, account, lot)
    ledger.deadlines.watch_lot(lot)
    price = terms.price_microcny if terms.channel else 0
    side = _ON_ACCOUNT if terms.channel == _ON_ACCOUNT else "cash"
    if side == _ON_ACCOUNT:
        ledger.daybook.accounts[account_id].receivable_microcny += price
    transfer = postings.post(
        ledger,
        terms.origin.value if terms.origin in _SOLD else "grant",
        account_id=account_id,
        ref=lot_id,
        at_us=now_us,
        tokens={"issued": -amount_uhs, "available": amount_uhs},
        money={side: price, "revenue": -price},
        channel=terms.channel,
        lots=(LotShare(lot_id, amount_uhs),),
        linked_to=linked_to,
    )
    if lot.restricted or lot.effective_at_us > now_us:
        return transfer
    if account.charged_back_uhs and terms.origin in _SOLD:
        paybacks.repay(ledger, account, lot, now_us=now_us)
    if account.exposed_uhs > account.credit_limit_uhs:
        repay(ledger, account, lot, now_us=now_us)
    return transfer


def void(ledger: Ledger, lot_id: str, *, amount_uhs: int, now_us: int) -> int:
    """Take back what nobody holds of a lot and has not used, as if it had never been sold; returns its part of the price.

    However it is taken back in parts, the parts of the price add up to that of the whole.

    Args:
        ledger: what is changed.
        lot_id: a lot of this book.
        amount_uhs: more than 0, and at most what is free of it.
        now_us: when.
    """
    lot = ledger.lots[lot_id]
    assert 0 < amount_uhs <= lot.free_uhs, f"of lot {lot_id} {lot.free_uhs} are free, not {amount_uhs}"
    account, terms = ledger.accounts[lot.account_id], lot.terms
    before = half_even(terms.price_microcny * lot.voided_uhs, lot.granted_uhs)
    lot.free_uhs -= amount_uhs
    lot.voided_uhs += amount_uhs
    drop_if_spent(account, lot)
    price = half_even(terms.price_microcny * lot.voided_uhs, lot.granted_uhs) - before if terms.channel else 0
    side = _ON_ACCOUNT if terms.channel == _ON_ACCOUNT else "cash"
    if side == _ON_ACCOUNT:
        account = ledger.daybook.accounts[lot.account_id]
        invoiced = sum(invoice.unpaid_microcny for invoice in account.invoices)
        price = min(price, account.receivable_microcny - invoiced)
        account.receivable_microcny -= price
    postings.post(
        ledger,
        "void",
        account_id=account.account_id,
        ref=lot_id,
        at_us=now_us,
        tokens={"available": -amount_uhs, "issued": amount_uhs},
        money={side: -price, "revenue": price},
        channel=terms.channel,
        lots=(LotShare(lot_id, amount_uhs),),
    )
    return price


def has_room_for(ledger: Ledger, amount_uhs: int, *, price_microcny: int) -> bool:
    """Whether so much can be issued and earned without going beyond 64 bits."""
    issued = amount_uhs - ledger.tokens_uhs["issued"]
    return max(issued, price_microcny - ledger.daybook.money_microcny["revenue"]) <= INT64_MAX


def grantable(ledger: Ledger, lot_id: str, *, amount_uhs: int, terms: Terms, now_us: int) -> Refused | None:
    if lot_id in ledger.lots or not lot_id:
        return Refused(LOT_EXISTS, {"lot_id": lot_id})
    if amount_uhs <= 0 or terms.price_microcny < 0:
        return Refused(INVALID_AMOUNT, {"amount_uhs": amount_uhs, "price_microcny": terms.price_microcny})
    if terms.expires_at_us is not None and terms.expires_at_us <= max(now_us, terms.effective_at_us):
        return Refused(INVALID_TERMS, {"expires_at_us": terms.expires_at_us})
    if not has_room_for(ledger, amount_uhs, price_microcny=terms.price_microcny):
        return Refused(BEYOND_INT64, {"amount_uhs": amount_uhs, "limit_uhs": INT64_MAX})
    return None


def repay(ledger: Ledger, account: Account, lot: Lot, *, now_us: int) -> None:
    amount = min(lot.free_uhs, account.debt_uhs, account.exposed_uhs - account.credit_limit_uhs)
    if amount <= 0:
        return
    lot.free_uhs -= amount
    lot.captured_uhs += amount
    account.lower_debt(amount, newest_first=False)
    account.excuse()
    drop_if_spent(account, lot)
    postings.post(
        ledger,
        "repay",
        account_id=account.account_id,
        ref=lot.lot_id,
        at_us=now_us,
        tokens={"available": -amount, "debt": amount},
        lots=(LotShare(lot.lot_id, amount),),
    )


def set_price(ledger: Ledger, account_id: str, *, microcny_per_ct: int) -> None:
    """Say at what price the account used what it owes so far, because the price changes now."""
    ledger.accounts[account_id].set_price(microcny_per_ct)


def price_debt(ledger: Ledger, account_id: str, *, amount_uhs: int, microcny_per_ct: int) -> None:
    """Say at what price so much of what was booked as debt just now was used: it was used before the price in force began."""
    ledger.accounts[account_id].price_newest(amount_uhs, microcny_per_ct)


def close_invoice(
    ledger: Ledger, account_id: str, *, invoice_id: str, microcny_per_ct: int, now_us: int
) -> Transfer | Refused | None:
    """Sell the customer what it used on credit, at the price of its time: debt becomes a receivable. None if it owes nothing.

    Nothing is forgiven: until it is paid, the invoice counts against the credit limit as the debt did. What is held on
    credit is not invoiced before it is captured. The price is rounded half-even to whole fen, once, but never to nothing; what
    that adds to or takes off the price to 10⁻⁶ CNY is booked as rounding.

    Args:
        ledger: what is changed.
        account_id: whose debt.
        invoice_id: what the invoice is called.
        microcny_per_ct: the price in force, of what was used since `set_price` was last said.
        now_us: when.
    """
    account = ledger.accounts.get(account_id)
    if account is None:
        return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
    debt = account.debt_uhs
    if not debt:
        return None
    if microcny_per_ct < 0:
        return Refused(INVALID_AMOUNT, {"microcny_per_ct": microcny_per_ct})
    unpriced = debt - sum(each.amount_uhs for each in account.priced)
    exact = unpriced * microcny_per_ct + sum(each.amount_uhs * each.microcny_per_ct for each in account.priced)
    earned = max(half_even(exact, UHS_PER_CT), min(exact, 1))
    price = max(half_even(exact, UHS_PER_CT * FEN_MICROCNY), min(exact, 1)) * FEN_MICROCNY
    issued = debt - ledger.tokens_uhs["issued"]
    if issued > INT64_MAX or price - ledger.money_microcny["revenue"] > INT64_MAX:
        return Refused(BEYOND_INT64, {"debt_uhs": debt, "price_microcny": price})
    account.lower_debt(debt, newest_first=False)
    account.receivable_microcny += price
    if price:
        ledger.invoices_made += 1
        made = Invoice(
            invoice_id=invoice_id,
            amount_uhs=debt,
            price_microcny=price,
            number=ledger.invoices_made,
            issued_at_us=now_us,
        )
        account.invoices.append(made)
    account.excuse()
    return postings.post(
        ledger,
        "invoice",
        account_id=account_id,
        ref=invoice_id,
        at_us=now_us,
        tokens={"issued": -debt, "debt": debt},
        money={_ON_ACCOUNT: price, "revenue": -earned, "rounding": earned - price},
    )


def credit_note(ledger: Ledger, account_id: str, *, invoice_id: str, amount_microcny: int, now_us: int) -> Transfer:
    """Take a part off an invoice that isn't paid, or all of it, and what it counts against the credit limit with it.

    Args:
        ledger: what is changed.
        account_id: whose invoice.
        invoice_id: one of the account's that aren't paid in full.
        amount_microcny: more than 0, and at most what is unpaid of it.
        now_us: when.
    """
    account = ledger.accounts[account_id]
    invoice = next(each for each in account.invoices if each.invoice_id == invoice_id)
    assert 0 < amount_microcny <= invoice.unpaid_microcny, f"{amount_microcny} of {invoice}"
    invoice.credited_microcny += amount_microcny
    account.receivable_microcny -= amount_microcny
    account.drop_settled()
    account.excuse()
    ledger.credit_notes_made += 1
    return postings.post(
        ledger,
        "credit_note",
        account_id=account_id,
        ref=invoice_id,
        at_us=now_us,
        tokens={},
        money={_ON_ACCOUNT: -amount_microcny, "revenue": amount_microcny},
    )


def sell(
    ledger: Ledger,
    account_id: str,
    *,
    ref: str,
    price_microcny: int,
    channel: str,
    now_us: int,
    linked_to: int | None = None,
) -> Transfer | None:
    """Book the price of what isn't compute tokens, so that cash agrees with what was paid. None where it was free."""
    if not price_microcny:
        return None
    return postings.post(
        ledger,
        "sale",
        account_id=account_id,
        ref=ref,
        at_us=now_us,
        tokens={},
        money={"cash": price_microcny, "revenue": -price_microcny},
        channel=channel,
        linked_to=linked_to,
    )


def pay(
    ledger: Ledger, account_id: str, *, amount_microcny: int, channel: str, payment_ref: str, now_us: int
) -> Transfer | Refused:
    """Money for invoices, the oldest first: receivable becomes cash. At most what is receivable."""
    account = ledger.accounts.get(account_id)
    if account is None:
        return Refused(UNKNOWN_ACCOUNT, {"account_id": account_id})
    if not 0 < amount_microcny <= account.receivable_microcny:
        facts = {"amount_microcny": amount_microcny, "receivable_microcny": account.receivable_microcny}
        return Refused(INVALID_AMOUNT, {**facts})
    account.receivable_microcny -= amount_microcny
    account.settle(amount_microcny)
    account.excuse()
    return postings.post(
        ledger,
        "payment",
        account_id=account_id,
        ref=payment_ref,
        at_us=now_us,
        tokens={},
        money={"cash": amount_microcny, _ON_ACCOUNT: -amount_microcny},
        channel=channel,
    )


def close_period(ledger: Ledger, period: str, *, now_us: int) -> Period | Refused:
    """Seal the trial balance; later facts belong to the period that is open then."""
    if any(sealed.period == period for sealed in ledger.periods):
        return Refused(PERIOD_CLOSED, {"period": period})
    sweeping.catch_up(ledger, now_us)
    return postings.seal(ledger, period, now_us=now_us)
