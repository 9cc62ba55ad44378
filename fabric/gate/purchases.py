"""What a payment is for: tokens, a bundle, or the next cycle of a subscription; what that costs, and what it books when it is paid.

What was offered when it was asked is what is booked, whatever is offered when it is paid.
"""

from typing import NamedTuple

from msgspec.structs import replace

from fabric.charging import plans
from fabric.charging.catalogue import COMPUTE, Bundle, Subscription
from fabric.charging.plans import LotTerms
from fabric.gate import packages, refusals, subscriptions, till_prices, treasury
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.payment_events import AskPayment
from fabric.gate.payment_state import Part, Payment
from fabric.ledger import Origin
from fabric.units import format_ct


class Wanted(NamedTuple):
    """What would be bought, and for how much."""

    lots: tuple[LotTerms, ...]
    price_microcny: int
    bundle: Bundle | None = None
    offer: Subscription | None = None


def asked(core: Core, event: AskPayment) -> Payment | Refusal:
    """The payment that an event asks for, of an account that there is, at today's price."""
    if sum(map(bool, (event.amount_uhs, event.bundle, event.subscription))) > 1:
        return refusals.invalid(
            "a payment is for tokens, or for a bundle, or for a subscription: for one of them", code="invalid_payment"
        )
    wanted = _wanted(core, event)
    if isinstance(wanted, Refusal):
        return wanted
    account = core.state.accounts[event.account_id]
    price = till_prices.payable(wanted.price_microcny, provider=event.provider)
    amount_uhs = sum(lot.amount_uhs for lot in wanted.lots if lot.asset == COMPUTE)
    if refusal := treasury.full(core, account, amount_uhs) or packages.no_room(core, account, wanted.lots):
        return refusal
    if not (price and wanted.lots) or not core.book.has_room_for(amount_uhs, price_microcny=price):
        return refusals.invalid(
            f"{format_ct(amount_uhs)} tokens cost {price} here: there is nothing to pay", code="invalid_amount"
        )
    return Payment(
        payment_id=event.payment_id,
        account_id=event.account_id,
        provider=event.provider,
        amount_uhs=amount_uhs,
        price_microcny=price,
        bundle=wanted.bundle,
        offer=wanted.offer,
        asked_at_us=core.now_us,
        until_us=core.now_us + event.valid_us,
    )


def _wanted(core: Core, event: AskPayment) -> Wanted | Refusal:
    if event.bundle:
        bundle = treasury.bundle_named(core, event.bundle)
        if isinstance(bundle, Refusal):
            return bundle
        return Wanted(plans.bundle_grants(bundle, now_us=core.now_us).lots, bundle.price_microcny, bundle=bundle)
    if event.subscription:
        offer = subscriptions.to_pay(core, event.account_id, event.subscription)
        if isinstance(offer, Refusal):
            return offer
        cycle = plans.cycle_grants(offer, started_at_us=core.now_us, index=0)
        refusal = subscriptions.paid_ahead(core, event.account_id, offer)
        return refusal or Wanted((cycle.grant,), offer.price_microcny, offer=offer)
    if refusal := refusals.bad_amount("a top-up is of", event.amount_uhs):
        return refusal
    bought = plans.top_up(core.plan_of(event.account_id), amount_uhs=event.amount_uhs, now_us=core.now_us)
    return Wanted((bought,), bought.price_microcny)


def book(core: Core, payment: Payment) -> Outcome:
    """Book what was paid for, all of it or nothing, and note the lots in the payment."""
    account, made = core.state.accounts[payment.account_id], core.state.lots_made
    if payment.bundle is not None:
        over = payment.price_microcny - payment.bundle.price_microcny
        outcome = treasury.sell_bundle(core, account, payment.bundle, channel=payment.provider, over_microcny=over)
    elif payment.offer is not None:
        outcome = subscriptions.paid(core, account, payment)
    else:
        outcome = treasury.book_lot(
            core,
            account,
            replace(
                plans.top_up(core.plan_of(account.account_id), amount_uhs=payment.amount_uhs, now_us=core.now_us),
                price_microcny=payment.price_microcny,
            ),
            origin=Origin.TOP_UP,
            channel=payment.provider,
            now_us=core.now_us,
        )
    if isinstance(outcome, Accepted):
        payment.lot_id, *more = (f"lot-{number + 1}" for number in range(made, core.state.lots_made))
        payment.more = [Part(lot_id=lot_id) for lot_id in more]
    return outcome


def called(payment: Payment) -> str:
    """What it buys, in words."""
    if payment.bundle is not None:
        return payment.bundle.title or payment.bundle.name
    if payment.offer is not None:
        return f"a cycle of {payment.offer.title or payment.offer.name}"
    return f"{format_ct(payment.amount_uhs)} tokens"
