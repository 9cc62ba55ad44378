"""What the ledger knows: accounts, lots, holds, totals, and the transfers that nobody has taken away yet. A record; what changes it
stands in modules of functions, one concern each.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import field

from fabric.ledger.accounts import Account
from fabric.ledger.expiry import Deadline, Deadlines
from fabric.ledger.holds import Hold, HoldState
from fabric.ledger.lots import Lot
from fabric.ledger.own_holds import OwnHolds
from fabric.ledger.transfers import CT, Transfer

_DAY_US: Final = 86_400_000_000
REFUND_MARGIN_US: Final = _DAY_US
"""A lot that is good for less than this is no place for a refund."""
SETTLEMENT_WINDOW_US: Final = _DAY_US
"""How long what a lapsed hold holds stays set aside, unless the operator says otherwise."""
CUSTOMER: Final = ("available", "held", "debt")
"""The classes of accounts that a customer has; all others are the operator's."""
_TOKENS: Final = (*CUSTOMER, "issued", "redeemed", "breakage", "written_off")
_MONEY: Final = ("cash", "receivable", "revenue")


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed trial balance: what every class of account stood at after transfer number `through`."""

    period: str
    closed_at_us: int
    through: int
    tokens_uhs: dict[str, int]
    money_microcny: dict[str, int]
    packages: dict[str, dict[str, int]] = {}
    """The same of each other asset, in its own units."""


def _zeros(classes: tuple[str, ...]) -> dict[str, int]:
    return dict.fromkeys(classes, 0)


Derived = tuple[list[Deadline], list[str], dict[str, object]]
_NONE: Final[list[str]] = []


class Ledger(msgspec.Struct, kw_only=True, dict=True):
    """The fields are its snapshot. What is derived of them (deadlines, the holds that customers keep) lives beside them, and is
    never encoded.
    """

    operator: str = "op"
    asset: str = CT
    """What its lots are of. Of packages of LLM tokens, amounts are thousandths of a token of weight 1, wherever a name says µHs."""
    packages: dict[str, "Ledger"] = field(default_factory=dict)
    """Ledgers of the same accounts in other assets, by asset: each by the same rules, and nobody has credit in them. Their
    transfers and their money are in this one's.
    """
    count: int = 0
    """Transfers posted so far: the id of the last one."""
    tokens_uhs: dict[str, int] = field(default_factory=lambda: _zeros(_TOKENS))
    """By class of account, so that the trial balance of the whole book costs nothing."""
    money_microcny: dict[str, int] = field(default_factory=lambda: _zeros(_MONEY))
    pending: list[Transfer] = []
    periods: list[Period] = []
    invoices_made: int = 0
    """The number of the last one."""
    credit_notes_made: int = 0
    """The number of the last one."""
    accounts: dict[str, Account] = field(default_factory=dict)
    lots: dict[str, Lot] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    """The open ones."""
    lapsed: dict[str, Hold] = field(default_factory=dict)
    """No longer valid and not yet settled by their clients: what they hold is set aside."""
    expired: dict[str, Hold] = field(default_factory=dict)
    """Given up: nothing is set aside for them any more; in the order in which that was."""
    refund_margin_us: int = REFUND_MARGIN_US
    ended: dict[str, Hold] = field(default_factory=dict)
    """Over for good; in the order in which they ended."""
    settlement_window_us: int = SETTLEMENT_WINDOW_US
    """Of holds that lapse from now on."""

    def __post_init__(self) -> None:
        for hold_id in [name for name, hold in self.lapsed.items() if hold.state is HoldState.EXPIRED]:
            self.expired[hold_id] = self.lapsed.pop(hold_id)  # as snapshots had it before there was a settlement window
        self.daybook = self
        """The one that numbers transfers and keeps them until they are taken away: of a package that which it is a part of."""
        for package in self.packages.values():
            package.daybook = self
        self.deadlines = Deadlines(self.holds, self.lapsed, self.lots)
        self.own = OwnHolds((self.holds, self.lapsed), (self.ended, self.expired))
        self.forgets_at_us = 0
        """No hold that is over is forgotten before; 0 = look anew."""
        self.just_given_up: list[Hold] = []
        self.just_shrunk: list[tuple[Hold, int]] = []

    def hold(self, hold_id: str) -> Hold | None:
        """A hold of that name, open or over, as long as it is remembered."""
        return (
            self.holds.get(hold_id) or self.ended.get(hold_id) or self.lapsed.get(hold_id) or self.expired.get(hold_id)
        )

    def derived(self) -> Derived:
        """What is kept beside the fields: deadlines that stand, soonest first; holds that nobody has asked about yet; and
        those that customers keep.
        """
        unasked = [*self.just_given_up, *(hold for hold, _ in self.just_shrunk)]
        mine = self.deadlines.standing(), [hold.hold_id for hold in unasked], self.own.view()
        return _together(mine, (package.derived() for package in self.packages.values()))

    def derive(self) -> Derived:
        """The same, made anew from the fields."""
        own = OwnHolds((self.holds, self.lapsed), (self.ended, self.expired))
        mine = Deadlines(self.holds, self.lapsed, self.lots).standing(), _NONE, own.view()
        return _together(mine, (package.derive() for package in self.packages.values()))


def _together(mine: Derived, packages: Iterable[Derived]) -> Derived:
    deadlines, unasked, own = mine
    for more, also_unasked, _ in packages:  # no customer keeps a hold in a package by itself
        deadlines, unasked = [*deadlines, *more], [*unasked, *also_unasked]
    return deadlines, unasked, own
