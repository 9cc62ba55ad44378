"""What goes back of a payment: refunds, from here or at its provider, and charge-backs, which may be undone."""

from typing import Final

from fabric.gate import notices, refusals, subscriptions, suspense, treasury
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.payment_events import PaymentState, RefundPayment
from fabric.gate.payment_state import Payment, Refund
from fabric.gate.payments import TAKING
from fabric.gate.till_prices import FEN_MICROCNY
from fabric.gate.treasury import REASON_MAX
from fabric.ledger import Lot, Origin, Terms
from fabric.ledger import packages as ledgers
from fabric.ledger import paybacks as going_back
from fabric.ledger.outcomes import Fact
from fabric.ledger.state import Ledger
from fabric.ledger.vault import REFUND_LIFE_US
from fabric.units import format_cny, format_ct

REFUNDS_MAX: Final = 100
"""Of one payment."""
Share = tuple[Lot, int]
"""So much of a lot."""


def refund(core: Core, event: RefundPayment) -> Outcome:
    """Take back unused tokens now; their price is paid back by whoever took it, who says when that is done."""
    payment = core.state.till.payments.get(event.payment_id)
    if payment is None or payment.account_id != event.account_id:
        return refusals.not_found("payment", event.payment_id)
    if payment.state not in (PaymentState.PAID, PaymentState.REFUNDED) or not payment.lot_id:
        return refusals.conflict(
            f"payment {payment.payment_id} is {payment.state.value}: it bought nothing that could go back",
            code="not_paid",
        )
    if not 0 < len(event.reason.strip()) <= REASON_MAX or len(payment.refunds) >= REFUNDS_MAX:
        return refusals.invalid(
            f"say why, in 1 to {REASON_MAX} characters; a payment is refunded in at most {REFUNDS_MAX} parts",
            code="invalid_reason",
        )
    lots = _lots(core, payment)
    tokens = [lot for lot in lots if lot.lot_id in core.book.lots]
    free_uhs = sum(lot.free_uhs for lot in tokens)
    amount_uhs = free_uhs if event.amount_uhs is None else event.amount_uhs
    is_all = event.amount_uhs is None and any(lot.free_uhs for lot in lots)
    if not (is_all or 0 < amount_uhs <= free_uhs):
        held_uhs, used_uhs = sum(lot.held_uhs for lot in tokens), sum(lot.captured_uhs for lot in tokens)
        return refusals.conflict(
            f"of what payment {payment.payment_id} bought {format_ct(free_uhs)} tokens are unused, {format_ct(held_uhs)}"
            f" held and {format_ct(used_uhs)} used: only what is unused goes back",
            code="not_unused",
            free_uhs=free_uhs,
        )
    shares = [(lot, lot.free_uhs) for lot in lots if lot.free_uhs] if is_all else _unused(tokens, amount_uhs)
    amount = min(_worth(core, payment, shares), _left_microcny(payment))
    if amount <= 0:
        return refusals.conflict("so few tokens have no price that could be paid back", code="too_little")
    _take_back(core, payment, shares, amount_microcny=amount, total_microcny=amount, reason=event.reason)
    core.note_payment(payment)
    facts: dict[str, Fact] = {
        "refund_id": payment.refunds[-1].refund_id,
        "amount_uhs": amount_uhs,
        "amount_microcny": amount,
    }
    return Accepted(facts=facts)


def follow(core: Core, payment: Payment) -> None:
    """Have the effect of what its provider has said of money that went back, as far as it hasn't had it."""
    if payment.aside:
        suspense.gone_back(core, payment)
    if not payment.lot_id:
        return
    refunded = min(payment.told_refunded, payment.price_microcny)
    if refunded > payment.refunded_microcny:
        _refunded(core, payment, refunded - payment.refunded_microcny)
    gone = min(payment.told_charged_back, payment.price_microcny)
    if gone > payment.charged_back_microcny:
        _charged_back(core, payment, gone - payment.charged_back_microcny)
    again = min(payment.told_reinstated, payment.charged_back_microcny)
    if again > payment.reinstated_microcny:
        _reinstated(core, payment, again - payment.reinstated_microcny)


