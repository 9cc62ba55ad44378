"""The immutable facts of the ledger: who gave what to whom, and why.

A `Transfer` is a set of postings that sum to zero for each asset (double entry). It is never changed; a correction is
another transfer. Account names are paths: `cust/<id>/available`, `cust/<id>/held`, `cust/<id>/debt`, `op/<o>/issued`,
`op/<o>/redeemed`, `op/<o>/breakage`, `op/<o>/written_off`, `cash/<channel>`, `receivable/<id>`, `op/<o>/revenue`, `suspense/<channel>`.
"""

import msgspec

CT = "CT"
CNY = "CNY"


class Posting(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One leg: `amount` of `asset` into (positive) or out of (negative) `account`."""

    account: str
    asset: str
    amount: int


class LotShare(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How much of which lot a transfer moved."""

    lot_id: str
    amount_uhs: int


class Transfer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Postings that sum to zero per asset, with the reason and the lots they touched, in burn order."""

    transfer_id: int
    """Counts the ledger's transfers from 1."""
    kind: str
    """top_up | bundle | subscription | grant | repay | hold | capture | write_off | release | refund | expire | void |
    invoice | sale | payment | pay_out | charge_back | reinstate | suspense
    """
    account_id: str
    ref: str
    """What it is about: a hold, lot, job, bundle or period id."""
    at_us: int
    postings: tuple[Posting, ...]
    lots: tuple[LotShare, ...] = ()
    linked_to: int | None = None
    """Transfers of one purchase stand or fall together: the id of the first of them."""
    flags: tuple[str, ...] = ()
    """late | over_hold | no_hold | forgotten | anew | carried | estimated | final | lapsed | refund | frozen | kept"""
    number: int = 0
    """Which of the account's transfers it is, from 1: whoever has the account's can tell whether one is missing. 0 = of money
    that has no owner, or of before they were numbered.
    """
