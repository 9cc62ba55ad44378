"""A pure double-entry ledger for compute tokens: accounts, lots, holds, and the book that keeps them.

It doesn't know what a job is, what anything costs, what time it is, or where anything is stored.
"""

from fabric.ledger.accounts import FREELY, Spending
from fabric.ledger.book import Book
from fabric.ledger.holds import HoldState
from fabric.ledger.lots import Lot, Origin, Terms
from fabric.ledger.outcomes import Answer, Balance, Granted, LotBalance, Refused, Settled
from fabric.ledger.scopes import ANYTHING, Scope, Service, Use
from fabric.ledger.state import Period
from fabric.ledger.transfers import LotShare, Posting, Transfer

__all__ = [
    "ANYTHING",
    "FREELY",
    "Answer",
    "Balance",
    "Book",
    "Granted",
    "HoldState",
    "Lot",
    "LotBalance",
    "LotShare",
    "Origin",
    "Period",
    "Posting",
    "Refused",
    "Scope",
    "Service",
    "Settled",
    "Spending",
    "Terms",
    "Transfer",
    "Use",
]
