"""How tokens come in: accounts, keys, purchases, subscriptions, the close of a period."""

from typing import Final

from fabric.charging import plans
from fabric.charging.catalogue import COMPUTE, Bundle, Mode, Overflow, Plan, Restriction
from fabric.charging.plans import LotTerms
from fabric.gate import invoices, organisations, packages, refusals, shares, standing
from fabric.gate.account_events import OpenAccount
from fabric.gate.core import Core
from fabric.gate.events import BuyBundle, ClosePeriod, Grant, TopUp
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.state import Account
from fabric.ledger import Origin, Refused, Spending, Terms, Transfer, funding
from fabric.ledger import packages as ledgers
from fabric.ledger.outcomes import PERIOD_CLOSED, Fact
from fabric.ledger.scopes import Scope, Service
from fabric.units import AMOUNT_UHS_MAX, INT64_MAX, PPM, AccountId, format_ct

NAME_MAX: Final = 64
LIFETIME_MAX_US: Final = 100 * 365 * plans.DAY_US
GENEROSITY: Final = (Overflow.POSTPAID, Overflow.WALLET, Overflow.BLOCK)
INCLUDED_FIRST: Final = -1
"""The priority of a subscription's own tokens: others are touched when these are used up, which is what overflow means."""
GRANTS: Final = (Origin.PROMOTION.value, Origin.REFUND.value)
GRANTS_LEAVE_UHS: Final = INT64_MAX // 2
"""What grants leave of the room in the book's totals: so much can always be sold."""
REASON_MAX: Final = 200


def open_account(core: Core, event: OpenAccount) -> Outcome:
    if core.state.catalogue is None:
        return refusals.not_configured()
    plan = core.catalogue.plan(event.plan)
    if plan is None:
        known = ", ".join(each.name for each in core.catalogue.plans)
        return refusals.invalid(f"there is no plan {event.plan!r}: choose of {known}", code="unknown_plan", known=known)
    if not _is_name(event.account_id):
        return refusals.invalid(
            f"{event.account_id[:NAME_MAX]!r} can't be an account id: use 1 to {NAME_MAX} of A-Z, a-z, 0-9, '-' and '_'",
            code="invalid_account_id",
        )
    refusal = _bad_credit(core, event, plan) or shares.mistaken(event.weight_ppm, event.cohort)
    if refusal := refusal or organisations.no_wallet(core, event):
        return refusal
    said = event.older_limit_uhs or plan.credit_limit_uhs
    limit_uhs = said if event.credit_limit_uhs is None else event.credit_limit_uhs
    refused = core.book.open_account(event.account_id, now_us=core.now_us, credit_limit_uhs=limit_uhs)
    if refused is not None:
        return refusals.from_ledger(refused)
    account = core.state.accounts[event.account_id] = Account(
        account_id=event.account_id,
        name=event.name or event.account_id,
        plan=plan.name,
        opened_at_us=core.now_us,
        weight_ppm=event.weight_ppm,
        cohort=event.cohort,
    )
    if event.organisation:
        organisations.give(core, event.account_id, event.organisation)
    if (account.weight_ppm, account.cohort) != (PPM, ""):
        shares.apply(core, account)
    return Accepted()


def _bad_credit(core: Core, event: OpenAccount, plan: Plan) -> Refusal | None:
    limit_uhs = event.credit_limit_uhs or 0
    if not 0 <= limit_uhs <= AMOUNT_UHS_MAX:
        return refusals.invalid(
            f"a credit limit is 0 to {AMOUNT_UHS_MAX} µHs ({format_ct(AMOUNT_UHS_MAX)} tokens), not {limit_uhs}",
            code="invalid_amount",
        )
    if limit_uhs and plan.mode is Mode.PREPAID:
        postpaid = ", ".join(each.name for each in core.catalogue.plans if each.mode is Mode.POSTPAID) or "none here"
        return refusals.invalid(
            f"plan {plan.name!r} is prepaid, so an account on it has no credit: leave the credit of {format_ct(limit_uhs)}"
            f" tokens out, or choose a postpaid plan ({postpaid})",
            code="prepaid_plan",
            plan=plan.name,
        )
    return None


def top_up(core: Core, event: TopUp) -> Outcome:
    """Tokens at the price and life of the account's plan."""
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    refusal = refusals.bad_amount("a top-up is of", event.amount_uhs) or full(core, account, event.amount_uhs)
    if refusal is not None:
        return refusal
    bought = plans.top_up(core.plan_of(event.account_id), amount_uhs=event.amount_uhs, now_us=core.now_us)
    return book_lot(core, account, bought, origin=Origin.TOP_UP, channel=event.channel, now_us=core.now_us)


