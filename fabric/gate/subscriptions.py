"""Subscriptions: tokens that are granted every cycle, what is carried over, and what they may overflow into."""

from fabric.charging import plans
from fabric.charging.plans import LotTerms
from fabric.gate import refusals, treasury
from fabric.gate.core import Core
from fabric.gate.events import Subscribe, Unsubscribe
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.state import Account, SubscriptionRecord
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
    account = core.state.accounts[event.account_id]
    cycle = plans.cycle_grants(offer, started_at_us=core.now_us, index=0)
    outcome = _book(core, account, cycle.grant, record, at_us=core.now_us, paid=True)
    if isinstance(outcome, Accepted):
        core.state.subscriptions.append(record)
        core.note_renewals()
        treasury.set_spending(core, event.account_id)
    return outcome


def unsubscribe(core: Core, event: Unsubscribe) -> Outcome:
    record = _find(core, event.account_id, event.subscription)
    if record is None:
        return refusals.not_found("subscription", event.subscription)
    record.ending = True
    return Accepted(facts={"ends_at_us": record.next_at_us})


def renew(core: Core) -> None:
    """Grant the cycles that have begun, each at its own time, and drop the subscriptions that have ended."""
    while core.renewal_due_us is not None and core.renewal_due_us <= core.now_us:
        at_us = core.renewal_due_us
        core.book.sweep(now_us=at_us - 1)
        due = [record for record in core.state.subscriptions if record.next_at_us == at_us]
        left = [_left_uhs(core, record) for record in due]
        for record, left_uhs in zip(due, left, strict=True):
            _renew(core, record, left_uhs, at_us=at_us)
        core.note_renewals()


def _renew(core: Core, record: SubscriptionRecord, left_uhs: int, *, at_us: int) -> None:
    offer = core.catalogue.subscription(record.subscription)
    if record.ending or offer is None:
        core.state.subscriptions.remove(record)
        treasury.set_spending(core, record.account_id)
        return
    record.index += 1
    if plans.cycle_start_us(offer, started_at_us=record.started_at_us, index=record.index) != at_us:
        # The offer's cycle was changed: count from here.
        record.started_at_us, record.index = at_us, 0
    record.next_at_us = plans.next_cycle_us(offer, started_at_us=record.started_at_us, index=record.index)
    cycle = plans.cycle_grants(offer, started_at_us=record.started_at_us, index=record.index, left_uhs=left_uhs)
    before, record.lots = record.lots, []
    account = core.state.accounts[record.account_id]
    _book(core, account, cycle.grant, record, at_us=at_us, paid=True)
    if cycle.rollover is not None:
        for lot_id in before:
            core.book.retire(lot_id, now_us=at_us)
        _book(core, account, cycle.rollover, record, at_us=at_us, paid=False)


def _book(
    core: Core, account: Account, lot: LotTerms, record: SubscriptionRecord, *, at_us: int, paid: bool
) -> Outcome:
    channel = treasury.CHANNEL if paid else ""
    outcome = treasury.book_lot(core, account, lot, origin=Origin.SUBSCRIPTION, channel=channel, now_us=at_us)
    if isinstance(outcome, Accepted):
        record.lots.append(treasury.newest_lot(core))
    return outcome


def _left_uhs(core: Core, record: SubscriptionRecord) -> int:
    """What is free of the cycle that ends now, an instant before it does."""
    return sum(core.book.lots[lot_id].free_uhs for lot_id in record.lots)


def _find(core: Core, account_id: AccountId, subscription: str) -> SubscriptionRecord | None:
    for record in core.state.subscriptions:
        if (record.account_id, record.subscription) == (account_id, subscription):
            return record
    return None
