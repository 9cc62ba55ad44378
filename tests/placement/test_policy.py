"""The policy is set in the cluster file, and changed while jobs wait and run."""

import msgspec
import pytest

from fabric.config.scheduling import SchedulingSection
from fabric.placement import PlacementState, Planner
from fabric.placement.quota_terms import POLICY_COUNT_MAX, Quota
from fabric.placement.quotas import DAY_US, HOUR_US, Account, Fairness, Policy


def test_a_cluster_file_that_says_nothing_has_the_policy_that_there_always_was():
    assert SchedulingSection().policy == Policy()
    assert Policy().mistake == ""


def test_each_class_has_its_own_bound():
    said = SchedulingSection.model_validate(
        {"waits_min": {"starter": 30}, "headroom_devices": 2, "half_life_h": 24}
    ).policy
    assert said == Policy(
        waits_us=(*Policy().waits_us[:3], HOUR_US // 2, Policy().waits_us[4]), headroom_devices=2, half_life_us=DAY_US
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"headroom_devices": -1}, "headroom_devices"),
        ({"bypasses_max": 0}, "bypasses_max"),
        ({"evictions_max": POLICY_COUNT_MAX + 1}, "evictions_max"),
        ({"waits_us": (0, 0, 0, 0, -1)}, "waits_us"),
        ({"half_life_us": 0}, "half_life_us"),
        ({"retry_us": 0}, "retry_us"),
        ({"run_us_min": 2**62}, "a time"),
    ],
)
def test_what_can_not_be_meant_is_named(change, named):
    assert named in Policy(**change).mistake.split(", ")


def test_a_cluster_file_can_say_every_number_of_a_policy():
    """What is shown, and changed by hand, goes through it: what it can't say would go back to what it is by itself."""
    usual = Policy()
    other = {
        "lend_dedicated": False,
        "waits_us": (60_000_000, 120_000_000, 180_000_000, 240_000_000, 300_000_000),
        "half_life_us": DAY_US,
        "retry_us": 2_000_000,
        "graces_us": (1_000_000, 2_000_000, 3_000_000),
        "run_us_min": 60_000_000,
        "entry_us": 120_000_000,
        "quotas": (
            Quota(accelerator="H100", account="acme", nominal=8, borrow_max=4, lend_max=0),
            Quota(accelerator="H100", cohort="acme", nominal=16),
        ),
        "cheap_us": 120_000_000,
        "score_percent": tuple(each + 1 for each in usual.score_percent),
    }
    counts = [name for name in Policy.__struct_fields__ if name not in other]
    policy = Policy(**other, **{name: getattr(usual, name) + 1 for name in counts})
    assert all(getattr(policy, name) != getattr(usual, name) for name in Policy.__struct_fields__)
    assert SchedulingSection.of(policy).policy == policy


@pytest.mark.parametrize("half_life_us", [HOUR_US, DAY_US, 30 * DAY_US])
def test_with_another_half_life_accounts_stand_to_each_other_as_before(half_life_us):
    accounts = {"a": Account(), "b": Account(), "idle": Account()}
    fairness = Fairness(accounts, Policy(), epoch_us=0)
    now_us = 20 * DAY_US
    fairness.use("a", uhs=3_000_000_000, now_us=now_us)
    fairness.use("b", uhs=1_000_000_000, now_us=now_us)
    fairness.follow(Policy(half_life_us=half_life_us), now_us=now_us)
    assert 2.99 < accounts["a"].usage / accounts["b"].usage < 3.01
    assert accounts["idle"].usage == 0
    before = accounts["b"].usage
    fairness.use("b", uhs=1_000_000_000, now_us=now_us)
    assert 1.99 < accounts["b"].usage / before < 2.01
    assert fairness.keys == Fairness(accounts, Policy(half_life_us=half_life_us), epoch_us=now_us).keys


def test_a_planner_that_follows_is_the_one_that_is_made_from_its_state():
    state = PlacementState()
    planner = Planner(state)
    planner.follow(Policy(evictions_max=1, half_life_us=DAY_US), now_us=5 * DAY_US)
    assert state.policy.evictions_max == 1
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=PlacementState)
    assert again == state
