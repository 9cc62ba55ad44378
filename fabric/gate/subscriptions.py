"""Subscriptions: tokens that are granted every cycle, what is carried over, and what they may overflow into."""

from fabric.charging import plans
from fabric.charging.catalogue import Subscription
from fabric.gate import refusals, treasury
from fabric.gate.core import Core
from fabric.gate.events import Subscribe, Unsubscribe
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.state import SubscriptionRecord
from fabric.ledger import Origin
from fabric.units import AccountId


def subscribe(core: Core, event: Subscribe) -> Outcome:
    """Start now: the first cycle is granted and paid at once."""
    if event.account_id not in core.state.accounts:
        return refusals.not_found("account", event.account_id)
    offer = core.catalogue.subscription(event.subscription)
    if offer is None:
        known = ", ".join(each.name for each in core.catalogue.subscriptions) or "none"
        return refusals.invalid(
            f"there is no subscription {event.subscription!r}: choose of {known}", code="unknown_subscription"
        )
    running = _find(core, event.account_id, event.subscription)
    if running is not None:
        if running.ending:
            running.ending = False
            return Accepted()
        return refusals.conflict(f"the account has {event.subscription!r} already", code="already_subscribed")
    record = SubscriptionRecord(
        account_id=event.account_id,
        subscription=offer.name,
        started_at_us=core.now_us,
        index=0,
        next_at_us=plans.next_cycle_us(offer, started_at_us=core.now_us, index=0),
    )
    outcome = _grant(core, record, offer)
    if isinstance(outcome, Accepted):
        core.state.subscriptions.append(record)
    return outcome


def unsubscribe(core: Core, event: Unsubscribe) -> Outcome:
    record = _find(core, event.account_id, event.subscription)
    if record is None:
        return refusals.not_found("subscription", event.subscription)
    record.ending = True
    return Accepted(facts={"ends_at_us": record.next_at_us})


def renew(core: Core) -> None:
    """Grant the cycles that have begun, and drop the subscriptions that have ended."""
    for record in list(core.state.subscriptions):
        while record.next_at_us <= core.now_us:
            offer = core.catalogue.subscription(record.subscription)
            if record.ending or offer is None:
                core.state.subscriptions.remove(record)
                break
            record.index += 1
            record.next_at_us = plans.next_cycle_us(offer, started_at_us=record.started_at_us, index=record.index)
            _grant(core, record, offer)


def next_due_us(core: Core) -> int | None:
    return min((record.next_at_us for record in core.state.subscriptions), default=None)


def _grant(core: Core, record: SubscriptionRecord, offer: Subscription) -> Outcome:
    account = core.state.accounts[record.account_id]
    left_uhs = sum(core.book.lots[lot_id].free_uhs for lot_id in record.lots if lot_id in core.book.lots)
    cycle = plans.cycle_grants(offer, started_at_us=record.started_at_us, index=record.index, left_uhs=left_uhs)
    outcome = treasury.book_lot(core, account, cycle.grant, origin=Origin.SUBSCRIPTION, channel=treasury.CHANNEL)
    record.lots = [treasury.newest_lot(core)] if isinstance(outcome, Accepted) else []
    if cycle.rollover is not None:
        treasury.book_lot(core, account, cycle.rollover, origin=Origin.SUBSCRIPTION, channel="")
        record.lots.append(treasury.newest_lot(core))
    return outcome


def _find(core: Core, account_id: AccountId, subscription: str) -> SubscriptionRecord | None:
    for record in core.state.subscriptions:
        if (record.account_id, record.subscription) == (account_id, subscription):
            return record
    return None
