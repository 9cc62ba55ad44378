"""The store of notices: endpoints of accounts, apart from each other, and what they are told, once."""

import base64
import json
import os
from itertools import count

import pytest
from msgspec.structs import replace

from fabric.errors import Conflict, NotFound
from fabric.journal.followers import Position
from fabric.notifications.notice import Kind
from fabric.notifications.rows import MADE
from fabric.notifications.scripts import PostgresScripts, SqliteScripts
from fabric.notifications.store import ENDPOINTS_MAX, NoticeStore
from tests.notifications.receivers import OLDER, deliverer, endpoint, notice, tell

_names = count(1)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def scripts(request, tmp_path):
    if request.param == "sqlite":
        return SqliteScripts(tmp_path / "n.notices", MADE)
    dsn, schema = request.getfixturevalue("postgres_server").dsn, f"notices_{os.getpid()}_{next(_names)}"
    return PostgresScripts(dsn, MADE, schema=schema)


@pytest.fixture
async def store(scripts):
    """In place of that of the other tests: in either place it is the same."""
    store = NoticeStore(scripts)
    yield store
    await store.close()


async def test_the_file_with_the_secrets_is_its_owners_alone(tmp_path, receiver):
    store = NoticeStore(SqliteScripts(tmp_path / "n.notices", MADE))
    await store.add(endpoint(receiver), from_here=Position(0))
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.glob("n.notices*")}
    await store.close()
    assert "n.notices-wal" in modes
    assert set(modes.values()) == {"0o600"}


async def test_an_account_has_a_bounded_number_of_endpoints_and_sees_no_others(store, receiver):
    for number in range(ENDPOINTS_MAX):
        await store.add(endpoint(receiver, f"e{number}"), from_here=Position(0))
    with pytest.raises(Conflict) as refused:
        await store.add(endpoint(receiver, "more"), from_here=Position(0))
    assert refused.value.code == "too_many_endpoints"
    await store.add(endpoint(receiver, "bobs", account_id="bob"), from_here=Position(0))
    for act in (
        store.remove("ada", "bobs"),
        store.deliveries("ada", "bobs", limit=1),
        store.redeliver("ada", "bobs", "x", now_us=0),
        store.test("ada", "bobs", notice(0, kind=Kind.TEST), now_us=0),
        store.change("ada", "bobs", lambda each: each),
    ):
        with pytest.raises(NotFound):
            await act


async def test_an_endpoint_is_told_of_what_it_wants_and_a_test_always(store, clock, receiver):
    await store.add(endpoint(receiver, kinds=(Kind.RUNWAY,)), from_here=Position(0))
    await tell(store, notice(1), notice(2, kind=Kind.RUNWAY), notice(3, account="bob"), seq=1)
    await store.test("ada", "e", notice(4, kind=Kind.TEST), now_us=0)
    await deliverer(store, clock).until_idle()
    assert [json.loads(body)["type"] for _, body in receiver.got] == ["balance.runway", "test"]


async def test_the_first_endpoint_of_all_begins_at_the_journals_end_and_the_next_ones_change_nothing(store, receiver):
    await store.add(endpoint(receiver), from_here=Position(7))
    await store.add(endpoint(receiver, "f"), from_here=Position(9))
    assert (await store.kept()).position == Position(7)
    await store.remove("ada", "e")
    await store.remove("ada", "f")
    await store.add(endpoint(receiver), from_here=Position(20))
    assert (await store.kept()).position == Position(20)


async def test_what_another_has_followed_meanwhile_is_not_taken_twice(store, receiver):
    await store.add(endpoint(receiver), from_here=Position(0))
    assert await store.take(Position(0), Position(5), {}, [notice(1)], now_us=0)
    assert not await store.take(Position(0), Position(5), {}, [notice(1)], now_us=0)
    assert len(await store.deliveries("ada", "e", limit=9)) == 1


async def test_an_endpoint_that_was_changed_while_it_was_sent_to_stays_changed(store, clock, receiver):
    await store.add(endpoint(receiver), from_here=Position(0))
    await tell(store, notice(1), seq=1)
    ((delivery, _),) = await store.due(clock.us, limit=9)
    before = (await store.endpoints())[0]
    await store.change("ada", "e", lambda each: each.rotated(OLDER, now_us=clock.us))
    await store.note(replace(delivery, state="done"), replace(before, failing_since_us=5))
    await store.forget(before_us=0, give_up_us=0)
    assert (await store.standing()).failing == 1
    (found,) = await store.endpoints()
    assert (found.secrets[0].text, found.failing_since_us) == (OLDER, 5)
    assert base64.b64decode(OLDER.removeprefix("whsec_")) == b"o" * 32
