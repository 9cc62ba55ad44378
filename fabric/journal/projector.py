"""The projector: the follower's consumer that keeps the projection, and makes it anew when it can't go on with what is kept.

Its rows and its position are one transaction, so it has each entry exactly once, whatever crashes. Two of them on one place
(a gate that was replaced, and hasn't noticed) don't disturb each other: whoever comes second begins again from the position.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import structlog
from msgspec.structs import astuple

from fabric.audit.merkle import HASH_BYTES, TILE, Tree, leaf_hash
from fabric.audit.records import Balances
from fabric.charging.served import Served
from fabric.errors import JournalCorrupt
from fabric.journal.followers import Batch, Position, Why, moved
from fabric.journal.projection import (
    FORMAT,
    JobHistory,
    Known,
    Rows,
    Told,
    accounts_of,
    balances_after,
    names_of,
    project,
    told_by,
)
from fabric.journal.store import Entry
from fabric.journal.tables import (
    ABOUT,
    ACCOUNTS,
    ENTRIES,
    GAPS,
    JOBS,
    LINES,
    PROGRESS,
    READ_PROGRESS,
    READ_SERVED,
    RECORDS,
    SERVED,
    TILES,
    DamagedTables,
    NoTables,
    Query,
    Row,
    Table,
    Tables,
    select,
)

BALANCES_KEPT: Final = 50_000
"""Accounts whose balances are remembered from one batch to the next."""

log = structlog.get_logger()
_job: Final = msgspec.json.Decoder(JobHistory)
_encode: Final = msgspec.json.Encoder().encode

Place = tuple[int, int, str]
"""A gap, as it is kept."""


class Projector:
    """A `Consumer` that projects what it is given."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._balances: dict[str, Balances] = {}
        """What the tables have as the last of each account."""
        self._tiles = Tiles(0, b"")

    async def position(self) -> Position | None:
        self._balances.clear()
        try:
            await self._tables.make()
            (found,) = await self._tables.read(READ_PROGRESS)
            position = progress(found)
        except (DamagedTables, NoTables) as error:
            await self.begin_anew(str(error))
            return None
        self._tiles = Tiles(position.seq, found[0][-1]) if position is not None else Tiles(0, b"")
        return position

    async def take(self, batch: Batch) -> None:
        try:
            rows, gaps = await self._projected(batch)
            tabled = _tabled(rows, gaps) | {TILES: self._tiles.take(batch)}
            tabled[PROGRESS] = [(FORMAT, batch.after.seq, batch.after.mark, self._tiles.edge)]
            kept = await self._tables.write(
                await self._before(batch), {table: made for table, made in tabled.items() if made}
            )
        except (DamagedTables, NoTables) as error:
            await self.begin_anew(str(error))
            raise moved(batch.before, 0) from error
        if not kept:
            raise moved(batch.before, None)
        self._balances |= {line.account_id: line.balances for line in rows.lines}
        if len(self._balances) > BALANCES_KEPT:
            self._balances.clear()

    async def begin_anew(self, why: str) -> None:
        log.warning("projection_made_anew", why=why)
        self._balances.clear()
        self._tiles = Tiles(0, b"")
        await self._tables.throw_away()
        await self._tables.make()

    async def _before(self, batch: Batch) -> int | None:
        """New tables have no progress to be compared with."""
        if batch.before != Position(0):
            return batch.before.seq
        (found,) = await self._tables.read(READ_PROGRESS)
        return 0 if found else None

    async def _projected(self, batch: Batch) -> tuple[Rows, list[Place]]:
        """The rows of a batch; what this version can't read is a gap like any other."""
        told: list[tuple[Entry, Told]] = []
        gaps: list[Place] = []
        for item in batch.items:
            if not isinstance(item, Entry):
                gaps.append((item.start, item.stop, item.why))
                continue
            try:
                told.append((item, told_by(item)))
            except JournalCorrupt as error:
                log.warning("entry_not_projected", entry=item.seq, why=str(error))
                gaps.append((item.seq, item.seq + 1, Why.DAMAGED))
        names = names_of(each for _, each in told)
        jobs = {row[0]: _job.decode(row[-1]) for row in await self._tables.pick(JOBS, "job_id", sorted(names))}
        balances = await self._standing(accounts_of(entry for entry, _ in told))
        payers = sorted({record.account_id for _, each in told for record in each.records if record.model})
        plans: dict[str, str] = dict(await self._tables.pick(ACCOUNTS, "account_id", payers))
        return project(told, Known(balances, jobs, plans, await self._served(bool(payers)))), gaps

    async def _served(self, is_wanted: bool) -> dict[tuple[str, str], Served]:
        return served_of((await self._tables.read(READ_SERVED))[0]) if is_wanted else {}

    async def _standing(self, accounts: set[str]) -> dict[str, Balances]:
        unknown = sorted(accounts - self._balances.keys())
        found = await self._tables.read(*map(last_line_of, unknown)) if unknown else []
        for account_id, rows in zip(unknown, found, strict=True):
            self._balances[account_id] = balances_of(rows)
        return {account_id: self._balances[account_id] for account_id in accounts}


