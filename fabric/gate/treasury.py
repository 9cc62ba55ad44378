"""How tokens come in: accounts, keys, purchases, subscriptions, the close of a period."""

from typing import Final

from fabric.charging import plans
from fabric.charging.catalogue import Restriction
from fabric.charging.plans import LotTerms
from fabric.gate import refusals
from fabric.gate.core import Core
from fabric.gate.events import (
    BuyBundle,
    ClosePeriod,
    Configure,
    CreateKey,
    Grant,
    OpenAccount,
    RevokeKey,
    TopUp,
)
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.state import Account, Key
from fabric.ledger import Origin, Refused, Terms
from fabric.ledger.scopes import Scope, Service
from fabric.units import INT64_MAX

CHANNEL: Final = "sandbox"
NAME_MAX: Final = 64
GRANTS: Final = (Origin.PROMOTION.value, Origin.REFUND.value)


def configure(core: Core, event: Configure) -> Outcome:
    core.state.tariffs, core.state.catalogue, core.state.operator = event.tariffs, event.catalogue, event.operator
    core.book.operator = event.operator
    return Accepted()


def open_account(core: Core, event: OpenAccount) -> Outcome:
    plan = core.catalogue.plan(event.plan)
    if plan is None:
        known = ", ".join(each.name for each in core.catalogue.plans)
        return refusals.invalid(f"there is no plan {event.plan!r}: choose of {known}", code="unknown_plan", known=known)
    if not _is_name(event.account_id):
        return refusals.invalid(
            f"{event.account_id[:NAME_MAX]!r} can't be an account id: use 1 to {NAME_MAX} of a-z, 0-9, '-' and '_'",
            code="invalid_account_id",
        )
    limit_uhs = event.credit_limit_uhs or plan.credit_limit_uhs
    refused = core.book.open_account(event.account_id, now_us=core.now_us, credit_limit_uhs=limit_uhs)
    if refused is not None:
        return refusals.from_ledger(refused)
    core.state.accounts[event.account_id] = Account(
        account_id=event.account_id, name=event.name or event.account_id, plan=plan.name, opened_at_us=core.now_us
    )
    return Accepted()


def top_up(core: Core, event: TopUp) -> Outcome:
    """Tokens at the price and life of the account's plan."""
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    if not 0 < event.amount_uhs <= INT64_MAX:
        return refusals.invalid(
            "a top-up must be more than 0 and fit 64 bits", code="invalid_amount", amount_uhs=event.amount_uhs
        )
    plan = core.catalogue.plan(account.plan)
    assert plan is not None, account.plan
    bought = plans.top_up(plan, amount_uhs=event.amount_uhs, now_us=core.now_us)
    return book_lot(core, account, bought, origin=Origin.TOP_UP, channel=CHANNEL)


def grant(core: Core, event: Grant) -> Outcome:
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    if event.origin not in GRANTS:
        return refusals.invalid(f"{event.origin!r} can't be granted: choose of {', '.join(GRANTS)}")
    if event.lifetime_us is not None and event.lifetime_us <= 0:
        return refusals.invalid("a grant's lifetime must be more than 0")
    terms = Terms(
        origin=Origin(event.origin),
        tier=account.plan,
        scope=event.scope,
        effective_at_us=core.now_us,
        expires_at_us=None if event.lifetime_us is None else core.now_us + event.lifetime_us,
    )
    answer = core.book.grant(
        account.account_id, lot_id=_next_lot(core), amount_uhs=event.amount_uhs, terms=terms, now_us=core.now_us
    )
    return _granted(core, account, answer, event.amount_uhs)


