"""Stories of accounts: keys with limits, credit and invoices, bundles, subscriptions and what they overflow into."""

import msgspec
import pytest

from fabric.charging import plans
from fabric.charging.catalogue import Overflow
from fabric.gate.account_events import CreateKey, OpenAccount
from fabric.gate.events import BuyBundle, Configure, Grant, HoldMode, Submit, Subscribe, Tick, Unsubscribe
from fabric.gate.questions import BalanceOf, KeyOf
from fabric.gate.serving_events import Authorize, ReleaseHold, SettleHold, UpdateHold
from fabric.ledger import Service, Use
from fabric.placement.quotas import Policy
from tests.gate.conftest import finished, metered, removed, started, submit, top_up
from tests.gate.world import CATALOGUE, DAY, TARIFFS, S, spec

TRAINING = Use(service=Service.TRAINING)
INFERENCE = Use(service=Service.INFERENCE)
JANUARY_31 = 1_706_659_200 - 1_700_000_000
"""2024-01-31, in seconds since the start of the stories; 2024 is a leap year."""


def hold(seconds, hold_id="c", account="ada", use=TRAINING, **more):
    more = {"ttl_us": 3_600 * S, **more}
    return Authorize(hold_id=hold_id, account_id=account, amount_uhs=seconds * S, use=use, **more)


def moved(decision):
    """The transfers of a decision: kind, and what each account got of which asset."""
    return [(each.kind, {(leg.account, leg.asset): leg.amount for leg in each.postings}) for each in decision.transfers]


# -- keys ------------------------------------------------------------------------------------------------------------------


def test_a_key_spends_its_limit_and_no_more(story):
    story.must(CreateKey(key_id="k1", account_id="ada", secret_sha256="", limit_uhs=250 * S))

    def with_key(job_id):
        return Submit(job_id=job_id, account_id="ada", spec=spec(100 * S), key_id="k1")

    story.play((0, with_key("j"), ["start j.1 epoch 1 on h1:1"]), (0, with_key("k"), ["start k.1 epoch 1 on h1:1"]))
    refusal = story.do(with_key("l")).outcome
    assert refusal.code == "key_limit_reached"
    assert (refusal.facts["needed_uhs"], refusal.facts["left_uhs"]) == (100 * S, 50 * S)
    story.play(
        (0, started(), []),
        (30, metered(30), []),
        (30, finished("succeeded"), ["remove j.1"]),
        (30, removed(), []),
        (31, with_key("l"), ["start l.1 epoch 1 on h1:1"]),
    )
    assert story.gate.ask(KeyOf(key_id="k1"), story.now_us).spent_uhs == 30 * S


