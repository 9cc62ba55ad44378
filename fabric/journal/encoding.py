"""The journal's one encoding: a decision as canonical bytes, and back.

JSON by msgspec: fields in the order of their declaration, no spaces, integers as they are; the same decision gives the
same bytes on any machine. A reader that knows newer fields fills in their defaults, so that an older leaf still decodes.

What is said to people is no part of a decision and stands in no leaf: of a refusal it has the code and the facts.

A leaf is shown to whoever's account it is about, so it is about one account only. Where a decision moves tokens of
several (a sweep, a meter reading of many leases), the event's own entry is followed by one for each run of transfers of
another account. They are committed together, and read in order they are the whole decision.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final

import msgspec

from fabric.charging.records import Cdr
from fabric.errors import Fact
from fabric.gate.events import AdoptRules, AnyEvent, Configure, Metered, Sample
from fabric.gate.instructions import Accepted, Decision, Outcome
from fabric.gate.serving_events import OfferModel
from fabric.gate.state import LeaseRecord
from fabric.journal.store import Entry
from fabric.ledger.transfers import Transfer
from fabric.units import LeaseId

_CUSTOMER: Final = "cust/"
_whose: Final = attrgetter("account_id")


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag_field="outcome", tag="refused"):
    """A refusal, as it was decided. Its sentence is made at the door, and older leaves' sentences are not read."""

    code: str
    facts: dict[str, Fact] = {}


Decided = Accepted | Refused


class Recorded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a leaf says: the event, when, the answer, and what was booked."""

    seq: int
    at_us: int
    event: AnyEvent | None
    """None = this entry continues another one's decision."""
    outcome: Decided | None
    transfers: tuple[Transfer, ...]
    records: tuple[Cdr, ...]
    continues: int | None = None
    """The entry whose decision this is a part of."""


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Recorded)


EVERYBODY: Final = "*"
"""Whose the entries are that tell prices, or rules: every account's export holds them. No account is called so."""


def entries_of(seq: int, *, at_us: int, event: AnyEvent, decision: Decision) -> list[Entry]:
    """The entries of one decision, from `seq` on: the event's own, and one for each run of another account's."""
    transfers, records = decision.transfers, decision.records
    own = _own(event)
    others = {one.account_id for one in transfers} | {one.account_id for one in records}
    if own is None and len(others) == 1:
        (own,) = others
    if not others or others == {own}:
        whole = _recorded(seq, at_us=at_us, event=event, decision=decision, transfers=transfers, records=records)
        return [Entry(seq=seq, leaf=_encode(whole), accounts=_accounts(own, transfers))]
    return _split(seq, at_us=at_us, event=event, decision=decision, own=own)


def by_account(event: AnyEvent, leases: Mapping[LeaseId, LeaseRecord]) -> Sequence[AnyEvent]:
    """The event, or one metering event for each account, so that an entry of the journal tells nobody about another."""
    if not isinstance(event, Metered):
        return (event,)
    samples: dict[str, list[Sample]] = {}
    for sample in event.samples:
        if record := leases.get(sample.lease_id):
            samples.setdefault(record.account_id, []).append(sample)
    return [Metered(samples=tuple(own)) for own in samples.values()]


def decode_entry(leaf: bytes) -> Recorded:
    """What a leaf says.

    Raises:
        msgspec.DecodeError: not a leaf that this version can read.
    """
    return _decoder.decode(leaf)


def decided(outcome: Outcome) -> Decided:
    """An answer without what is only said to people."""
    return outcome if isinstance(outcome, Accepted) else Refused(code=outcome.code, facts=outcome.facts)


def _recorded(
    seq: int,
    *,
    at_us: int,
    event: AnyEvent,
    decision: Decision,
    transfers: tuple[Transfer, ...],
    records: tuple[Cdr, ...],
) -> Recorded:
    """A decision's own entry, with these of its transfers and records."""
    outcome = decided(decision.outcome)
    return Recorded(seq=seq, at_us=at_us, event=event, outcome=outcome, transfers=transfers, records=records)


def _split(seq: int, *, at_us: int, event: AnyEvent, decision: Decision, own: str | None) -> list[Entry]:
    parts = [(account, tuple(run), ()) for account, run in groupby(decision.transfers, _whose)]
    first = parts.pop(0)[1] if parts and parts[0][0] == own else ()
    mine = tuple(record for record in decision.records if record.account_id == own)
    recorded = [(own, _recorded(seq, at_us=at_us, event=event, decision=decision, transfers=first, records=mine))]
    rest: list[tuple[str, tuple[Transfer, ...], tuple[Cdr, ...]]] = [*parts]
    foreign = [record for record in decision.records if record.account_id != own]
    rest += [(account, (), tuple(run)) for account, run in groupby(foreign, _whose)]
    recorded += [
        (
            account,
            Recorded(
                seq=seq + number,
                at_us=at_us,
                event=None,
                outcome=None,
                transfers=transfers,
                records=records,
                continues=seq,
            ),
        )
        for number, (account, transfers, records) in enumerate(rest, 1)
    ]
    return [
        Entry(seq=part.seq, leaf=_encode(part), accounts=_accounts(account, part.transfers))
        for account, part in recorded
    ]


def _own(event: AnyEvent) -> str | None:
    """Whose an event is: a model that is offered to one account alone is nobody else's business, and prices are everybody's."""
    match event:
        case Configure() | AdoptRules():
            return EVERYBODY
        case OfferModel():
            return event.spec.dedicated_to or EVERYBODY
        case _:
            return getattr(event, "account_id", None)


def _accounts(own: str | None, transfers: tuple[Transfer, ...]) -> tuple[str, ...]:
    """Whose statement an entry belongs to: who asked, and every customer whose tokens it moved."""
    found: dict[str, None] = {own: None} if own else {}
    for transfer in transfers:
        for posting in transfer.postings:
            if posting.account.startswith(_CUSTOMER):
                found[posting.account[len(_CUSTOMER) : posting.account.rindex("/")]] = None
    return tuple(found)
