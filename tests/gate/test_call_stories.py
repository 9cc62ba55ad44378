"""Stories of models and calls: what they cost, who pays, once; late, twice, elsewhere, covered, with a key that ends."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.charging.rates import Rate, charge_uhs
from fabric.gate import calls as gate_calls
from fabric.gate.account_events import CreateKey, OpenAccount, RevokeKey
from fabric.gate.events import Configure, Grant, Tick, TopUp
from fabric.gate.instructions import Accepted
from fabric.gate.questions import CallerOf, KeyOf, ModelsOf
from fabric.gate.serving_events import (
    Authorize,
    CallUsed,
    ModelSpec,
    OfferModel,
    RecordCalls,
    ReleaseHold,
    ScaleModel,
    SettleHold,
    UpdateHold,
    WithdrawModel,
)
from fabric.ledger import Scope, Service, Use
from tests.gate.model_calls import rate
from tests.gate.world import CATALOGUE, TARIFFS, Clockwork, S

PRICE = (40 * S, 4 * S, 400 * S, 400 * S)
USE = Use(service=Service.INFERENCE, accelerators=("H100",), models=("tiny",))


def offer(name="tiny", price=PRICE, **more):
    spec = ModelSpec(name=name, source="/m", accelerators=more.pop("accelerators", ("H100",)), **more)
    return OfferModel(spec=spec, rates=() if price is None else (rate(*price),))


def call(call_id="c", *, prompt=100, cached=0, completion=10, began=None, ended=1_700_000_001 * S, **more):
    return CallUsed(
        call_id=call_id, model=more.pop("model", "tiny"), accelerator=more.pop("accelerator", "H100"), prompt_tokens=prompt,
        cached_tokens=cached, completion_tokens=completion, started_at_us=1_700_000_000 * S if began is None else began,
        ended_at_us=ended, ended="stop", **more,
    )  # fmt: skip


COST = 100 * 40 + 10 * 400


@pytest.fixture
def world():
    made = Clockwork("ada", "bob")
    made.do(offer())
    made.do(TopUp(account_id="ada", amount_uhs=1_000 * S))
    return made


def hold(world, hold_id="s", *, account="ada", amount=100 * S, **more):
    event = Authorize(hold_id=hold_id, account_id=account, amount_uhs=amount, use=USE, ttl_us=60 * S, **more)
    outcome = world.do(event).outcome
    assert isinstance(outcome, Accepted), outcome
    return outcome


def say(world, *calls, seq, hold_id="s", account="ada", end=False, **more):
    kind = SettleHold if end else UpdateHold
    return world.do(kind(hold_id=hold_id, account_id=account, seq=seq, calls=calls, **more))


def free(world, account="ada"):
    return world.gate.state.book.free(account, now_us=world.now_us)


# -- what a call costs, once -------------------------------------------------------------------------------------------


def test_each_call_is_rated_alone_and_the_sum_is_one_capture(world):
    hold(world)
    decision = say(world, call("a"), call("b", cached=60), seq=1)
    assert [(one.cdr_id, one.charged_uhs) for one in decision.records] == [("a", COST), ("b", COST - 60 * 36)]
    assert [(one.kind, one.postings[-1].amount) for one in decision.transfers] == [("capture", 2 * COST - 60 * 36)]
    record = decision.records[0]
    assert (record.rate_version, record.rate_uhs_per_mtok, record.lease_id, record.job_id) == (1, PRICE, "s", "")
    assert (record.devices, record.metered_us, record.service) == (0, S, "inference")


@pytest.mark.parametrize("how", ["the same word", "the next word", "twice in a word", "another hold", "after its end"])
def test_a_call_is_charged_once_however_it_is_said_again(world, how):
    hold(world)
    hold(world, "other")
    before = free(world) + 200 * S
    if how == "twice in a word":
        say(world, call(), call(), seq=1)
    else:
        say(world, call(), seq=1, end=how == "after its end")
    if how == "the same word":
        assert say(world, call(), seq=1).records == ()
    elif how == "the next word":
        assert say(world, call(), seq=2).records == ()
    elif how in ("another hold", "after its end"):
        assert say(world, call(), seq=1, hold_id="other").records == ()
    for name in ("s", "other"):
        world.do(ReleaseHold(hold_id=name, account_id="ada", seq=9))
    assert free(world) == before - COST


def test_another_accounts_call_of_the_same_name_is_another_call(world):
    world.do(TopUp(account_id="bob", amount_uhs=1_000 * S))
    hold(world)
    hold(world, "t", account="bob")
    assert say(world, call(), seq=1).records
    assert say(world, call(), seq=1, hold_id="t", account="bob").records


def test_a_call_is_remembered_for_days_and_memory_stays_bounded(world, monkeypatch):
    monkeypatch.setattr(gate_calls, "GENERATION_CALLS", 3)
    for at in range(10):
        hold(world, f"s{at}", amount=20 * S)
        say(world, call(f"c{at}"), seq=1, hold_id=f"s{at}", end=True)
    memory = world.gate.state.calls_of["ada"]
    assert len(memory.recent) + len(memory.older) <= 6
    hold(world, "again")
    assert say(world, call("c9"), call("c7"), seq=1, hold_id="again").records == ()


@settings(max_examples=60)
@given(
    given=st.lists(st.tuples(st.integers(0, 999), st.integers(0, 300), st.integers(0, 99)), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    slices=st.integers(1, 3),
)
def test_calls_cost_the_same_however_they_are_split_over_words_and_slices(given, cuts, slices):
    world = Clockwork("ada")
    price = (2_500_001, 333_333, 7_777_777, 7_777_777)
    world.do(offer(price=price))
    world.do(TopUp(account_id="ada", amount_uhs=1_000 * S))
    calls = [
        call(f"c{at}", prompt=prompt, cached=min(cached, prompt), completion=completion)
        for at, (prompt, cached, completion) in enumerate(given)
    ]
    for number in range(slices):
        hold(world, f"s{number}")
    records = []
    edges = sorted({0, len(calls), *(cut for cut in cuts if cut < len(calls))})
    for at, (start, end) in enumerate(pairwise(edges)):
        records += say(world, *calls[start:end], seq=at + 1, hold_id=f"s{at % slices}").records
    for number in range(slices):
        say(world, seq=99, hold_id=f"s{number}", end=True)
    due = [charge_uhs(rate(*price), each) for each in calls]
    assert [record.charged_uhs for record in records] == due
    assert free(world) == 1_000 * S - sum(due)


# -- prices ------------------------------------------------------------------------------------------------------------


def test_a_call_costs_what_it_cost_when_it_began(world):
    hold(world)
    changed_at = world.at(100).now_us
    assert world.do(offer(price=(80 * S, 0, 0, 0))).outcome.facts["rate_version"] == 2
    hold(world, "t")
    before, after = call("a", began=changed_at - 1), call("b", began=changed_at)
    named = call("c", began=changed_at, rate_version=1)
    records = say(world, before, after, named, seq=1, hold_id="t").records
    assert [(one.charged_uhs, one.rate_version) for one in records] == [(COST, 1), (100 * 80, 2), (COST, 1)]


def test_the_same_rates_again_are_no_new_version_and_a_withdrawn_model_is_settled_at_its_own(world):
    assert world.do(offer()).outcome.facts["rate_version"] == 1
    hold(world)
    world.do(WithdrawModel(model="tiny"))
    assert world.gate.ask(ModelsOf(), world.now_us) == []
    assert say(world, call(), seq=1).records[0].charged_uhs == COST
    assert world.do(offer()).outcome.facts["rate_version"] == 1


def tariffs(*rates):
    return Configure(tariffs=msgspec.structs.replace(TARIFFS, version=9, rates=rates), catalogue=CATALOGUE)


def test_a_model_without_rates_follows_the_tariffs_and_one_with_its_own_does_not(world):
    assert world.do(offer("other", price=None)).outcome.code == "no_rates"
    world.do(tariffs(rate(1, 1, 1, 1), msgspec.structs.replace(rate(2, 2, 2, 2), model="named")))
    for name in ("other", "named"):
        world.do(offer(name, price=None))
    world.do(tariffs(rate(3, 3, 3, 3), msgspec.structs.replace(rate(2, 2, 2, 2), model="named")))
    prices = {
        view.name: (view.rate_version, view.rates[0].numbers) for view in world.gate.ask(ModelsOf(), world.now_us)
    }
    assert prices == {"tiny": (1, PRICE), "other": (2, (3,) * 4), "named": (1, (2,) * 4)}


BAD_OFFERS = [
    (offer("a b"), "invalid_model"),
    (offer("-"), "invalid_model"),
    (offer("x" * 129), "invalid_model"),
    (offer(accelerators=("B200",)), "unknown_accelerator"),
    (offer(dedicated_to="nobody"), "not_found"),
    (offer(replicas_min=2, replicas_max=1), "invalid_count"),
    (offer(devices=0), "invalid_count"),
    (offer(ttft_objective_us=0), "invalid_count"),
    (offer(max_context=0), "invalid_count"),
    (offer(engine_args=(("trust-remote-code", "true"),)), "invalid_engine_arg"),
    (offer(engine_args=(("seed", "x" * 501),)), "invalid_engine_arg"),
    (offer(price=(0, 0, 0, -1)), "invalid_rate"),
    (OfferModel(spec=ModelSpec(name="m", source=""), rates=(rate(*PRICE),)), "invalid_source"),
    (OfferModel(spec=ModelSpec(name="m", source="/m"), rates=(rate(*PRICE), rate(*PRICE))), "invalid_rate"),
    (ScaleModel(model="none", replicas_min=0, replicas_max=1), "not_found"),
    (ScaleModel(model="tiny", replicas_min=0, replicas_max=0), "invalid_count"),
    (WithdrawModel(model="none"), "not_found"),
]


@pytest.mark.parametrize(("event", "code"), BAD_OFFERS)
def test_an_offer_that_makes_no_sense_is_refused_and_changes_nothing(world, event, code):
    before = world.gate.snapshot()
    outcome = world.do(event).outcome
    assert outcome.code == code
    assert outcome.message
    assert world.gate.snapshot() == before


def test_a_rate_for_another_type_is_none_for_this_one(world):
    only_a100 = OfferModel(
        spec=ModelSpec(name="m", source="/m", accelerators=("H100",)),
        rates=(msgspec.structs.replace(rate(*PRICE), accelerator="A100"),),
    )
    assert world.do(only_a100).outcome.code == "no_rates"


# -- bad reports -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (call(prompt=-1), "invalid_call"),
        (call(cached=101), "invalid_call"),
        (call(completion=1, reasoning_tokens=2), "invalid_call"),
        (call(prompt=10**10), "invalid_call"),
        (call(model="unheard"), "unknown_rate"),
        (call(rate_version=7), "unknown_rate"),
        (call(""), "invalid_call_id"),
        (call("x" * 129), "invalid_call_id"),
    ],
)
def test_a_report_with_a_call_that_can_not_be_is_refused_as_a_whole(world, bad, code):
    hold(world)
    before = world.gate.snapshot()
    decision = say(world, call("good"), bad, seq=1)
    assert (decision.outcome.code, decision.records, decision.transfers) == (code, (), ())
    assert world.gate.snapshot() == before
    assert say(world, call("good"), seq=1).records, "the number of the word is still free"


def test_a_report_has_at_most_a_thousand_calls(world):
    hold(world)
    many = [call(f"c{at}") for at in range(gate_calls.CALLS_MAX + 1)]
    assert say(world, *many, seq=1).outcome.code == "too_many_calls"


# -- late, beyond, covered -----------------------------------------------------------------------------------------------


def test_calls_of_a_slice_that_lapsed_are_booked_late_from_what_was_set_aside(world):
    hold(world)
    before = free(world)
    world.at(61).do(Tick())
    assert free(world) == before < 1_000 * S
    decision = say(world, call(), seq=1, end=True)
    assert (decision.outcome.facts["late"], decision.outcome.facts["over_hold"]) == (True, False)
    assert free(world) == 1_000 * S - COST


def test_use_beyond_the_slice_has_happened_and_is_booked_and_flagged(world):
    hold(world, amount=COST)
    decision = say(world, call("a"), call("b"), seq=1, end=True)
    assert decision.outcome.facts["over_hold"]
    assert free(world) == 1_000 * S - 2 * COST


def test_a_covered_call_is_recorded_and_free_with_a_hold_or_without(world):
    hold(world)
    assert [one.charged_uhs for one in say(world, call("a", covered=True), seq=1).records] == [0]
    record = RecordCalls(account_id="bob", calls=(call("b", covered=True),))
    assert [one.covered for one in world.do(record).records] == [True]
    assert world.do(record).records == ()
    assert world.do(RecordCalls(account_id="bob", calls=(call("c"),))).outcome.code == "not_covered"
    assert world.do(RecordCalls(account_id="nobody", calls=())).outcome.code == "not_found"


# -- who may, and with what --------------------------------------------------------------------------------------------


def test_a_model_token_buys_only_its_model(world):
    world.do(Grant(account_id="bob", amount_uhs=50 * S, scope=Scope(models=("tiny",))))
    world.do(offer("other"))
    world.do(CreateKey(key_id="k", account_id="bob", secret_sha256=""))
    found = world.gate.ask(CallerOf(key_id="k"), world.now_us)
    assert {each.model: each.free_uhs for each in found.models} == {"tiny": 50 * S, "other": 0}
    elsewhere = Use(service=Service.INFERENCE, accelerators=("H100",), models=("other",))
    refused = Authorize(hold_id="x", account_id="bob", amount_uhs=1, use=elsewhere, ttl_us=S)
    assert "bound to other uses" in world.do(refused).outcome.message
    assert hold(world, account="bob", amount=50 * S).granted_uhs == 50 * S


def test_a_dedicated_model_is_its_accounts_alone(world):
    world.do(offer("own", dedicated_to="bob"))
    seen = {
        account: [view.name for view in world.gate.ask(ModelsOf(account_id=account), world.now_us)]
        for account in ("ada", "bob")
    }
    assert seen == {"ada": ["tiny"], "bob": ["tiny", "own"]}


def key_of(world):
    view = world.gate.ask(KeyOf(key_id="k"), world.now_us)
    return view.spent_uhs, world.gate.state.keys["k"].held_uhs


def test_a_keys_limit_counts_for_slices_and_comes_back_with_what_was_not_used(world):
    world.do(CreateKey(key_id="k", account_id="ada", secret_sha256="", limit_uhs=30_000))
    assert hold(world, amount=50_000, minimum_uhs=1, key_id="k") == Accepted(
        granted_uhs=30_000, held_uhs=30_000, final=True
    )
    more = Authorize(hold_id="t", account_id="ada", amount_uhs=1, use=USE, ttl_us=S, key_id="k")
    assert world.do(more).outcome.code == "key_limit_reached"
    answer = say(world, call("a"), seq=1, more_uhs=10_000).outcome
    assert (answer.granted_uhs, answer.held_uhs, answer.final) == (0, 30_000 - COST, True)
    assert key_of(world) == (COST, 30_000 - COST)
    say(world, call("b"), seq=2, end=True)
    assert key_of(world) == (2 * COST, 0)
    assert hold(world, "u", amount=50_000, minimum_uhs=1, key_id="k").granted_uhs == 30_000 - 2 * COST
    world.at(100).do(Tick())
    assert key_of(world) == (2 * COST, 30_000 - 2 * COST), "what is set aside counts"
    world.at(100_000).do(Tick())
    assert key_of(world) == (2 * COST, 0), "what is given up is the key's again"


def test_a_key_without_limit_has_its_calls_counted_in_a_shared_slice(world):
    for name in ("k", "theirs"):
        world.do(CreateKey(key_id=name, account_id="ada" if name == "k" else "bob", secret_sha256=""))
    hold(world)
    say(world, call("a", key_id="k"), call("b"), call("c", key_id="theirs"), call("d", key_id="unknown"), seq=1)
    assert key_of(world)[0] == COST
    assert world.gate.state.keys["theirs"].spent_uhs == 0, "another account's key counts nothing"


def test_a_revoked_key_gets_no_slice_and_no_more_of_one_and_what_it_used_is_booked(world):
    world.do(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    hold(world, key_id="k")
    world.do(RevokeKey(key_id="k"))
    refused = Authorize(hold_id="t", account_id="ada", amount_uhs=1, use=USE, ttl_us=S, key_id="k")
    assert world.do(refused).outcome.code == "key_revoked"
    answer = say(world, call(), seq=1, more_uhs=S).outcome
    assert (answer.granted_uhs, answer.final) == (0, True)
    assert key_of(world)[0] == COST


@pytest.mark.parametrize("more", [{"key_id": "k"}, {"account_id": "bob"}, {"amount_uhs": 7}])
def test_a_slice_is_known_by_its_name_and_no_other_gets_its_answer(world, more):
    world.do(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    hold(world)
    event = Authorize(hold_id="s", account_id="ada", amount_uhs=100 * S, use=USE, ttl_us=60 * S)
    outcome = world.do(msgspec.structs.replace(event, **more)).outcome
    assert isinstance(outcome, Accepted) if "amount_uhs" in more else outcome.code == "hold_exists"
    say(world, seq=1)
    assert world.do(event).outcome.code == "hold_exists", "more was said of it meanwhile"


def test_more_than_nothing_but_less_than_is_of_use_is_not_granted(world):
    hold(world, amount=900 * S)
    assert say(world, seq=1, more_uhs=200 * S, minimum_uhs=150 * S).outcome.granted_uhs == 0
    assert say(world, seq=2, more_uhs=200 * S, minimum_uhs=100 * S).outcome.granted_uhs == 100 * S


def test_an_account_that_is_opened_later_changes_nothing_for_a_model(world):
    world.do(OpenAccount(account_id="cyd", name="", plan="pro"))
    (view,) = world.gate.ask(ModelsOf(account_id="cyd"), world.now_us)
    assert view.price_microcny_per_ct == 450_000
    assert world.gate.ask(ModelsOf(), world.now_us)[0].price_microcny_per_ct == 0
    assert isinstance(view.rates[0], Rate)