def buy_bundle(core: Core, event: BuyBundle) -> Outcome:
    """All parts in linked transfers, or none."""
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    bundle = core.catalogue.bundle(event.bundle)
    if bundle is None:
        known = ", ".join(each.name for each in core.catalogue.bundles) or "none"
        return refusals.invalid(f"there is no bundle {event.bundle!r}: choose of {known}", code="unknown_bundle")
    bought = plans.bundle_grants(bundle, now_us=core.now_us)
    first: int | None = None
    for lot in bought.lots:
        answer = core.book.grant(
            account.account_id,
            lot_id=_next_lot(core),
            amount_uhs=lot.amount_uhs,
            terms=_terms(account, lot, origin=Origin.BUNDLE, channel=CHANNEL),
            now_us=core.now_us,
            linked_to=first,
        )
        if isinstance(answer, Refused):
            assert first is None, "the first part of a bundle would have been refused too"
            return refusals.from_ledger(answer)
        first = first or answer.transfer_id
    for part in bought.entitlements:
        account.entitlements[part.asset] = account.entitlements.get(part.asset, 0) + part.amount
    core.freed[account.account_id] = None
    return Accepted(granted_uhs=sum(lot.amount_uhs for lot in bought.lots))


def create_key(core: Core, event: CreateKey) -> Outcome:
    if event.account_id not in core.state.accounts:
        return refusals.not_found("account", event.account_id)
    if event.key_id in core.state.keys:
        return refusals.conflict(f"there is a key {event.key_id!r} already", code="key_exists")
    if event.limit_uhs is not None and not 0 < event.limit_uhs <= INT64_MAX:
        return refusals.invalid("a key's limit must be more than 0", code="invalid_amount")
    core.state.keys[event.key_id] = Key(
        key_id=event.key_id,
        account_id=event.account_id,
        secret_sha256=event.secret_sha256,
        name=event.name,
        operator=event.operator,
        limit_uhs=event.limit_uhs,
        expires_at_us=event.expires_at_us,
    )
    return Accepted()


def revoke_key(core: Core, event: RevokeKey) -> Outcome:
    key = core.state.keys.get(event.key_id)
    if key is None or event.account_id not in (None, key.account_id):
        return refusals.not_found("key", event.key_id)
    key.revoked = True
    return Accepted()


def close_period(core: Core, event: ClosePeriod) -> Outcome:
    """Invoice what is owed, then seal the trial balance."""
    for account in core.state.accounts.values():
        plan = core.catalogue.plan(account.plan)
        assert plan is not None, account.plan
        core.book.close_invoice(
            account.account_id,
            invoice_id=f"{event.period}/{account.account_id}",
            microcny_per_ct=plan.price_microcny_per_ct,
            now_us=core.now_us,
        )
        core.freed[account.account_id] = None
    sealed = core.book.close_period(event.period, now_us=core.now_us)
    return refusals.from_ledger(sealed) if isinstance(sealed, Refused) else Accepted()


def book_lot(core: Core, account: Account, lot: LotTerms, *, origin: Origin, channel: str) -> Outcome:
    """One lot that was bought, on its terms."""
    answer = core.book.grant(
        account.account_id,
        lot_id=_next_lot(core),
        amount_uhs=lot.amount_uhs,
        terms=_terms(account, lot, origin=origin, channel=channel),
        now_us=core.now_us,
    )
    return _granted(core, account, answer, lot.amount_uhs)


def _granted(core: Core, account: Account, answer: object, amount_uhs: int) -> Outcome:
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer)
    core.freed[account.account_id] = None
    return Accepted(granted_uhs=amount_uhs)


def _terms(account: Account, lot: LotTerms, *, origin: Origin, channel: str) -> Terms:
    return Terms(
        origin=origin,
        tier=account.plan,
        scope=scope_of(lot.restriction),
        effective_at_us=lot.effective_at_us,
        expires_at_us=lot.expires_at_us,
        price_microcny=lot.price_microcny,
        channel=channel,
    )


def scope_of(restriction: Restriction) -> Scope:
    """What is sold as restricted, as the ledger's scope."""
    return Scope(
        services=tuple(Service(name) for name in restriction.services),
        accelerators=restriction.accelerators,
        models=restriction.models,
        operators=restriction.operators,
    )


def _next_lot(core: Core) -> str:
    core.state.lots_made += 1
    return f"lot-{core.state.lots_made}"


def newest_lot(core: Core) -> str:
    """The lot that was booked last."""
    return f"lot-{core.state.lots_made}"


def _is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_MAX and all(char.isascii() and (char.isalnum() or char in "-_") for char in text)