def served_of(found: Sequence[Row]) -> dict[tuple[str, str], Served]:
    """What `READ_SERVED` has found."""
    return {(model, plan): Served(*counts) for model, plan, *counts in found}


def progress(found: Sequence[Row]) -> Position | None:
    """The position that tables have by `READ_PROGRESS`; None = new ones.

    Raises:
        DamagedTables: they are of another format.
    """
    if not found:
        return None
    (form, seq, mark, _), *_ = found
    if form != FORMAT:
        raise DamagedTables(f"they are of format {form}, and this version keeps {FORMAT}")
    return Position(int(seq), bytes(mark))


class Tiles:
    """The roots of the log's tiles, as entries come: what proofs are made from without reading every hash."""

    def __init__(self, seq: int, edge: bytes) -> None:
        """Go on at an entry, with what `edge` was then."""
        nodes = [edge[at : at + HASH_BYTES] for at in range(0, len(edge), HASH_BYTES)]
        begun = seq % TILE
        self._tree = Tree(size=begun, edge=nodes) if len(nodes) == begun.bit_count() else None
        """Of the tile that has begun; None where something of it was missing."""

    @property
    def edge(self) -> bytes:
        return b"".join(self._tree.edge) if self._tree is not None else b""

    def take(self, batch: Batch) -> list[Row]:
        """The tiles that become whole."""
        made: list[Row] = []
        for item in batch.items:
            if not isinstance(item, Entry):
                self._tree = None if item.stop % TILE else Tree()
                continue
            if self._tree is None and item.seq % TILE == 0:
                self._tree = Tree()
            if self._tree is not None:
                self._tree.append(leaf_hash(item.leaf))
                if self._tree.size == TILE:
                    made.append((item.seq // TILE, self._tree.root()))
                    self._tree = Tree()
        return made


def last_line_of(account_id: str, *, before: tuple[int, int] = (2**62, 0)) -> Query:
    """Asks for the balances after the account's last line before a place."""
    where = {"account_id = ?": (account_id,), "(seq, n) < (?, ?)": before}
    return select("free_uhs, held_uhs, debt_uhs, line", LINES, where, order="seq DESC, n DESC", limit=1)


def balances_of(rows: list[Row]) -> Balances:
    """What `last_line_of` has found."""
    if not rows:
        return Balances()
    free_uhs, held_uhs, debt_uhs, line = rows[0]
    return balances_after(free_uhs, held_uhs, debt_uhs, bytes(line))


def _tabled(rows: Rows, gaps: list[Place]) -> dict[Table, list[Row]]:
    jobs = [
        (each.job_id, each.account_id, each.submitted_at_us, each.charged_uhs, _encode(each))
        for each in rows.jobs.values()
    ]
    return {
        ENTRIES: [*rows.entries],
        LINES: [*rows.lines],
        RECORDS: [*rows.records],
        ABOUT: [*rows.about],
        JOBS: [*jobs],
        ACCOUNTS: [*rows.plans.items()],
        SERVED: [(*key, *astuple(each)) for key, each in rows.served.items()],
        GAPS: [*gaps],
    }
