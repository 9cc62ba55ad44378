"""Invoices as the gate shows them."""

import msgspec


class InvoiceView(msgspec.Struct, frozen=True, kw_only=True):
    """An invoice that isn't paid in full."""

    invoice_id: str
    number: int
    price_microcny: int
    unpaid_microcny: int
    issued_at_us: int
    due_at_us: int | None
    """None = its plan says nothing."""
    reminded: int
    stopped_at_us: int | None
    """Since when nothing more is held on credit because of it."""
    parked_at_us: int | None = None
    """Since when its account is suspended because of it."""
    next_step: str = ""
    """What is done about it next: remind | stop | park | close; "" = nothing."""
    next_at_us: int | None = None
