"""What is remembered of requests: a yes for 32 days, a no not at all; and what is no news leaves no trace."""

from typing import get_args

import msgspec
import pytest
from msgspec import inspect

from fabric.gate import Gate
from fabric.gate.account_events import CreateKey, OpenAccount, RevokeKey
from fabric.gate.events import AnyEvent, BuyBundle, Cancel, Grant, Submit, Subscribe, TopUp
from fabric.gate.idempotency import EACH_MAX, REMEMBERED_US, digest_of
from fabric.gate.instructions import Accepted, Refusal
from fabric.gate.serving_events import Authorize, ReleaseHold
from fabric.gate.state import Answered
from fabric.ledger.scopes import Service, Use
from tests.gate.conftest import submit, top_up
from tests.gate.world import S, spec

USE = Use(service=Service.INFERENCE)


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
    story.must(Authorize(hold_id="h", account_id="ada", amount_uhs=S, use=USE, ttl_us=60 * S))
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
        BuyBundle(account_id="ada", bundle="edge", request_id="r"),
        b'{"event":"buy_bundle","account_id":"ada","bundle":"edge","payment_ref":"","request_id":"r"}',
    ),
    (
        Subscribe(account_id="ada", subscription="weekly", request_id="r"),
        b'{"event":"subscribe","account_id":"ada","subscription":"weekly","request_id":"r"}',
    ),
    (
        CreateKey(key_id="k", account_id="ada", secret_sha256="s", request_id="r"),
        (
            b'{"event":"create_key","key_id":"k","account_id":"ada","secret_sha256":"s","name":"","operator":false,'
            b'"limit_uhs":null,"expires_at_us":null,"made_with":null,"request_id":"r"}'
        ),
    ),
    (
        OpenAccount(account_id="cyd", name="Cyd", plan="pro", request_id="r"),
        b'{"event":"open_account","account_id":"cyd","name":"Cyd","plan":"pro","credit_limit_uhs":0,"request_id":"r"}',
    ),
)
"""Requests, and how they were written before their events had more fields."""


@pytest.mark.parametrize(("event", "written"), BEFORE, ids=[type(event).__name__ for event, _ in BEFORE])
def test_a_request_that_is_repeated_after_an_upgrade_gets_its_first_answer(story, event, written):
    """What an older version journaled, and what this one is asked by the same client."""
    first = story.must(msgspec.json.decode(written, type=AnyEvent))
    decision = story.do(event)
    assert (decision.outcome, decision.transfers, decision.kept) == (first, (), False)


DIGESTS = {
    "add_member": "4ff3a0c6f1bb543f",
    "ask_payment": "d331c0b3c898e517",
    "authorize": "7bb4276410741c62",
    "buy_bundle": "b9b4f465db2d6fed",
    "cancel": "983fc626793b6938",
    "close_account": "b834f7a801b4183a",
    "close_period": "a04ce44e50921569",
    "close_project": "0ab927fe1cc6edaf",
    "configure": "656429be0855b532",
    "create_key": "4c5d53b1cc4b5168",
    "credit_invoice": "64256b062062ce0c",
    "create_project": "8ff9f76309c1671d",
    "grant": "6d022dc85450f6c7",
    "offer_model": "be85ca871bea6046",
    "open_account": "6c08a12b7185b458",
    "pause": "32a655b74d5fbc5b",
    "raise_limit": "dba0412380da3c93",
    "record_payment": "0a20d58fd90cbbe6",
    "refund_payment": "93f89953cc87e0de",
    "remove_member": "34ba5a288778f11f",
    "resume": "d101a2b21ebc0a73",
    "resume_account": "e98c83a8c49425b5",
    "revoke_key": "ab98f646a7539630",
    "rolled_back": "92775e9dbeb67007",
    "save_now": "1bd98aef5ffe9477",
    "scale_model": "6b15cba6e979d947",
    "set_auto_top_up": "df98528d913ee465",
    "set_cohort": "592bd73708b0802e",
    "set_limit": "f25583d6a127547d",
    "set_quota": "770f8d6d5879661b",
    "set_role": "f3a2089e9b90d767",
    "set_share": "8d58b759c286174f",
    "settle_suspense": "c52bf2a909efb8c3",
    "settle_usage": "81f05c8810c80a5f",
    "submit": "27e2fec032e6c09d",
    "subscribe": "a1594b053bfa0f87",
    "suspend_account": "615f7a0a18f166bc",
    "top_up": "56d5253ce93e6e59",
    "unsubscribe": "8efe5650e3b9e98e",
    "void_lot": "ef870420977ac6b2",
    "withdraw_model": "a8de76e7a2a13bec",
    "write_off_usage": "d1465a04304ec62d",
}
"""Of each request that says only what it must, how its digest begins. They stay what they are; an event that comes gets a
line.
"""


def least(info):
    """What must be said of a type, and nothing else."""
    if isinstance(info, inspect.StructType):
        said = {field.encode_name: least(field.type) for field in info.fields if field.required}
        return said | ({info.tag_field: info.tag} if info.tag_field else {})
    if isinstance(info, inspect.UnionType):
        return least(info.types[0])
    if isinstance(info, inspect.EnumType):
        return next(iter(info.cls)).value
    return {inspect.IntType: 1, inspect.BoolType: True, inspect.StrType: "x", inspect.CustomType: "x"}.get(
        type(info), []
    )


def test_what_was_asked_is_the_same_in_every_version():
    found = {}
    for kind in get_args(AnyEvent):
        if "request_id" in kind.__struct_fields__:
            event = msgspec.convert(least(inspect.type_info(kind)), kind)
            found[kind.__struct_config__.tag] = digest_of(event).hex()[:16]
    assert found == DIGESTS


def test_another_key_of_the_account_repeats_the_same_request(story):
    """A key is rotated while a request has no answer: the client asks again with the new one, and books nothing twice."""
    for key in ("old", "new"):
        story.must(CreateKey(key_id=key, account_id="ada", secret_sha256="s" * 64))
    with_old = (
        Submit(job_id="j", account_id="ada", spec=spec(10 * S), request_id="job", key_id="old"),
        Authorize(hold_id="h", account_id="ada", amount_uhs=S, use=USE, ttl_us=S, request_id="hold", key_id="old"),
        CreateKey(key_id="k", account_id="ada", secret_sha256="s" * 64, request_id="key", made_with="old"),
    )
    for event in with_old:
        first = story.must(event)
        rotated = {name: "new" for name in ("key_id", "made_with") if getattr(event, name, None) == "old"}
        again = story.do(msgspec.structs.replace(event, **rotated))
        assert (again.outcome, again.kept) == (first, False), event
    assert story.do(RevokeKey(key_id="old", account_id="ada", request_id="revoke")).kept
    other = story.do(RevokeKey(key_id="new", account_id="ada", request_id="revoke"))
    assert other.outcome.code == "request_id_reused", "which key is revoked is what was asked"


@pytest.mark.parametrize("kept", [True, False])
def test_a_submit_leaves_a_trace_only_where_it_changed_something(story, kept):
    assert story.do(submit("j") if kept else too_dear()).kept is kept
