"""Rows of the store of notices: what its tables are, and pieces of scripts that read and write them."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from fabric.journal.followers import Position
from fabric.notifications.endpoints import Endpoint
from fabric.notifications.notice import Kind, Notice
from fabric.notifications.rules import Told
from fabric.notifications.scripts import Query, Row, Script

BACKLOG_MAX: Final = 10_000
"""What waits for one endpoint, at most: what comes beyond is written off, and shown as that."""

MADE: Final = (
    (
        "CREATE TABLE IF NOT EXISTS {schema}.progress"
        " (name {text} PRIMARY KEY, seq {int} NOT NULL, mark {bytes} NOT NULL, told {bytes} NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS {schema}.endpoints"
        " (endpoint_id {text} PRIMARY KEY, account_id {text} NOT NULL, endpoint {bytes} NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS {schema}.notices"
        " (notice_id {text} PRIMARY KEY, account_id {text} NOT NULL, at_us {int} NOT NULL, notice {bytes} NOT NULL)"
    ),
    (
        "CREATE TABLE IF NOT EXISTS {schema}.deliveries"
        " (endpoint_id {text} NOT NULL, n {int} NOT NULL, notice_id {text} NOT NULL, subject {text} NOT NULL,"
        " state {text} NOT NULL, tries {int} NOT NULL, made_at_us {int} NOT NULL, next_at_us {int} NOT NULL,"
        " last_at_us {int} NOT NULL, answer {text} NOT NULL, PRIMARY KEY (endpoint_id, n))"
    ),
    "CREATE INDEX IF NOT EXISTS deliveries_due ON {on}deliveries (state, next_at_us)",
    "CREATE INDEX IF NOT EXISTS deliveries_subject ON {on}deliveries (endpoint_id, state, subject, n)",
    "CREATE INDEX IF NOT EXISTS deliveries_notice ON {on}deliveries (notice_id)",
)
_FOLLOWER: Final = "notices"
_COLUMNS: Final = "endpoint_id, n, notice_id, subject, state, tries, made_at_us, next_at_us, last_at_us, answer"
SELECT: Final = (
    f"SELECT {', '.join(f'd.{name}' for name in _COLUMNS.split(', '))}, t.notice FROM {{schema}}.deliveries d"  # noqa: S608 - ours
)

WAITS: Final = (
    f"{SELECT} JOIN {{schema}}.notices t ON t.notice_id = d.notice_id"  # noqa: S608 - names of ours
    " WHERE d.state = 'due' AND d.next_at_us <= $1 AND NOT EXISTS (SELECT 1 FROM {schema}.deliveries e"
    " WHERE e.endpoint_id = d.endpoint_id AND e.state = 'due' AND e.subject = d.subject AND e.n < d.n)"
)


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A notice on its way to an endpoint."""

    endpoint_id: str
    n: int
    """Counts the endpoint's from 1: of one subject they are delivered in this order."""
    notice_id: str
    subject: str
    state: str
    """due | done | given_up"""
    tries: int
    made_at_us: int
    next_at_us: int
    last_at_us: int
    """Of the last try; 0 = there was none."""
    answer: str
    """What came of it, in a few words."""


class Kept(msgspec.Struct, frozen=True):
    """How far the journal was followed, and what accounts were told."""

    position: Position
    told: dict[str, Told]


ASK_PROGRESS: Final[Query] = ("SELECT seq, mark, told FROM {schema}.progress", ())
_endpoint: Final = msgspec.json.Decoder(Endpoint)
notice_of: Final = msgspec.json.Decoder(Notice).decode
_told: Final = msgspec.json.Decoder(dict[str, Told])
_encode: Final = msgspec.json.Encoder().encode


def kept_of(rows: list[Row]) -> Kept | None:
    return Kept(Position(rows[0][0], bytes(rows[0][1])), _told.decode(rows[0][2])) if rows else None


def progress(position: Position, told: Mapping[str, Told]) -> Query:
    return (
        (
            "INSERT INTO {schema}.progress (name, seq, mark, told) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (name) DO UPDATE SET seq = excluded.seq, mark = excluded.mark, told = excluded.told"
        ),
        (_FOLLOWER, position.seq, position.mark, _encode(told)),
    )


def endpoints_of(account_id: str | None) -> Script[list[Endpoint]]:
    rows = yield ("SELECT endpoint FROM {schema}.endpoints ORDER BY endpoint_id", ())
    found = [_endpoint.decode(row[0]) for row in rows]
    return [each for each in found if account_id is None or each.account_id == account_id]


def keep(endpoint: Endpoint) -> Script[None]:
    yield (
        (
            "INSERT INTO {schema}.endpoints (endpoint_id, account_id, endpoint) VALUES ($1, $2, $3)"
            " ON CONFLICT (endpoint_id) DO UPDATE SET endpoint = excluded.endpoint"
        ),
        (endpoint.endpoint_id, endpoint.account_id, _encode(endpoint)),
    )


def note_health(told: Endpoint) -> Script[None]:
    """Of an endpoint that is still there, whether it fails: its owner may have changed all else meanwhile."""
    rows = yield "SELECT endpoint FROM {schema}.endpoints WHERE endpoint_id = $1", (told.endpoint_id,)
    if rows:
        now = _endpoint.decode(rows[0][0])
        changed = msgspec.structs.replace(now, failing_since_us=told.failing_since_us, ended=told.ended or now.ended)
        if changed != now:
            yield from keep(changed)


def tell(notice: Notice, endpoints: Iterable[Endpoint], *, now_us: int) -> Script[None]:
    """To each that wants it, once."""
    wanting = [each for each in endpoints if each.wants(notice)]
    if not wanting:
        return
    yield (
        (
            "INSERT INTO {schema}.notices (notice_id, account_id, at_us, notice) VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (notice_id) DO NOTHING"
        ),
        (notice.notice_id, notice.account_id, notice.at_us, _encode(notice)),
    )
    for endpoint in wanting:
        rows = yield (
            (
                "SELECT (SELECT COALESCE(MAX(n), 0) FROM {schema}.deliveries WHERE endpoint_id = $1),"
                " (SELECT COUNT(*) FROM {schema}.deliveries WHERE endpoint_id = $1 AND state = 'due'),"
                " (SELECT COUNT(*) FROM {schema}.deliveries WHERE endpoint_id = $1 AND notice_id = $2)"
            ),
            (endpoint.endpoint_id, notice.notice_id),
        )
        newest, waiting, has_it = rows[0]
        if has_it:
            continue
        is_full = waiting >= BACKLOG_MAX and notice.kind is not Kind.TEST
        state, answer = ("given_up", f"more than {BACKLOG_MAX} wait for this endpoint") if is_full else ("due", "")
        yield (
            f"INSERT INTO {{schema}}.deliveries ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, 0, $6, $6, 0, $7)",  # noqa: S608
            (endpoint.endpoint_id, newest + 1, notice.notice_id, notice.subject, state, now_us, answer),
        )


def delivery_of(row: Row) -> Delivery:
    return Delivery(**dict(zip(_COLUMNS.split(", "), row, strict=False)))
