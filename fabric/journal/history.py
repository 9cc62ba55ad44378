"""History: what happened, by account and time, page by page; read from the projection, and from the journal what that lacks.

Every answer is about the journal as it was at one size: `size`, the newest when the first page was asked for, so that
whoever asks reads what they have just written, and pages fit together whatever is written meanwhile. Rows below it that the
follower has not made yet are projected here, of the account that is asked for, by the same function; where they are many,
the follower is given a moment first. Nothing is decoded on the event loop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from fabric.audit.records import Balances
from fabric.charging.served import Served
from fabric.errors import JournalCorrupt
from fabric.journal.followers import Position
from fabric.journal.projection import JobHistory, Known, Rows, Told, is_about, project, told_by
from fabric.journal.projector import balances_of, last_line_of, progress, served_of
from fabric.journal.store import Entry
from fabric.journal.tables import (
    ABOUT,
    ENTRIES,
    JOBS,
    LINES,
    READ_GAPS,
    READ_PROGRESS,
    READ_SERVED,
    RECORDS,
    DamagedTables,
    NoTables,
    Query,
    Row,
    Table,
    Tables,
    select,
)
from fabric.system.client_threads import aside

REST_MAX: Final = 2_000
"""Entries that are read from the journal without waiting for the follower."""
WAIT_S: Final = 2.0
"""How long the follower is waited for where there are more."""
LOOK_S: Final = 0.05
AGAIN_S: Final = 30.0
"""Where that was in vain, nobody waits for it for so long."""
REST_KEPT_MAX: Final = 10_000
RESTS_KEPT: Final = 8
"""Of what pages of the same answer need again."""
_NO_END: Final = 2**62

Place = tuple[int, ...]
"""Where a row is in the order of its page."""


class Source(Protocol):
    """The journal, as far as it is read here."""

    def read(self, start: int = 0, stop: int | None = None, *, account: str | None = None) -> AsyncIterator[Entry]:
        """Entries with start <= seq < stop in order, of one account if asked."""


class Bounds(NamedTuple):
    """A period in entries: start <= seq < stop."""

    start: int
    stop: int


class Found(NamedTuple):
    """Rows of a page, each with its place, and whether there are more after them."""

    rows: list[tuple[Place, bytes]]
    more: bool


class _Rest(NamedTuple):
    """What the projection lacks."""

    start: int
    entries: list[tuple[Entry, Told]]
    rows: Rows


class History:
    """Answers from a projection and its journal."""

    def __init__(self, journal: Source, tables: Tables | None = None) -> None:
        """Put them together.

        Args:
            journal: read only.
            tables: what a follower keeps; None = there is none, and all is read from the journal.
        """
        self._journal = journal
        self._tables = tables
        self._rests: dict[tuple[str | None, int], _Rest] = {}
        self._waits_from = 0.0
        """When a follower that had its moment in vain is given the next one."""

    async def records(
        self, account_id: str | None, job_id: str | None, *, after: Place, until_us: int | None, size: int, limit: int
    ) -> Found:
        """Charging records in JSON by (ended_at_us, seq, n), after a place in that order; of all accounts for None."""
        end = _NO_END if until_us is None else until_us
        where: dict[str, Place | tuple[str]] = {
            "(ended_at_us, seq, n) > (?, ?, ?)": after,
            "ended_at_us < ?": (end,),
            "seq < ?": (size,),
        }
        if job_id is not None:
            where["job_id = ?"] = (job_id,)
        elif account_id is not None:
            where["account_id = ?"] = (account_id,)
        what = "ended_at_us, seq, n, account_id, record"
        query = select(what, RECORDS, where, order="ended_at_us, seq, n", limit=limit)
        found, rest = await self._look(account_id, size, query)
        kept = [(tuple(row[:3]), bytes(row[4])) for row in found[0] if account_id in (None, row[3])]
        new: list[tuple[Place, bytes]] = [
            ((row.ended_at_us, row.seq, row.n), row.record)
            for row in rest.rows.records
            if account_id in (None, row.account_id) and job_id in (None, row.job_id) and row.ended_at_us < end
        ]
        return _page(kept, new, after=after, limit=limit)

    async def bounds(self, account_id: str, *, from_us: int, until_us: int | None, size: int) -> Bounds:
        """The entries of a period, as far as they are the account's: from its first one on, up to its first one after it."""
        times = (from_us, _NO_END if until_us is None else until_us)
        found, rest = await self._look(account_id, size, *(_first_entry(account_id, at_us, size) for at_us in times))
        start, stop = (
            kept[0][0] if kept else min((row.seq for row in rest.rows.entries if row.at_us >= at_us), default=size)
            for kept, at_us in zip(found, times, strict=True)
        )
        return Bounds(min(start, stop), stop)

    async def balances(self, account_id: str, *, before: tuple[int, int], size: int) -> Balances:
        """Where the account stood before a line."""
        (kept,), rest = await self._look(account_id, size, last_line_of(account_id, before=before))
        new = [row.balances for row in rest.rows.lines if (row.seq, row.n) < before]
        return new[-1] if new else balances_of(kept)

    async def lines(self, account_id: str, *, after: Place, stop: int, size: int, limit: int) -> Found:
        """Lines of the account's statement in JSON, by (seq, n)."""
        return await self._by_entry(LINES, "line", account_id, after=after, stop=stop, size=size, limit=limit)

    async def records_of_entries(self, account_id: str, *, after: Place, stop: int, size: int, limit: int) -> Found:
        """Charging records in JSON by the entries that they are in, by (seq, n)."""
        return await self._by_entry(RECORDS, "record", account_id, after=after, stop=stop, size=size, limit=limit)

    async def entries(self, account_id: str, job_id: str | None, *, after: int, size: int, limit: int) -> list[Entry]:
        """The account's entries, of one job if asked, after one."""
        if job_id is None:
            return [entry async for entry in _first(self._journal.read(after + 1, size, account=account_id), limit)]
        where = {"job_id = ?": (job_id,), "account_id = ?": (account_id,), "seq > ?": (after,), "seq < ?": (size,)}
        (kept,), rest = await self._look(account_id, size, select("seq", ABOUT, where, order="seq", limit=limit))
        found = [entry for (seq,) in kept async for entry in self._journal.read(seq, seq + 1)]
        found += [entry for entry, told in rest.entries if entry.seq > after and is_about(told, job_id)]
        return found[:limit]

    async def first_entries(self, account_id: str, *, start: int, stop: int, limit: int) -> list[Entry]:
        """The account's first entries with start <= seq < stop."""
        return [entry async for entry in _first(self._journal.read(start, stop, account=account_id), limit)]

    async def jobs(
        self, account_id: str | None, *, before: tuple[int, str], from_us: int, size: int, limit: int
    ) -> list[JobHistory]:
        """Jobs, newest first, that were submitted before (submitted_at_us, job_id), and at `from_us` or later."""
        where: dict[str, tuple[str] | tuple[int] | tuple[int, str]] = (
            {} if account_id is None else {"account_id = ?": (account_id,)}
        )
        where |= {"(submitted_at_us, job_id) < (?, ?)": before, "submitted_at_us >= ?": (from_us,)}
        query = select("job", JOBS, where, order="submitted_at_us DESC, job_id DESC", limit=limit)
        (kept,), rest = await self._look(None, size, query)
        known = {job.job_id: job for job in await aside(_jobs, [row[0] for row in kept])}
        # What became of jobs is in entries of nobody, too; those that aren't on the page and aren't new don't belong to it.
        known |= (
            await aside(_projected, rest.start, [entry for entry, _ in rest.entries], "", Balances(), known)
        ).rows.jobs
        found = [
            job
            for job in known.values()
            if account_id in (None, job.account_id)
            and (job.submitted_at_us, job.job_id) < before
            and job.submitted_at_us >= from_us
        ]
        return sorted(found, key=lambda job: (job.submitted_at_us, job.job_id), reverse=True)[:limit]

    async def served(self) -> dict[tuple[str, str], Served]:
        """What calls by model and plan have come to, as far as the follower is: for those who count."""
        if self._tables is None:
            return {}
        try:
            (found,) = await self._tables.read(READ_SERVED)
        except (NoTables, DamagedTables):
            return {}
        return served_of(found)

    # -- what is read where --------------------------------------------------------------------------------------------

    async def _by_entry(
        self, table: Table, column: str, account_id: str, *, after: Place, stop: int, size: int, limit: int
    ) -> Found:
        where = {"account_id = ?": (account_id,), "(seq, n) > (?, ?)": after, "seq < ?": (min(stop, size),)}
        query = select(f"seq, n, {column}", table, where, order="seq, n", limit=limit)
        (kept,), rest = await self._look(account_id, size, query)
        rows = rest.rows.lines if table is LINES else rest.rows.records
        new: list[tuple[Place, bytes]] = [
            ((row.seq, row.n), row[-1]) for row in rows if row.account_id == account_id and row.seq < stop
        ]
        return _page([(tuple(row[:2]), bytes(row[2])) for row in kept], new, after=after, limit=limit)

    async def _look(self, account_id: str | None, size: int, *queries: Query) -> tuple[list[list[Row]], _Rest]:
        """What the queries find in the projection, and what that lacks of the first `size` entries.

        Raises:
            JournalCorrupt: some of these are not there to be read.
        """
        standing = last_line_of(account_id or "", before=(size, 0))
        position, (gaps, balances, *found) = await self._kept(size, READ_GAPS, standing, *queries)
        if gaps and gaps[0][0] < size:
            (start, stop, why), *_ = gaps
            raise JournalCorrupt(
                f"entries {start} to {stop - 1} of the journal are not there ({why}): what they say is missing",
                seq=start,
            )
        return found, await self._rest(account_id, position.seq, size, balances_of(balances))

    async def _kept(self, size: int, *queries: Query) -> tuple[Position, list[list[Row]]]:
        """What is kept, once the follower is near enough, or has had its moment."""
        give_up_at = time.monotonic() + (WAIT_S if time.monotonic() >= self._waits_from else 0)
        nothing: tuple[Position, list[list[Row]]] = Position(0), [[] for _ in queries]
        if self._tables is None:
            return nothing
        while True:
            try:
                at, *found = await self._tables.read(READ_PROGRESS, *queries)
                kept = progress(at) or Position(0), found
            except (NoTables, DamagedTables):
                kept = nothing
            if size - kept[0].seq <= REST_MAX:
                return kept
            if time.monotonic() >= give_up_at:
                self._waits_from = max(self._waits_from, time.monotonic() + AGAIN_S)
                return kept
            await asyncio.sleep(LOOK_S)

    async def _rest(self, account_id: str | None, start: int, size: int, balances: Balances) -> _Rest:
        """The rows of entries that are not kept yet. Those of an earlier page do, but for what is kept by now."""
        if start >= size:
            return _Rest(size, [], Rows())
        known = self._rests.get((account_id, size))
        if known is None or known.start > start:
            entries = [entry async for entry in self._journal.read(start, size, account=account_id)]
            known = await aside(_projected, start, entries, account_id, balances)
            if len(entries) <= REST_KEPT_MAX:
                self._rests[account_id, size] = known
            while len(self._rests) > RESTS_KEPT:
                del self._rests[next(iter(self._rests))]
        return known if known.start == start else _from(known, start)


