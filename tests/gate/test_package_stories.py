"""Packages of LLM tokens: bought, used by calls before compute tokens, and exact to the token."""

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.account_events import CreateKey
from fabric.gate.events import Subscribe, Tick, TopUp, VoidLot
from fabric.gate.questions import BalanceOf
from fabric.gate.serving_events import (
    ReleaseHold,
    SettleHold,
)
from tests.gate.shop import ANY, QWEN, Shop, T
from tests.gate.world import DAY


@pytest.fixture
def shop():
    """Whatever comes of it has to be proved at the end."""
    shop = Shop()
    yield shop
    shop.prove()


def test_a_package_is_a_lot_of_its_own_asset_paid_for_like_any_other(shop):
    outcome = shop.buys("small")
    assert (outcome.granted_uhs, outcome.facts["packages"]) == (0, "1000 tokens of llm:qwen")
    (lot,) = shop.package().lots.values()
    assert (lot.granted_uhs, lot.expires_at_us) == (1_000 * T, shop.now_us + 30 * DAY)
    assert shop.gate.state.book.money_microcny["cash"] == 9_900_000
    assert shop.gate.ask(BalanceOf(account_id="ada"), shop.now_us).free_uhs == 0


def test_who_has_a_package_and_no_compute_token_can_call(shop):
    assert shop.opens().code == "insufficient_tokens"
    shop.buys("small")
    outcome = shop.opens()
    assert (outcome.held_uhs, outcome.final) == (0, False)
    assert shop.held() == {QWEN: 410 * T}, "10 of the prompt, and 100 that take 4 each"


def test_a_call_takes_of_the_package_what_its_tokens_weigh_and_costs_no_compute_tokens(shop):
    shop.buys("small")
    shop.opens()
    (record,) = shop.reports(shop.call(prompt=10, cached=4, completion=20, reasoning=5), end=True).records
    (paid,) = record.packages
    assert paid.units == 6 * 1_000 + 4 * 100 + 20 * 4_000
    assert paid.lots == ((next(iter(shop.package().lots)), paid.units),)
    assert (record.charged_uhs, record.spared_uhs) == (0, 6 * 40 + 4 * 4 + 20 * 400)
    assert shop.totals() == {
        "free": 1_000 * T - paid.units,
        "held": 0,
        "captured": paid.units,
        "expired": 0,
        "voided": 0,
    }


def test_a_call_on_a_model_outside_the_family_never_touches_it(shop):
    shop.buys("small")
    assert shop.opens(model="llama").code == "insufficient_tokens"
    shop.do(TopUp(account_id="ada", amount_uhs=100_000))
    assert shop.opens(model="llama").held_uhs == 10 * 40 + 100 * 400
    (record,) = shop.reports(shop.call(model="llama"), end=True).records
    assert (record.charged_uhs, record.packages) == (10 * 40 + 20 * 400, ())
    assert shop.totals()["free"] == 1_000 * T


def test_a_call_that_exceeds_the_package_goes_over_into_compute_tokens_at_a_whole_token(shop):
    shop.buys("small")
    shop.do(TopUp(account_id="ada", amount_uhs=10_000_000))
    outcome = shop.opens(prompt=10, completion=300)
    # 990 are left after the prompt: 247 tokens of the answer at 4, and 53 of compute tokens
    assert (outcome.held_uhs, shop.held()) == (53 * 400, {QWEN: 998 * T})
    (record,) = shop.reports(shop.call(completion=300, packages=((QWEN, 998 * T),)), end=True).records
    (paid,) = record.packages
    assert (paid.units, paid.tokens.prompt_tokens, paid.tokens.completion_tokens) == (998 * T, 10, 247)
    assert (record.charged_uhs, record.spared_uhs) == (53 * 400, 10 * 40 + 247 * 400)
    assert shop.totals()["free"] == 2 * T, "what is no whole token of the answer is left for one of a prompt"


def test_the_package_that_expires_first_goes_first_and_the_next_one_takes_over_within_a_call(shop):
    for name in ("small", "short", "any"):
        shop.buys(name)
    shop.opens(prompt=0, completion=600)
    assert list(shop.held().items()) == [(QWEN, 1_500 * T), (ANY, 225 * T)]
    call = shop.call(prompt=0, completion=600, packages=((QWEN, 1_500 * T), (ANY, 225 * T)))
    (record,) = shop.reports(call, end=True).records
    assert [(each.asset, each.units, each.tokens.completion_tokens) for each in record.packages] == [
        (QWEN, 1_500 * T, 375),
        (ANY, 225 * T, 225),
    ]
    short, small = (lot.lot_id for lot in sorted(shop.package().lots.values(), key=lambda lot: lot.granted_uhs))
    assert record.packages[0].lots == ((short, 500 * T), (small, 1_000 * T)), "two lots of one package"
    assert record.charged_uhs == 0


def test_no_more_is_taken_than_a_meter_had_promised_the_call(shop):
    shop.buys("small")
    shop.do(TopUp(account_id="ada", amount_uhs=10_000_000))
    shop.opens(completion=100)
    (record,) = shop.reports(shop.call(completion=20, packages=((QWEN, 30 * T),)), end=True).records
    assert (record.packages[0].units, record.charged_uhs) == (30 * T, 15 * 400)
    assert shop.totals()["free"] == 970 * T


