"""What goes back of a payment: refunds, from here or at its provider, and charge-backs, which may be undone."""

from typing import Final

from fabric.gate import notices, refusals, suspense, treasury
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.payment_events import PaymentState, RefundPayment
from fabric.gate.payment_state import Payment, Refund
from fabric.gate.payments import TAKING
from fabric.gate.till_prices import FEN_MICROCNY
from fabric.gate.treasury import REASON_MAX
from fabric.ledger import Lot, Origin, Terms
from fabric.ledger.outcomes import Fact
from fabric.ledger.vault import REFUND_LIFE_US
from fabric.units import format_cny, format_ct

REFUNDS_MAX: Final = 100
"""Of one payment."""


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
    lot = core.book.lots[payment.lot_id]
    amount_uhs = lot.free_uhs if event.amount_uhs is None else event.amount_uhs
    if not 0 < amount_uhs <= lot.free_uhs:
        return refusals.conflict(
            f"of what payment {payment.payment_id} bought {format_ct(lot.free_uhs)} tokens are unused, {format_ct(lot.held_uhs)}"
            f" held and {format_ct(lot.captured_uhs)} used: only what is unused goes back",
            code="not_unused",
            free_uhs=lot.free_uhs,
        )
    amount = min(_worth(core, payment, amount_uhs), _left_microcny(payment))
    if amount <= 0:
        return refusals.conflict("so few tokens have no price that could be paid back", code="too_little")
    _take_back(core, payment, amount_uhs=amount_uhs, amount_microcny=amount, total_microcny=amount, reason=event.reason)
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
    lot = core.book.lots[payment.lot_id]
    wanted_uhs = lot.granted_uhs * amount // payment.price_microcny
    taken_uhs = min(wanted_uhs, lot.free_uhs)
    worth = amount if taken_uhs == wanted_uhs else min(amount, _worth(core, payment, taken_uhs))
    if taken_uhs:
        _take_back(
            core, payment, amount_uhs=taken_uhs, amount_microcny=worth, total_microcny=amount, reason="at its provider"
        )
    else:
        worth = 0
        _note(core, payment, amount_uhs=0, amount_microcny=0, total_microcny=amount, reason="at its provider")
    if amount > worth:
        what = f"refund-{len(payment.refunds)}"
        suspense.keep(core, suspense.of_payment(core, payment, what, amount=worth - amount, why="beyond_unused"))


def _take_back(
    core: Core, payment: Payment, *, amount_uhs: int, amount_microcny: int, total_microcny: int, reason: str
) -> None:
    core.book.take_back(payment.lot_id, amount_uhs=amount_uhs, amount_microcny=amount_microcny, now_us=core.now_us)
    _note(
        core,
        payment,
        amount_uhs=amount_uhs,
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
    frozen_uhs, owed_uhs = core.book.charge_back(
        payment.lot_id,
        ref=payment.payment_id,
        amount_microcny=amount,
        owed_uhs=payment.owed_uhs,
        now_us=core.now_us,
    )
    payment.frozen_uhs += frozen_uhs
    payment.owed_uhs += owed_uhs
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
    thaw_uhs, forgive_uhs = payment.frozen_uhs * amount // gone, payment.owed_uhs * amount // gone
    repaid_uhs = core.book.reinstate(
        payment.lot_id,
        ref=payment.payment_id,
        amount_microcny=amount,
        thaw_uhs=thaw_uhs,
        forgive_uhs=forgive_uhs,
        now_us=core.now_us,
    )
    payment.frozen_uhs -= thaw_uhs
    payment.owed_uhs -= forgive_uhs
    payment.reinstated_microcny += amount
    lot = core.book.lots[payment.lot_id]
    if amount == gone:
        lot.charged_back = False
        payment.state = PaymentState.REFUNDED if payment.refunded_microcny else PaymentState.PAID
    if repaid_uhs:
        _give_back(core, payment, lot, repaid_uhs)
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
    treasury.book_terms(core, core.state.accounts[payment.account_id], amount_uhs, terms, now_us=core.now_us)


def _worth(core: Core, payment: Payment, amount_uhs: int) -> int:
    """What so many more tokens of it were paid with: all parts together come to all of its price."""
    before = sum(each.amount_uhs for each in payment.refunds)
    after = _rounded(payment, core.book.worth_of(payment.lot_id, voided_uhs=before + amount_uhs))
    return after - _rounded(payment, core.book.worth_of(payment.lot_id, voided_uhs=before))


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
