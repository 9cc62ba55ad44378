"""Metered inference at the door: slices through the ledger's own client, models, the board, and who calls."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from grpc._cython import cygrpc

from fabric.api import grpc_server
from fabric.api.serving_board import REPORTERS_MAX, Board
from fabric.client.client import new_request_id
from fabric.client.profile import Profile
from fabric.clock import VirtualClock
from fabric.errors import (
    InsufficientTokens,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from fabric.gate.account_events import CreateKey
from fabric.gate.events import NodeUp, Pool
from fabric.transport import choice
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
from serving import fabric_client as serving_ledger
from serving.calls import Call, Usage
from serving.fabric_client import FabricClient

S = 1_000_000
NOW_US = 1_700_000_000_000_000
"""When the house begins."""
RATES = [
    pb.Rate(
        input_uhs_per_mtok=40 * S,
        cached_uhs_per_mtok=4 * S,
        output_uhs_per_mtok=400 * S,
        reasoning_uhs_per_mtok=400 * S,
    )
]


def offer(house, name="tiny", rates=RATES, **spec):
    made = pb.ModelSpec(name=name, source="/models/tiny", accelerators=["H100"], **spec)
    request = pb.OfferModelRequest(request_id=new_request_id(), spec=made, rates=rates)
    return house.client(house.root).call(request, pb.Accepted)


def call(call_id="c1", *, prompt=100, cached=0, completion=10, model="tiny", **more):
    usage = Usage(prompt_tokens=prompt, cached_tokens=cached, completion_tokens=completion)
    return Call(
        call_id=call_id, account_id="acme", key_id="k-acme", model=model, accelerator="H100", usage=usage,
        started_at_us=NOW_US - 1, ended_at_us=NOW_US, ended="stop", **more,
    )  # fmt: skip


def ledger(house, key=None):
    return FabricClient(Profile(address=house.address, ca=str(house.tls.ca), api_key=key or house.root))


def slice_of(amount=1000, **more):
    return {
        "hold_id": "slice-1", "account_id": "acme", "key_id": None, "model": "tiny", "accelerator": "H100",
        "amount_uhs": amount, "minimum_uhs": 1, "ttl_us": 60 * S, **more,
    }  # fmt: skip


async def test_a_slice_is_granted_spent_call_by_call_and_given_back(house):
    offer(house)
    door = ledger(house)
    assert (await door.authorize(**slice_of(20_000))).held_uhs == 20_000
    more = {"hold_id": "slice-1", "account_id": "acme", "more_uhs": 5_000, "minimum_uhs": 1, "ttl_us": 60 * S}
    after = await door.update(seq=1, calls=[call("c1"), call("c2")], **more)
    again = await door.update(seq=1, calls=[call("c1"), call("c2")], **more)
    assert after == again
    assert after.held_uhs == 20_000 - 2 * (100 * 40 + 10 * 400) + 5_000
    await door.settle(hold_id="slice-1", account_id="acme", seq=2, calls=[call("c2"), call("c3", cached=50)])
    await door.settle(hold_id="slice-1", account_id="acme", seq=2, calls=[call("c2"), call("c3", cached=50)])
    balance = house.client().call(pb.BalanceRequest(), pb.BalanceReply)
    assert (balance.held_uhs, 100 * UHS_PER_CT - balance.free_uhs) == (0, 2 * 8_000 + 50 * 40 + 50 * 4 + 4_000)
    records = list(house.client().stream(pb.UsageRequest(), pb.Cdr))
    assert [(record.cdr_id, record.charged_uhs) for record in records] == [("c1", 8_000), ("c2", 8_000), ("c3", 6_200)]
    assert list(records[2].rate_uhs_per_mtok) == [40 * S, 4 * S, 400 * S, 400 * S]
    await door.close()


async def test_a_slice_that_was_asked_for_twice_is_one(house):
    offer(house)
    door = ledger(house)
    answers = [await door.authorize(**slice_of()) for _ in range(3)]
    assert answers == [answers[0]] * 3
    assert house.client().call(pb.BalanceRequest(), pb.BalanceReply).held_uhs == 1000
    await door.close()


async def test_a_slice_beyond_what_is_free_says_what_is_missing(house):
    offer(house)
    door = ledger(house)
    with pytest.raises(InsufficientTokens) as refusal:
        await door.authorize(**slice_of(1000 * UHS_PER_CT, minimum_uhs=200 * UHS_PER_CT))
    assert refusal.value.facts["free_uhs"] == 100 * UHS_PER_CT
    assert (await door.authorize(**slice_of(1000 * UHS_PER_CT))).final
    await door.close()


async def test_a_ledger_that_is_away_is_unavailable_and_the_same_word_may_be_said_again(house):
    offer(house)
    door = ledger(house)
    await door.authorize(**slice_of(20_000))
    house.port.lose_answers = 1
    settle = {"hold_id": "slice-1", "account_id": "acme", "seq": 1, "calls": [call()]}
    with pytest.raises(Unavailable):
        await door.settle(**settle)
    await door.settle(**settle)
    assert house.client().call(pb.BalanceRequest(), pb.BalanceReply).free_uhs == 100 * UHS_PER_CT - 8_000
    await door.close()


async def test_only_an_operators_meter_reports_calls_or_holds_for_keys(house):
    offer(house)
    door = ledger(house, house.acme)
    for asked in (
        door.caller("k-acme"),
        door.authorize(**slice_of(key_id="k-acme")),
        door.update(hold_id="x", account_id="", seq=1, calls=[call()], more_uhs=0, minimum_uhs=1, ttl_us=S),
        door.settle(hold_id="x", account_id="", seq=1, calls=[call()]),
        door.record(account_id="", calls=[call(covered=True)]),
        door.report(pb.ReportServingRequest(reporter="me")),
    ):
        with pytest.raises((PermissionDenied, Unauthenticated)):
            await asked
    await door.close()


async def test_a_gateway_learns_whose_key_it_is_and_what_there_is_for_each_model(house):
    offer(house)
    offer(house, "own", dedicated_to="acme")
    offer(house, "theirs", dedicated_to="globex")
    key = CreateKey(key_id="k-small", account_id="acme", secret_sha256="0" * 64, limit_uhs=500)
    house.port.seed(key)
    door = ledger(house)
    found = await door.caller("k-small")
    assert (found.account_id, found.limited, found.tier_rank, found.revoked) == ("acme", True, 0, False)
    assert [(each.model, each.free_uhs, each.covered) for each in found.models] == [
        ("tiny", 500, False),
        ("own", 500, True),
    ]
    assert not (await door.caller("k-acme")).limited
    assert await door.caller("nobody") is None
    await door.close()


async def test_calls_that_an_own_lease_covers_are_recorded_and_cost_nothing(house):
    offer(house, "own", dedicated_to="acme")
    door = ledger(house)
    for _ in range(2):
        await door.record(account_id="acme", calls=[call(model="own", covered=True)])
    (record,) = house.client().stream(pb.UsageRequest(), pb.Cdr)
    assert (record.cdr_id, record.charged_uhs, record.covered) == ("c1", 0, True)
    await door.close()


# -- models and the board ----------------------------------------------------------------------------------------------


def ready(**more):
    return pb.Replica(replica_id="r1", model="tiny", state="ready", address="http://127.0.0.1:1", waiting=2, **more)


async def test_a_model_is_shown_with_its_price_and_how_it_gets_on(house):
    offer(house, replicas_max=3)
    door = ledger(house)
    (model,) = await door.models()
    assert (model.state, model.spec.source, model.rate_version) == ("waiting", "/models/tiny", 1)
    await door.report(pb.ReportServingRequest(reporter="host", models=[pb.ModelStatus(model="tiny", state="idle")]))
    assert [model.state for model in await door.models()] == ["idle"]
    failed = pb.ModelStatus(model="tiny", state="failed", reason="no such file")
    await door.report(pb.ReportServingRequest(reporter="host", models=[failed]))
    assert [(model.state, model.reason) for model in await door.models()] == [("failed", "no such file")]
    await door.report(pb.ReportServingRequest(reporter="host", replicas=[ready(ttft_p50_us=900)]))
    await door.report(pb.ReportServingRequest(reporter="g1", queues=[pb.ModelQueue(model="tiny", waiting=5)]))
    (mine,) = house.client().call(pb.ListModelsRequest(), pb.ListModelsReply).models
    assert (mine.state, mine.replicas_ready, mine.waiting, mine.ttft_p50_us) == ("ready", 1, 7, 900)
    assert (mine.price_microcny_per_ct, mine.HasField("spec")) == (500_000, False)
    await door.close()


async def test_the_board_comes_at_once_and_again_when_it_changes(house):
    offer(house)
    door = ledger(house)
    boards = door.watch()
    assert not (await anext(boards)).replicas
    await door.report(pb.ReportServingRequest(reporter="host", replicas=[ready()], endpoint="https://here"))
    async with asyncio.timeout(10):
        async for board in boards:
            if board.replicas:
                break
    assert (board.replicas[0].replica_id, list(board.endpoints)) == ("r1", ["https://here"])
    await boards.aclose()
    await door.close()


async def test_a_reporter_that_falls_silent_is_forgotten_and_there_is_no_room_for_a_crowd():
    now = [0.0]
    board = Board(VirtualClock(1), monotonic=lambda: now[0])
    board.report(pb.ReportServingRequest(reporter="host", replicas=[ready()]))
    now[0] = 5.0
    board.report(pb.ReportServingRequest(reporter="g1", queues=[pb.ModelQueue(model="tiny", waiting=1)]))
    board.report(pb.ReportServingRequest(reporter="g2", queues=[pb.ModelQueue(model="tiny", waiting=2)]))
    assert (len(board.shown().replicas), board.shown().queues[0].waiting) == (1, 3)
    now[0] = 7.0
    assert (len(board.shown().replicas), board.shown().queues[0].waiting) == (0, 3)
    for number in range(REPORTERS_MAX - 2):
        board.report(pb.ReportServingRequest(reporter=f"x{number}"))
    with pytest.raises(RateLimited):
        board.report(pb.ReportServingRequest(reporter="one more"))


def test_a_model_that_nobody_offers_can_be_neither_scaled_nor_withdrawn(house):
    operator = house.client(house.root)
    for request in (
        pb.ScaleModelRequest(request_id="a", model="tiny", replicas_max=1),
        pb.WithdrawModelRequest(request_id="b", model="tiny"),
    ):
        with pytest.raises(NotFound):
            operator.call(request, pb.Accepted)


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_gateway_stands_for_many_callers_and_is_not_limited_like_one(make_house, limits):
    house = make_house(limits=limits(requests_per_s=2, streams=1, call_bytes=1_000))
    offer(house)
    door = ledger(house)
    await door.authorize(**slice_of(10_000_000))
    more = {"hold_id": "slice-1", "account_id": "acme", "more_uhs": 0, "minimum_uhs": 1, "ttl_us": 60 * S}
    for seq in range(1, 9):
        await door.update(seq=seq, calls=[call(f"{seq}-{number}") for number in range(100)], **more)
    boards = [door.watch() for _ in range(3)]
    for board in boards:
        await anext(board)
    for board in boards:
        await board.aclose()
    await door.close()


async def test_a_report_of_a_thousand_calls_is_taken_and_a_larger_one_is_told_to_split(house):
    offer(house)
    door = ledger(house)
    await door.authorize(**slice_of(100_000_000))
    more = {"hold_id": "slice-1", "account_id": "acme", "more_uhs": 0, "minimum_uhs": 1, "ttl_us": 60 * S}
    names = [f"call-{number}-{'x' * 60}" for number in range(1_001)]
    await door.update(seq=1, calls=[call(name) for name in names[:1_000]], **more)
    with pytest.raises(InvalidRequest, match="split it"):
        await door.update(seq=2, calls=[call(name) for name in names], **more)
    await door.close()


async def test_a_gateway_hears_what_is_free_for_its_hold_and_a_customer_does_not(house):
    offer(house)
    door = ledger(house)
    given = 100 * UHS_PER_CT
    assert (await door.authorize(**slice_of(20_000))).free_uhs == given - 20_000
    more = {"hold_id": "slice-1", "account_id": "acme", "more_uhs": 5_000, "minimum_uhs": 1, "ttl_us": 60 * S}
    after = await door.update(seq=1, calls=[call("c1")], **more)
    assert (after.free_uhs, after.held_uhs) == (given - 25_000, 25_000 - 8_000)
    request = pb.AuthorizeRequest(
        request_id="r1", hold_id="own", amount_uhs=1_000, service="inference", models=["tiny"], accelerators=["H100"],
        ttl_us=60 * S,
    )  # fmt: skip
    assert not house.client().call(request, pb.Accepted).HasField("free_uhs")
    await door.close()


async def test_what_is_free_within_a_keys_limit_is_what_the_limit_leaves(house):
    offer(house)
    key = house.key("acme", "narrow", limit_uhs=30_000)
    assert key
    door = ledger(house)
    granted = await door.authorize(**slice_of(20_000, key_id="k-narrow"))
    assert (granted.held_uhs, granted.free_uhs, granted.within_key) == (20_000, 10_000, True)
    shared = await door.authorize(**slice_of(20_000, hold_id="slice-2"))
    assert not shared.within_key
    more = {"hold_id": "slice-1", "account_id": "acme", "seq": 1, "calls": [], "minimum_uhs": 1, "ttl_us": 60 * S}
    last = await door.update(**more, more_uhs=50_000)
    assert (last.held_uhs, last.final, last.free_uhs, last.within_key) == (30_000, True, 0, True)
    await door.close()


def test_every_option_is_one_that_grpc_knows():
    """It says nothing of one that it doesn't: the door's limit of pings had such a name, and closed quiet connections."""
    library = Path(cygrpc.__file__).read_bytes()
    named = [name for options in (grpc_server.OPTIONS, choice.OPTIONS, serving_ledger._OPTIONS) for name, _ in options]
    assert "grpc.http2.min_ping_interval_without_data_ms" in named
    assert [name for name in named if name.encode() not in library] == []


async def test_a_call_that_can_not_be_charged_is_kept_as_it_was_said_and_closed_by_hand(house):
    """No rate, a count below zero, a name longer than any: the door's last word about use is never no."""
    offer(house)
    door = ledger(house)
    odd = {
        "gone": call("gone", model="gone"),
        "less": msgspec.structs.replace(call("less"), usage=Usage(-1, 5, -7, 9)),
        "long": call("x" * 5_000, model="m" * 5_000),
    }
    for each in odd.values():
        with pytest.raises(InvalidRequest) as refusal:
            await door.settle(hold_id="slice-1", account_id="acme", seq=1, calls=[each])
        kept = {"call": each, "code": refusal.value.code, "reason": str(refusal.value)}
        for _ in range(2):
            await door.keep(hold_id="slice-1", account_id="acme", **kept)
    operator = house.client(house.root)
    found = operator.call(pb.ListOpenUsageRequest(), pb.ListOpenUsageReply).usage
    assert [each.call.call_id[:4] for each in found] == ["gone", "less", "xxxx"]
    assert (found[1].call.prompt_tokens, found[1].call.completion_tokens) == (-1, -7)
    assert all(len(each.call.call_id) <= 200 and each.code and each.reason for each in found)
    for number, each in enumerate(found):
        request = pb.CloseUsageRequest(account_id="acme", call_id=each.call.call_id, request_id=f"close-{number}")
        with pytest.raises(InvalidRequest):
            operator.call(request, pb.Accepted)
        request.write_off, request.request_id = True, f"write-off-{number}"
        operator.call(request, pb.Accepted)
    assert not operator.call(pb.ListOpenUsageRequest(), pb.ListOpenUsageReply).usage
    await door.close()


