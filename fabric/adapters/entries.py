"""The journal's one encoding: a decision as canonical bytes, and back.

JSON by msgspec: fields in the order of their declaration, no spaces, integers as they are; the same decision gives the
same bytes on any machine. A reader that knows newer fields fills in their defaults, so that an older leaf still decodes.
"""

from typing import Final

import msgspec

from fabric.adapters.journal import Entry
from fabric.charging.records import Cdr
from fabric.gate.events import AnyEvent
from fabric.gate.instructions import Decision, Outcome
from fabric.ledger.transfers import Transfer

_CUSTOMER: Final = "cust/"


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What a leaf says: the event, when, the answer, and what was booked."""

    seq: int
    at_us: int
    event: AnyEvent
    outcome: Outcome
    transfers: tuple[Transfer, ...]
    records: tuple[Cdr, ...]


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Recorded)


def encode_entry(seq: int, *, at_us: int, event: AnyEvent, decision: Decision) -> bytes:
    """The leaf of one decision."""
    return _encode(
        Recorded(
            seq=seq,
            at_us=at_us,
            event=event,
            outcome=decision.outcome,
            transfers=decision.transfers,
            records=decision.records,
        )
    )


def decode_entry(leaf: bytes) -> Recorded:
    """What a leaf says.

    Raises:
        msgspec.DecodeError: not a leaf that this version can read.
    """
    return _decoder.decode(leaf)


def entry_of(seq: int, *, at_us: int, event: AnyEvent, decision: Decision) -> Entry:
    """The entry of one decision, with the accounts it belongs to."""
    leaf = encode_entry(seq, at_us=at_us, event=event, decision=decision)
    return Entry(seq=seq, leaf=leaf, accounts=accounts_of(event, decision))


def accounts_of(event: AnyEvent, decision: Decision) -> tuple[str, ...]:
    """Whose statement the decision belongs to: who asked, whose tokens moved, whose records were closed."""
    account_id = getattr(event, "account_id", None)
    found: dict[str, None] = {account_id: None} if account_id else {}
    for transfer in decision.transfers:
        found[transfer.account_id] = None
        for posting in transfer.postings:
            if posting.account.startswith(_CUSTOMER):
                found[posting.account[len(_CUSTOMER) : posting.account.rindex("/")]] = None
    for record in decision.records:
        found[record.account_id] = None
    found.pop("", None)
    return tuple(found)
