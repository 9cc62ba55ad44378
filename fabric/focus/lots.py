"""What tokens cost that were used: exactly, lot by lot. Pure, in integers of 10⁻¹² CNY.

A lot's price is handed out over its tokens as they go: each part costs its share of what is left of the price, and the last one
all of the rest, so that the parts of a lot add up to its price, what expired of it included. What is used on credit is priced by
what later takes it up: an invoice, or the lot that repays it.
"""

from dataclasses import dataclass
from typing import Final

PICO: Final = 1_000_000
"""10⁻¹² CNY in 10⁻⁶."""


def half_even(numerator: int, denominator: int) -> int:
    """A quotient rounded half to even; the denominator is more than 0."""
    quotient, rest = divmod(numerator, denominator)
    twice = 2 * rest
    return quotient + (twice > denominator or (twice == denominator and quotient % 2))


@dataclass(slots=True)
class Lot:
    """Tokens of one purchase, as far as an account's entries tell of it."""

    lot_id: str
    asset: str
    origin: str
    granted_at_us: int
    granted: int
    price_microcny: int
    left: int
    """Tokens that were neither used nor expired nor taken back."""
    left_pico: int
    """What is left of the price."""
    frozen: int = 0
    frozen_pico: int = 0

    @property
    def unit_pico(self) -> tuple[int, int]:
        """Its price of a token, as a fraction."""
        return self.price_microcny * PICO, max(self.granted, 1)

    def take(self, amount: int) -> int:
        """So much of it goes: what that cost."""
        cost = self.left_pico if amount >= self.left else half_even(self.left_pico * amount, self.left)
        self.left -= amount
        self.left_pico -= cost
        return cost

    def give_back(self, amount: int) -> int:
        """So much of what was used comes back into it: what that had cost."""
        used = self.granted - self.left - self.frozen
        spent = self.price_microcny * PICO - self.left_pico - self.frozen_pico
        cost = half_even(spent * amount, used) if used > 0 else 0
        self.left += amount
        self.left_pico += cost
        return cost

    def void(self, amount: int, price_microcny: int) -> None:
        """So much was never sold, for so much of the price."""
        self.granted -= amount
        self.left -= amount
        self.price_microcny -= price_microcny
        self.left_pico -= price_microcny * PICO

    def freeze(self, amount: int) -> int:
        """So much is out of reach, because its payment was charged back: what it had cost."""
        cost = self.take(amount)
        self.frozen += amount
        self.frozen_pico += cost
        return cost

    def thaw(self, amount: int) -> int:
        """It is there again."""
        cost = self.frozen_pico if amount >= self.frozen else half_even(self.frozen_pico * amount, self.frozen)
        self.frozen -= amount
        self.frozen_pico -= cost
        self.left += amount
        self.left_pico += cost
        return cost


@dataclass(frozen=True, slots=True)
class Taken:
    """What took up a stretch of the tokens that were used on credit."""

    start: int
    """Where it begins, in µHs that were ever owed."""
    amount: int
    cost_pico: int
    invoice_id: str = ""
    lot_id: str = ""

    def cost_of(self, start: int, amount: int) -> int:
        """Of a part of it: parts add up to the whole."""
        at = start - self.start
        return half_even(self.cost_pico * (at + amount), self.amount) - half_even(self.cost_pico * at, self.amount)


class Debt:
    """Tokens used on credit, on a line: at which place of it, and what has taken them up so far."""

    def __init__(self, taken: list[Taken] | None = None) -> None:
        """With what took them up, as a first reading has found; None = this is that."""
        self.taken: list[Taken] = [] if taken is None else taken
        self._known = taken is not None
        self.front = self.end = 0
        """What lies between is owed."""

    def use(self, amount: int) -> list[tuple[Taken | None, int, int]]:
        """So much is used on credit: which stretch takes it up (None = none yet), at which place, and how much there."""
        start, self.end = self.end, self.end + amount
        return self._parts(start, amount)

    def give_back(self, amount: int) -> list[tuple[Taken | None, int, int]]:
        """The newest so much is not owed any more."""
        amount = min(amount, self.end - self.front)
        self.end -= amount
        return self._parts(self.end, amount)

    def take_up(self, amount: int, cost_pico: int, *, invoice_id: str = "", lot_id: str = "") -> None:
        """The oldest so much is priced now."""
        if amount > 0:
            if not self._known:
                self.taken.append(Taken(self.front, amount, cost_pico, invoice_id, lot_id))
            self.front += amount
            self.end = max(self.end, self.front)

    def _parts(self, start: int, amount: int) -> list[tuple[Taken | None, int, int]]:
        found: list[tuple[Taken | None, int, int]] = []
        end = start + amount
        for each in self.taken if self._known else ():
            low, high = max(start, each.start), min(end, each.start + each.amount)
            if low < high:
                found.append((each, low, high - low))
                start = high
        return [*found, (None, start, end - start)] if start < end else found