async def test_an_adapter_offered_again_after_its_parent_became_dearer_is_the_same_request(house):
    enabled = [pb.EngineArg(name="enable-lora", value="true"), pb.EngineArg(name="max-lora-rank", value="16")]
    offer(house, engine_args=enabled)
    spec = pb.ModelSpec(name="tiny-law", source="/models/law", parent="tiny")
    asked = pb.OfferModelRequest(request_id=new_request_id(), spec=spec)
    client = house.client(house.root)
    client.call(asked, pb.Accepted)
    dearer = pb.Rate(
        input_uhs_per_mtok=S, cached_uhs_per_mtok=S, output_uhs_per_mtok=900 * S, reasoning_uhs_per_mtok=900 * S
    )
    offer(house, rates=[dearer], engine_args=enabled)
    client.call(asked, pb.Accepted)
    models = {model.name: model for model in client.call(pb.ListModelsRequest(), pb.ListModelsReply).models}
    assert models["tiny-law"].rates[0].output_uhs_per_mtok == 900 * S


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"devices": 16, "accelerators": ["H100"]}, "needs 16 devices of one node, and the largest node that it may have has 8 of H100"),
        ({"devices": 9, "accelerators": ["A100", "H100"], "dedicated_to": "other"}, "needs 9 .* has 8 of A100, 8 of H100"),
        ({"devices": 9}, "has 8 of A100, 8 of H100"),
    ],
)  # fmt: skip
async def test_a_model_that_no_node_is_large_enough_for_is_refused_up_front(house, spec, says):
    house.port.seed(NodeUp(node_id="own", accelerator="H100", devices=64, pool=Pool.DEDICATED, dedicated_to="acme"))
    request = pb.OfferModelRequest(
        request_id=new_request_id(), spec=pb.ModelSpec(name="huge", source="/models/huge", **spec), rates=RATES
    )
    with pytest.raises(InvalidRequest, match=says) as refusal:
        house.client(house.root).call(request, pb.Accepted)
    assert refusal.value.code == "replica_too_large"
    offer(house, name="fits", devices=8)
    offer(house, name="of-acme", devices=64, dedicated_to="acme")
