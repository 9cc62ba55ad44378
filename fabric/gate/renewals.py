"""Renewals of subscriptions that are paid through a provider: each cycle is asked for before it begins.

Whoever takes the payments charges what paid before, where it keeps that; otherwise the account is told where to pay. One
that comes to nothing is asked for again each day. A cycle that begins unpaid is past due: nothing is granted; paid within
the grace it begins anew from then, and unpaid at its end the subscription ends. Each of these has its date.
"""

from typing import Final

from fabric.charging.catalogue import COMPUTE
from fabric.charging.plans import DAY_US
from fabric.gate import notices, subscription_terms, till_prices
from fabric.gate.auto_top_up import AUTO
from fabric.gate.core import Core
from fabric.gate.payment_events import PaymentState
from fabric.gate.payment_state import Payment
from fabric.gate.state import SubscriptionRecord
from fabric.units import AccountId, format_cny

LEAD_US: Final = 3 * DAY_US
"""Before the cycle; half of a cycle where that is less."""
AGAIN_US: Final = DAY_US
"""After one that came to nothing."""
GRACE_US: Final = 7 * DAY_US
"""How long a cycle may be past due."""
VALID_US: Final = DAY_US


def plan(record: SubscriptionRecord, *, begun_us: int) -> None:
    """A cycle has begun, or more of them are paid: when the next one is to be asked for, if it is."""
    is_open = record.is_renewed and not record.ending and not record.ahead
    lead_us = min(LEAD_US, (record.next_at_us - begun_us) // 2)
    record.ask_at_us = record.next_at_us - lead_us if is_open else None


def look(core: Core, record: SubscriptionRecord) -> None:
    """Ask for the next cycle if it is time."""
    if record.ask_at_us is None or record.ask_at_us > core.now_us:
        return
    record.ask_at_us = None
    coming = subscription_terms.of_cycle(core, record, record.index + 1)
    offer = coming.offer
    if offer is None or coming.are_over or record.ending or record.ahead or record.payment_id:
        return
    price = till_prices.payable(offer.price_microcny, provider=core.state.payments)
    if not price:
        return
    till = core.state.till
    till.auto_made += 1
    record.payment_id = f"{AUTO}{till.auto_made}-{core.now_us:x}"
    till_prices.begin(
        core,
        Payment(
            payment_id=record.payment_id,
            account_id=record.account_id,
            provider=core.state.payments,
            amount_uhs=offer.amount_uhs if offer.asset == COMPUTE else 0,
            price_microcny=price,
            offer=offer,
            asked_at_us=core.now_us,
            until_us=core.now_us + VALID_US,
            auto=True,
        ),
    )
    text = f"{format_cny(price)} CNY for the next cycle of {offer.name}"
    notices.tell(core, record.account_id, "renewal_asked", record.payment_id, text)


def ended(core: Core, payment: Payment, *, why: str) -> None:
    """A renewal was paid (why = ""), or came to nothing: then it is asked for again."""
    for record in core.subscribed_by.get(payment.account_id, ()):
        if record.payment_id == payment.payment_id:
            record.payment_id = ""
            if why:
                record.failures, record.ask_at_us = record.failures + 1, core.now_us + AGAIN_US
                core.note_renewal(record)
                text = f"{record.subscription}: {why}; it is asked for again in a day"
                notices.tell(core, record.account_id, "renewal_failed", payment.payment_id, text)


def is_past_due(core: Core, record: SubscriptionRecord, *, at_us: int) -> bool:
    """A cycle would begin that nobody has paid: whether its payment is waited for."""
    if not record.is_renewed or record.ending or record.past_due_at_us is not None:
        return False
    record.past_due_at_us, record.next_at_us, record.lots = at_us, at_us + GRACE_US, []
    if not record.payment_id and record.ask_at_us is None:
        record.ask_at_us = at_us
    text = f"{record.subscription}: its cycle isn't paid, and it ends in {GRACE_US // DAY_US} days"
    notices.tell(core, record.account_id, "subscription_past_due", record.payment_id, text, operator=True)
    return True


def over(core: Core, record: SubscriptionRecord) -> None:
    """The subscription has ended."""
    cancel(core, record)
    if record.is_renewed:
        why = "it was not paid" if record.past_due_at_us is not None else "as its owner wished"
        notices.tell(core, record.account_id, "subscription_ended", "", f"{record.subscription}: {why}")


def cancel(core: Core, record: SubscriptionRecord) -> None:
    """Nobody wants to renew it any more: what no provider has been told of is not asked there."""
    payment = core.state.till.payments.get(record.payment_id)
    record.ask_at_us = None
    if payment is not None and payment.state is PaymentState.ASKED:
        payment.state, payment.why = PaymentState.EXPIRED, "the subscription ends"
        core.note_payment(payment)
        record.payment_id = ""


def of_account(core: Core, account_id: AccountId, subscription: str) -> SubscriptionRecord | None:
    """The one that runs, or is past due."""
    for record in core.subscribed_by.get(account_id, ()):
        if record.subscription == subscription:
            return record
    return None
