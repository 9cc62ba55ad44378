"""Reconciliation: a provider's own list against what is booked here. What differs is told, and what can be is mended."""

from collections.abc import Iterator
from typing import Final

from fabric.gate import checkout, notices, refusals, suspense
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.payment_events import PaymentState, ReconcilePayments, Said
from fabric.gate.payment_state import Payment, Reconciliation
from fabric.gate.payments import TAKING

LISTED_MAX: Final = 1_000
"""Payments in one event: a longer list comes in several, each of a shorter time."""
KEPT: Final = 400
MATCHED: Final = "matched"
MISSING_HERE: Final = "missing_here"
DIFFERENT: Final = "different"


def reconcile(core: Core, event: ReconcilePayments) -> Outcome:
    """Hear everything that the provider lists, and note what it doesn't.

    A payment that was paid and not heard of is booked by that, as late as it is. One that is booked here and isn't listed
    stands in suspense, without money: whether that was ever there is for an operator to find out.
    """
    if event.provider not in TAKING or not event.from_us < event.until_us:
        return refusals.invalid(f"{event.provider!r} has no list of payments of such a time", code="unknown_provider")
    if len(event.listed) > LISTED_MAX or any(said.provider != event.provider for said in event.listed):
        return refusals.invalid(f"a list has at most {LISTED_MAX} payments of its provider", code="invalid_list")
    counts = dict.fromkeys((MATCHED, MISSING_HERE, DIFFERENT), 0)
    for said in event.listed:
        if found := _compared(core, said):
            counts[found] += 1
        checkout.hear(core, said)
    listed = {said.payment_id for said in event.listed}
    missing = [payment for payment in _paid_within(core, event) if payment.payment_id not in listed]
    for payment in missing:
        _note_missing(core, payment)
    made = Reconciliation(
        provider=event.provider,
        at_us=core.now_us,
        from_us=event.from_us,
        until_us=event.until_us,
        matched=counts[MATCHED],
        missing_here=counts[MISSING_HERE],
        missing_there=len(missing),
        different=counts[DIFFERENT],
    )
    core.state.till.reconciled = [*core.state.till.reconciled, made][-KEPT:]
    if missing or counts[MISSING_HERE] or counts[DIFFERENT]:
        text = f"{counts[MISSING_HERE]} missing here, {len(missing)} missing there, {counts[DIFFERENT]} different"
        notices.tell(core, notices.OPERATORS, "reconciled", event.provider, text)
    return Accepted(facts={**counts, "missing_there": len(missing)})


def _compared(core: Core, said: Said) -> str:
    """How it stands here before it is heard; "" of what has no money in it."""
    if said.state is not PaymentState.PAID:
        return ""
    payment = core.state.till.payments.get(said.payment_id)
    aside = core.state.till.suspense.get(suspense.id_of(said.provider, said.payment_id or said.provider_ref))
    if payment is None or not (payment.lot_id or payment.aside):
        known = aside is not None and (aside.amount, aside.currency) == (said.amount, said.currency)
        return MATCHED if known else MISSING_HERE
    if aside is not None:
        same = (aside.amount, aside.currency) == (said.amount, said.currency)
    else:
        here = (
            payment.price_microcny,
            payment.refunded_microcny,
            payment.charged_back_microcny,
            payment.reinstated_microcny,
        )
        same = (
            here == (said.amount, said.refunded, said.charged_back, said.reinstated)
            and payment.currency == said.currency
        )
    return MATCHED if same else DIFFERENT


def _paid_within(core: Core, event: ReconcilePayments) -> Iterator[Payment]:
    """What its provider took in that time, as it is booked here. A payment is asked at most 30 days before it is paid."""
    for payment in reversed(core.state.till.payments.values()):
        if payment.asked_at_us < event.from_us - checkout.VALID_US.stop:
            return
        at_us = payment.paid_at_us if payment.provider == event.provider and payment.lot_id else None
        if at_us is not None and event.from_us <= at_us < event.until_us:
            yield payment


def _note_missing(core: Core, payment: Payment) -> None:
    found = suspense.of_payment(core, payment, "missing-there", amount=0, why="missing_there")
    if found.suspense_id not in core.state.till.suspense:
        suspense.keep(core, found)
