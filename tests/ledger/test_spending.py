"""An account's rules of spending: which lots, and whether credit, may meet a use; the same for holds and for usage."""

import pytest

from fabric.ledger import Granted, Origin, Scope, Service, Settled, Spending, Use

INFERENCE = Use(service=Service.INFERENCE)
OWN_LOTS = Spending(scope=Scope(services=(Service.TRAINING,)), origins=(Origin.SUBSCRIPTION,), credit=False)
ALL_LOTS = Spending(scope=Scope(services=(Service.TRAINING,)), credit=False)


@pytest.fixture
def mixed(book, terms):
    """Bob has 30 from a subscription, 50 of his own, and a credit of 20."""
    book.open_account("bob", now_us=0, credit_limit_uhs=20)
    book.grant("bob", lot_id="included", amount_uhs=30, terms=terms(Origin.SUBSCRIPTION), now_us=0)
    book.grant("bob", lot_id="wallet", amount_uhs=50, terms=terms(), now_us=0)
    return book


def hold(book, use, amount, **more):
    return book.authorize("bob", hold_id="h", amount_uhs=amount, use=use, now_us=1, expires_at_us=None, **more)


@pytest.mark.parametrize(
    ("rules", "most"), [((OWN_LOTS,), 30), ((ALL_LOTS,), 80), ((), 100), ((ALL_LOTS, OWN_LOTS), 80)]
)
def test_a_hold_gets_what_the_first_rule_that_fits_lets_it(mixed, use, rules, most):
    mixed.set_spending("bob", spending=rules)
    assert mixed.free("bob", now_us=1, use=use) == most
    refused = hold(mixed, use, most + 1)
    assert (refused.facts["free_uhs"], refused.facts.get("barred_uhs", 0)) == (most, 100 - most)
    assert hold(mixed, use, most) == Granted(most, most, final=False)


def test_a_rule_binds_only_the_uses_in_its_scope(mixed):
    mixed.set_spending("bob", spending=(OWN_LOTS,))
    assert mixed.free("bob", now_us=1, use=INFERENCE) == 100
    assert hold(mixed, INFERENCE, 100) == Granted(100, 100, final=False)


def test_an_extension_and_an_update_obey_the_same_rule(mixed, use):
    mixed.set_spending("bob", spending=(OWN_LOTS,))
    assert hold(mixed, use, 20) == Granted(20, 20, final=False)
    assert mixed.extend("h", amount_uhs=11, now_us=1).code == "insufficient_tokens"
    assert mixed.update("h", seq=1, used_uhs=5, more_uhs=50, now_us=1) == Granted(10, 25, final=True)


def test_usage_beyond_the_hold_is_written_off_rather_than_taken_from_barred_lots(mixed, use):
    mixed.set_spending("bob", spending=(OWN_LOTS,))
    hold(mixed, use, 20)
    assert mixed.settle("h", seq=1, used_uhs=45, now_us=1) == Settled(30, 0, over_hold=True, written_off_uhs=15)
    assert mixed.lots["wallet"].free_uhs == 50


def test_what_is_held_stays_held_when_the_rule_changes(mixed, use):
    hold(mixed, use, 90)
    mixed.set_spending("bob", spending=(OWN_LOTS,))
    assert mixed.capture("h", amount_uhs=90, now_us=1) == 90


def test_a_lot_is_retired_only_as_far_as_it_is_free(mixed, use):
    hold(mixed, use, 10)
    mixed.retire("included", now_us=2)
    assert (mixed.lots["included"].expired_uhs, mixed.lots["included"].held_uhs) == (20, 10)
    mixed.retire("included", now_us=2)


def test_a_sale_of_other_things_moves_money_and_no_tokens(book):
    sale = book.sell("ada", ref="minutes", price_microcny=15, channel="sandbox", now_us=0, linked_to=1)
    assert {(leg.account, leg.asset, leg.amount) for leg in sale.postings} == {
        ("cash/sandbox", "CNY", 15),
        ("op/op/revenue", "CNY", -15),
    }
    assert book.sell("ada", ref="gift", price_microcny=0, channel="sandbox", now_us=0) is None
