"""Subscriptions: tokens that are granted every cycle, what is carried over, and what they may overflow into.

Where an operator books payments, a subscription lasts for the cycles that are booked: one is paid at its start, each next
one by another booking before or while the last one runs. A cycle that nobody has paid is never granted: the subscription
ends with the cycle before it. Where a cycle was paid through a provider, the next one is asked for by itself: `renewals`.
"""

import heapq
from typing import Final

from msgspec.structs import replace

from fabric.charging import plans
from fabric.charging.catalogue import Subscription
from fabric.charging.plans import LotTerms
from fabric.gate import payments, refusals, renewals, subscription_terms, treasury
from fabric.gate.core import Core
from fabric.gate.events import Subscribe, Unsubscribe
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.payment_state import Payment
from fabric.gate.state import Account, SubscriptionRecord
from fabric.ledger import Origin, sweeping
from fabric.ledger.packages import package_of, with_lot
from fabric.units import AccountId

AHEAD_MAX: Final = 12
"""How many cycles of one subscription may be paid ahead."""


def subscribe(core: Core, event: Subscribe) -> Outcome:
    """Start now: the first cycle is granted and paid at once."""
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    running = renewals.of_account(core, event.account_id, event.subscription)
    if running is not None:
        return _again(core, account, running, channel=event.channel)
    offer = offered(core, event.subscription)
    if isinstance(offer, Refusal):
        return offer
    if refusal := treasury.full(core, account, offer.amount_uhs, asset=offer.asset):
        return refusal
    record = SubscriptionRecord(
        account_id=event.account_id,
        subscription=offer.name,
        started_at_us=core.now_us,
        index=0,
        next_at_us=plans.next_cycle_us(offer, started_at_us=core.now_us, index=0),
        terms=subscription_terms.todays(core, offer.name).number,
    )
    cycle = plans.cycle_grants(offer, started_at_us=core.now_us, index=0)
    outcome = _book(core, account, cycle.grant, record.lots, at_us=core.now_us, channel=event.channel)
    if isinstance(outcome, Accepted):
        core.keep_subscription(record)
        treasury.set_spending(core, event.account_id)
    return outcome


def offered(core: Core, name: str) -> Subscription | Refusal:
    """What is sold under that name."""
    offer = core.catalogue.subscription(name)
    sold = [each.name for each in core.catalogue.subscriptions if not each.is_over(core.now_us)]
    known = ", ".join(sold) or "none"
    if offer is None:
        return refusals.invalid(f"there is no subscription {name!r}: choose of {known}", code="unknown_subscription")
    if offer.is_over(core.now_us):
        return refusals.conflict(
            f"subscription {name!r} is not sold any more: choose of {known}", code="offer_ended", subscription=name
        )
    return offer


def to_pay(core: Core, account_id: AccountId, name: str) -> Subscription | Refusal:
    """What the account's next payment for a subscription is for: to begin it, or the first cycle that isn't paid yet."""
    record = renewals.of_account(core, account_id, name)
    if record is None:
        return offered(core, name)
    coming = _unpaid(core, record)
    return coming if isinstance(coming, Refusal) else coming[1]


def _unpaid(core: Core, record: SubscriptionRecord) -> tuple[int, Subscription] | Refusal:
    """The terms of the first cycle that isn't paid yet, and their number; or why there is none."""
    coming = subscription_terms.of_cycle(core, record, record.index + len(record.ahead) + 1)
    if coming.offer is not None and not coming.are_over:
        return coming.number, coming.offer
    found = offered(core, record.subscription)
    return found if isinstance(found, Refusal) else _ends(found.name)


def paid_ahead(core: Core, account_id: AccountId, offer: Subscription) -> Refusal | None:
    """Why no further cycle can be paid, if none can."""
    record = renewals.of_account(core, account_id, offer.name)
    return None if record is None or len(record.ahead) < AHEAD_MAX else _too_far_ahead(offer.name)


