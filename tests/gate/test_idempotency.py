"""What is remembered of requests: a yes for 32 days, a no not at all; and what is no news leaves no trace."""

import hashlib

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.events import BuyBundle, Cancel, CreateKey, Grant, OpenAccount, Submit, Subscribe, TopUp
from fabric.gate.idempotency import EACH_MAX, REMEMBERED_US
from fabric.gate.instructions import Accepted, Refusal
from fabric.gate.serving_events import Authorize, ReleaseHold
from fabric.gate.state import Answered
from fabric.ledger.scopes import Service, Use
from tests.gate.conftest import submit, top_up
from tests.gate.world import S, spec


def named(seconds, request_id="r", account="ada"):
    return TopUp(account_id=account, amount_uhs=round(seconds * S), request_id=request_id)


def too_dear(request_id="big", payload=""):
    wanted = msgspec.structs.replace(spec(10**6 * S), payload=payload)
    return Submit(job_id="big", account_id="ada", spec=wanted, request_id=request_id)


def test_a_yes_is_said_again_for_32_days_of_the_journals_time(story):
    first = story.do(named(5)).outcome
    story.at(REMEMBERED_US / S - 1)
    again = story.do(named(5))
    assert (again.outcome, again.transfers, again.kept) == (first, (), False)
    assert story.do(named(6)).outcome.code == "request_id_reused"
    story.at(REMEMBERED_US / S)
    anew = story.do(named(6))
    assert isinstance(anew.outcome, Accepted)
    assert anew.kept
    assert anew.transfers


def test_a_refusal_that_changed_nothing_is_neither_kept_nor_remembered(story):
    before = story.gate.snapshot()
    story.at(5)
    for event in (too_dear(payload="x" * 60_000), Cancel(job_id="none", account_id="ada", request_id="c"), top_up(-1)):
        decision = story.do(event)
        assert isinstance(decision.outcome, Refusal)
        assert not decision.kept
    assert story.gate.snapshot() == before, "not even what time it is"
    story.must(top_up(10**7))
    assert isinstance(story.do(too_dear()).outcome, Accepted), "asked again, it is decided again"


def test_a_refusal_after_something_fell_due_is_kept(story):
    """Time had an effect that a replay must have too."""
    story.must(Grant(account_id="ada", amount_uhs=S, lifetime_us=10 * S))
    story.at(11)
    decision = story.do(too_dear())
    assert isinstance(decision.outcome, Refusal)
    assert decision.kept
    assert [transfer.kind for transfer in decision.transfers] == ["expire"]
    assert not story.gate.state.answered.get("ada/big")


def test_a_refusal_at_which_a_hold_is_forgotten_is_kept(story):
    """Forgetting is an effect of time, too: what the live gate forgets, a replay must forget at the same event."""
    use = Use(service=Service.INFERENCE)
    story.must(Authorize(hold_id="h", account_id="ada", amount_uhs=S, use=use, ttl_us=60 * S))
    story.must(ReleaseHold(hold_id="h", account_id="ada", seq=1))
    story.at(86_400)
    decision = story.do(too_dear())
    assert (decision.kept, list(story.gate.state.book.ended)) == (False, ["h"]), "it is remembered for a day"
    story.at(86_400 + 1)
    decision = story.do(too_dear())
    assert (decision.kept, list(story.gate.state.book.ended)) == (True, [])


def test_one_account_has_so_many_answers_and_takes_no_room_from_another(story, monkeypatch):
    monkeypatch.setattr("fabric.gate.idempotency.EACH_MAX", 10)
    story.must(named(5, "bobs", account="bob"))
    for number in range(50):
        story.must(named(1, f"r{number}"))
    assert len(story.gate.state.answered) == 11
    assert story.do(named(5, "bobs", account="bob")).transfers == ()
    assert story.do(named(1, "r49")).transfers == ()
    assert story.do(named(1, "r0")).transfers
    assert EACH_MAX >= 200 * 60, "more than a minute at the door's own rate: nobody tries for longer"


def test_a_restored_gate_forgets_what_the_live_one_forgets(story):
    for number in range(5):
        story.at(number * 10 * 86_400).must(named(1, f"r{number}"))
    twin = Gate.restore(story.gate.snapshot())
    assert twin._core.answers_of == story.gate._core.answers_of
    assert list(twin.state.answered) == ["ada/r1", "ada/r2", "ada/r3", "ada/r4"]


def test_answers_of_an_older_snapshot_count_from_when_it_was_made(story):
    story.must(named(1))
    state = msgspec.msgpack.decode(story.gate.snapshot())
    state["answered"] = {name: answer[:2] for name, answer in state["answered"].items()}
    older = Gate.restore(msgspec.msgpack.encode(state))
    assert older.state.answered["ada/r"] == story.gate.state.answered["ada/r"]
    assert isinstance(older.state.answered["ada/r"], Answered)
    assert older.handle(named(1), story.now_us).transfers == ()


BEFORE = (
    (
        TopUp(account_id="ada", amount_uhs=5 * S, request_id="r"),
        b'{"event":"top_up","account_id":"ada","amount_uhs":5000000,"payment_ref":"","request_id":"r"}',
    ),
    (
        BuyBundle(account_id="ada", bundle="small", request_id="r"),
        b'{"event":"buy_bundle","account_id":"ada","bundle":"small","payment_ref":"","request_id":"r"}',
    ),
    (
        Subscribe(account_id="ada", subscription="flat", request_id="r"),
        b'{"event":"subscribe","account_id":"ada","subscription":"flat","request_id":"r"}',
    ),
    (
        CreateKey(key_id="k", account_id="ada", secret_sha256="s", request_id="r"),
        (
            b'{"event":"create_key","key_id":"k","account_id":"ada","secret_sha256":"s","name":"","operator":false,'
            b'"limit_uhs":null,"expires_at_us":null,"made_with":null,"request_id":"r"}'
        ),
    ),
    (
        OpenAccount(account_id="ada", name="Ada", plan="pro", request_id="r"),
        b'{"event":"open_account","account_id":"ada","name":"Ada","plan":"pro","credit_limit_uhs":0,"request_id":"r"}',
    ),
)
"""Requests, and how they were written before their events had more fields."""


@pytest.mark.parametrize(("event", "written"), BEFORE, ids=[type(event).__name__ for event, _ in BEFORE])
def test_a_request_that_is_repeated_after_an_upgrade_gets_its_first_answer(story, event, written):
    first = Answered(hashlib.sha256(written).digest(), Accepted(granted_uhs=7))
    state = msgspec.msgpack.decode(story.gate.snapshot())
    state["answered"] = {"ada/r": msgspec.msgpack.decode(msgspec.msgpack.encode(first))[:2]}
    upgraded = Gate.restore(msgspec.msgpack.encode(state))
    decision = upgraded.handle(event, story.now_us)
    assert (decision.outcome, decision.transfers) == (first.outcome, ())


@pytest.mark.parametrize("kept", [True, False])
def test_a_submit_leaves_a_trace_only_where_it_changed_something(story, kept):
    assert story.do(submit("j") if kept else too_dear()).kept is kept
