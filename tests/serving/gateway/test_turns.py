"""Who gets a seat at a replica, when, and at which."""

import asyncio
import json
from collections import Counter

import pytest

from serving.gateway import admission, calling
from serving.gateway.admission import WAITING_PER_ACCOUNT_MAX, Pool, Pools
from serving.gateway.app import Limits
from serving.gateway.directory import ModelFacts, Replica
from serving.gateway.fairness import QueueTicket
from tests.serving.gateway.house import CHAT, STREAM, house_of


def replica(number, **facts):
    return Replica(
        **{"replica_id": f"r{number}", "model": "tiny", "address": "http://127.0.0.1:1", "capacity": 1, **facts}
    )


def ticket(account="ann", rank=2, cost=10):
    return QueueTicket(account, rank=rank, cost=cost)


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_replica_gets_more_than_it_has_room_for():
    pool = Pool()
    pool.update([replica(1), replica(2)])
    seats = [pool.seat_now(ticket(), ()) for _ in range(5)]
    taken = [seat.replica.replica_id for seat in seats if seat]
    window = -(-1 * 112 // 100)
    assert Counter(taken) == {"r1": window, "r2": window}
    waits = [asyncio.create_task(pool.wait(ticket(), ())) for _ in range(3)]
    await settle()
    assert (pool.waiting, pool.seated) == (3, 2 * window)
    for seat in seats:
        if seat:
            seat.leave()
    await settle()
    assert (pool.waiting, pool.seated) == (0, 3)
    for wait in waits:
        (await wait).leave()
    assert pool.seated == 0


async def test_several_gateways_share_a_replicas_room_and_leave_none_of_it_idle():
    for running, room in [(0, 112), (60, 52), (100, 28), (500, 28)]:
        pool = Pool(gateways=4)
        pool.update([replica(1, capacity=100, running=running)])
        assert sum(pool.seat_now(ticket(), ()) is not None for _ in range(200)) == room
        pool.update([replica(1, capacity=100, running=running + room)])  # ours are no others
        assert sum(pool.seat_now(ticket(), ()) is not None for _ in range(200)) == 0


async def test_leaving_the_line_costs_nothing_and_takes_no_ones_turn():
    pool = Pool()
    pool.update([replica(1)])
    held = [seat for seat in (pool.seat_now(ticket(), ()) for _ in range(9)) if seat]
    first, second = (asyncio.create_task(pool.wait(ticket(name, cost=500), ())) for name in ("bob", "cem"))
    await settle()
    first.cancel()
    await settle()
    assert (pool.waiting, pool._queue.served("bob")) == (1, 0)
    held[0].leave()
    (await second).leave()
    assert len(held) - 1 == pool.seated


async def test_a_seat_given_in_the_moment_of_leaving_is_given_back():
    pool = Pool()
    pool.update([replica(1)])
    held = [seat for seat in (pool.seat_now(ticket(), ()) for _ in range(9)) if seat]
    wait = asyncio.create_task(pool.wait(ticket("bob", cost=500), ()))
    await settle()
    held[0].leave()
    wait.cancel()
    await settle()
    assert (pool.waiting, pool.seated, pool._queue.served("bob")) == (0, len(held) - 1, 0)


async def test_a_seat_that_is_freed_in_the_moment_of_leaving_goes_to_the_next(tmp_path):
    pool = Pool()
    pool.update([replica(1)])
    held = [seat for seat in (pool.seat_now(ticket(), ()) for _ in range(9)) if seat]
    first, second = (asyncio.create_task(pool.wait(ticket(name, cost=500), ())) for name in ("bob", "cem"))
    await settle()
    first.cancel()
    held[0].leave()  # before the one who leaves has run
    (await second).leave(tokens=5)
    assert (pool.waiting, pool._queue.served("bob"), pool._queue.served("cem")) == (0, 0, 5)


async def test_a_seat_is_left_once_however_often_it_is_said():
    pool = Pool()
    pool.update([replica(1)])
    seat = pool.seat_now(ticket(), ())
    seat.leave(tokens=7)
    seat.leave(tokens=7)
    assert (pool.seated, pool._queue.served("ann")) == (0, 7)


async def test_one_who_asks_for_too_much_at_once_does_not_fill_the_line_for_all(monkeypatch):
    pool = Pool()
    waits = [asyncio.create_task(pool.wait(ticket(), ())) for _ in range(WAITING_PER_ACCOUNT_MAX)]
    await settle()
    with pytest.raises(Exception, match="wait for this model already") as refused:
        await pool.wait(ticket(), ())
    assert (refused.value.http_status, refused.value.code) == (429, "queue_full_for_you")
    monkeypatch.setattr(admission, "WAITING_MAX", WAITING_PER_ACCOUNT_MAX)
    with pytest.raises(Exception, match="try again in 5 s") as refused:
        await pool.wait(ticket("bob"), ())
    assert (refused.value.http_status, refused.value.facts["retry_after_s"]) == (503, 5)
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert pool.waiting == 0


async def test_a_model_that_is_gone_and_asked_for_by_nobody_leaves_no_pool():
    pools = Pools()
    pools.update([replica(1), replica(2, model="other")])
    pools.update([replica(1)])
    assert [model for model, _, _ in pools.items()] == ["tiny"]


async def test_professional_is_seated_before_starter_and_nobody_waits_for_ever(tmp_path):
    async with house_of(tmp_path, capacity=1) as house:
        house.engine.token_s = 0.003
        pro = house.directory.add_key("p", "pro", tier_rank=1)
        starter = house.directory.add_key("s", "starter", tier_rank=0)
        done = []

        async def ask(key, name):
            async with house.post(key=key, body={**CHAT, "max_tokens": 1}) as answer:
                assert answer.status == 200
                done.append(name)

        asks = [asyncio.create_task(ask(starter, "starter")) for _ in range(30)]
        await house.settled(lambda: house.gateway.pools.of("tiny", "x")[0].waiting > 10)
        asks += [asyncio.create_task(ask(pro, "pro")) for _ in range(30)]
        await house.settled(lambda: house.gateway.pools.of("tiny", "x")[0].waiting > 30)
        before = done.count("starter")
        await asyncio.gather(*asks)
        after = done[before + 3 :]
        assert after[:20].count("pro") >= 17
        assert done.count("starter") == 30
        assert house.engine.active_most <= 2


async def test_within_a_tier_who_asks_for_more_at_once_is_not_served_more(tmp_path):
    async with house_of(tmp_path, capacity=1) as house:
        house.engine.token_s = 0.002
        keys = {name: house.directory.add_key(name, name) for name in ("greedy", "modest")}
        done = []

        async def ask(name):
            async with house.post(key=keys[name], body={**CHAT, "max_tokens": 2}) as answer:
                assert answer.status == 200
                done.append(name)

        asks = [asyncio.create_task(ask("greedy")) for _ in range(40)]
        await house.settled(lambda: house.gateway.pools.of("tiny", "x")[0].waiting > 30)
        asks += [asyncio.create_task(ask("modest")) for _ in range(8)]
        await asyncio.gather(*asks)
        last_modest = max(place for place, name in enumerate(done) if name == "modest")
        assert last_modest < 32  # after the eight that went before, one by one with the greedy one's


async def test_a_conversation_comes_back_to_its_replica(tmp_path):
    async with house_of(tmp_path, replicas=3) as house:
        for account in range(6):
            key = house.directory.add_key(f"key{account}", f"account{account}")
            talk = [{"role": "system", "content": f"You are number {account}. " * 60}]
            for turn in range(4):
                talk = [*talk, {"role": "user", "content": f"and {turn}? " * 60}]
                async with house.post(key=key, body={**CHAT, "messages": talk}) as answer:
                    assert answer.status == 200
        where = {
            name: {headers["x-fabric-account"] for _, headers, _ in engine.requests}
            for name, engine in house.engines.items()
        }
        assert sum(map(len, where.values())) == 6  # nobody was at two
        assert len([accounts for accounts in where.values() if accounts]) > 1


async def test_what_cannot_be_reached_is_left_out_and_nothing_is_sent_twice(tmp_path):
    async with house_of(tmp_path, replicas=2) as house:
        await house.stop_engine["r1"]()
        for number in range(8):
            async with house.post(body={**CHAT, "messages": [{"role": "user", "content": f"{number}"}]}) as answer:
                assert answer.status == 200
        assert len(house.engines["r2"].requests) == 8
        await house.stop_engine["r2"]()


async def test_where_no_replica_can_be_reached_it_is_said_when_to_come_back(tmp_path):
    async with house_of(tmp_path, limits=Limits(wait_s=0.5)) as house:
        await house.stop_engine["r1"]()
        async with house.post() as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] in {"no_room", "replicas_unreachable"}
            assert int(answer.headers["retry-after"]) >= 1


