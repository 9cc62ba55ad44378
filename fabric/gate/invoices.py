"""Invoices of postpaid accounts: paid, the oldest first; corrected by credit notes; and what becomes of those that aren't paid.

By its plan's terms an account is reminded of an overdue invoice, and then nothing more is held on credit: what it has bought it
may still use, and what runs on credit runs until its hold is used up. Then it is suspended, and what runs saves and is parked. What is
paid or credited lifts both, and all goes on. In the end it is closed, for good; what it owes stays. Each step has its date.
"""

from collections.abc import Iterator

from fabric.charging import dunning
from fabric.gate import account_steps, notices, refusals
from fabric.gate.core import Core
from fabric.gate.events import RecordPayment
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.invoice_events import CreditInvoice
from fabric.gate.invoice_views import InvoiceView
from fabric.gate.organisation_state import Standing
from fabric.gate.state import Account as Holder
from fabric.ledger import Refused
from fabric.ledger.accounts import Account, Invoice
from fabric.ledger.funding import FEN_MICROCNY
from fabric.ledger.outcomes import Fact
from fabric.units import INT64_MAX, AccountId, format_cny

REASON_MAX = 200


def record_payment(core: Core, event: RecordPayment) -> Outcome:
    """Money for invoices. What they counted against the credit limit can be used again."""
    account = core.book.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    owed = account.receivable_microcny
    if not 0 < event.amount_microcny <= owed:
        given = min(max(event.amount_microcny, -INT64_MAX), INT64_MAX)
        return refusals.invalid(
            f"account {event.account_id} has invoices of {format_cny(owed)} CNY to pay: a payment is of more than 0 and at most"
            f" that, not of {format_cny(given)}. What is paid ahead is a top-up",
            code="invalid_amount",
            amount_microcny=given,
            receivable_microcny=owed,
        )
    paid = core.book.pay(
        event.account_id,
        amount_microcny=event.amount_microcny,
        channel=event.channel,
        payment_ref=event.payment_ref,
        now_us=core.now_us,
    )
    if isinstance(paid, Refused):
        return refusals.from_ledger(paid)
    lift(core, account)
    return Accepted(facts={"paid_microcny": event.amount_microcny, **_left(account)})


def credit(core: Core, event: CreditInvoice) -> Outcome:
    """Take a part off an invoice, or all that is unpaid of it."""
    account = core.book.accounts.get(event.account_id)
    found = [] if account is None else [each for each in account.invoices if each.invoice_id == event.invoice_id]
    if account is None or not found:
        return refusals.not_found("unpaid invoice", event.invoice_id)
    if not 0 < len(event.reason.strip()) <= REASON_MAX:
        return refusals.invalid(f"say why, in 1 to {REASON_MAX} characters: it is kept for ever", code="invalid_reason")
    unpaid, amount = found[0].unpaid_microcny, event.amount_microcny
    if not 0 < amount <= unpaid or (amount % FEN_MICROCNY and amount != unpaid):
        return refusals.invalid(
            f"of invoice {event.invoice_id} {format_cny(unpaid)} CNY are unpaid: a credit note is of more than 0 and at most"
            " that, in whole fen. What is paid already is paid back, not credited",
            code="invalid_amount",
            unpaid_microcny=unpaid,
        )
    core.book.credit_note(event.account_id, invoice_id=event.invoice_id, amount_microcny=amount, now_us=core.now_us)
    lift(core, account)
    text = f"{format_cny(amount)} CNY less: {event.reason}"
    notices.tell(core, event.account_id, "invoice_credited", event.invoice_id, text)
    return Accepted(facts={"credit_note": core.book.credit_notes_made, "amount_microcny": amount, **_left(account)})


def issue(core: Core, account_id: AccountId, *, period: str) -> None:
    """Invoice what an account has used on credit, if anything."""
    invoice_id, made = f"{period}/{account_id}", core.book.invoices_made
    core.book.close_invoice(
        account_id,
        invoice_id=invoice_id,
        microcny_per_ct=core.plan_of(account_id).price_microcny_per_ct,
        now_us=core.now_us,
    )
    if core.book.invoices_made > made:
        price = core.book.accounts[account_id].invoices[-1].price_microcny
        notices.tell(core, account_id, "invoice", invoice_id, f"number {made + 1}, of {format_cny(price)} CNY")