def full(core: Core, account: Account, more_uhs: int, *, asset: str = COMPUTE) -> Refusal | None:
    """Why the account can't be given so much more, if it can't: no account alone fills the books."""
    if asset != COMPUTE:
        return packages.full(core, account, more_uhs, asset=asset)
    if refusal := standing.takes_nothing(account):
        return refusal
    lots = (core.book.lots[lot_id] for lot_id in core.book.accounts[account.account_id].burning)
    owned_uhs = sum(lot.free_uhs + lot.held_uhs for lot in lots)
    if owned_uhs + more_uhs <= AMOUNT_UHS_MAX:
        return None
    return refusals.conflict(
        f"account {account.account_id} owns {format_ct(owned_uhs)} tokens and may own {format_ct(AMOUNT_UHS_MAX)}: book at most"
        f" {format_ct(max(0, AMOUNT_UHS_MAX - owned_uhs))} now, and more when some are used",
        code="account_full",
        owned_uhs=owned_uhs,
        limit_uhs=AMOUNT_UHS_MAX,
    )


def grant(core: Core, event: Grant) -> Outcome:
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    if refusal := _ungrantable(core, event) or full(core, account, event.amount_uhs):
        return refusal
    terms = Terms(
        origin=Origin(event.origin),
        tier=account.plan,
        scope=event.scope,
        effective_at_us=core.now_us,
        expires_at_us=None if event.lifetime_us is None else core.now_us + event.lifetime_us,
    )
    answer = book_terms(core, account, event.amount_uhs, terms, now_us=core.now_us)
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer)
    return Accepted(granted_uhs=event.amount_uhs, facts={"lot_id": newest_lot(core)})


def _ungrantable(core: Core, event: Grant) -> Refusal | None:
    if event.origin not in GRANTS:
        return refusals.invalid(
            f"{event.origin!r} can't be granted: choose of {', '.join(GRANTS)}", code="invalid_origin"
        )
    if refusal := refusals.bad_amount("a grant is of", event.amount_uhs):
        return refusal
    if not core.book.has_room_for(event.amount_uhs + GRANTS_LEAVE_UHS, price_microcny=0):
        return refusals.conflict(
            f"tokens given away may fill half of the books, and this would be more: {format_ct(GRANTS_LEAVE_UHS)} are kept"
            " for what is sold. Void what was granted by mistake: fabric ops void",
            code="grants_full",
        )
    if event.lifetime_us is not None and not 0 < event.lifetime_us <= LIFETIME_MAX_US:
        return refusals.invalid(
            f"a grant's lifetime is more than 0 and at most {LIFETIME_MAX_US} µs, not {event.lifetime_us}",
            code="invalid_lifetime",
        )
    return None


def buy_bundle(core: Core, event: BuyBundle) -> Outcome:
    """All parts in linked transfers, or none."""
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    bundle = bundle_named(core, event.bundle)
    return bundle if isinstance(bundle, Refusal) else sell_bundle(core, account, bundle, channel=event.channel)


def bundle_named(core: Core, name: str) -> Bundle | Refusal:
    """What is sold under that name."""
    bundle = core.catalogue.bundle(name)
    if bundle is None:
        known = ", ".join(each.name for each in core.catalogue.bundles) or "none"
        return refusals.invalid(f"there is no bundle {name!r}: choose of {known}", code="unknown_bundle")
    return bundle


def sell_bundle(core: Core, account: Account, bundle: Bundle, *, channel: str, over_microcny: int = 0) -> Outcome:
    """Book all of its parts; `over_microcny` was paid beyond its price, for whole fen."""
    bought = plans.bundle_grants(bundle, now_us=core.now_us)
    granted_uhs = sum(lot.amount_uhs for lot in bought.lots if lot.asset == COMPUTE)
    if refusal := full(core, account, granted_uhs) or packages.no_room(core, account, bought.lots):
        return refusal
    if not core.book.has_room_for(granted_uhs, price_microcny=bundle.price_microcny + over_microcny):
        return refusals.beyond_int64()
    first: int | None = None
    for lot in bought.lots:
        beyond = over_microcny if first is None else 0
        terms = _terms(account, lot, origin=Origin.BUNDLE, channel=channel, beyond_microcny=beyond)
        answer = book_terms(core, account, lot.amount_uhs, terms, now_us=core.now_us, linked_to=first, asset=lot.asset)
        assert not isinstance(answer, Refused), f"{bundle.name}: {answer}"
        first = first or answer.transfer_id
    account.entitlements = [each for each in account.entitlements if each.expires_at_us > core.now_us]
    for part in bought.entitlements:
        account.entitlements.append(part)
        sold = core.book.sell(
            account.account_id,
            ref=f"{part.amount} {part.asset}",
            price_microcny=part.price_microcny,
            channel=channel,
            now_us=core.now_us,
            linked_to=first,
        )
        first = first or (sold.transfer_id if sold else None)
    paid = over_microcny + sum(lot.price_microcny for lot in bought.lots)
    paid += sum(part.price_microcny for part in bought.entitlements)
    ends = [lot.expires_at_us for lot in bought.lots] + [part.expires_at_us for part in bought.entitlements]
    facts: dict[str, Fact] = {"price_microcny": paid, "expires_at_us": min(ends), **packages.told(bought.lots)}
    return Accepted(granted_uhs=granted_uhs, facts=facts)