def test_several_slices_share_a_package_and_no_token_is_held_twice(shop):
    shop.buys("small")
    for name in ("s1", "s2", "s3"):
        shop.opens(name, prompt=0, completion=100, amount=1)
    assert [shop.held(name).get(QWEN, 0) for name in ("s1", "s2", "s3")] == [400 * T, 400 * T, 200 * T]
    assert shop.opens("s4", prompt=0, completion=100, amount=1).code == "insufficient_tokens"


def test_a_word_said_again_takes_nothing_twice(shop):
    shop.buys("small")
    shop.opens()
    first = shop.reports(shop.call(), more=(0, 50))
    again = shop.reports(shop.call(), more=(0, 50))
    assert (again.outcome, again.records, again.transfers) == (first.outcome, (), ())
    late = shop.reports(shop.call(), seq=2, end=True)
    assert late.records == ()
    assert shop.totals()["captured"] == 90 * T


def test_what_a_slice_that_was_cut_off_held_of_a_package_is_set_aside_for_its_report_and_then_free_again(shop):
    shop.buys("small")
    shop.opens()
    shop.at(3_600).do(Tick())
    assert shop.totals()["held"] == 410 * T
    shop.reports(shop.call(), ttl=None)
    assert shop.totals()["captured"] == 90 * T
    shop.at(2 * 86_400).do(Tick())
    assert shop.totals() == {"free": 910 * T, "held": 0, "captured": 90 * T, "expired": 0, "voided": 0}
    (record,) = shop.reports(shop.call("late"), seq=2, end=True).records
    assert record.packages[0].units == 90 * T, "it is known for weeks: what is free still covers it"


def test_what_nothing_covers_any_more_is_the_operators_loss_and_never_a_debt(shop):
    shop.buys("short")
    shop.opens()
    shop.at(3 * 86_400).do(Tick())
    (record,) = shop.reports(shop.call(), end=True).records
    assert (record.charged_uhs, record.absorbed_uhs, record.packages) == (0, 10 * 40 + 20 * 400, ())
    assert shop.totals()["expired"] == 500 * T
    assert shop.gate.ask(BalanceOf(account_id="ada"), shop.now_us).debt_uhs == 0


def test_a_package_under_an_open_slice_stays_good_until_the_slice_is_renewed_or_ends(shop):
    shop.buys("short")
    shop.opens()
    shop.at(86_390).reports(ttl=60, seq=1)
    shop.at(86_430).reports(shop.call(), ttl=60, seq=2)
    assert shop.totals() == {"free": 0, "held": 320 * T, "captured": 90 * T, "expired": 90 * T, "voided": 0}
    shop.at(86_440).do(ReleaseHold(hold_id="s1", account_id="ada", seq=3))
    assert shop.totals()["expired"] == 410 * T


def test_a_subscription_of_a_package_rolls_over_what_is_left_and_what_is_held_of_it(shop):
    shop.do(Subscribe(account_id="ada", subscription="rolling", channel="sandbox"))
    shop.opens(prompt=0, completion=100)
    shop.reports(shop.call(prompt=0, completion=100), end=True)
    shop.at(30 * 86_400 + 1).do(Tick())
    assert shop.totals() == {"free": 1_300 * T, "held": 0, "captured": 400 * T, "expired": 600 * T, "voided": 0}


def test_a_subscription_that_blocks_lets_its_models_be_called_from_packages_alone(shop):
    shop.do(Subscribe(account_id="ada", subscription="closed", channel="sandbox"))
    shop.do(TopUp(account_id="ada", amount_uhs=10_000_000))
    assert (shop.opens(prompt=0, completion=30).held_uhs, shop.held()) == (0, {QWEN: 100 * T})
    assert shop.opens("s2", prompt=0, completion=30).code == "insufficient_tokens"
    assert shop.opens("s3", model="llama", prompt=0, completion=30).held_uhs == 30 * 400
    shop.buys("small")
    shop.opens("s4", prompt=0, completion=30)
    assert shop.held("s4") == {QWEN: 120 * T}


def test_the_limit_of_a_key_counts_what_a_package_paid_for_at_what_it_would_have_cost(shop):
    shop.buys("small")
    shop.do(CreateKey(key_id="k", account_id="ada", secret_sha256="", limit_uhs=20_000))
    shop.opens(completion=30, key="k")
    shop.reports(msgspec.structs.replace(shop.call(completion=30), key_id="k"), end=True)
    assert shop.gate.state.keys["k"].spent_uhs == 10 * 40 + 30 * 400
    shop.opens("s2", completion=30, key="k")
    assert shop.held("s2") == {QWEN: (10 + 18 * 4) * T}, "as much as what the limit leaves would pay for"
    shop.reports(msgspec.structs.replace(shop.call("c2", completion=18), key_id="k"), hold="s2", end=True)
    assert shop.opens("s3", completion=30, key="k").code == "key_limit_reached"


def test_a_package_booked_by_mistake_can_be_voided(shop):
    shop.buys("small")
    lot = next(iter(shop.package().lots))
    outcome = shop.do(VoidLot(account_id="ada", lot_id=lot, reason="twice")).outcome
    assert outcome.facts["price_microcny"] == 9_900_000
    assert shop.totals()["voided"] == 1_000 * T
    assert shop.gate.state.book.money_microcny["cash"] == 0


def test_a_gate_that_is_restored_goes_on_with_its_packages(shop):
    shop.buys("small")
    shop.opens()
    again = Gate.restore(shop.gate.snapshot())
    event = SettleHold(hold_id="s1", account_id="ada", seq=1, calls=(shop.call(),))
    assert again.handle(event, shop.now_us) == shop.do(event)
    assert again.snapshot() == shop.gate.snapshot()
