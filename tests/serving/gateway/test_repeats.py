"""Requests that are sent twice with an `Idempotency-Key`: one run, one charge, one answer."""

import asyncio
import contextlib

import aiohttp
import apsw
import msgspec
import pytest

from fabric.errors import FabricError
from serving.gateway import repeats
from serving.gateway.repeats import DEAD_US, KEEP_US, Kept, Repeats
from tests.serving.gateway.house import CHAT, STREAM, house_of

ANSWER = Kept(200, [(b"content-type", b"application/json")], b"{}")


@pytest.fixture
async def files(tmp_path):
    opened = []

    def make(gateway="g1", now_us=lambda: 10**15):
        opened.append(Repeats(tmp_path / "repeats.sqlite", gateway=gateway, now_us=now_us))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


async def begin(store, request=b"a", key="key", account="ann"):
    try:
        return await store.begin(account, key, request=request, call_id="c1")
    except FabricError as error:
        return error.code


async def test_of_many_at_many_gateways_one_runs(files):
    stores = [files(f"g{number}") for number in range(4)]
    outcomes = await asyncio.gather(*(begin(stores[number % 4]) for number in range(40)))
    assert sorted(map(str, outcomes)) == ["None"] + ["idempotency_in_flight"] * 39


async def test_an_answer_is_given_again_and_to_nobody_else(files):
    one, other = files("g1"), files("g2")
    assert await begin(one) is None
    await one.finish("ann", "key", ANSWER)
    assert await begin(other) == ANSWER
    assert await begin(other, request=b"b") == "idempotency_mismatch"
    assert await begin(other, account="bob") is None
    assert await begin(other, key="key2") is None


async def test_what_cost_nothing_may_be_tried_again_and_what_ended_in_the_middle_may_not(files):
    store = files()
    await begin(store)
    await store.forget("ann", "key")
    assert await begin(store) is None
    await store.fail("ann", "key")
    assert await begin(store) == "idempotency_unfinished"


async def test_a_gateway_that_died_leaves_unfinished_ones(files):
    now = [10**15]
    dead, other = files("dead", lambda: now[0]), files("other", lambda: now[0])
    await begin(dead)
    now[0] += DEAD_US - 1
    assert await begin(other) == "idempotency_in_flight"
    now[0] += 2
    assert await begin(other) == "idempotency_unfinished"


async def test_a_long_request_of_a_gateway_that_lives_stays_in_flight(files):
    now = [10**15]
    busy, other = files("busy", lambda: now[0]), files("other", lambda: now[0])
    await begin(busy)
    for _ in range(10):
        now[0] += DEAD_US // 2
        await busy.beat()
        assert await begin(other) == "idempotency_in_flight"


async def test_after_a_day_a_key_is_new(files):
    now = [10**15]
    store = files("g1", lambda: now[0])
    await begin(store)
    await store.finish("ann", "key", ANSWER)
    now[0] += KEEP_US + 1
    assert await begin(store, request=b"other") is None
    await store.finish("ann", "key", ANSWER)
    now[0] += KEEP_US + 1
    await store.beat()
    assert await begin(store) is None


async def test_an_answer_too_large_to_keep_is_not_made_twice(files, monkeypatch):
    monkeypatch.setattr(repeats, "KEPT_BYTES_MAX", 1)
    store = files()
    await begin(store)
    await store.finish("ann", "key", ANSWER)
    assert await begin(store) == "idempotency_not_kept"


async def test_keys_are_bounded_in_length_and_number(files, monkeypatch):
    monkeypatch.setattr(repeats, "RECORDS_PER_ACCOUNT_MAX", 3)
    store = files()
    assert await begin(store, key="k" * 256) == "idempotency_key"
    assert [await begin(store, key=f"{number}") for number in range(4)] == [None] * 3 + ["too_many_idempotency_keys"]
    with pytest.raises(FabricError) as refused:
        await store.begin("ann", "9", request=b"", call_id="c")
    assert refused.value.http_status == 429


