"""What a key's holder may ask of itself: what is left, what the key may, and what a call cost, also one it left."""

import asyncio
import contextlib

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway import generations
from serving.gateway.directory import LimitFacts
from serving.gateway.generations import Generation, Generations
from tests.serving.gateway.house import CHAT, STREAM, house_of

CT = 3_600_000_000


async def told(house, path, **more):
    async with house.get(path, **more) as answer:
        return answer.status, await answer.json()


async def test_an_account_is_told_what_it_can_spend_and_a_key_what_it_may(house):
    key = house.directory.add_key(
        "k2", "ann", free_uhs=5 * CT // 2, name="ci", limit_uhs=2 * CT, spent_uhs=CT // 2, requests_per_min=60
    )
    _, said = await told(house, "/v1/credits", key=key)
    assert said["data"]["total_credits"] - said["data"]["total_usage"] == 2.5
    assert said["fabric"]["free_uhs"] == str(5 * CT // 2)
    _, said = await told(house, "/v1/key", key=key)
    data = said["data"]
    assert (data["label"], data["limit"], data["limit_remaining"], data["usage"]) == ("ci", 2, 1.5, 0.5)
    assert data["rate_limit"] == {"requests": 60, "tokens": None, "interval": "1m"}


async def test_a_key_is_told_of_its_limits_and_each_answer_of_the_nearest(house):
    ends = 1_800_000_000_000_000
    month = LimitFacts(whose="account", period="month", unit="cny", amount=10_000_000, used=1_000_000, left=9_000_000)
    day = LimitFacts(
        whose="key", period="day", unit="ct", amount=4 * CT, used=CT, held=CT, left=2 * CT, resets_at_us=ends
    )
    key = house.directory.add_key("k3", "ann", limited=True, limit_uhs=9 * CT, limits=(month, day))
    _, said = await told(house, "/v1/key", key=key)
    data = said["data"]
    assert (data["limit"], data["limit_reset"]) == (4, "daily")
    assert [(each["of"], each["unit"], each["remaining"]) for each in said["fabric"]["limits"]] == [
        ("account", "cny", 9), ("key", "ct", 2),
    ]  # fmt: skip
    assert said["fabric"]["limits"][1]["resets_at"] == "2027-01-15T08:00:00+00:00"
    async with house.post(key=key) as answer:
        assert answer.headers["x-fabric-limit"] == "4 CT per day"
        assert answer.headers["x-fabric-limit-remaining"] == "2"
        assert answer.headers["x-fabric-limit-reset"] == "2027-01-15T08:00:00+00:00"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_call_cost_is_told_again_by_its_id(house, path, stream):
    async with house.post(path, body={**CHAT, "prompt": "x", "input": "x", "stream": stream}) as answer:
        call = answer.headers["x-request-id"]
        body = await answer.text()
    assert '"fabric":{"call":' in body.replace(" ", "")
    for named in (f"/v1/generations/{call}", f"/v1/generations/chatcmpl-{call}", f"/v1/generation?id={call}"):
        status, said = await told(house, named)
        assert (status, said["data"]["id"], said["data"]["streamed"]) == (200, call, stream)
        assert said["data"]["tokens_completion"] == 5
        assert said["fabric"]["state"] == "booked"
        assert int(said["fabric"]["charged_uhs"]) == said["data"]["tokens_prompt"] + 10
        assert said["data"]["total_cost"] == pytest.approx(int(said["fabric"]["charged_uhs"]) / CT, rel=0.01)


async def test_a_call_is_told_to_its_own_account_alone(house):
    async with house.post() as answer:
        call = answer.headers["x-request-id"]
    other = house.directory.add_key("k9", "bob")
    for path in (f"/v1/generations/{call}", "/v1/generations/c" + "0" * 24, "/v1/generations/..%2f", "/v1/generation"):
        status, said = await told(house, path, key=other)
        assert (status, said["error"]["code"]) == (404, "call_not_found")


async def test_a_refused_call_cost_nothing_and_says_so(house):
    house.engine.refuse_with = (400, {"error": {"message": "no", "type": "x", "code": 400}})
    async with house.post() as answer:
        call = answer.headers["x-request-id"]
    _, said = await told(house, f"/v1/generations/{call}")
    assert (said["fabric"]["charged_uhs"], said["data"]["total_cost"]) == ("0", 0)


async def test_who_left_before_the_end_asks_what_it_cost(house):
    house.engine.token_s = 0.02
    async with house.post(body={**STREAM, "max_tokens": 10_000}) as answer:
        call = answer.headers["x-request-id"]
        await answer.content.readuntil(b"\n\n")
    await house.settled(lambda: call in house.engine.ended)
    await house.settled(lambda: call in house.gateway.generations._fresh or not house.gateway._open)
    async with asyncio.timeout(20):
        while (await told(house, f"/v1/generations/{call}"))[0] == 404:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    status, said = await told(house, f"/v1/generations/{call}")
    assert status == 200
    assert said["data"]["cancelled"] is True
    assert said["fabric"]["charged_uhs"] == "77"


async def test_calls_are_told_after_a_restart_and_forgotten_in_time(tmp_path):
    now = [10**15]
    one = Generation(
        call_id="c1", account_id="ann", key_id="k", model="m", at_us=now[0], took_us=1, streamed=False, status=200,
        ended="whole", charged_uhs=7,
    )  # fmt: skip
    first = Generations(tmp_path / "g.sqlite", now_us=lambda: now[0])
    first.note(one)
    first.close()
    second = Generations(tmp_path / "g.sqlite", now_us=lambda: now[0])
    assert await second.find("ann", "c1") == one
    assert await second.find("bob", "c1") is None
    now[0] += 25 * 3_600_000_000
    second.note(
        Generation(
            call_id="c2",
            account_id="ann",
            key_id="k",
            model="m",
            at_us=now[0],
            took_us=1,
            streamed=False,
            status=200,
            ended="whole",
        )
    )
    await second.flush()
    assert await second.find("ann", "c1") is None
    assert second._fresh == {}
    second.close()


async def test_no_more_calls_are_kept_than_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(generations, "ROWS_MAX", 3)
    kept = Generations(tmp_path / "g.sqlite", now_us=lambda: 10**15)
    for number in range(6):
        kept.note(
            Generation(
                call_id=f"c{number}", account_id="ann", key_id="k", model="m", at_us=10**15 + number, took_us=1, streamed=False,
                status=200, ended="whole",
            )
        )  # fmt: skip
    await kept.flush()
    assert [await kept.find("ann", f"c{number}") is not None for number in range(6)] == [False] * 3 + [True] * 3
    kept.close()


async def test_who_calls_most_is_forgotten_first_and_nobody_elses_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(generations, "ROWS_MAX", 7)
    kept = Generations(tmp_path / "g.sqlite", now_us=lambda: 10**15)
    named = [("bob", "b0"), ("cy", "c0"), ("cy", "c1"), *(("ann", f"a{number}") for number in range(20))]
    for place, (account, call) in enumerate(named):
        kept.note(
            Generation(
                call_id=call, account_id=account, key_id="k", model="m", at_us=10**15 + place, took_us=1, streamed=False,
                status=200, ended="whole",
            )
        )  # fmt: skip
    await kept.flush()
    left = [call for account, call in named if await kept.find(account, call) is not None]
    assert left == ["b0", "c0", "c1", "a16", "a17", "a18", "a19"]
    kept.close()


@given(counts=st.lists(st.integers(1, 50), max_size=8), room=st.integers(1, 100))
def test_a_level_leaves_no_more_than_there_is_room_for(counts, room):
    counts = sorted(counts, reverse=True)
    most = generations._level(counts, room)
    left = sum(min(count, most) for count in counts)
    assert left <= room
    assert left > room - len(counts) or left == sum(counts)


async def test_a_key_has_its_requests_a_minute_and_others_of_the_account_go_on(house):
    few = house.directory.add_key("k2", "ann", requests_per_min=3)
    statuses = []
    for _ in range(4):
        async with house.post(key=few) as answer:
            statuses.append(answer.status)
            assert answer.headers["x-ratelimit-limit-requests"] == ("3" if answer.status == 200 else "200000")
            last = await answer.json(), answer.headers
    assert statuses == [200, 200, 200, 429]
    said, headers = last
    assert said["error"]["code"] == "requests_per_minute"
    assert int(headers["retry-after"]) >= 1
    async with house.post() as answer:
        assert answer.status == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_key_has_its_llm_tokens_a_minute_counted_when_they_are_known(house, stream):
    few = house.directory.add_key("k2", "ann", tokens_per_min=10)
    async with house.post(body={**CHAT, "stream": stream}, key=few) as answer:
        assert (answer.status, answer.headers["x-ratelimit-limit-tokens"]) == (200, "10")
        await answer.read()
    async with house.post(key=few) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (429, "tokens_per_minute")


async def test_gateways_that_share_a_port_share_a_keys_limit(tmp_path):
    async with house_of(tmp_path, rate_shares=2) as house:
        few = house.directory.add_key("k2", "ann", requests_per_min=3)
        async with house.post(key=few) as answer:
            assert answer.headers["x-ratelimit-limit-requests"] == "2"


# -- the file ----------------------------------------------------------------------------------------------------------

BEFORE = """
CREATE TABLE generations (call TEXT PRIMARY KEY, account TEXT NOT NULL, at_us INTEGER NOT NULL, said BLOB NOT NULL)
WITHOUT ROWID;
CREATE INDEX generations_by_age ON generations (at_us);
INSERT INTO generations VALUES ('c0', 'ann', 10, x'00');
"""
"""A file as an earlier gateway left it."""


@pytest.mark.parametrize("before", ["", BEFORE], ids=["new", "from before"])
@pytest.mark.parametrize("query", [generations._DROP_OLDEST, generations._BY_ACCOUNT])
def test_what_is_pruned_of_an_account_is_found_without_looking_at_others(tmp_path, before, query):
    """A gateway of two million calls would sort, or read, all of them, each minute, while the others wait for the file."""
    file = tmp_path / "generations.sqlite"
    if before:
        with contextlib.closing(apsw.Connection(str(file))) as db:
            db.execute(before)
    store = Generations(file, now_us=lambda: 20)
    store.note(
        Generation(
            call_id="c1",
            account_id="bob",
            key_id="",
            model="m",
            at_us=11,
            took_us=1,
            streamed=False,
            status=200,
            ended="stop",
        )
    )
    store.close()
    with contextlib.closing(apsw.Connection(str(file))) as db:
        named = ("ann", 1)[: query.count("?")]
        plan = [detail for *_, detail in db.execute(f"EXPLAIN QUERY PLAN {query}", named)]
        calls = [call for (call,) in db.execute("SELECT call FROM generations ORDER BY at_us")]
    assert any("generations_by_account" in detail for detail in plan), plan
    assert not any(detail.startswith("USE TEMP B-TREE FOR") for detail in plan if named), plan
    assert calls == (["c0", "c1"] if before else ["c1"])
