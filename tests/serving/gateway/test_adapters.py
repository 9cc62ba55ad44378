"""LoRA adapters at the gateway: models of their own to whoever asks, and requests among their parent's to the replicas."""

import asyncio

import msgspec
import pytest

from serving.gateway.admission import Pool
from serving.gateway.directory import Board, Entitlement, ModelFacts
from serving.gateway.fabric_directory import _as_their_parents
from serving.gateway.fairness import QueueTicket
from tests.serving.gateway.house import CHAT, RATE, house_of
from tests.serving.gateway.test_turns import replica, settle

LAW = ModelFacts(
    name="tiny-law", parent="tiny", rates=(msgspec.structs.replace(RATE, output_uhs_per_mtok=9),), state="ready"
)
ASK = CHAT | {"model": "tiny-law"}


def ticket(account="ann", **said):
    return QueueTicket(account, rank=2, cost=10, **said)


@pytest.fixture
async def adapted(tmp_path):
    async with house_of(tmp_path) as house:
        house.directory.models["tiny-law"] = LAW
        both = {name: Entitlement(model=name, free_uhs=10**9) for name in ("tiny", "tiny-law")}
        house.directory.change()
        await house.settled(lambda: "tiny-law" in house.gateway.board.models)
        house.key = house.directory.add_key("owner", "ann", models=both)
        house.stranger = house.directory.add_key("other", "bob", models={"tiny": both["tiny"]})
        yield house


async def test_a_card_tells_the_parent_and_the_adapters_own_price(adapted):
    async with adapted.get("/v1/models") as answer:
        cards = {card["id"]: card for card in (await answer.json())["data"]}
    assert (cards["tiny"]["parent"], cards["tiny-law"]["parent"], cards["tiny-law"]["root"]) == (None, "tiny", "tiny")
    assert cards["tiny-law"]["pricing_ct"]["completion"] != cards["tiny"]["pricing_ct"]["completion"]


async def test_anothers_private_adapter_is_neither_listed_nor_shown_nor_called(adapted):
    async with adapted.get("/v1/models", key=adapted.stranger) as answer:
        assert [card["id"] for card in (await answer.json())["data"]] == ["tiny"]
    async with adapted.get("/v1/models/tiny-law", key=adapted.stranger) as answer:
        assert answer.status == 404
    async with adapted.post(body=ASK, key=adapted.stranger) as answer:
        said = (await answer.json())["error"]
        assert (answer.status, said["code"]) == (404, "model_not_found")
    async with adapted.post(body=CHAT | {"model": "unheard"}, key=adapted.stranger) as answer:
        unheard = (await answer.json())["error"]
    assert said["message"].replace("tiny-law", "unheard") == unheard["message"], "it can't be told from one that isn't"


async def test_a_call_waits_until_a_replica_has_loaded_the_adapter(adapted):
    asking = asyncio.ensure_future(adapted.post(body=ASK).__aenter__())
    await asyncio.sleep(0.1)
    assert not adapted.engine.requests
    adapted.directory.show(msgspec.structs.replace(adapted.directory.replicas["r1"], adapters=frozenset({"tiny-law"})))
    answer = await asking
    assert answer.status == 200
    ((_, headers, body),) = adapted.engine.requests
    assert (headers["x-fabric-model"], body["model"]) == ("tiny-law", "tiny-law")


async def test_an_adapter_that_could_not_be_loaded_says_why_and_its_parent_goes_on(adapted):
    why = "the adapter tiny-law is not served: it has rank 32, at most 16 may be on tiny"
    adapted.directory.models["tiny-law"] = msgspec.structs.replace(LAW, state="failed", why=why)
    adapted.directory.change()
    await adapted.settled(lambda: adapted.gateway.board.models["tiny-law"].state == "failed")
    async with adapted.post(body=ASK) as answer:
        said = (await answer.json())["error"]
        assert (answer.status, said["code"]) == (503, "model_failed")
        assert why in said["message"]
    async with adapted.post() as answer:
        assert answer.status == 200


def test_what_an_adapter_can_do_is_what_its_parent_can():
    parent = ModelFacts(name="tiny", max_context=512, calls_tools=True, reasons=True)
    found = _as_their_parents({"tiny": parent, "tiny-law": LAW})
    assert (found["tiny-law"].max_context, found["tiny-law"].calls_tools, found["tiny-law"].reasons) == (
        512,
        True,
        True,
    )
    assert found["tiny"] is parent
    board = Board(models=found)
    assert [board.home_of(name) for name in ("tiny", "tiny-law", "unheard")] == ["tiny", "tiny", "unheard"]


async def test_an_adapters_calls_go_where_it_is_loaded_within_one_line_and_window():
    pool = Pool()
    has, lacks = replica(1, adapters=frozenset({"law"})), replica(2)
    pool.update([has, lacks])
    window = 2
    seats = [pool.seat_now(ticket(adapter="law"), ()) for _ in range(window + 1)]
    assert [seat and seat.replica.replica_id for seat in seats] == ["r1", "r1", None]
    assert pool.seat_now(ticket(), ()).replica.replica_id == "r2", "the parent's have the other"
    waiting = asyncio.create_task(pool.wait(ticket("bob", adapter="law"), ()))
    await settle()
    assert not waiting.done()
    seats[0].leave(tokens=1)
    await settle()
    assert (await waiting).replica.replica_id == "r1"


async def test_a_call_of_an_adapter_that_went_holds_up_nobody():
    pool = Pool()
    pool.update([replica(1, adapters=frozenset({"law"}))])
    full = [pool.seat_now(ticket(), ()) for _ in range(2)]
    of_law, other = (asyncio.create_task(pool.wait(each, ())) for each in (ticket("bob", adapter="law"), ticket("cyd")))
    await settle()
    pool.update([replica(1)])
    for seat in full:
        seat.leave(tokens=1)
    await settle()
    assert (of_law.done(), other.done()) == (False, True)
    pool.update([replica(1, adapters=frozenset({"law"}))])
    await settle()
    for call in (of_law, other):
        (await call).leave(tokens=0)


async def test_who_waits_where_an_adapter_is_loaded_holds_up_nobody_elsewhere():
    pool = Pool()
    law = frozenset({"law"})
    pool.update([replica(1, adapters=law)])
    full = [pool.seat_now(ticket(adapter="law"), ()) for _ in range(2)]
    asked = [ticket("bob", adapter="law"), ticket("cyd"), ticket("dan", adapter="law"), ticket("eve")]
    calls = [asyncio.create_task(pool.wait(each, ())) for each in asked]
    await settle()
    pool.update([replica(1, adapters=law), replica(2)])
    await settle()
    assert [call.done() for call in calls] == [False, True, False, True]
    assert {(await calls[at]).replica.replica_id for at in (1, 3)} == {"r2"}
    late = pool.seat_now(ticket("eve", adapter="law"), ())
    assert late is None
    calls[0].cancel()
    await settle()
    full[0].leave(tokens=1)
    await settle()
    assert (await calls[2]).replica.replica_id == "r1", "its turn came, though the one before it has gone"
    assert pool.waiting == 0