async def test_who_has_many_answers_kept_is_in_nobodys_way(files):
    """All gateways write into the one file, one at a time."""
    store = files()
    steps = [0]

    def count():
        steps[0] += 1
        return False

    async def taken(key):
        steps[0] = 0
        assert await begin(store, key=key) is None
        return steps[0]

    await begin(store, key="first")
    await store._do(lambda db: db.set_progress_handler(count, 1))
    few = await taken("second")
    rows = [("ann", f"{number}", "", "c1", "g1", "done", 10**15, b"x" * 2_000) for number in range(3_000)]
    await store._do(lambda db: db.executemany("INSERT INTO repeats VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows).fetchall())
    assert await taken("third") < 2 * few


async def test_what_is_let_go_of_counts_no_more(files, monkeypatch):
    monkeypatch.setattr(repeats, "RECORDS_PER_ACCOUNT_MAX", 3)
    now = [10**15]
    store = files(now_us=lambda: now[0])
    for number in range(9):
        assert await begin(store, key=f"{number}") is None
        await store.forget("ann", f"{number}")
    assert [await begin(store, key=f"a{number}") for number in range(3)] == [None] * 3
    now[0] += KEEP_US + 1
    assert await begin(store, key="a0") == "too_many_idempotency_keys"
    await store.beat()
    assert [await begin(store, key=f"a{number}") for number in range(4)] == [None] * 3 + ["too_many_idempotency_keys"]


async def test_the_answers_of_an_account_take_so_much_of_the_disk_and_no_more(files, monkeypatch):
    """Few tokens buy answers of megabytes, 100,000 of which could be kept for each account, beside the journal."""
    size = len(msgspec.msgpack.encode(ANSWER))
    monkeypatch.setattr(repeats, "KEPT_BYTES_PER_ACCOUNT_MAX", 2 * size)
    monkeypatch.setattr(repeats, "KEPT_BYTES_IN_ALL_MAX", 3 * size)
    now = [10**15]
    store = files(now_us=lambda: now[0])

    async def again(account, key):
        assert await begin(store, key=key, account=account) is None
        await store.finish(account, key, ANSWER)
        return await begin(store, key=key, account=account)

    assert [await again("ann", f"{number}") for number in range(3)] == [ANSWER, ANSWER, "idempotency_not_kept"]
    assert [await again("bob", f"{number}") for number in range(2)] == [ANSWER, "idempotency_not_kept"]
    now[0] += KEEP_US + 1
    await store.beat()
    assert [await again("ann", f"{number}") for number in range(3)] == [ANSWER, ANSWER, "idempotency_not_kept"]


async def test_where_nothing_can_be_written_the_promise_is_not_made(tmp_path, files):
    store = files()
    await begin(store)
    blocker = apsw.Connection(str(tmp_path / "repeats.sqlite"))
    blocker.execute("DROP TABLE repeats")
    blocker.close()
    assert await begin(store, key="other") == "idempotency_unavailable"


async def test_the_second_request_gets_the_first_ones_answer(tmp_path):
    async with house_of(tmp_path, gateways=2) as house:
        headers = {"idempotency-key": "order-7"}
        async with house.post(headers=headers) as answer:
            first, call, charged = (
                await answer.read(),
                answer.headers["x-fabric-call"],
                answer.headers["x-fabric-charged-uhs"],
            )
            assert "x-fabric-replayed" not in answer.headers
        async with house.post(headers=headers, at=1) as answer:
            assert (await answer.read(), answer.headers["x-fabric-call"]) == (first, call)
            assert answer.headers["x-fabric-replayed"] == "1"
            assert answer.headers["x-fabric-charged-uhs"] == charged
        assert len(house.engine.requests) == 1
        async with house.post(body={**CHAT, "max_tokens": 6}, headers=headers, at=1) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (409, "idempotency_mismatch")
            assert answer.headers["x-should-retry"] == "false"


async def test_while_the_first_runs_the_second_hears_so_and_when_to_ask_again(tmp_path):
    async with house_of(tmp_path, gateways=2) as house:
        house.engine.token_s = 0.1
        headers = {"idempotency-key": "order-7"}
        first = asyncio.create_task(house.post(headers=headers).__aenter__())
        await house.settled(lambda: house.engine.active == 1)
        async with house.post(headers=headers, at=1) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (409, "idempotency_in_flight")
            assert answer.headers["retry-after"] == "1"
        (await first).close()
        assert len(house.engine.requests) == 1


async def test_who_asked_for_one_run_and_left_comes_back_for_its_answer(house):
    house.engine.token_s = 0.05
    headers = {"idempotency-key": "order-7"}
    with pytest.raises(TimeoutError):
        async with house.post(headers=headers, timeout=aiohttp.ClientTimeout(total=0.1)):
            pass
    await house.settled(lambda: list(house.engine.ended.values()) == ["done"])
    await house.settled(lambda: not house.gateway._open)
    async with house.post(headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["x-fabric-replayed"] == "1"
    assert len(house.engine.requests) == 1


async def test_a_stream_is_given_again_as_it_was(house):
    headers = {"idempotency-key": "order-8"}
    async with house.post(body=STREAM, headers=headers) as answer:
        first = await answer.read()
    async with house.post(body=STREAM, headers=headers) as answer:
        assert await answer.read() == first
        assert answer.headers["content-type"].startswith("text/event-stream")
    assert len(house.engine.requests) == 1


async def test_a_stream_that_broke_is_not_made_again_under_its_key(house):
    house.engine.break_after = 2
    headers = {"idempotency-key": "order-9"}
    async with house.post(body=STREAM, headers=headers) as answer:
        await answer.read()
    house.engine.break_after = None
    async with house.post(body=STREAM, headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (409, "idempotency_unfinished")
    assert len(house.engine.requests) == 1


async def test_a_refusal_that_cost_nothing_is_tried_again_under_its_key(house):
    house.engine.refuse_with = (402, {"error": {"message": "none", "code": "insufficient_quota"}})
    headers = {"idempotency-key": "order-10"}
    async with house.post(headers=headers) as answer:
        assert answer.status == 402
    house.engine.refuse_with = None
    async with house.post(headers=headers) as answer:
        assert answer.status == 200


# -- a file of an earlier gateway --------------------------------------------------------------------------------------

TABLE = """
CREATE TABLE repeats (
    account TEXT NOT NULL, key TEXT NOT NULL, request TEXT NOT NULL, call TEXT NOT NULL, gateway TEXT NOT NULL,
    state TEXT NOT NULL, at_us INTEGER NOT NULL, answer BLOB, PRIMARY KEY (account, key)
) WITHOUT ROWID;
"""
COUNTED = "CREATE TABLE kept (account TEXT PRIMARY KEY, records INTEGER NOT NULL) WITHOUT ROWID;"
WEIGHED = "CREATE TABLE kept_bytes (account TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;"
ROWS = "INSERT INTO repeats VALUES (?, ?, 'r', 'c', 'g0', 'done', 1000000000000000, ?)"


@pytest.mark.parametrize("more", ["", COUNTED, COUNTED + WEIGHED], ids=["uncounted", "unweighed", "weighed too late"])
async def test_what_an_earlier_gateway_kept_counts_against_the_bounds(files, tmp_path, monkeypatch, more):
    """Counted once, whichever gateway opens the file first; and what is let go later is no longer counted."""
    with contextlib.closing(apsw.Connection(str(tmp_path / "repeats.sqlite"))) as db:
        db.execute(TABLE + more)
        db.executemany(ROWS, [("ann", "1", b"x" * 70), ("ann", "2", b"x" * 20), ("bob", "1", None)])
    stores = [files(f"g{number}") for number in range(3)]
    await asyncio.gather(*(store.beat() for store in stores))
    with contextlib.closing(apsw.Connection(str(tmp_path / "repeats.sqlite"))) as db:
        assert dict(db.execute("SELECT * FROM kept")) == {"ann": 2, "bob": 1}
        assert dict(db.execute("SELECT * FROM kept_bytes WHERE bytes > 0")) == {"ann": 90}
    monkeypatch.setattr(repeats, "KEPT_BYTES_PER_ACCOUNT_MAX", 100)
    assert await begin(stores[0]) is None
    await stores[0].finish("ann", "key", ANSWER)
    assert await begin(stores[1]) == "idempotency_not_kept"
    late = files("g9", now_us=lambda: 10**15 + KEEP_US + 1)
    await late.beat()
    with contextlib.closing(apsw.Connection(str(tmp_path / "repeats.sqlite"))) as db:
        assert list(db.execute("SELECT * FROM kept")) == list(db.execute("SELECT * FROM kept_bytes")) == []


async def test_a_gateway_that_starts_later_counts_nothing_anew(files, tmp_path):
    assert await begin(files("g1")) is None
    with contextlib.closing(apsw.Connection(str(tmp_path / "repeats.sqlite"))) as db:
        db.execute("UPDATE kept SET records = 7")
    await files("g2").beat()
    with contextlib.closing(apsw.Connection(str(tmp_path / "repeats.sqlite"))) as db:
        assert list(db.execute("SELECT * FROM kept")) == [("ann", 7)]
