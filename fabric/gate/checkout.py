"""Payments that a provider takes: asked → pending → paid | declined | expired, then refunded | charged back.

Each books once, whatever is heard of it, in whatever order: a payment that has booked, or whose money stands in suspense,
never books again. What a provider says after it had said that nothing comes still counts, because then the money is there.
"""

from typing import Final

from fabric.charging import plans
from fabric.gate import auto_top_up, notices, paybacks, purchases, refusals, renewals, suspense, till_prices, treasury
from fabric.gate.auto_top_up import AUTO
from fabric.gate.canonical import digest
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.payment_events import CNY, OPEN, UNPAID, AskPayment, PaymentStarted, PaymentState, PaymentTold, Said
from fabric.gate.payment_state import Payment
from fabric.gate.payments import OPERATOR, REF_MAX, SANDBOX, WAYS, normal
from fabric.gate.state import Answered
from fabric.ledger.outcomes import Fact
from fabric.units import INT64_MAX, format_cny

OPEN_MAX: Final = 20
"""Payments of one account that nobody has paid yet, at once."""
VALID_US: Final = range(60_000_000, 30 * plans.DAY_US + 1)
ID_MAX: Final = 64
_SAID: Final = frozenset({PaymentState.PENDING, PaymentState.PAID, PaymentState.DECLINED, PaymentState.EXPIRED})


def ask(core: Core, event: AskPayment) -> Outcome:
    """A new payment at today's price. Nothing is booked before its provider says that it was paid."""
    if event.account_id not in core.state.accounts:
        return refusals.not_found("account", event.account_id)
    found = _unaskable(core, event) or purchases.asked(core, event)
    if isinstance(found, Refusal):
        return found
    till_prices.begin(core, found)
    facts: dict[str, Fact] = {
        "payment_id": found.payment_id,
        "price_microcny": found.price_microcny,
        "until_us": found.until_us,
    }
    return Accepted(facts=facts)


def _unaskable(core: Core, event: AskPayment) -> Refusal | None:
    if event.provider not in (core.state.payments, OPERATOR) or event.provider not in WAYS:
        return refusals.invalid(
            f"payments are taken by {core.state.payments} here, or booked by the operator, not by {event.provider[:ID_MAX]!r}",
            code="unknown_provider",
        )
    if event.valid_us not in VALID_US:
        return refusals.invalid("a payment is good for a minute at least and 30 days at most", code="invalid_lifetime")
    till = core.state.till
    own = (till.payments[name] for name in till.payments_of.get(event.account_id, ()))
    return _bad_name(core, event) or (
        _too_many() if sum(each.state in OPEN and not each.aside for each in own) >= OPEN_MAX else None
    )


def _bad_name(core: Core, event: AskPayment) -> Refusal | None:
    name, till = event.payment_id, core.state.till
    if not 0 < len(name) <= ID_MAX or not name.replace("-", "").replace("_", "").isalnum() or name.startswith(AUTO):
        return refusals.invalid(
            f"a payment's id is 1 to {ID_MAX} letters, digits, - and _, and doesn't begin with {AUTO}",
            code="invalid_payment_id",
        )
    if name in till.payments or suspense.id_of(event.provider, name) in till.suspense:
        return refusals.conflict(f"there is a payment {name!r} already", code="payment_exists")
    return None


def _too_many() -> Refusal:
    return refusals.conflict(
        f"{OPEN_MAX} payments of the account are under way: pay them, or let them expire", code="too_many_payments"
    )


def started(core: Core, event: PaymentStarted) -> Outcome:
    """Its provider waits for the customer; what it says by itself may have been heard before."""
    payment = core.state.till.payments.get(event.payment_id)
    if payment is None:
        return refusals.not_found("payment", event.payment_id)
    if not 0 < len(event.provider_ref) <= REF_MAX:
        return refusals.invalid(
            f"a provider's name of a payment has 1 to {REF_MAX} characters", code="invalid_payment_ref"
        )
    if payment.state in UNPAID and not payment.aside:
        payment.provider_ref = event.provider_ref
        payment.state = PaymentState.PENDING if payment.state is PaymentState.ASKED else payment.state
    core.note_payment(payment)
    return Accepted(facts={"state": payment.state.value})


def told(core: Core, event: PaymentTold) -> Outcome:
    """What a provider says: whatever of it is new has its effect, once."""
    said = event.said
    payment = core.state.till.payments.get(said.payment_id)
    if refusal := _unheard(core, said):
        return refusal
    if said.provider == OPERATOR:
        if payment is None or payment.provider != OPERATOR:
            return refusals.not_found("payment", said.payment_id)
        if mistake := _mistaken(core, payment, said):
            return mistake
    hear(core, said)
    return Accepted(
        facts={"state": "unknown"} if payment is None else {"state": payment.state.value, "aside": payment.aside}
    )