_job: Final = msgspec.json.Decoder(JobHistory)


def _first_entry(account_id: str, at_us: int, size: int) -> Query:
    where = {"account_id = ?": (account_id,), "at_us >= ?": (at_us,), "seq < ?": (size,)}
    return select("seq", ENTRIES, where, order="at_us, seq", limit=1)


def _projected(
    start: int,
    entries: list[Entry],
    account_id: str | None,
    balances: Balances,
    jobs: Mapping[str, JobHistory] | None = None,
) -> _Rest:
    """What entries come to, for one account or (None) for the records of all."""
    told = [(entry, told_by(entry)) for entry in entries]
    mine = (account_id,) if account_id else ()
    narrowed = [(replace(entry, accounts=mine), each) for entry, each in told]
    return _Rest(start, told, project(narrowed, Known({account_id or "": balances}, jobs or {})))


def _from(rest: _Rest, start: int) -> _Rest:
    """A rest without what is kept by now."""
    rows = Rows()
    rows.entries = [row for row in rest.rows.entries if row.seq >= start]
    rows.lines = [row for row in rest.rows.lines if row.seq >= start]
    rows.records = [row for row in rest.rows.records if row.seq >= start]
    return _Rest(start, [each for each in rest.entries if each[0].seq >= start], rows)


def _page(kept: list[tuple[Place, bytes]], new: list[tuple[Place, bytes]], *, after: Place, limit: int) -> Found:
    """One page of what is kept, at most a page, and what is new."""
    merged = sorted([*kept, *(row for row in new if row[0] > after)])
    return Found(merged[:limit], more=len(merged) > limit or len(kept) >= limit)


def _jobs(rows: list[bytes]) -> list[JobHistory]:
    return [_job.decode(row) for row in rows]


async def _first(entries: AsyncIterator[Entry], limit: int) -> AsyncIterator[Entry]:
    async for entry in entries:
        yield entry
        limit -= 1
        if limit <= 0:
            return
