"""What purchases grant and cost, and when subscriptions grant again."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.charging import plans
from fabric.charging.catalogue import Bundle, Catalogue, Component, Cycle, Overflow, Plan, Restriction, Subscription
from fabric.units import UHS_PER_CT

DAY_US = 86_400_000_000
STARTER = Plan(name="starter", tier_rank=2, price_microcny_per_ct=500_000, lifetime_days=30)
INFERENCE = Restriction(services=("inference",))
BUNDLE = Bundle(
    name="edge",
    price_microcny=60_000_000,
    components=(
        Component(
            asset="CT", amount=100 * UHS_PER_CT, share_microcny=45_000_000, lifetime_days=90, restriction=INFERENCE
        ),
        Component(asset="5g-edge-min", amount=600, share_microcny=15_000_000, lifetime_days=60),
    ),
)
MONTHLY = Subscription(
    name="monthly",
    plan="starter",
    price_microcny=400_000_000,
    amount_uhs=1000,
    rollover_min_uhs=50,
    rollover_max_uhs=500,
    restriction=INFERENCE,
)
WEEKLY = msgspec.structs.replace(MONTHLY, name="weekly", cycle=Cycle.DAYS, cycle_days=7)


def us(*when):
    return (datetime(*when, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def test_what_is_not_for_sale_is_none():
    catalogue = Catalogue(version=1, plans=(STARTER,), bundles=(BUNDLE,), subscriptions=(MONTHLY,))
    assert (catalogue.plan("starter"), catalogue.bundle("edge"), catalogue.subscription("monthly")) == (
        STARTER,
        BUNDLE,
        MONTHLY,
    )
    assert [catalogue.plan("x"), catalogue.bundle("x"), catalogue.subscription("x")] == [None, None, None]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(catalogue), type=Catalogue) == catalogue


@pytest.mark.parametrize(
    ("amount_uhs", "price"),
    [
        (0, 0),
        (1, 1),
        (36, 1),
        (10_799, 1),
        (10_800, 2),
        (18_000, 2),
        (UHS_PER_CT, 500_000),
        (100 * UHS_PER_CT, 50_000_000),
    ],
)
def test_a_price_is_rounded_half_even_but_no_tokens_are_free(amount_uhs, price):
    assert plans.price_of(STARTER, amount_uhs=amount_uhs) == price


def test_a_plan_without_a_price_gives_tokens_away():
    free = msgspec.structs.replace(STARTER, price_microcny_per_ct=0)
    assert plans.price_of(free, amount_uhs=UHS_PER_CT) == 0


def test_a_top_up_is_good_for_the_plans_days():
    lot = plans.top_up(STARTER, amount_uhs=2 * UHS_PER_CT, now_us=1000)
    assert (lot.price_microcny, lot.effective_at_us, lot.expires_at_us) == (1_000_000, 1000, 1000 + 30 * DAY_US)


def test_a_bundle_gives_lots_and_other_units_whose_prices_add_up_to_its_own():
    given = plans.bundle_grants(BUNDLE, now_us=5)
    (lot,), (minutes,) = given.lots, given.entitlements
    assert (lot.amount_uhs, lot.expires_at_us, lot.restriction) == (100 * UHS_PER_CT, 5 + 90 * DAY_US, INFERENCE)
    assert (minutes.asset, minutes.amount, minutes.expires_at_us) == ("5g-edge-min", 600, 5 + 60 * DAY_US)
    assert lot.price_microcny + minutes.price_microcny == BUNDLE.price_microcny


@pytest.mark.parametrize(
    ("started", "index", "starts"),
    [
        ((2026, 1, 15, 12, 30), 0, (2026, 1, 15, 12, 30)),
        ((2026, 1, 15, 12, 30), 1, (2026, 2, 15, 12, 30)),
        ((2026, 1, 31), 1, (2026, 2, 28)),
        ((2026, 1, 31), 2, (2026, 3, 31)),
        ((2026, 1, 31), 3, (2026, 4, 30)),
        ((2028, 1, 31), 1, (2028, 2, 29)),
        ((2028, 2, 29), 12, (2029, 2, 28)),
        ((2028, 2, 29), 48, (2032, 2, 29)),
        ((2096, 2, 29), 48, (2100, 2, 28)),
        ((2026, 10, 31, 23, 59, 59, 999_999), 1, (2026, 11, 30, 23, 59, 59, 999_999)),
        ((2026, 12, 31), 1, (2027, 1, 31)),
        ((2026, 12, 31), 2, (2027, 2, 28)),
        ((2026, 3, 29, 1, 30), 12, (2027, 3, 29, 1, 30)),
    ],
)
def test_a_month_is_counted_from_the_start_and_ends_where_the_calendar_does(started, index, starts):
    assert plans.cycle_start_us(MONTHLY, started_at_us=us(*started), index=index) == us(*starts)


def test_a_cycle_of_days_is_so_many_days():
    assert plans.next_cycle_us(WEEKLY, started_at_us=10, index=2) == 10 + 21 * DAY_US


@given(st.integers(0, 4_000_000_000_000_000), st.integers(0, 240), st.sampled_from([MONTHLY, WEEKLY]))
def test_cycles_follow_each_other_without_a_gap(started_at_us, index, subscription):
    ends = plans.next_cycle_us(subscription, started_at_us=started_at_us, index=index)
    assert ends == plans.cycle_start_us(subscription, started_at_us=started_at_us, index=index + 1)
    days = (ends - plans.cycle_start_us(subscription, started_at_us=started_at_us, index=index)) // DAY_US
    assert days in ((7,) if subscription is WEEKLY else (28, 29, 30, 31))


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_a_rollover_lies_between_its_bounds(left_uhs, low_uhs, more_uhs):
    bounds = msgspec.structs.replace(MONTHLY, rollover_min_uhs=low_uhs, rollover_max_uhs=low_uhs + more_uhs)
    rolled = plans.rollover_uhs(left_uhs, subscription=bounds)
    assert low_uhs <= rolled <= low_uhs + more_uhs
    assert rolled == left_uhs or left_uhs < low_uhs or left_uhs > low_uhs + more_uhs


@pytest.mark.parametrize(("index", "left_uhs", "rolled"), [(0, 300, None), (1, 0, 50), (1, 300, 300), (2, 900, 500)])
def test_a_cycle_grants_its_tokens_and_carries_over_what_the_bounds_allow(index, left_uhs, rolled):
    started = us(2026, 1, 31)
    given = plans.cycle_grants(MONTHLY, started_at_us=started, index=index, left_uhs=left_uhs)
    start = plans.cycle_start_us(MONTHLY, started_at_us=started, index=index)
    end = plans.next_cycle_us(MONTHLY, started_at_us=started, index=index)
    assert given.grant == plans.LotTerms(
        amount_uhs=1000, price_microcny=400_000_000, effective_at_us=start, expires_at_us=end, restriction=INFERENCE
    )
    assert (given.rollover and given.rollover.amount_uhs) == rolled
    if given.rollover:
        assert (given.rollover.price_microcny, given.rollover.expires_at_us) == (0, end)


def test_without_a_rollover_nothing_is_carried_over():
    plain = msgspec.structs.replace(MONTHLY, rollover_min_uhs=0, rollover_max_uhs=0)
    assert plans.cycle_grants(plain, started_at_us=0, index=3, left_uhs=700).rollover is None


def test_tokens_may_outlive_their_cycle():
    lasting = msgspec.structs.replace(WEEKLY, lifetime_days=30)
    assert plans.cycle_grants(lasting, started_at_us=0, index=1).grant.expires_at_us == 37 * DAY_US


@pytest.mark.parametrize(
    ("policy", "amount", "parts"),
    [
        (Overflow.BLOCK, 80, (80, 0, 0, 0)),
        (Overflow.BLOCK, 130, (100, 0, 0, 30)),
        (Overflow.WALLET, 130, (100, 30, 0, 0)),
        (Overflow.WALLET, 180, (100, 50, 0, 30)),
        (Overflow.POSTPAID, 80, (80, 0, 0, 0)),
        (Overflow.POSTPAID, 165, (100, 50, 15, 0)),
        (Overflow.POSTPAID, 200, (100, 50, 20, 30)),
    ],
)
def test_an_overflow_policy_says_what_pays_once_the_subscription_is_used_up(policy, amount, parts):
    spent = plans.spend(policy, amount_uhs=amount, included_uhs=100, wallet_uhs=50, credit_uhs=20)
    assert (spent.included_uhs, spent.wallet_uhs, spent.credit_uhs, spent.uncovered_uhs) == parts


AMOUNTS = st.integers(0, 10**12)


@given(st.sampled_from(Overflow), AMOUNTS, st.tuples(AMOUNTS, AMOUNTS, st.integers(-(10**12), 10**12)))
def test_the_parts_of_a_spending_add_up_and_none_exceeds_its_source(policy, amount, sources):
    included, wallet, credit = sources
    spent = plans.spend(policy, amount_uhs=amount, included_uhs=included, wallet_uhs=wallet, credit_uhs=credit)
    parts = (spent.included_uhs, spent.wallet_uhs, spent.credit_uhs, spent.uncovered_uhs)
    assert sum(parts) == amount
    assert min(parts) >= 0
    assert spent.included_uhs <= included
    assert spent.wallet_uhs <= wallet
    assert spent.credit_uhs <= max(credit, 0)