def hear(core: Core, said: Said) -> None:
    """Have the effect of it that it hasn't had yet."""
    payment = core.state.till.payments.get(said.payment_id)
    if payment is None or payment.provider != said.provider:
        if said.state is PaymentState.PAID and said.amount > 0:
            suspense.hold(core, said, why="unknown_payment" if payment is None else "other_provider")
        return
    payment.told_refunded = max(payment.told_refunded, said.refunded)
    payment.told_charged_back = max(payment.told_charged_back, said.charged_back)
    payment.told_reinstated = max(payment.told_reinstated, said.reinstated)
    if said.state is PaymentState.PAID:
        _paid(core, payment, said)
    elif said.state is PaymentState.PENDING:
        payment.state = PaymentState.PENDING if payment.state is PaymentState.ASKED else payment.state
    elif payment.state in OPEN and not payment.aside:
        _came_to_nothing(core, payment, said)
    paybacks.follow(core, payment)
    core.note_payment(payment)


def _unheard(core: Core, said: Said) -> Refusal | None:
    if said.provider not in WAYS or said.state not in _SAID:
        return refusals.invalid(
            f"{said.provider[:ID_MAX]!r} is no provider, or {said.state.value} is not for it to say",
            code="invalid_word",
        )
    if said.provider == SANDBOX and core.state.payments != SANDBOX:
        return refusals.not_paid()
    amounts = (said.amount, said.refunded, said.charged_back, said.reinstated)
    if not all(0 <= amount <= INT64_MAX // 4 for amount in amounts) or not 0 < len(said.provider_ref) <= REF_MAX:
        return refusals.invalid(
            "amounts are 0 or more, and a payment has a name where it was received", code="invalid_word"
        )
    if not core.book.has_room_for(0, price_microcny=said.amount):
        return refusals.beyond_int64()
    return None


def _mistaken(core: Core, payment: Payment, said: Said) -> Refusal | None:
    """What an operator books by hand is refused where it can't be meant: nothing has come in that would have to stand aside."""
    before = core.state.paid.get(_known_as(payment, said.provider_ref))
    if before is not None and (not payment.lot_id or payment.provider_ref != normal(said.provider_ref)):
        return refusals.conflict(
            f"payment {said.provider_ref!r} was booked before for something else: a reference books once for an account",
            code="payment_ref_used",
        )
    if said.state is PaymentState.PAID and (said.amount, said.currency) != (payment.price_microcny, payment.currency):
        return refusals.invalid(
            f"payment {payment.payment_id} is of {format_cny(payment.price_microcny)} {payment.currency}, not of"
            f" {format_cny(said.amount)} {said.currency}",
            code="other_amount",
        )
    return None


def _paid(core: Core, payment: Payment, said: Said) -> None:
    """The money is there: it buys what was asked for, or stands aside; the first word decides."""
    if payment.lot_id or payment.aside:
        suspense.note_contradiction(core, payment, said)
        return
    why = _unbookable(core, payment, said)
    if not why:
        why = _book(core, payment, said)
    if why:
        suspense.hold(core, said, why=why, account_id=payment.account_id)
        payment.aside, payment.why = True, why
    _ended(core, payment, why=why)


def _unbookable(core: Core, payment: Payment, said: Said) -> str:
    if said.currency != payment.currency:
        return "other_currency"
    if said.amount != payment.price_microcny:
        return "other_amount"
    if _known_as(payment, said.provider_ref) in core.state.paid:
        return "reference_used"
    account = core.state.accounts[payment.account_id]
    return "not_bookable" if treasury.full(core, account, payment.amount_uhs) is not None else ""


def _book(core: Core, payment: Payment, said: Said) -> str:
    outcome = purchases.book(core, payment)
    if not isinstance(outcome, Accepted):
        return "not_bookable"
    payment.paid_at_us = core.now_us
    payment.state, payment.provider_ref = PaymentState.PAID, normal(said.provider_ref)
    core.state.paid[_known_as(payment, said.provider_ref)] = Answered(digest(said, but=frozenset()), outcome)
    notices.tell(
        core,
        payment.account_id,
        "payment_paid",
        payment.payment_id,
        f"{purchases.called(payment)} for {format_cny(payment.price_microcny)} {CNY}",
    )
    return ""


def _came_to_nothing(core: Core, payment: Payment, said: Said) -> None:
    payment.state, payment.why = said.state, said.why[:REF_MAX]
    notices.tell(
        core,
        payment.account_id,
        f"payment_{said.state.value}",
        payment.payment_id,
        f"{format_cny(payment.price_microcny)} {CNY} were not paid" + (f": {payment.why}" if payment.why else ""),
    )
    _ended(core, payment, why=payment.why or said.state.value)


def _ended(core: Core, payment: Payment, *, why: str) -> None:
    """Whoever asked for it by rule is to go on: it was paid (why = ""), or came to nothing."""
    (renewals.ended if payment.subscription else auto_top_up.ended)(core, payment, why=why)


def _known_as(payment: Payment, ref: str) -> str:
    """As payments that an operator books are known: a reference books once, whichever way."""
    return f"{payment.account_id}/{payment.provider}/{normal(ref)}"
