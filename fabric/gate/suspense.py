"""Money that a provider has taken and that nothing could be booked for: kept apart, told of, and settled by an operator."""

from typing import Final

from fabric.charging import plans
from fabric.gate import invoices, notices, refusals, treasury
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.payment_events import CNY, PaymentState, Said, SettleSuspense
from fabric.gate.payment_state import Payment, Suspense
from fabric.gate.treasury import REASON_MAX
from fabric.ledger import Origin
from fabric.ledger.paybacks import Sum
from fabric.units import UHS_PER_CT, AccountId, format_cny

WAYS: Final = ("returned", "kept", "booked", "invoices")


def id_of(provider: str, name: str) -> str:
    return f"{provider}/{name}"


def hold(core: Core, said: Said, *, why: str, account_id: AccountId = notices.OPERATORS) -> None:
    """Money has come in: set it aside, once for each payment."""
    name = id_of(said.provider, said.payment_id or said.provider_ref)
    if name in core.state.till.suspense:
        return
    found = Suspense(
        suspense_id=name,
        provider=said.provider,
        provider_ref=said.provider_ref,
        payment_id=said.payment_id,
        account_id=account_id,
        amount=said.amount,
        currency=said.currency,
        why=why,
        at_us=core.now_us,
    )
    core.book.set_aside(account_id, **_sum(core, found))
    keep(core, found)


def keep(core: Core, found: Suspense) -> None:
    """Remember why money stands aside, and tell of it."""
    core.state.till.suspense[found.suspense_id] = found
    text = f"{format_cny(found.amount)} {found.currency}: {found.why.replace('_', ' ')}"
    notices.tell(core, found.account_id, "suspense", found.suspense_id, text, operator=True)


def of_payment(core: Core, payment: Payment, what: str, *, amount: int, why: str, currency: str = CNY) -> Suspense:
    """Something about a payment that an operator is to look at, beside the payment itself."""
    return Suspense(
        suspense_id=id_of(payment.provider, f"{payment.payment_id}#{what}"),
        provider=payment.provider,
        provider_ref=payment.provider_ref,
        payment_id=payment.payment_id,
        account_id=payment.account_id,
        amount=amount,
        currency=currency,
        why=why,
        at_us=core.now_us,
    )


def note_contradiction(core: Core, payment: Payment, said: Said) -> None:
    """A payment that has its effect already is said to be of something else: nothing moves, and the operator is told."""
    aside = core.state.till.suspense.get(id_of(payment.provider, payment.payment_id)) if payment.aside else None
    known = (aside.amount, aside.currency) if aside is not None else (payment.price_microcny, payment.currency)
    found = of_payment(core, payment, "said-otherwise", amount=0, why="said_otherwise", currency=said.currency)
    if (said.amount, said.currency) != known and found.suspense_id not in core.state.till.suspense:
        keep(core, found)


def gone_back(core: Core, payment: Payment) -> None:
    """What stood aside of a payment was refunded by its provider: it is settled."""
    found = core.state.till.suspense.get(id_of(payment.provider, payment.payment_id))
    if found is not None and not found.settled and payment.told_refunded >= found.amount > 0:
        _return(core, found)
        found.settled, found.reason = "returned", "its provider says so"
        payment.state = PaymentState.REFUNDED


def settle(core: Core, event: SettleSuspense) -> Outcome:
    """An operator says what becomes of it."""
    found = core.state.till.suspense.get(event.suspense_id)
    if found is None:
        return refusals.not_found("money in suspense", event.suspense_id)
    if found.settled:
        return refusals.conflict(f"{event.suspense_id} is {found.settled} already", code="settled")
    if event.how not in WAYS or not 0 < len(event.reason.strip()) <= REASON_MAX:
        return refusals.invalid(
            f"say how it is settled ({', '.join(WAYS)}), and why, in 1 to {REASON_MAX} characters",
            code="invalid_settlement",
        )
    if event.how in ("booked", "invoices"):
        put = _book if event.how == "booked" else _pay_invoices
        if refusal := put(core, found, event):
            return refusal
    elif event.how == "returned":
        _return(core, found)
    elif found.amount:
        core.book.keep(found.account_id, **_sum(core, found))
    found.settled, found.reason = event.how, event.reason
    return Accepted(facts={"amount": found.amount, "currency": found.currency})


def _pay_invoices(core: Core, found: Suspense, event: SettleSuspense) -> Refusal | None:
    """All of it is for an account's invoices, the oldest first."""
    account = core.book.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    if not 0 < found.amount <= account.receivable_microcny or found.currency != CNY:
        return refusals.invalid(
            f"account {event.account_id} has invoices of {format_cny(account.receivable_microcny)} {CNY} to pay, and"
            f" {format_cny(found.amount)} {found.currency} stand in suspense: return, keep or book them",
            code="invalid_settlement",
        )
    _return(core, found)
    core.book.pay(
        event.account_id,
        amount_microcny=found.amount,
        channel=found.provider,
        payment_ref=found.suspense_id,
        now_us=core.now_us,
    )
    invoices.lift(core, account)
    return None


def _return(core: Core, found: Suspense) -> None:
    if found.amount:
        core.book.pay_out(found.account_id, **_sum(core, found))


def _sum(core: Core, found: Suspense) -> Sum:
    return {
        "ref": found.suspense_id,
        "amount": found.amount,
        "channel": found.provider,
        "currency": found.currency,
        "now_us": core.now_us,
    }


def _book(core: Core, found: Suspense, event: SettleSuspense) -> Refusal | None:
    """Tokens for all of it, at the price of the account's plan now."""
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    plan = core.plan_of(event.account_id)
    if found.amount <= 0 or found.currency != CNY or not plan.price_microcny_per_ct:
        return refusals.invalid(
            f"{format_cny(found.amount)} {found.currency} buy no tokens on plan {plan.name}: return or keep it",
            code="invalid_settlement",
        )
    amount_uhs = found.amount * UHS_PER_CT // plan.price_microcny_per_ct
    if refusal := refusals.bad_amount("a top-up is of", amount_uhs) or treasury.full(core, account, amount_uhs):
        return refusal
    bought = plans.LotTerms(
        amount_uhs=amount_uhs,
        price_microcny=found.amount,
        effective_at_us=core.now_us,
        expires_at_us=core.now_us + plan.lifetime_days * plans.DAY_US,
    )
    if not core.book.has_room_for(amount_uhs, price_microcny=found.amount):
        return refusals.beyond_int64()
    _return(core, found)
    treasury.book_lot(core, account, bought, origin=Origin.TOP_UP, channel=found.provider, now_us=core.now_us)
    return None