def paid(core: Core, account: Account, payment: Payment) -> Outcome:
    """A cycle was paid through a provider: it begins the subscription, or one that is past due anew; or it is the next one of
    one that runs. What it grants and costs is what was asked for.
    """
    assert payment.offer is not None, payment.payment_id
    offer = replace(payment.offer, price_microcny=payment.price_microcny)
    record = renewals.of_account(core, account.account_id, offer.name)
    if record is not None and record.past_due_at_us is None:
        if refusal := paid_ahead(core, account.account_id, offer):
            return refusal
        outcome = _book_ahead(core, account, record, offer, channel=payment.provider)
    else:
        lots: list[str] = []
        cycle = plans.cycle_grants(offer, started_at_us=core.now_us, index=0)
        outcome = _book(core, account, cycle.grant, lots, at_us=core.now_us, channel=payment.provider)
        if isinstance(outcome, Accepted):
            terms = subscription_terms.bought(core, payment.offer)
            record = _begin(core, account, offer, record, lots, terms=terms)
    if isinstance(outcome, Accepted) and record is not None:
        record.is_renewed, record.failures = True, 0
        record.ending = record.ending and payment.auto
        renewals.plan(record, begun_us=core.now_us)
        core.note_renewal(record)
    return outcome


def _begin(
    core: Core,
    account: Account,
    offer: Subscription,
    record: SubscriptionRecord | None,
    lots: list[str],
    *,
    terms: int,
) -> SubscriptionRecord:
    """Count its cycles from now."""
    next_at_us = plans.next_cycle_us(offer, started_at_us=core.now_us, index=0)
    if record is None:
        record = SubscriptionRecord(
            account_id=account.account_id,
            subscription=offer.name,
            started_at_us=core.now_us,
            index=0,
            next_at_us=next_at_us,
            lots=lots,
            terms=terms,
        )
        core.keep_subscription(record)
        treasury.set_spending(core, account.account_id)
    else:
        record.started_at_us, record.index, record.next_at_us = core.now_us, 0, next_at_us
        record.lots, record.past_due_at_us = lots, None
        if record.terms != terms:
            record.terms = terms
            treasury.set_spending(core, account.account_id)
    return record


def unsubscribe(core: Core, event: Unsubscribe) -> Outcome:
    record = renewals.of_account(core, event.account_id, event.subscription)
    if record is None:
        return refusals.not_found("subscription", event.subscription)
    record.ending = True
    renewals.cancel(core, record)
    core.note_renewal(record)
    offer = core.offer_of(record)
    paid = 0 if offer is None else len(record.ahead)
    ends_at_us = record.next_at_us if not paid or offer is None else _end_us(offer, record, cycles=paid)
    return Accepted(facts={"ends_at_us": ends_at_us})


def _again(core: Core, account: Account, record: SubscriptionRecord, *, channel: str) -> Outcome:
    """Go on with one that was to end; where an operator books it, pay the first cycle that isn't paid yet, good from its own
    start.
    """
    coming = _unpaid(core, record)
    if isinstance(coming, Refusal):
        return coming
    number, offer = coming
    if channel == payments.SANDBOX:
        if not record.ending:
            return refusals.conflict(f"the account has {offer.name!r} already", code="already_subscribed")
        record.ending = False
        return Accepted()
    refusal = paid_ahead(core, account.account_id, offer) or treasury.full(
        core, account, offer.amount_uhs, asset=offer.asset
    )
    if refusal is not None:
        return refusal
    if record.past_due_at_us is not None:
        lots: list[str] = []
        cycle = plans.cycle_grants(offer, started_at_us=core.now_us, index=0)
        outcome = _book(core, account, cycle.grant, lots, at_us=core.now_us, channel=channel)
        if isinstance(outcome, Accepted):
            _begin(core, account, offer, record, lots, terms=number)
    else:
        outcome = _book_ahead(core, account, record, offer, channel=channel)
    if isinstance(outcome, Accepted):
        record.ending = False
        renewals.plan(record, begun_us=core.now_us)
        core.note_renewal(record)
    return outcome