def test_a_rolling_job_is_parked_at_the_limit_of_its_key(story):
    story.must(CreateKey(key_id="k1", account_id="ada", secret_sha256="", limit_uhs=700 * S))
    wanted = spec(9_000 * S, hold=HoldMode.ROLLING)
    story.play(
        (0, Submit(job_id="j", account_id="ada", spec=wanted, key_id="k1"), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (490, metered(490), [], "running"),
        (695, metered(205, seq=2), ["stop j.1 out_of_tokens by 700"], "stopping out_of_tokens"),
    )


@pytest.mark.parametrize(("key", "code"), [("k2", "not_found"), ("none", "not_found"), ("k3", "key_expired")])
def test_a_key_that_is_not_ones_own_or_not_valid_any_more_pays_for_nothing(story, key, code):
    story.must(CreateKey(key_id="k2", account_id="bob", secret_sha256=""))
    story.must(CreateKey(key_id="k3", account_id="ada", secret_sha256="", expires_at_us=story.now_us))
    assert story.do(Submit(job_id="j", account_id="ada", spec=spec(), key_id=key)).outcome.code == code


# -- bundles ---------------------------------------------------------------------------------------------------------------


def test_a_bundle_is_one_purchase_and_all_of_its_price_is_booked(story):
    decision = story.do(BuyBundle(account_id="bob", bundle="edge"))
    kinds = [(each.kind, each.ref, each.linked_to) for each in decision.transfers]
    first = decision.transfers[0].transfer_id
    assert kinds == [("bundle", "lot-2", None), ("bundle", "lot-3", first), ("sale", "600 5g-min", first)]
    cash = sum(legs.get(("cash/sandbox", "CNY"), 0) for _, legs in moved(decision))
    assert cash == CATALOGUE.bundle("edge").price_microcny
    assert story.gate.state.accounts["bob"].entitled(story.now_us) == {"5g-min": 600}
    book = story.gate.state.book
    assert book.free("bob", now_us=story.now_us, use=INFERENCE) == 500 * S
    assert book.free("bob", now_us=story.now_us, use=TRAINING) == 200 * S


def test_what_a_bundle_gives_besides_tokens_is_good_until_it_expires(story):
    part = next(each for each in CATALOGUE.bundle("edge").components if each.asset == "5g-min")
    story.do(BuyBundle(account_id="bob", bundle="edge", request_id="first"))
    until_us = story.now_us + part.lifetime_days * DAY
    account = story.gate.state.accounts["bob"]
    story.now_us = until_us - 1
    story.do(BuyBundle(account_id="bob", bundle="edge", request_id="second"))
    assert account.entitled(until_us - 1) == {"5g-min": 1_200}
    assert account.entitled(until_us) == {"5g-min": 600}
    shown = story.gate.ask(BalanceOf(account_id="bob"), until_us).units
    assert [(each.asset, each.amount) for each in shown] == [("5g-min", 600)]


# -- subscriptions ---------------------------------------------------------------------------------------------------------


def test_a_month_is_a_calendar_month_and_rolls_over_what_is_left_within_bounds(story):
    """2000 a month. January's rest is carried over up to 500, and February's with what it carried."""
    story.at(JANUARY_31).must(Subscribe(account_id="bob", subscription="monthly"))
    story.must(hold(1_700, account="bob"))
    story.must(SettleHold(hold_id="c", account_id="bob", seq=1, used_uhs=1_700 * S))
    (record,) = story.gate.state.subscriptions
    assert record.next_at_us == story.at(JANUARY_31 + 29 * 86_400).now_us
    story.do(Tick())
    assert story.free("bob") == 2_300 * S
    assert record.next_at_us == story.at(JANUARY_31 + 60 * 86_400).now_us
    story.do(Tick())
    assert story.free("bob") == 2_500 * S


def test_nothing_left_still_rolls_over_the_least_that_is_promised(story):
    story.at(JANUARY_31).must(Subscribe(account_id="bob", subscription="monthly"))
    story.must(hold(2_000, account="bob"))
    story.must(SettleHold(hold_id="c", account_id="bob", seq=1, used_uhs=2_000 * S))
    story.at(JANUARY_31 + 29 * 86_400).do(Tick())
    assert story.free("bob") == 2_010 * S


@pytest.mark.parametrize("stops", [(), (1,), (1, 2, 3), (0.5, 1.5, 2.5, 3.5)], ids=str)
def test_it_does_not_matter_how_often_anybody_ticked(story, stops):
    story.must(Subscribe(account_id="bob", subscription="daily"))
    for days in (*stops, 4):
        story.at(days * 86_400).do(Tick())
    assert story.free("bob") == 160 * S
    assert sum(lot.granted_uhs for lot in story.gate.state.book.lots.values() if lot.account_id == "bob") == 740 * S


def test_what_a_hold_gives_back_in_time_is_rolled_over_too(story):
    story.must(Subscribe(account_id="bob", subscription="daily"))
    story.must(hold(70, account="bob", ttl_us=DAY // 2))
    story.at(86_400 // 2).must(ReleaseHold(hold_id="c", account_id="bob", seq=1))
    story.at(86_400).do(Tick())
    assert story.free("bob") == 160 * S


def test_a_subscription_that_ends_grants_no_more_and_lets_go_of_its_rule(story):
    story.must(top_up(1_000, "bob"))
    story.must(Subscribe(account_id="bob", subscription="weekly"))
    assert story.do(hold(701, account="bob")).outcome.code == "insufficient_tokens"
    story.must(Unsubscribe(account_id="bob", subscription="weekly"))
    story.at(6 * 86_400)
    assert story.do(hold(701, account="bob")).outcome.code == "insufficient_tokens"
    story.at(7 * 86_400).do(Tick())
    assert story.gate.state.subscriptions == []
    story.must(hold(1_700, account="bob"))


def test_a_subscription_taken_up_again_before_it_ends_goes_on(story):
    story.must(Subscribe(account_id="bob", subscription="weekly"))
    story.must(Unsubscribe(account_id="bob", subscription="weekly"))
    story.must(Subscribe(account_id="bob", subscription="weekly"))
    story.at(7 * 86_400).do(Tick())
    assert len(story.gate.state.subscriptions) == 1


# -- overflow --------------------------------------------------------------------------------------------------------------

OFFERS = {"weekly": Overflow.BLOCK, "monthly": Overflow.WALLET, "daily": Overflow.POSTPAID}


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("seconds", [90, 700, 701, 1_700, 2_600, 3_600, 9_999])
def test_a_hold_and_a_usage_are_met_as_the_overflow_policy_says(story, offer, seconds):
    """A thousand in the wallet, two hundred of credit, and what the subscription grants."""
    story.must(OpenAccount(account_id="cyd", name="", plan="post", credit_limit_uhs=200 * S))
    story.must(Subscribe(account_id="cyd", subscription=offer))
    included = story.free("cyd") - 200 * S
    story.must(top_up(1_000, "cyd"))
    said = plans.spend(
        OFFERS[offer], amount_uhs=seconds * S, included_uhs=included, wallet_uhs=1_000 * S, credit_uhs=200 * S
    )
    outcome = story.do(hold(seconds, account="cyd")).outcome
    assert (outcome.__class__.__name__ == "Accepted") == (said.uncovered_uhs == 0)
    if said.uncovered_uhs:
        assert outcome.facts["short_uhs"] == said.uncovered_uhs
        story.must(hold(1, account="cyd"))
    # Usage is always booked: beyond what the policy lets in it is written off, and the wallet stays untouched where it is
    # barred.
    settled = story.must(SettleHold(hold_id="c", account_id="cyd", seq=1, used_uhs=seconds * S))
    assert (settled.facts["debt_uhs"], settled.facts["written_off_uhs"]) == (said.credit_uhs, said.uncovered_uhs)
    wallet = sum(lot.free_uhs for lot in story.gate.state.book.lots.values() if lot.terms.origin == "top_up")
    assert wallet - 1_000 * S == 1_000 * S - said.wallet_uhs


def test_a_refusal_says_what_the_policy_bars_and_that_a_top_up_would_not_help(story):
    story.must(Subscribe(account_id="ada", subscription="weekly"))
    refusal = story.do(submit(limit=800 * S)).outcome
    assert refusal.facts["barred_uhs"] == 1_000 * S
    assert "barred by the subscription's overflow policy" in refusal.message
    assert "wait for the next cycle" in refusal.message
    assert "top up" not in refusal.message


def test_what_a_subscription_includes_is_used_up_before_the_wallet_is_touched(story):
    """Even where the wallet's tokens expire sooner."""
    story.must(Subscribe(account_id="ada", subscription="monthly"))
    (transfer,) = story.do(hold(2_001)).transfers
    assert [(share.lot_id, share.amount_uhs) for share in transfer.lots] == [("lot-2", 2_000 * S), ("lot-1", S)]


def test_a_policy_binds_only_what_its_subscription_is_for(story):
    """The weekly one is for training: inference pays from the wallet as before."""
    story.must(Subscribe(account_id="ada", subscription="weekly"))
    story.must(hold(1_000, use=INFERENCE))


def test_the_most_generous_of_two_policies_counts(story):
    story.must(Subscribe(account_id="ada", subscription="weekly"))
    story.must(Subscribe(account_id="ada", subscription="monthly"))
    story.must(hold(3_700))


def test_an_extension_and_an_update_are_bound_too(story):
    """A rolling job parks at the end of its subscription's tokens, though the wallet is full; the next cycle resumes it.

    The five that the first cycle left are good for ten days.
    """
    story.must(Subscribe(account_id="ada", subscription="weekly"))
    story.play(
        (0, submit(limit=9_000 * S, hold=HoldMode.ROLLING), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (500, metered(500), [], "running"),
        (695, metered(195, seq=2), ["stop j.1 out_of_tokens by 700"]),
        (695, finished("saved"), ["remove j.1"]),
        (695, removed(), [], "parked out_of_tokens"),
        (696, top_up(5_000), [], "parked out_of_tokens"),
        (7 * 86_400, Tick(), ["start j.2 epoch 2 on h1:1"], "starting"),
    )
    story.must(hold(50))
    update = UpdateHold(hold_id="c", account_id="ada", seq=1, used_uhs=10 * S, more_uhs=500 * S)
    assert story.must(update).granted_uhs == (5 + 700 - 600 - 50) * S


# -- clients' holds --------------------------------------------------------------------------------------------------------


def test_a_gateway_that_was_cut_off_finds_what_it_held_set_aside(story):
    """Ten bought, and used behind a cut line: nobody spends them meanwhile, and nothing is owed."""
    story.must(hold(900, ttl_us=5 * S))
    assert story.at(4).do(submit(limit=200 * S)).outcome.code == "insufficient_tokens"
    assert story.at(6).do(submit(limit=200 * S)).outcome.code == "insufficient_tokens"
    settled = story.at(86_000).must(SettleHold(hold_id="c", account_id="ada", seq=1, used_uhs=850 * S))
    assert (settled.facts["captured_uhs"], settled.facts["released_uhs"], settled.facts["late"]) == (
        850 * S,
        50 * S,
        True,
    )
    assert story.gate.ask(BalanceOf(account_id="ada"), story.now_us).debt_uhs == 0
    assert story.free("ada") == 150 * S


def test_what_is_reported_after_the_window_and_is_not_free_is_written_off(story):
    story.must(hold(900, ttl_us=5 * S))
    story.at(86_405).must(submit(limit=200 * S))
    decision = story.at(86_406).do(SettleHold(hold_id="c", account_id="ada", seq=1, used_uhs=850 * S))
    facts = decision.outcome.facts
    assert (facts["captured_uhs"], facts["written_off_uhs"], facts["debt_uhs"]) == (800 * S, 50 * S, 0)
    capture, lost = decision.transfers
    assert (capture.kind, lost.kind, lost.flags) == ("capture", "write_off", ("late",))
    assert {leg.account: leg.amount for leg in lost.postings} == {
        "op/op/written_off": -50 * S,
        "op/op/redeemed": 50 * S,
    }
    assert story.gate.ask(BalanceOf(account_id="ada"), story.now_us).debt_uhs == 0


@pytest.mark.parametrize(("hours", "free"), [(0, 1_000), (1, 100), (96, 100)])
def test_how_long_a_lapsed_hold_is_set_aside_is_the_operators_to_say(story, hours, free):
    catalogue = msgspec.structs.replace(CATALOGUE, settlement_hours=hours)
    story.must(Configure(tariffs=TARIFFS, catalogue=catalogue))
    story.must(hold(900, ttl_us=5 * S))
    story.at(3_604).do(Tick())
    assert story.free("ada") == free * S
    story.at(5 + hours * 3_600).do(Tick())
    assert story.free("ada") == 1_000 * S
    worse = msgspec.structs.replace(CATALOGUE, settlement_hours=97)
    assert story.do(Configure(tariffs=TARIFFS, catalogue=worse)).outcome.code == "invalid_config"


def test_the_hold_of_a_job_is_out_of_every_clients_reach(story):
    story.must(submit())
    assert story.do(ReleaseHold(hold_id="j#1", account_id="ada", seq=1)).outcome.code == "not_found"
    assert story.do(hold(1, "k#1")).outcome.code == "invalid_hold_id"


def test_usage_that_is_said_twice_counts_once_in_the_order_of_the_queue(story):
    def usage():
        return story.gate.state.placement.accounts["ada"].usage

    story.must(hold(100))
    update = UpdateHold(hold_id="c", account_id="ada", seq=1, used_uhs=60 * S)
    story.must(update)
    once = usage()
    story.must(update)
    assert once == usage() > 0


def test_a_grant_in_scope_burns_before_the_wallet(story):
    story.must(Grant(account_id="ada", amount_uhs=50 * S, lifetime_us=DAY))
    (transfer,) = story.do(submit()).transfers
    assert [share.amount_uhs for share in transfer.lots] == [50 * S, 50 * S]


def test_the_policy_of_placement_is_the_operators_to_say_and_a_journal_keeps_it(story):
    policy = Policy(evictions_max=1, half_life_us=DAY)
    story.must(Configure(tariffs=TARIFFS, catalogue=CATALOGUE, policy=policy))
    assert story.gate.state.placement.policy == policy
    story.must(Configure(tariffs=TARIFFS, catalogue=CATALOGUE))
    assert story.gate.state.placement.policy == policy, "a file of before says nothing of it"
    refused = story.do(Configure(tariffs=TARIFFS, catalogue=CATALOGUE, policy=Policy(bypasses_max=0))).outcome
    assert (refused.code, "bypasses_max" in refused.message) == ("invalid_config", True)
    assert story.gate.state.placement.policy == policy
