"""Events of invoices: what is taken off one."""

from fabric.gate.event import Event
from fabric.units import AccountId, KeyId


class CreditInvoice(Event, frozen=True, kw_only=True, tag="credit_invoice"):
    """A credit note: an operator corrects an invoice that isn't paid, which stays as it is and is named by this entry."""

    account_id: AccountId
    invoice_id: str
    amount_microcny: int
    """In whole fen; at most what is unpaid of it."""
    reason: str
    by_key: KeyId | None = None
    """Who says so; None = nobody who has a key."""
    request_id: str = ""