async def test_a_model_that_starts_is_waited_for_with_keep_alives(tmp_path):
    limits = Limits(quiet_s=0.05, keep_alive_s=0.05)
    async with house_of(tmp_path, limits=limits) as house:
        alive = house.directory.replicas.pop("r1")
        house.directory.change()
        await house.settled(lambda: not house.gateway.pools.of("tiny", "ann")[0].replicas)
        whole = asyncio.create_task(house.post().__aenter__())
        async with house.post(body=STREAM) as answer:
            assert answer.status == 200
            for _ in range(3):
                assert (await answer.content.readuntil(b"\n\n")).startswith(b": waiting")
            assert [(line.model, line.waiting) for line in house.gateway.lines()] == [("tiny", 2)]
            await house.settled(lambda: house.directory.reports and house.directory.reports[-1][0].oldest_us > 0)
            assert not whole.done()
            house.directory.show(alive)
            raw = await answer.read()
        assert raw.endswith(b"data: [DONE]\n\n")
        async with await whole as answer:
            assert answer.status == 200


async def test_after_keep_alives_a_refusal_is_an_event(tmp_path):
    limits = Limits(quiet_s=0.05, keep_alive_s=0.05)
    async with house_of(tmp_path, limits=limits) as house:
        alive = house.directory.replicas.pop("r1")
        house.directory.change()
        await house.settled(lambda: not house.gateway.pools.of("tiny", "ann")[0].replicas)
        house.engine.refuse_with = (402, {"error": {"message": "none", "type": "x", "code": "insufficient_quota"}})
        async with house.post(body=STREAM) as answer:
            await answer.content.readuntil(b"\n\n")
            house.directory.show(alive)
            raw = await answer.read()
        last = raw.decode().strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "insufficient_quota"