def _book_ahead(
    core: Core, account: Account, record: SubscriptionRecord, offer: Subscription, *, channel: str
) -> Outcome:
    """The first cycle that isn't paid yet, good from its own start."""
    index = record.index + len(record.ahead) + 1
    cycle = plans.cycle_grants(offer, started_at_us=record.started_at_us, index=index)
    return _book(core, account, cycle.grant, record.ahead, at_us=core.now_us, channel=channel)


def drop_unpaid(core: Core, account_id: AccountId) -> None:
    """Cycles to come of which nothing is left, because what was paid for them went back, aren't paid any more; the last ones
    first: one before them stays, and grants nothing.
    """
    for record in core.subscribed_by.get(account_id, ()):
        count = len(record.ahead)
        while record.ahead and _is_gone(core, record.ahead[-1]):
            record.ahead.pop()
        if len(record.ahead) < count:
            renewals.plan(record, begun_us=core.now_us)
            core.note_renewal(record)


def _is_gone(core: Core, lot_id: str) -> bool:
    ledger = with_lot(core.book, lot_id)
    assert ledger is not None, lot_id
    return ledger.lots[lot_id].voided_uhs == ledger.lots[lot_id].granted_uhs


def _ends(name: str) -> Refusal:
    return refusals.conflict(
        f"subscription {name!r} ends before another cycle of it begins: book what follows it",
        code="offer_ended",
        subscription=name,
    )


def _too_far_ahead(name: str) -> Refusal:
    return refusals.conflict(
        f"{AHEAD_MAX} cycles of {name!r} are paid ahead already: book the next one later",
        code="paid_ahead",
        limit=AHEAD_MAX,
    )


def _end_us(offer: Subscription, record: SubscriptionRecord, *, cycles: int) -> int:
    """When the cycle ends that is so many after the current one."""
    return plans.next_cycle_us(offer, started_at_us=record.started_at_us, index=record.index + cycles)


def renew(core: Core, *, most: int | None = None) -> int | None:
    """Grant the cycles that have begun, each at its own time, those that began first before others, and drop the subscriptions that
    have ended; of each what was due before it goes first.

    Args:
        core: whose.
        most: so much at most, so that no decision takes long, however many cycles begin at once; None = all. What is left over is
            as due as before: nobody's cycle is granted twice, and none is passed over.

    Returns what is left of `most`.
    """
    now_us = core.now_us
    ended, to_ask = set[int](), list[SubscriptionRecord]()
    while most != 0 and (at_us := core.renewal_due_us) is not None and at_us <= now_us:
        if most is not None:
            before = core.book.due_count(at_us - 1, most=most)
            core.book.sweep(now_us=at_us - 1, most=most)
            most -= before
        group = _take_due(core, at_us, most=most)
        if most is None:
            core.book.sweep(now_us=at_us - 1)
        else:
            most -= len(group)
        begun = [record for record in group if record.next_at_us == at_us]
        to_ask += [record for record in group if record.ask_at_us == at_us]
        left = [_left_uhs(core, record) for record in begun]
        for record, left_uhs in zip(begun, left, strict=True):
            if _renew(core, record, left_uhs, at_us=at_us):
                core.note_renewal(record)
            else:
                ended.add(id(record))
    for record in to_ask:
        if id(record) not in ended:
            renewals.look(core, record)
    if ended:
        records = core.state.subscriptions
        records[:] = [record for record in records if id(record) not in ended]
    return most


def _take_due(core: Core, at_us: int, *, most: int | None) -> list[SubscriptionRecord]:
    """Those that are to be looked at at that instant, each once, by their accounts' names."""
    found: dict[tuple[AccountId, str], SubscriptionRecord] = {}
    due = core.renewals
    while due and due[0][0] == at_us and (most is None or len(found) < most):
        record = core.renewal_of(due[0])
        if record is not None:
            found[record.account_id, record.subscription] = record
        heapq.heappop(due)
    return list(found.values())


