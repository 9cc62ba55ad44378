"""One customer's account: what it owes and holds, and its lots that still burn."""

import msgspec

from fabric.ledger.lots import Lot, Origin
from fabric.ledger.scopes import ANYTHING, Scope, Use


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """What uses within a scope may be met from: a hold and the usage that goes beyond one, alike."""

    scope: Scope = ANYTHING
    """The uses it is about."""
    origins: tuple[Origin, ...] = ()
    """Only lots of these origins; () = of any."""
    credit: bool = True
    """Whether credit may follow when the lots are used up."""

    def admits(self, lot: Lot) -> bool:
        return not self.origins or lot.terms.origin in self.origins


FREELY = Spending()
"""Any lot whose scope admits the use, then credit."""


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
    written_off_uhs: int = 0
    """Used, reported when nothing covered it any more, and borne by the operator: never owed."""
    excused_uhs: int = 0
    """How far beyond its limit the account was let: by usage that had already happened, or by a lowered limit."""
    spending: tuple[Spending, ...] = ()
    """Of those whose scope admits a use the first one counts; where none does, `FREELY`."""
    burning: list[str] = []
    """Lots in burn order."""

    def spending_for(self, use: Use | None) -> Spending:
        """By which rule a use is met; no use in particular is met freely."""
        if use is not None:
            for spending in self.spending:
                if spending.scope.admits(use):
                    return spending
        return FREELY

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
