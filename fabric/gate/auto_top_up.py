"""Topping up by itself: below a threshold or a runway a payment is asked for, within a monthly cap, until three have failed.

Its owner is told of each: that it was asked, what came of it, that the cap is reached, that it is off.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from fabric.gate import notices, refusals, till_prices, treasury
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.payment_events import SetAutoTopUp
from fabric.gate.payment_state import AutoTopUp, Payment
from fabric.gate.state import BURNING
from fabric.units import AMOUNT_UHS_MAX, AccountId, format_cny, format_ct

FAILURES_MAX: Final = 3
"""In a row; then it is off until its owner says otherwise."""
AGAIN_US: Final = 6 * 3_600_000_000
"""After one that failed."""
AUTO: Final = "auto-"
VALID_US: Final = 24 * 3_600_000_000
RUNWAY_US: Final = range(60_000_000, 90 * 86_400_000_000 + 1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def set_rule(core: Core, event: SetAutoTopUp) -> Outcome:
    """A new rule in place of the account's own, or none; what is under way goes on."""
    if event.account_id not in core.state.accounts:
        return refusals.not_found("account", event.account_id)
    if not event.on:
        rule = core.state.till.auto.get(event.account_id)
        if rule is not None:
            rule.on = False
        return Accepted(facts={"on": False})
    if refusal := _unfit(event):
        return refusal
    before = core.state.till.auto.get(event.account_id)
    core.state.till.auto[event.account_id] = AutoTopUp(
        account_id=event.account_id,
        threshold_uhs=event.threshold_uhs,
        runway_us=event.runway_us,
        amount_uhs=event.amount_uhs,
        month_max_uhs=event.month_max_uhs,
        month=before.month if before is not None else 0,
        month_uhs=before.month_uhs if before is not None else 0,
        payment_id=before.payment_id if before is not None else "",
    )
    look(core, event.account_id)
    return Accepted(facts={"on": True})


def _unfit(event: SetAutoTopUp) -> Refusal | None:
    if (event.threshold_uhs is None) == (event.runway_us is None):
        return refusals.invalid(
            "say below how many tokens, or below how long a runway; one of them", code="invalid_threshold"
        )
    if event.threshold_uhs is not None and not 0 < event.threshold_uhs <= AMOUNT_UHS_MAX:
        return refusals.bad_amount("a threshold is", event.threshold_uhs)
    if event.runway_us is not None and event.runway_us not in RUNWAY_US:
        return refusals.invalid("a runway is of a minute to 90 days", code="invalid_threshold")
    if event.month_max_uhs < event.amount_uhs:
        return refusals.invalid(
            f"a month's cap of {format_ct(event.month_max_uhs)} tokens is less than one top-up of {format_ct(event.amount_uhs)}",
            code="invalid_cap",
        )
    return refusals.bad_amount("a top-up is of", event.amount_uhs) or refusals.bad_amount(
        "a cap is of", event.month_max_uhs
    )


def follow(core: Core) -> None:
    """Look at the accounts whose tokens the event has moved."""
    rules = core.state.till.auto
    if rules:
        for account_id in dict.fromkeys(transfer.account_id for transfer in core.book.pending):
            if account_id in rules:
                look(core, AccountId(account_id))


def look(core: Core, account_id: AccountId) -> None:
    """Ask for a payment if it is time."""
    rule = core.state.till.auto[account_id]
    if not rule.on or rule.payment_id or core.now_us < rule.not_before_us or not _is_low(core, rule):
        return
    if rule.month != _month(core.now_us):
        rule.month, rule.month_uhs, rule.is_capped = _month(core.now_us), 0, False
    if rule.month_uhs + rule.amount_uhs > rule.month_max_uhs:
        if not rule.is_capped:
            rule.is_capped = True
            text = f"{format_ct(rule.month_uhs)} of {format_ct(rule.month_max_uhs)} tokens were bought this month"
            notices.tell(core, account_id, "auto_top_up_capped", "", text)
        return
    _ask(core, rule)


def _ask(core: Core, rule: AutoTopUp) -> None:
    account, provider = core.state.accounts[rule.account_id], core.state.payments
    price = till_prices.price_at(core, rule.account_id, rule.amount_uhs, provider=provider)
    if not price or treasury.full(core, account, rule.amount_uhs) is not None:
        _failed(core, rule, "", "nothing can be bought")
        return
    till = core.state.till
    till.auto_made += 1
    rule.payment_id = f"{AUTO}{till.auto_made}-{core.now_us:x}"
    rule.month_uhs += rule.amount_uhs
    till_prices.begin(
        core,
        Payment(
            payment_id=rule.payment_id,
            account_id=rule.account_id,
            provider=provider,
            amount_uhs=rule.amount_uhs,
            price_microcny=price,
            asked_at_us=core.now_us,
            until_us=core.now_us + VALID_US,
            auto=True,
        ),
    )
    text = f"{format_ct(rule.amount_uhs)} tokens for {format_cny(price)} CNY"
    notices.tell(core, rule.account_id, "auto_top_up_asked", rule.payment_id, text)


def ended(core: Core, payment: Payment, *, why: str) -> None:
    """One of its payments was paid (why = ""), or came to nothing."""
    rule = core.state.till.auto.get(payment.account_id)
    if rule is None or rule.payment_id != payment.payment_id:
        return
    rule.payment_id = ""
    if not why:
        rule.failures = 0
        return
    if rule.month == _month(payment.asked_at_us):
        rule.month_uhs = max(0, rule.month_uhs - payment.amount_uhs)
    _failed(core, rule, payment.payment_id, why)


def _failed(core: Core, rule: AutoTopUp, about: str, why: str) -> None:
    rule.failures += 1
    rule.not_before_us = core.now_us + AGAIN_US
    notices.tell(
        core, rule.account_id, "auto_top_up_failed", about, f"{why}: {rule.failures} of {FAILURES_MAX} in a row"
    )
    if rule.failures >= FAILURES_MAX:
        rule.on = False
        notices.tell(core, rule.account_id, "auto_top_up_off", about, f"after {FAILURES_MAX} failures")


def _is_low(core: Core, rule: AutoTopUp) -> bool:
    """Whether what can be spent is below the threshold, or lasts less long than the runway at the burn of now."""
    balance = core.book.balance(rule.account_id, now_us=core.now_us)
    assert balance is not None, rule.account_id
    if rule.threshold_uhs is not None:
        return balance.free_uhs < rule.threshold_uhs
    assert rule.runway_us is not None
    burn = sum(
        core.state.sessions[lease_id].burn_uhs_per_s
        for job in core.jobs_of.get(rule.account_id, ())
        if (lease_id := job.lease_id) is not None
        and lease_id in core.state.sessions
        and core.state.leases[lease_id].state in BURNING
    )
    return (balance.free_uhs + balance.held_uhs) * 1_000_000 < burn * rule.runway_us


def _month(at_us: int) -> int:
    """Of UTC, as 202611."""
    at = _EPOCH + timedelta(microseconds=at_us)
    return at.year * 100 + at.month
