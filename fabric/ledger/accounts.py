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


class Priced(msgspec.Struct, array_like=True, gc=False):
    """Debt that was used at a price which is no longer in force."""

    amount_uhs: int
    microcny_per_ct: int


class Invoice(msgspec.Struct, kw_only=True, gc=False):
    """What was used on credit, at its price, and isn't paid in full."""

    invoice_id: str
    amount_uhs: int
    price_microcny: int
    """In whole fen."""
    paid_microcny: int = 0
    number: int = 0
    """Counted from 1, without a gap; 0 = it is of before there were numbers."""
    issued_at_us: int = 0
    credited_microcny: int = 0
    """What credit notes took off it."""
    reminded: int = 0
    """How often its account was reminded of it."""
    stopped_at_us: int | None = None
    """Since when its account has no credit because of it."""
    parked_at_us: int | None = None
    """Since when its account is suspended because of it."""
    closed_at_us: int | None = None
    """When its account was closed because of it."""

    @property
    def unpaid_microcny(self) -> int:
        return self.price_microcny - self.paid_microcny - self.credited_microcny

    @property
    def unpaid_uhs(self) -> int:
        """The tokens that nobody has paid for: as much of them as of the price, rounded up."""
        return -(-self.amount_uhs * self.unpaid_microcny // self.price_microcny)


class Account(msgspec.Struct, kw_only=True):
    """The lots themselves are the book's; an account keeps the ids of those with anything free or held."""

    account_id: str
    opened_at_us: int
    credit_limit_uhs: int = 0
    debt_uhs: int = 0
    """Used and covered by no lot: not yet invoiced or repaid."""
    priced: list[Priced] = []
    """The part of the debt that was used at earlier prices, oldest first; the rest is at the price in force."""
    invoices: list[Invoice] = []
    """Those that aren't paid in full, oldest first: they count against the credit limit."""
    credit_held_uhs: int = 0
    """Held and covered by no lot: debt as soon as it is captured."""
    held_uhs: int = 0
    """All that its holds hold, credit included."""
    charged_back_uhs: int = 0
    """Owed because a payment was charged back after its tokens had been used: the next purchase pays it first. Never from use,
    and no part of `debt_uhs`.
    """
    receivable_microcny: int = 0
    written_off_uhs: int = 0
    """Used, reported when nothing covered it any more, and borne by the operator: never owed."""
    credit_stopped_at_us: int | None = None
    """Since when nothing more is held on credit, because an invoice is overdue; None = it may be."""
    excused_uhs: int = 0
    """How far beyond its limit the account was let: by usage that had already happened, or by a lowered limit."""
    spending: tuple[Spending, ...] = ()
    """Of those whose scope admits a use the first one counts; where none does, `FREELY`."""
    burning: list[str] = []
    """Lots in burn order."""
    owned: list[str] = []
    """In a package: all lots that it was ever given."""
    transfers: int = 0
    """Of it, posted so far, in whatever asset: the number of the last one."""

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
        return 0 if self.credit_stopped_at_us is not None else max(0, self.credit_limit_uhs - self.exposed_uhs)

    @property
    def owed_uhs(self) -> int:
        """Used on credit, or held on it."""
        return self.debt_uhs + self.credit_held_uhs

    @property
    def invoiced_uhs(self) -> int:
        """What is invoiced and not paid."""
        return sum(invoice.unpaid_uhs for invoice in self.invoices) if self.invoices else 0

    @property
    def exposed_uhs(self) -> int:
        """All that counts against the credit limit: what is owed, and what is invoiced and not paid."""
        return self.owed_uhs + self.invoiced_uhs

    def excuse(self) -> None:
        """Accept what is owed as it stands: the limit was lowered under it."""
        self.excused_uhs = max(0, self.exposed_uhs - self.credit_limit_uhs)

    def set_price(self, microcny_per_ct: int) -> None:
        """Say what the debt that has no price yet was used at, because what is used from now on has another."""
        unpriced_uhs = self.debt_uhs - sum(each.amount_uhs for each in self.priced)
        if unpriced_uhs:
            self.priced.append(Priced(unpriced_uhs, microcny_per_ct))

    def price_newest(self, amount_uhs: int, microcny_per_ct: int) -> None:
        """Say that so much of the debt that has no price yet was used at another price than the one in force."""
        last = self.priced[-1] if self.priced else None
        if last is not None and last.microcny_per_ct == microcny_per_ct:
            last.amount_uhs += amount_uhs
        else:
            self.priced.append(Priced(amount_uhs, microcny_per_ct))

    def take_back(self, amount_uhs: int, used_at: list[Priced], *, todays: int) -> None:
        """Owe less, because use is taken back: at its own prices, where those are known.

        Args:
            amount_uhs: how much.
            used_at: what the use became of debt at which prices, the newest last: so much of that is taken off. What isn't there counts
                as what was used last.
            todays: the price in force, at which debt has no price yet.
        """
        while amount_uhs and used_at:
            newest = used_at[-1]
            part = min(amount_uhs, newest.amount_uhs)
            self._lower_at(part, newest.microcny_per_ct, is_todays=newest.microcny_per_ct == todays)
            newest.amount_uhs -= part
            amount_uhs -= part
            if not newest.amount_uhs:
                used_at.pop()
        if amount_uhs:
            self.lower_debt(amount_uhs, newest_first=True)

    def _lower_at(self, amount_uhs: int, microcny_per_ct: int, *, is_todays: bool) -> None:
        """Owe less of what was used at a price; of what was used last, where so much isn't owed at it any more."""
        unpriced_uhs = self.debt_uhs - sum(each.amount_uhs for each in self.priced)
        left_uhs = amount_uhs - (min(amount_uhs, unpriced_uhs) if is_todays else 0)
        for priced in reversed(self.priced):
            part = min(left_uhs, priced.amount_uhs) if priced.microcny_per_ct == microcny_per_ct else 0
            priced.amount_uhs -= part
            left_uhs -= part
        self.priced = [each for each in self.priced if each.amount_uhs]
        self.debt_uhs -= amount_uhs - left_uhs
        if left_uhs:
            self.lower_debt(left_uhs, newest_first=True)

    def lower_debt(self, amount_uhs: int, *, newest_first: bool) -> None:
        """Owe less: what was used last where use is taken back, what was used first where it is paid for."""
        unpriced_uhs = self.debt_uhs - sum(each.amount_uhs for each in self.priced)
        self.debt_uhs -= amount_uhs
        left_uhs = amount_uhs - min(amount_uhs, unpriced_uhs) if newest_first else amount_uhs
        while left_uhs and self.priced:
            priced = self.priced[-1 if newest_first else 0]
            part = min(left_uhs, priced.amount_uhs)
            priced.amount_uhs -= part
            left_uhs -= part
            if not priced.amount_uhs:
                self.priced.remove(priced)

    def settle(self, amount_microcny: int) -> None:
        """Put a payment to the oldest invoices."""
        for invoice in self.invoices:
            part = min(amount_microcny, invoice.unpaid_microcny)
            invoice.paid_microcny += part
            amount_microcny -= part
        self.drop_settled()

    def drop_settled(self) -> None:
        """Forget the invoices of which nothing is unpaid."""
        self.invoices = [invoice for invoice in self.invoices if invoice.unpaid_microcny]
