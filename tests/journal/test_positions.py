"""Positions of followers that act on the world, on SQLite and on PostgreSQL."""

import os
from itertools import count

import pytest

from fabric.journal.followers import Follower, Handler, Position
from fabric.journal.positions import PostgresPositions, SqlitePositions
from tests.journal.test_followers import ACCOUNTS, Crash, Shelf

_names = count(1)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def new_positions(request, tmp_path):
    if request.param == "sqlite":
        return lambda: SqlitePositions(tmp_path / "state" / "positions")
    dsn, schema = request.getfixturevalue("postgres_server").dsn, f"kept_{os.getpid()}_{next(_names)}"
    return lambda: PostgresPositions(dsn, schema=schema)


@pytest.fixture
async def make_positions(new_positions):
    """A function that gives positions in one and the same new place, as a process that starts again has them."""
    made = []

    def make():
        made.append(new_positions())
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_a_position_outlives_its_follower_and_is_its_own(make_positions):
    positions = make_positions()
    assert await positions.load("hooks") is None
    await positions.save("hooks", Position(3, b"mark"))
    await positions.save("other", Position(9))
    await positions.save("hooks", Position(4, b"\x00\xff"))
    again = make_positions()
    assert await again.load("hooks") == Position(4, b"\x00\xff")
    assert await again.load("other") == Position(9)


async def test_a_handler_goes_on_after_a_crash_with_what_it_had_not_finished(make_positions):
    shelf, heard = Shelf(), []
    shelf.grow(*ACCOUNTS, *ACCOUNTS, *ACCOUNTS)

    async def handle(batch):
        heard.append([item.seq for item in batch.items])
        if len(heard) == 2:
            raise Crash

    for _ in range(2):
        handler = Handler(make_positions(), "hooks", handle)
        try:
            await Follower(shelf, handler, name="hooks", batch=4).catch_up()
        except Crash:
            continue
    assert heard == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8]]
    assert (await make_positions().load("hooks")).seq == 9


async def test_in_another_history_a_handler_goes_on_where_it_is_told_to(make_positions):
    shelf, heard, positions = Shelf(), [], make_positions()

    async def handle(batch):
        heard.append([item.seq for item in batch.items])

    shelf.grow(*ACCOUNTS)
    await Follower(shelf, Handler(positions, "hooks", handle), name="hooks").catch_up()
    other = Shelf()
    other.grow("beta", "beta", "beta", "acme", "acme")
    await Follower(other, Handler(positions, "hooks", handle, anew_at=4), name="hooks").catch_up()
    assert heard == [[0, 1, 2], [4]]
