"""One customer's account: what it owes and holds, and its lots that still burn."""

import msgspec


class Account(msgspec.Struct, kw_only=True):
    """The lots themselves are the book's; an account keeps the ids of those with anything free or held."""

    account_id: str
    opened_at_us: int
    credit_limit_uhs: int = 0
    debt_uhs: int = 0
    """Used and covered by no lot: not yet invoiced or repaid."""
    credit_held_uhs: int = 0
    """Held and covered by no lot: debt as soon as it is captured."""
    held_uhs: int = 0
    """All that its holds hold, credit included."""
    receivable_microcny: int = 0
    excused_uhs: int = 0
    """How far beyond its limit the account was let: by usage that had already happened, or by a lowered limit."""
    burning: list[str] = []
    """Lots in burn order."""

    @property
    def credit_free_uhs(self) -> int:
        """The virtual last lot."""
        return max(0, self.credit_limit_uhs - self.debt_uhs - self.credit_held_uhs)

    @property
    def owed_uhs(self) -> int:
        """Minus the balance of `cust/<id>/debt`: used on credit, or held on it."""
        return self.debt_uhs + self.credit_held_uhs

    def excuse(self) -> None:
        """Accept the debt as it stands: it came from usage that had happened, or the limit was lowered under it."""
        self.excused_uhs = max(0, self.owed_uhs - self.credit_limit_uhs)