def _renew(core: Core, record: SubscriptionRecord, left_uhs: int, *, at_us: int) -> bool:
    """Whether it goes on."""
    before, offer = core.offer_of(record), _go_on(core, record, left_uhs, at_us=at_us)
    if before is not None and offer is not None and before != offer:
        treasury.set_spending(core, record.account_id)
    is_paid = bool(record.ahead) or (core.state.payments == payments.SANDBOX and not record.ending)
    if offer is not None and not is_paid and renewals.is_past_due(core, record, at_us=at_us):
        return True
    if offer is None or not is_paid:
        renewals.over(core, record)
        own = [other for other in core.subscribed_by.pop(record.account_id) if other is not record]
        if own:
            core.subscribed_by[record.account_id] = own
        treasury.set_spending(core, record.account_id)
        return False
    record.index, record.past_due_at_us = record.index + 1, None
    if plans.cycle_start_us(offer, started_at_us=record.started_at_us, index=record.index) != at_us:
        # The offer's cycle was changed: count from here.
        record.started_at_us, record.index = at_us, 0
    record.next_at_us = plans.next_cycle_us(offer, started_at_us=record.started_at_us, index=record.index)
    assert before is not None, record.subscription
    left_uhs = left_uhs if before.asset == offer.asset else 0
    cycle = plans.cycle_grants(offer, started_at_us=record.started_at_us, index=record.index, left_uhs=left_uhs)
    lots, record.lots = record.lots, []
    account = core.state.accounts[record.account_id]
    if record.ahead:
        record.lots.append(record.ahead.pop(0))
    else:
        _book(core, account, cycle.grant, record.lots, at_us=at_us, channel=payments.SANDBOX)
    if cycle.rollover is not None:
        _carry(core, account, cycle.rollover, lots, record.lots, at_us=at_us)
    renewals.plan(record, begun_us=at_us)
    return True


def _go_on(core: Core, record: SubscriptionRecord, left_uhs: int, *, at_us: int) -> Subscription | None:
    """By which terms a subscription goes on that a cycle of ends now, and note these; None = its offer has ended, and it with that."""
    before, coming = core.offer_of(record), subscription_terms.of_cycle(core, record, record.index + 1)
    offer = coming.offer
    if before is None or (offer is not None and not offer.is_over(at_us)):
        record.terms = coming.number
        return offer
    if record.ahead:
        return before  # what is paid is granted
    if offer is not None and offer.ends is not None and offer.ends.keeps_rollover and not record.ending:
        cycle = plans.cycle_grants(
            before, started_at_us=record.started_at_us, index=record.index + 1, left_uhs=left_uhs
        )
        if cycle.rollover is not None:
            account = core.state.accounts[record.account_id]
            _carry(core, account, cycle.rollover, record.lots, [], at_us=at_us)
    return None if record.ending else subscription_terms.move_on(core, record, offer, at_us=at_us)


def _carry(core: Core, account: Account, rollover: LotTerms, lots: list[str], into: list[str], *, at_us: int) -> None:
    """Book what is carried over, in place of what is left of these lots."""
    ledger = package_of(core.book, rollover.asset)
    lots = [lot_id for lot_id in lots if lot_id in ledger.lots]
    for lot_id in lots:
        sweeping.retire(ledger, lot_id, now_us=at_us)
    if isinstance(_book(core, account, rollover, into, at_us=at_us, channel=""), Accepted):
        sweeping.carry(ledger, lots, into[-1], now_us=at_us)


def _book(core: Core, account: Account, lot: LotTerms, into: list[str], *, at_us: int, channel: str) -> Outcome:
    """Book a lot, and note it; without a channel nothing is paid for it."""
    outcome = treasury.book_lot(core, account, lot, origin=Origin.SUBSCRIPTION, channel=channel, now_us=at_us)
    if isinstance(outcome, Accepted):
        into.append(treasury.newest_lot(core))
    return outcome


def _left_uhs(core: Core, record: SubscriptionRecord) -> int:
    """What is left of the cycle that ends now, an instant before it does: free, or held and not used yet."""
    offer = core.offer_of(record)
    ledger = core.book if offer is None else package_of(core.book, offer.asset)
    lots = (ledger.lots[lot_id] for lot_id in record.lots if lot_id in ledger.lots)
    return sum(lot.free_uhs + lot.held_uhs for lot in lots)
