"""The projection's tables: what they are called, what is in them, and what a place that keeps them promises.

Rows are written together with the position up to which the journal has been projected, in one transaction, so that they
always agree. Queries are the same text everywhere: parameters are `$1`, `$2`, ... in the order of their first use, and tables
are named `{schema}.table`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Final, Protocol

from fabric.charging.served import Served

TEXT: Final = "TEXT"
INT: Final = "BIGINT"
BYTES: Final = "BYTEA"


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table, its columns in the order of its rows, and what it is looked up by."""

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]
    indexes: tuple[tuple[str, ...], ...] = ()


PROGRESS: Final = Table("progress", {"format": INT, "seq": INT, "mark": BYTES, "edge": BYTES}, ("format",))
ENTRIES: Final = Table("entries", {"account_id": TEXT, "at_us": INT, "seq": INT}, ("account_id", "at_us", "seq"))
LINES: Final = Table(
    "lines",
    {
        "account_id": TEXT,
        "seq": INT,
        "n": INT,
        "free_uhs": INT,
        "held_uhs": INT,
        "debt_uhs": INT,
        "line": BYTES,
    },
    ("account_id", "seq", "n"),
)
RECORDS: Final = Table(
    "records",
    {
        "account_id": TEXT,
        "seq": INT,
        "n": INT,
        "ended_at_us": INT,
        "job_id": TEXT,
        "charged_uhs": INT,
        "record": BYTES,
    },
    ("account_id", "seq", "n"),
    (("account_id", "ended_at_us", "seq", "n"), ("ended_at_us", "seq", "n"), ("job_id", "ended_at_us", "seq", "n")),
)
ABOUT: Final = Table("about", {"job_id": TEXT, "account_id": TEXT, "seq": INT}, ("job_id", "account_id", "seq"))
JOBS: Final = Table(
    "jobs",
    {"job_id": TEXT, "account_id": TEXT, "submitted_at_us": INT, "charged_uhs": INT, "job": BYTES},
    ("job_id",),
    (("account_id", "submitted_at_us", "job_id"), ("submitted_at_us", "job_id")),
)
ACCOUNTS: Final = Table("accounts", {"account_id": TEXT, "plan": TEXT}, ("account_id",))
SERVED: Final = Table(
    "served",
    {"model": TEXT, "plan": TEXT, **dict.fromkeys(Served.__struct_fields__, INT)},
    ("model", "plan"),
)
GAPS: Final = Table("gaps", {"start": INT, "stop": INT, "why": TEXT}, ("start",))
TILES: Final = Table("tiles", {"tile": INT, "root": BYTES}, ("tile",))
TABLES: Final = (PROGRESS, ENTRIES, LINES, RECORDS, ABOUT, JOBS, ACCOUNTS, SERVED, GAPS, TILES)

Row = tuple[Any, ...]
Query = tuple[str, Sequence[Any]]


class NoTables(Exception):
    """There are none (yet)."""


class DamagedTables(Exception):
    """They can't be read: to be thrown away, and made anew from the journal."""


class Tables(Protocol):
    """Where the projection is kept. Methods raise `Unavailable` when the store can't be reached or is full, `DamagedTables`
    when it can't be read, and those that look `NoTables` where there are none.
    """

    async def make(self) -> None:
        """Make those that are missing."""

    async def read(self, *queries: Query) -> list[list[Row]]:
        """What each of them finds, all at the same moment."""

    async def pick(self, table: Table, key: str, values: Sequence[Any]) -> list[Row]:
        """The rows in which the column `key` has one of these values."""

    async def write(self, before: int | None, rows: Mapping[Table, Sequence[Row]]) -> bool:
        """Add rows, in place of those with the same key, all or nothing; False if the progress there isn't at entry `before`
        (None = there is none).
        """

    async def throw_away(self) -> None:
        """Let nothing of them be left."""

    async def close(self) -> None:
        """Let go."""


def select(what: str, table: Table, where: Mapping[str, Sequence[Any]], *, order: str, limit: int) -> Query:
    """Asks for so many rows of a table.

    Args:
        what: columns.
        table: of which.
        where: conditions, all of which hold; each has a `?` for every value beside it.
        order: columns, with DESC where that is meant.
        limit: rows.
    """
    given = [*chain.from_iterable(where.values()), limit]
    numbers = count(1)
    conditions = [re.sub(r"\?", lambda _: f"${next(numbers)}", each) for each in where]
    parts = ["SELECT", what, "FROM", "{schema}." + table.name, "WHERE" if conditions else "", " AND ".join(conditions)]
    return " ".join((*parts, "ORDER BY", order, "LIMIT", f"${len(given)}")), given


def insert(place: str, table: Table, values: str, *, clash: str = "") -> str:
    """Adds rows to a table."""
    return " ".join(("INSERT", clash, "INTO", place + table.name, values))


READ_PROGRESS: Final[Query] = select("format, seq, mark, edge", PROGRESS, {}, order="format", limit=1)
READ_SERVED: Final[Query] = select("*", SERVED, {}, order="model, plan", limit=100_000)
READ_GAPS: Final[Query] = select("start, stop, why", GAPS, {}, order="start", limit=1)
