"""The store of notices: endpoints, what they are to be told, and how far that is. Beside the projection, and never made anew.

What a batch of the journal comes to (notices, their deliveries, what was told, the position) is one transaction, so a crash
loses none of them and doubles none. A webhook's secret has to be used, so it is kept as it is: in SQLite in a file of mode
0600 beside the journal, in PostgreSQL in a schema that the journal's user owns. It is in no journal, no log and no answer but
the one to whoever made it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fabric.errors import Conflict, NotFound
from fabric.journal.followers import Position
from fabric.journal.place import InFiles, Place
from fabric.notifications.endpoints import Endpoint
from fabric.notifications.notice import Notice
from fabric.notifications.rows import (
    ASK_PROGRESS,
    MADE,
    SELECT,
    WAITS,
    Delivery,
    Kept,
    delivery_of,
    endpoints_of,
    keep,
    kept_of,
    note_health,
    notice_of,
    progress,
    tell,
)
from fabric.notifications.rules import Told
from fabric.notifications.scripts import PostgresScripts, Row, Script, Scripts, SqliteScripts

ENDPOINTS_MAX: Final = 10
"""Of one account."""
KEPT_US: Final = 30 * 86_400_000_000
"""How long a notice can be looked up, and delivered again."""


class Standing(NamedTuple):
    """How it goes."""

    followed: int | None
    """Entries of the journal; None = nobody follows."""
    waiting: int
    """Deliveries."""
    failing: int
    """Endpoints that nothing arrives at."""
    ended: int
    """Endpoints that answered 410."""


class NoticeStore:
    """For the door, which keeps endpoints; and for the process that follows and delivers."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    # -- following ------------------------------------------------------------------------------------------------------

    async def kept(self) -> Kept | None:
        """How far it is; None = it hasn't begun."""

        def script() -> Script[Kept | None]:
            rows = yield ASK_PROGRESS
            return kept_of(rows)

        return await self._scripts.run(script)

    async def begin(self, position: Position | None) -> None:
        """Follow from here on, with nothing told; None = forget how far it was."""

        def script() -> Script[None]:
            yield "DELETE FROM {schema}.progress", ()
            if position is not None:
                yield progress(position, {})

        await self._scripts.run(script)

    async def endpoints(self, account_id: str | None = None) -> list[Endpoint]:
        """An account's; None = all."""

        def script() -> Script[list[Endpoint]]:
            return (yield from endpoints_of(account_id))

        return await self._scripts.run(script)

    async def take(
        self, before: Position | None, after: Position, told: dict[str, Told], notices: Sequence[Notice], *, now_us: int
    ) -> bool:
        """Keep what a batch comes to: notices, and that each endpoint which wants one is to have it. False if the position isn't
        `before`.
        """

        def script() -> Script[bool]:
            kept = kept_of((yield ASK_PROGRESS))
            if (kept.position if kept is not None else None) != before:
                return False
            if notices:
                endpoints = yield from endpoints_of(None)
                for notice in notices:
                    yield from tell(notice, endpoints, now_us=now_us)
            if kept is None or kept.position != after or kept.told != told:
                yield progress(after, told)
            return True

        return await self._scripts.run(script)

    # -- delivering -----------------------------------------------------------------------------------------------------

    async def due(self, now_us: int, *, limit: int, besides: Sequence[str] = ()) -> list[tuple[Delivery, Notice]]:
        """What can be delivered now: of one subject and endpoint, the first that waits. Nothing of the endpoints `besides`."""

        def script() -> Script[list[tuple[Delivery, Notice]]]:
            others = "".join(f" AND d.endpoint_id <> ${number}" for number in range(2, 2 + len(besides)))
            rows = yield (
                WAITS + others + f" ORDER BY d.next_at_us, d.endpoint_id, d.n LIMIT {limit:d}",
                (now_us, *besides),
            )
            return [(delivery_of(row), notice_of(row[-1])) for row in rows]

        return await self._scripts.run(script)

    async def next_due_us(self) -> int | None:
        """When the first of what waits is to be tried."""

        def script() -> Script[int | None]:
            rows = yield "SELECT MIN(next_at_us) FROM {schema}.deliveries WHERE state = 'due'", ()
            return rows[0][0] if rows else None

        return await self._scripts.run(script)

    async def note(self, delivery: Delivery, endpoint: Endpoint | None = None) -> None:
        """What a try came to; with the endpoint, as it stands after it. One that has ended has nothing more to come."""

        def script() -> Script[None]:
            yield (
                (
                    "UPDATE {schema}.deliveries SET state = $1, tries = $2, next_at_us = $3, last_at_us = $4, answer = $5"
                    " WHERE endpoint_id = $6 AND n = $7"
                ),
                (
                    delivery.state,
                    delivery.tries,
                    delivery.next_at_us,
                    delivery.last_at_us,
                    delivery.answer,
                    delivery.endpoint_id,
                    delivery.n,
                ),
            )
            if endpoint is None:
                return
            yield from note_health(endpoint)
            if endpoint.ended:
                yield (
                    "UPDATE {schema}.deliveries SET state = 'given_up', answer = $1 WHERE endpoint_id = $2 AND state = 'due'",
                    (endpoint.ended, endpoint.endpoint_id),
                )

        await self._scripts.run(script)

    async def forget(self, *, before_us: int, give_up_us: int) -> None:
        """Let go of notices that are older, with their deliveries, and give up what waits since then."""

        def script() -> Script[None]:
            yield (
                "UPDATE {schema}.deliveries SET state = 'given_up', answer = $1 WHERE state = 'due' AND made_at_us < $2",
                ("given up: the endpoint failed for too long", give_up_us),
            )
            yield "DELETE FROM {schema}.deliveries WHERE made_at_us < $1", (before_us,)
            yield (
                (
                    "DELETE FROM {schema}.notices WHERE at_us < $1 AND NOT EXISTS"
                    " (SELECT 1 FROM {schema}.deliveries d WHERE d.notice_id = {schema}.notices.notice_id)"
                ),
                (before_us,),
            )

        await self._scripts.run(script)

    # -- for the door ---------------------------------------------------------------------------------------------------

    async def add(self, endpoint: Endpoint, *, from_here: Position) -> None:
        """One more endpoint. The first of all is told of what comes after `from_here`.

        Raises:
            Conflict: the account has as many as it may have.
        """

        def script() -> Script[bool]:
            everybody = yield from endpoints_of(None)
            if sum(each.account_id == endpoint.account_id for each in everybody) >= ENDPOINTS_MAX:
                return False
            if not everybody:
                yield "DELETE FROM {schema}.progress", ()
                yield progress(from_here, {})
            yield from keep(endpoint)
            return True

        if not await self._scripts.run(script):
            raise Conflict(
                f"an account has up to {ENDPOINTS_MAX} endpoints: remove one",
                code="too_many_endpoints",
                limit=ENDPOINTS_MAX,
            )

    async def change(self, account_id: str, endpoint_id: str, change: Callable[[Endpoint], Endpoint]) -> Endpoint:
        """Another version of an endpoint.

        Raises:
            NotFound: the account has none of that name.
        """

        def script() -> Script[Endpoint | None]:
            found = [each for each in (yield from endpoints_of(account_id)) if each.endpoint_id == endpoint_id]
            if not found:
                return None
            changed = change(found[0])
            yield from keep(changed)
            return changed

        changed = await self._scripts.run(script)
        if changed is None:
            raise _no_such(endpoint_id)
        return changed

    async def remove(self, account_id: str, endpoint_id: str) -> None:
        """An endpoint goes, and what waits for it. `NotFound` if there is none."""

        def script() -> Script[bool]:
            if not any(each.endpoint_id == endpoint_id for each in (yield from endpoints_of(account_id))):
                return False
            yield "DELETE FROM {schema}.endpoints WHERE endpoint_id = $1", (endpoint_id,)
            yield "DELETE FROM {schema}.deliveries WHERE endpoint_id = $1", (endpoint_id,)
            return True

        if not await self._scripts.run(script):
            raise _no_such(endpoint_id)

    async def test(self, account_id: str, endpoint_id: str, notice: Notice, *, now_us: int) -> None:
        """Tell one endpoint something, now."""

        def script() -> Script[str]:
            found = [each for each in (yield from endpoints_of(account_id)) if each.endpoint_id == endpoint_id]
            if found and not found[0].ended:
                yield from tell(notice, found, now_us=now_us)
            return "missing" if not found else found[0].ended

        why = await self._scripts.run(script)
        if why == "missing":
            raise _no_such(endpoint_id)
        if why:
            raise _has_ended(endpoint_id, why)

    async def deliveries(self, account_id: str, endpoint_id: str, *, limit: int) -> list[tuple[Delivery, Notice]]:
        """The newest of an endpoint's, newest first. `NotFound` if there is no such endpoint."""

        def script() -> Script[list[Row] | None]:
            if not any(each.endpoint_id == endpoint_id for each in (yield from endpoints_of(account_id))):
                return None
            return (
                yield (
                    (
                        f"{SELECT} JOIN {{schema}}.notices t ON t.notice_id = d.notice_id"
                        " WHERE d.endpoint_id = $1 ORDER BY d.n DESC LIMIT $2"
                    ),
                    (endpoint_id, limit),
                )
            )

        rows = await self._scripts.run(script)
        if rows is None:
            raise _no_such(endpoint_id)
        return [(delivery_of(row), notice_of(row[-1])) for row in rows]

    async def redeliver(self, account_id: str, endpoint_id: str, notice_id: str, *, now_us: int) -> None:
        """Deliver a notice again, under its own id. What still waits is tried at once.

        Raises:
            NotFound: the endpoint isn't there, or had no such notice.
            Conflict: the endpoint has ended.
        """

        def script() -> Script[tuple[bool, str]]:
            found = [each for each in (yield from endpoints_of(account_id)) if each.endpoint_id == endpoint_id]
            if not found or found[0].ended:
                return bool(found), found[0].ended if found else ""
            rows = yield (
                (
                    "UPDATE {schema}.deliveries SET state = 'due', tries = 0, made_at_us = $1, next_at_us = $1"
                    " WHERE endpoint_id = $2 AND notice_id = $3 RETURNING n"
                ),
                (now_us, endpoint_id, notice_id),
            )
            return bool(rows), ""

        is_there, ended = await self._scripts.run(script)
        if ended:
            raise _has_ended(endpoint_id, ended)
        if not is_there:
            raise NotFound(
                f"endpoint {endpoint_id!r} had no notice {notice_id!r}, or it is older than {KEPT_US // 86_400_000_000} days",
                code="not_found",
            )

    async def standing(self) -> Standing:
        """How it goes."""

        def script() -> Script[Standing]:
            kept = kept_of((yield ASK_PROGRESS))
            rows = yield "SELECT COUNT(*) FROM {schema}.deliveries WHERE state = 'due'", ()
            endpoints = yield from endpoints_of(None)
            return Standing(
                kept.position.seq if kept is not None else None,
                rows[0][0],
                sum(bool(each.failing_since_us and not each.ended) for each in endpoints),
                sum(bool(each.ended) for each in endpoints),
            )

        return await self._scripts.run(script)

    async def close(self) -> None:
        await self._scripts.close()


def file_of(place: InFiles) -> Path:
    """Where it is, beside a journal in a file."""
    return Path(f"{place.path}.notices")


def open_store(place: Place) -> NoticeStore:
    """Beside a journal. Nothing is made before it is needed."""
    if isinstance(place, InFiles):
        return NoticeStore(SqliteScripts(file_of(place), MADE))
    return NoticeStore(PostgresScripts(place.dsn, MADE, schema=f"{place.schema}_notices"))


def _no_such(endpoint_id: str) -> NotFound:
    return NotFound(f"there is no endpoint {endpoint_id!r}", code="not_found", endpoint=endpoint_id)


def _has_ended(endpoint_id: str, why: str) -> Conflict:
    return Conflict(
        f"endpoint {endpoint_id} has ended ({why}): remove it, and add it anew",
        code="endpoint_ended",
        endpoint=endpoint_id,
    )