def close_period(core: Core, event: ClosePeriod) -> Outcome:
    """Invoice what is owed, then seal the trial balance."""
    if not event.period:
        return refusals.invalid("a period needs a name, such as 2026-08", code="invalid_period")
    if any(sealed.period == event.period for sealed in core.book.periods):
        return refusals.from_ledger(Refused(PERIOD_CLOSED, {"period": event.period}))
    for account_id in core.state.accounts:
        invoices.issue(core, account_id, period=event.period)
    core.note_dunning()
    sealed = core.book.close_period(event.period, now_us=core.now_us)
    return refusals.from_ledger(sealed) if isinstance(sealed, Refused) else Accepted()


def book_lot(core: Core, account: Account, lot: LotTerms, *, origin: Origin, channel: str, now_us: int) -> Outcome:
    """One lot that was bought, on its terms."""
    terms = _terms(account, lot, origin=origin, channel=channel)
    answer = book_terms(core, account, lot.amount_uhs, terms, now_us=now_us, asset=lot.asset)
    if isinstance(answer, Refused):
        return refusals.from_ledger(answer)
    facts: dict[str, Fact] = {"price_microcny": lot.price_microcny, "expires_at_us": lot.expires_at_us}
    if lot.asset != COMPUTE:
        return Accepted(facts={**facts, **packages.told([lot])})
    return Accepted(granted_uhs=lot.amount_uhs, facts=facts)


def set_spending(core: Core, account_id: AccountId) -> None:
    """What the account's subscriptions let its holds be met from; the most generous of those a use falls under counts."""
    running = core.subscribed_by.get(account_id, ())
    offers = [offer for record in running if (offer := core.offer_of(record)) is not None]
    offers.sort(key=lambda offer: GENEROSITY.index(offer.overflow))
    rules = tuple(
        Spending(
            scope=scope_of(offer.restriction),
            origins=(Origin.SUBSCRIPTION,) if offer.overflow is Overflow.BLOCK else (),
            credit=offer.overflow is Overflow.POSTPAID,
        )
        for offer in offers
    )
    core.book.set_spending(account_id, spending=rules)
    core.freed[account_id] = None


def book_terms(
    core: Core,
    account: Account,
    amount_uhs: int,
    terms: Terms,
    *,
    now_us: int,
    linked_to: int | None = None,
    asset: str = COMPUTE,
) -> Transfer | Refused:
    """The next lot of the book, or of a package in it; a refused one leaves no trace."""
    answer = funding.grant(
        ledgers.join(core.book, asset, account.account_id),
        account.account_id,
        lot_id=f"lot-{core.state.lots_made + 1}",
        amount_uhs=amount_uhs,
        terms=terms,
        now_us=now_us,
        linked_to=linked_to,
    )
    if not isinstance(answer, Refused):
        core.state.lots_made += 1
        if asset != COMPUTE:
            core.book.packages[asset].accounts[account.account_id].owned.append(newest_lot(core))
    return answer


def _terms(account: Account, lot: LotTerms, *, origin: Origin, channel: str, beyond_microcny: int = 0) -> Terms:
    return Terms(
        origin=origin,
        tier=account.plan,
        priority=INCLUDED_FIRST if origin is Origin.SUBSCRIPTION else 0,
        scope=scope_of(lot.restriction),
        effective_at_us=lot.effective_at_us,
        expires_at_us=lot.expires_at_us,
        price_microcny=lot.price_microcny + beyond_microcny,
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


def newest_lot(core: Core) -> str:
    """The lot that was booked last."""
    return f"lot-{core.state.lots_made}"


def _is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_MAX and all(char.isascii() and (char.isalnum() or char in "-_") for char in text)