def follow(core: Core, *, until_us: int | None = None) -> None:
    """Do what is due about overdue invoices, each thing dated when it fell due.

    Args:
        core: whose.
        until_us: what fell due by then; None = by now. Whoever runs is given time to save from now on, in either case.
    """
    until_us = core.now_us if until_us is None else until_us
    if core.dunning_due_us is None or core.dunning_due_us > until_us:
        return
    for account_id, account in core.book.accounts.items():
        for invoice in account.invoices:
            while (step := core.dunning_step(account_id, invoice)) is not None and step.at_us <= until_us:
                _take(core, AccountId(account_id), account, invoice, step)
    core.note_dunning()


def unpaid(core: Core, account_id: AccountId) -> Iterator[InvoiceView]:
    """An account's invoices that aren't paid in full, oldest first."""
    terms = core.plan_of(account_id).dunning
    for each in core.book.accounts[account_id].invoices:
        is_due = terms is not None and each.issued_at_us
        step = core.dunning_step(account_id, each)
        yield InvoiceView(
            invoice_id=each.invoice_id,
            number=each.number,
            price_microcny=each.price_microcny,
            unpaid_microcny=each.unpaid_microcny,
            issued_at_us=each.issued_at_us,
            due_at_us=dunning.due_us(terms, issued_at_us=each.issued_at_us) if is_due and terms is not None else None,
            reminded=each.reminded,
            stopped_at_us=each.stopped_at_us,
            parked_at_us=each.parked_at_us,
            next_step=step.what if step else "",
            next_at_us=step.at_us if step else None,
        )


def _take(core: Core, account_id: AccountId, account: Account, invoice: Invoice, step: dunning.Step) -> None:
    text = f"{format_cny(invoice.unpaid_microcny)} CNY of invoice {invoice.number} are overdue"
    if step.what == dunning.REMIND:
        invoice.reminded += 1
        notices.tell(core, account_id, "invoice_overdue", invoice.invoice_id, text)
        return
    known = core.state.accounts[account_id]
    if step.what == dunning.PARK:
        _park(core, known, invoice, step, text)
    elif step.what == dunning.CLOSE:
        _close(core, known, invoice, step, text)
    else:
        invoice.stopped_at_us = step.at_us
        if account.credit_stopped_at_us is None:
            account.credit_stopped_at_us = step.at_us
            text = f"{text}: nothing more is held on credit until they are paid"
            notices.tell(core, account_id, "credit_stopped", invoice.invoice_id, text, operator=True)


def _park(core: Core, account: Holder, invoice: Invoice, step: dunning.Step, text: str) -> None:
    """Suspend it, but for one that isn't open, or is the operator's own."""
    invoice.parked_at_us = step.at_us
    if account.standing is not Standing.OPEN or _is_operators(core, account):
        return
    account_steps.suspend(core, account, f"{text} (invoice {invoice.invoice_id})", dunned=True)
    text = f"{text}: the account is suspended, and what runs saves and is parked until they are paid"
    notices.tell(core, account.account_id, "account_suspended", invoice.invoice_id, text, operator=True)


def _close(core: Core, account: Holder, invoice: Invoice, step: dunning.Step, text: str) -> None:
    """Close it for good; what is left of its tokens is forfeited, and what it owes stays."""
    invoice.closed_at_us = step.at_us
    if account.standing in {Standing.CLOSING, Standing.CLOSED} or _is_operators(core, account):
        return
    account_steps.begin_to_close(core, account, f"{text} (invoice {invoice.invoice_id})", refunds=False)
    notices.tell(core, account.account_id, "account_closed", invoice.invoice_id, f"{text}: closed", operator=True)


def _is_operators(core: Core, account: Holder) -> bool:
    return any(key.operator for key in core.keys_of.get(account.account_id, ()))


def lift(core: Core, account: Account) -> None:
    """Something was paid or credited: an account of which nothing is overdue for so long has its credit again."""
    if account.credit_stopped_at_us is not None and all(each.stopped_at_us is None for each in account.invoices):
        account.credit_stopped_at_us = None
        notices.tell(core, AccountId(account.account_id), "credit_restored", "", "nothing is overdue any more")
    known = core.state.accounts[AccountId(account.account_id)]
    if known.dunned and all(each.parked_at_us is None for each in account.invoices):
        account_steps.resume(core, known)
        text = "paid: the account is open again, and what was parked goes on"
        notices.tell(core, known.account_id, "account_resumed", "", text, operator=True)
    core.note_dunning()


def _left(account: Account) -> dict[str, Fact]:
    return {"receivable_microcny": account.receivable_microcny, "invoiced_uhs": account.invoiced_uhs}
