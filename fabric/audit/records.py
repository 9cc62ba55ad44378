"""What a customer takes home: a statement of the account, and receipts that prove its entries are in the sealed log.

Amounts in µHs and 10⁻⁶ CNY, times in µs since the epoch, hashes in lower-case hex. Nothing here knows how they are made.
"""

import msgspec

from fabric.charging.records import Cdr
from fabric.ledger.transfers import Transfer


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the log with its RFC 6962 inclusion proof under a signed checkpoint."""

    seq: int
    """The leaf's index."""
    leaf: str
    """The leaf's bytes in base64: hash these, not a re-encoding. "" where the entry also concerns other accounts: then
    only its hash is shown, because a receipt never tells one customer about another."""
    leaf_hash: str
    proof: tuple[str, ...]
    """Sibling hashes from the leaf to the root."""
    tree_size: int
    checkpoint: str
    """The signed note of that tree size."""
    key: str = ""
    """The public key that signed it, by its own word."""


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """The log as it is now: whoever keeps the note can show later that nothing before it was rewritten."""

    note: str
    """The signed checkpoint."""
    key: str
    """The public key that signed it, as it is published."""


class Balances(msgspec.Struct, frozen=True, kw_only=True):
    """Where an account stands. `debt_uhs` is what it owes, so its worth is free + held - debt."""

    free_uhs: int = 0
    held_uhs: int = 0
    debt_uhs: int = 0
    packages: dict[str, tuple[int, int]] = {}
    """Free and held of packages of LLM tokens, by asset, in thousandths of a token of weight 1."""

    @property
    def posted_uhs(self) -> int:
        """What is owned, whether promised to something or not."""
        return self.free_uhs + self.held_uhs


class Booked(msgspec.Struct, frozen=True, kw_only=True):
    """What an entry of the journal booked for one account: nothing in it is about another."""

    seq: int
    at_us: int
    transfers: tuple[Transfer, ...] = ()
    """Those of the account, with what they posted to the account's own, the operator's and money's."""
    records: tuple[Cdr, ...] = ()


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One transfer, from the account's side."""

    at_us: int
    kind: str
    ref: str
    amount_uhs: int
    """Into (+) or out of (-) the account: the change of free + held - debt. 0 for a hold, which only moves."""
    held_uhs: int
    """The change of what is held."""
    cny_microcny: int
    """Money charged to the account by this transfer: what was paid, or became receivable; less than 0 where a lot was voided."""
    paid_microcny: int = 0
    """Money that came in for invoices: it was charged by them."""
    transfer_id: int
    seq: int
    """The journal entry that holds the transfer."""
    written_off_uhs: int = 0
    """Used by the account, and borne by the operator: in no balance."""
    flags: tuple[str, ...] = ()
    packages: dict[str, tuple[int, int]] = {}
    """The change of what is free and held of packages of LLM tokens, by asset."""
    left: dict[str, tuple[int, int]] = {}
    """What is free and held of each after it, of an account that has had any."""


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """Opening, every transfer, closing: the lines' sums are the difference, and two tree heads enclose them."""

    account_id: str
    from_us: int
    until_us: int | None
    opening: Balances
    closing: Balances
    lines: tuple[Line, ...]
    from_size: int
    """Every entry of the account before this index lies before the period."""
    from_root: str
    until_size: int
    """Every entry of the account from this index on lies after the period, or didn't exist yet."""
    until_root: str
    records: tuple[Cdr, ...]
    """The charging records that were closed in the period."""