def _refunded(core: Core, payment: Payment, amount: int) -> None:
    """Money has left: for tokens that were taken back for it, and beyond that for tokens that are taken back now."""
    beyond = amount - payment.refunds_due_microcny
    if beyond > 0:
        _refunded_there(core, payment, beyond)
    core.book.pay_out(
        payment.account_id, ref=payment.payment_id, amount=amount, channel=payment.provider, now_us=core.now_us
    )
    payment.refunded_microcny += amount
    if payment.state is not PaymentState.CHARGED_BACK:
        payment.state = PaymentState.REFUNDED
    notices.tell(
        core, payment.account_id, "payment_refunded", payment.payment_id, f"{format_cny(amount)} {payment.currency}"
    )


def _refunded_there(core: Core, payment: Payment, amount: int) -> None:
    """Nobody asked for it here. What it gave back for tokens that are used stands in suspense, as the operator's."""
    lots = _lots(core, payment)
    wanted = [lot.granted_uhs * amount // payment.price_microcny for lot in lots]
    shares = [(lot, min(uhs, lot.free_uhs)) for lot, uhs in zip(lots, wanted, strict=True)]
    is_whole = [uhs for _, uhs in shares] == wanted
    shares = [(lot, uhs) for lot, uhs in shares if uhs]
    worth = amount if is_whole else min(amount, _worth(core, payment, shares))
    if shares:
        _take_back(core, payment, shares, amount_microcny=worth, total_microcny=amount, reason="at its provider")
    else:
        worth = 0
        _note(core, payment, amount_uhs=0, amount_microcny=0, total_microcny=amount, reason="at its provider")
    if amount > worth:
        what = f"refund-{len(payment.refunds)}"
        suspense.keep(core, suspense.of_payment(core, payment, what, amount=worth - amount, why="beyond_unused"))


def _lots(core: Core, payment: Payment) -> list[Lot]:
    return [_ledger(core, part.lot_id).lots[part.lot_id] for part in payment.parts]


def _ledger(core: Core, lot_id: str) -> Ledger:
    """The book, or the package that a lot is in."""
    ledger = ledgers.with_lot(core.book, lot_id)
    assert ledger is not None, lot_id
    return ledger


def _paid_for(core: Core, lot: Lot, *, voided_uhs: int) -> int:
    return going_back.worth_of(_ledger(core, lot.lot_id), lot.lot_id, voided_uhs=voided_uhs)


def _unused(lots: list[Lot], amount_uhs: int) -> list[Share]:
    """So much of what is unused of them, the first one's first."""
    shares = []
    for lot in lots:
        if part := min(lot.free_uhs, amount_uhs):
            shares.append((lot, part))
            amount_uhs -= part
    return shares


def _take_back(
    core: Core, payment: Payment, shares: list[Share], *, amount_microcny: int, total_microcny: int, reason: str
) -> None:
    left = amount_microcny
    for number, (lot, uhs) in enumerate(shares, 1):
        before = _paid_for(core, lot, voided_uhs=lot.voided_uhs)
        own = _paid_for(core, lot, voided_uhs=lot.voided_uhs + uhs) - before
        amount = left if number == len(shares) else min(left, own)
        left -= amount
        going_back.take_back(
            _ledger(core, lot.lot_id), lot.lot_id, amount_uhs=uhs, amount_microcny=amount, now_us=core.now_us
        )
    subscriptions.drop_unpaid(core, payment.account_id)
    _note(
        core,
        payment,
        amount_uhs=sum(uhs for lot, uhs in shares if lot.lot_id in core.book.lots),
        amount_microcny=amount_microcny,
        total_microcny=total_microcny,
        reason=reason,
    )


def _note(
    core: Core, payment: Payment, *, amount_uhs: int, amount_microcny: int, total_microcny: int, reason: str
) -> None:
    made = Refund(
        refund_id=f"{payment.payment_id}-r{len(payment.refunds) + 1}",
        amount_uhs=amount_uhs,
        amount_microcny=amount_microcny,
        total_microcny=payment.refunds_microcny + total_microcny,
        asked_at_us=core.now_us,
        reason=reason,
    )
    payment.refunds = (*payment.refunds, made)


def _charged_back(core: Core, payment: Payment, amount: int) -> None:
    if due := payment.refunds_due_microcny:
        # What was to be refunded has gone this way.
        core.book.keep(
            payment.account_id, ref=payment.payment_id, amount=due, channel=payment.provider, now_us=core.now_us
        )
        payment.dropped_microcny += due
    frozen_uhs = owed_uhs = 0
    for part in payment.parts:
        frozen, owed = going_back.charge_back(
            _ledger(core, part.lot_id),
            part.lot_id,
            ref=payment.payment_id,
            amount_microcny=amount,
            owed_uhs=part.owed_uhs,
            now_us=core.now_us,
            price_microcny=payment.price_microcny,
            is_money=part is payment,
        )
        part.frozen_uhs, part.owed_uhs = part.frozen_uhs + frozen, part.owed_uhs + owed
        if part.lot_id in core.book.lots:
            frozen_uhs, owed_uhs = frozen_uhs + frozen, owed_uhs + owed
    payment.charged_back_microcny += amount
    payment.state = PaymentState.CHARGED_BACK
    notices.tell(
        core,
        payment.account_id,
        "payment_charged_back",
        payment.payment_id,
        f"{format_cny(amount)} {payment.currency}: {format_ct(frozen_uhs)} tokens are frozen, and {format_ct(owed_uhs)} owed",
        operator=True,
    )


def _reinstated(core: Core, payment: Payment, amount: int) -> None:
    """In full it is as if it had not been charged back; a part gives back as much of what was frozen and owed."""
    gone = payment.charged_back_microcny - payment.reinstated_microcny
    for part in payment.parts:
        thaw_uhs, forgive_uhs = part.frozen_uhs * amount // gone, part.owed_uhs * amount // gone
        repaid_uhs = going_back.reinstate(
            _ledger(core, part.lot_id),
            part.lot_id,
            ref=payment.payment_id,
            amount_microcny=amount if part is payment else 0,
            thaw_uhs=thaw_uhs,
            forgive_uhs=forgive_uhs,
            now_us=core.now_us,
        )
        part.frozen_uhs, part.owed_uhs = part.frozen_uhs - thaw_uhs, part.owed_uhs - forgive_uhs
        lot = _ledger(core, part.lot_id).lots[part.lot_id]
        lot.charged_back = lot.charged_back and amount < gone
        if repaid_uhs:
            _give_back(core, payment, lot, repaid_uhs)
    payment.reinstated_microcny += amount
    if amount == gone:
        payment.state = PaymentState.REFUNDED if payment.refunded_microcny else PaymentState.PAID
    notices.tell(
        core,
        payment.account_id,
        "payment_reinstated",
        payment.payment_id,
        f"{format_cny(amount)} {payment.currency}",
        operator=True,
    )


def _give_back(core: Core, payment: Payment, lot: Lot, amount_uhs: int) -> None:
    """Tokens that had paid meanwhile for what is not owed any more."""
    terms = Terms(
        origin=Origin.REFUND,
        tier=lot.terms.tier,
        effective_at_us=core.now_us,
        expires_at_us=core.now_us + REFUND_LIFE_US,
        parent_lots=(lot.lot_id,),
    )
    account, asset = core.state.accounts[payment.account_id], _ledger(core, lot.lot_id).asset
    treasury.book_terms(core, account, amount_uhs, terms, now_us=core.now_us, asset=asset)


def _worth(core: Core, payment: Payment, shares: list[Share]) -> int:
    """What so many more tokens of it were paid with: all parts together come to all of its lots' price."""
    more = {lot.lot_id: uhs for lot, uhs in shares}
    lots = _lots(core, payment)
    before = sum(_paid_for(core, lot, voided_uhs=lot.voided_uhs) for lot in lots)
    after = sum(_paid_for(core, lot, voided_uhs=lot.voided_uhs + more.get(lot.lot_id, 0)) for lot in lots)
    return _rounded(payment, after) - _rounded(payment, before)


def _rounded(payment: Payment, price: int) -> int:
    """What can be paid back: whole fen where a provider does it."""
    return price // FEN_MICROCNY * FEN_MICROCNY if payment.provider in TAKING else price


def _left_microcny(payment: Payment) -> int:
    """What of its price has neither gone back nor is to."""
    gone = payment.charged_back_microcny - payment.reinstated_microcny
    return (
        payment.price_microcny
        - max(payment.refunds_microcny - payment.dropped_microcny, payment.refunded_microcny)
        - gone
    )
