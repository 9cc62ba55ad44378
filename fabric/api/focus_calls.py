"""An account's charges or lots in FOCUS 1.4, as they come: read twice, a page at a time, and never whole in memory.

The first reading finds what has taken up what was used on credit (an invoice, or a lot that repaid it); the second one tells the
charges. Both are of the journal as it was at one size.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any, Final

from fabric.api.job_calls import CHUNK_BYTES
from fabric.api.keys import Caller
from fabric.api.messages import word
from fabric.api.service import ApiService
from fabric.audit.records import Booked, Sealed
from fabric.errors import NotFound
from fabric.focus.charges import Charge, Charges
from fabric.focus.columns import CONTRACT_COMMITMENT_COLUMNS, COST_AND_USAGE_COLUMNS, OWN_COLUMNS
from fabric.focus.rows import Account, LotTerms, charge_row, lot_row
from fabric.focus.text import Row, csv_header, csv_line, json_line
from fabric.gate.questions import BalanceOf, BookedOf, CheckpointOf, LotTermsOf, Prices, PricesOf
from fabric.gate.views import BalanceView, LotView
from fabric.ledger.scopes import ANYTHING
from fabric.system.client_threads import aside
from fabric.units import AccountId
from fabric.wire import fabric_pb2 as pb

_LOTS_AT_ONCE: Final = 500
_SECOND_US: Final = 1_000_000


class Dataset(StrEnum):
    """What can be exported."""

    CHARGES = "CostAndUsage"
    LOTS = "ContractCommitment"


class Format(StrEnum):
    """In which form."""

    CSV = "csv"
    JSON_LINES = "jsonl"


_COLUMNS: Final = {
    Dataset.CHARGES: (*(column.name for column in COST_AND_USAGE_COLUMNS), *OWN_COLUMNS),
    Dataset.LOTS: tuple(column.name for column in CONTRACT_COMMITMENT_COLUMNS),
}


async def export(door: ApiService, caller: Caller, request: pb.ExportFocusRequest) -> AsyncIterator[pb.Chunk]:
    """A dataset as text."""
    await door.check_customer(caller)
    dataset = word(Dataset, "dataset", request.dataset or Dataset.CHARGES)
    form = word(Format, "format", request.format or Format.CSV)
    columns = _COLUMNS[dataset]
    account, list_price = await _account(door, caller)
    first, size = Charges(list_microcny_per_ct=list_price), None
    async for entries, of_size in _booked(door, caller.account, size):
        size = of_size
        await aside(_read, first, entries)
    if form is Format.CSV:
        yield pb.Chunk(data=csv_header(columns))
    line = csv_line if form is Format.CSV else json_line
    if dataset is Dataset.LOTS:
        pages = _lots(door, account, first, lambda row: line(row, columns))
    else:
        told = Charges(
            from_us=request.from_us,
            until_us=request.until_us if request.HasField("until_us") else None,
            list_microcny_per_ct=list_price,
            taken=first.debt.taken,
        )
        pages = _charges(door, caller.account, told, size, lambda charge: line(charge_row(account, charge), columns))
    async for text in pages:
        for start in range(0, len(text), CHUNK_BYTES):
            yield pb.Chunk(data=text[start : start + CHUNK_BYTES])


async def _account(door: ApiService, caller: Caller) -> tuple[Account, int]:
    """Whose it is, and the price in force of a token on its plan."""
    balance = await door.port.ask(BalanceOf(account_id=caller.account))
    if not isinstance(balance, BalanceView):
        raise NotFound(f"there is no account {caller.account!r}", account=caller.account)
    sealed: Any = await door.port.ask(CheckpointOf())
    account = Account(balance.account_id, balance.name, _origin(sealed))
    return account, await _list_price(door, balance.plan)


async def _charges(
    door: ApiService, account_id: AccountId, told: Charges, size: int | None, write: Callable[[Charge], bytes]
) -> AsyncIterator[bytes]:
    async for entries, _ in _booked(door, account_id, size):
        yield await aside(_told, told, entries, write)
        if entries and told.is_over(entries[-1].at_us):
            break
    yield b"".join(map(write, told.rest()))


async def _booked(
    door: ApiService, account_id: AccountId, size: int | None
) -> AsyncIterator[tuple[tuple[Booked, ...], int]]:
    """All that was booked for an account, a page at a time, and of which size of the journal."""
    question: BookedOf | None = BookedOf(account_id=account_id, size=size)
    while question is not None:
        page: Any = await door.port.ask(question)
        yield page.entries, page.size
        question = page.following


async def _lots(
    door: ApiService, account: Account, reckoned: Charges, write: Callable[[Row], bytes]
) -> AsyncIterator[bytes]:
    """Rows of lots, with the terms that the gate knows of them; one that it has forgotten is over."""
    now_us, lots = door.clock.now_us(), list(reckoned.lots.values())
    for start in range(0, len(lots), _LOTS_AT_ONCE):
        some = lots[start : start + _LOTS_AT_ONCE]
        names = tuple(lot.lot_id for lot in some)
        found: Any = await door.port.ask(LotTermsOf(account_id=AccountId(account.account_id), lot_ids=names))
        terms = {each.lot_id: _terms(each) for each in found}
        over = [LotTerms(lot.granted_at_us, max(now_us, lot.granted_at_us + _SECOND_US)) for lot in some]
        rows = [
            lot_row(account, lot, terms.get(lot.lot_id, gone), now_us=now_us)
            for lot, gone in zip(some, over, strict=True)
        ]
        yield b"".join(map(write, rows))


def _terms(lot: LotView) -> LotTerms:
    scope = "" if lot.scope == ANYTHING.text else lot.scope
    return LotTerms(lot.effective_at_us, lot.expires_at_us, scope)


def _read(reckoned: Charges, entries: Iterable[Booked]) -> None:
    for entry in entries:
        for _ in reckoned.add(entry):
            pass


def _told(reckoned: Charges, entries: Iterable[Booked], write: Callable[[Charge], bytes]) -> bytes:
    return b"".join(write(charge) for entry in entries for charge in reckoned.add(entry))


async def _list_price(door: ApiService, plan: str) -> int:
    """The price in force of a token on a plan."""
    found = await door.port.ask(PricesOf())
    plans: Iterator[int] = iter(())
    if isinstance(found, Prices) and found.catalogue is not None:
        plans = (each.price_microcny_per_ct for each in found.catalogue.plans if each.name == plan)
    return next(plans, 0)


def _origin(sealed: Sealed) -> str:
    """The operator, by the name of its log: the first line of every checkpoint."""
    return sealed.note.partition("\n")[0] or "operator"