async def test_a_model_that_failed_to_load_is_not_waited_for(house):
    house.directory.models["tiny"] = ModelFacts(name="tiny", state="failed", why="CUDA out of memory")
    house.directory.replicas.clear()
    house.directory.change()
    await house.settled(lambda: house.gateway.board.models["tiny"].state == "failed")
    async with house.post() as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (503, "model_failed")
        assert "out of memory" in error["message"]


async def test_a_model_that_nobody_serves_is_not_waited_for_long(house, monkeypatch):
    monkeypatch.setattr(calling, "HOPE_S", 0.1)
    monkeypatch.setattr(calling, "_LOOK_S", 0.1)
    house.directory.models["tiny"] = ModelFacts(name="tiny", state="waiting")
    house.directory.replicas.clear()
    house.directory.change()
    await house.settled(lambda: house.gateway.board.models["tiny"].state == "waiting")
    async with house.post() as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (503, "nobody_serves")
        assert answer.headers["retry-after"] == "10"


async def test_what_goes_wrong_beside_the_requests_does_not_end_them(house, monkeypatch):
    async def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(house.directory, "report", broken)
    monkeypatch.setattr(house.directory, "boards", broken)
    monkeypatch.setattr("serving.gateway.app.REPORT_S", 0.01)
    house.directory.away = True
    house.directory.change()
    await asyncio.sleep(0.2)
    house.directory.away = False
    async with house.post() as answer:
        assert answer.status == 200


async def test_a_client_that_leaves_the_line_is_not_served(tmp_path):
    async with house_of(tmp_path, capacity=1) as house:
        house.engine.token_s = 0.05
        asks = [asyncio.create_task(house.post(body={**CHAT, "max_tokens": 10}).__aenter__()) for _ in range(4)]
        await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].waiting == 2)
        for ask in asks[2:]:
            ask.cancel()
        await house.settled(lambda: house.gateway.pools.of("tiny", "ann")[0].waiting == 0)
        for answer in await asyncio.gather(*asks[:2]):
            answer.close()
        assert len(house.engine.requests) == 2
