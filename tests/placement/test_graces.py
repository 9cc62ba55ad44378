"""A pool has a longest grace: a job that may take longer to leave isn't let into it, so that nobody waits longer for a reclaim."""

import msgspec
import pytest

from fabric.config.scheduling import SchedulingSection
from fabric.placement import Planner, Policy
from fabric.placement.quotas import DAY_US, LONGEST_GRACE_US

S = 1_000_000
MINUTE = 60 * S
HOUR = 60 * MINUTE


def test_a_job_that_may_take_longer_to_leave_than_a_lender_waits_is_not_lent_to(story):
    at = story("r0 H100 8 reserved", "s0 H100 2 spot", graces_us=(2 * MINUTE, DAY_US, HOUR))
    assert at.submit("quick", 2, grace_us=2 * MINUTE) == ["quick@s0:2"]
    assert at.submit("slow", 2, grace_us=2 * MINUTE + 1) == []
    assert at.submit("lent", 2, grace_us=2 * MINUTE) == ["lent@r0:2"], "what is alike in all else is another lane"
    assert at.planner.barred(at.request("slow", 2, grace_us=2 * MINUTE + 1)) == (("reserved", 2 * MINUTE),)
    assert at.release("quick") == ["slow@s0:2"]


def test_one_that_fits_only_where_its_grace_is_too_long_is_told_the_longest(story):
    at = story("r0 H100 8 reserved", "s0 H100 2 spot", graces_us=(2 * MINUTE, DAY_US, HOUR))
    why = at.planner.check(at.request("big", 4, grace_us=DAY_US))
    assert (why.code, why.facts) == ("grace_too_long", {"grace_us": DAY_US, "longest_us": 2 * MINUTE})
    why = at.planner.check(at.request("small", 2, grace_us=DAY_US))
    assert (why.code, why.facts["longest_us"]) == ("grace_too_long", HOUR)
    assert at.planner.check(at.request("small", 2, grace_us=HOUR)) is None
    assert at.planner.check(at.request("huge", 99, grace_us=DAY_US)).code == "gang_too_large"


def test_who_is_never_evicted_or_is_inference_takes_the_grace_that_it_asks_for(story):
    at = story("r0 H100 8 reserved", "s0 H100 2 spot", graces_us=(2 * MINUTE, DAY_US, HOUR))
    assert at.submit("fixed", 2, grace_us=DAY_US, preemptible=False) == ["fixed@s0:2"]
    assert at.submit("model", 2, grace_us=DAY_US, service="inference", preemptible=False) == ["model@r0:2"]


def test_another_policy_lets_in_who_waited_for_it(story):
    at = story("r0 H100 8 reserved", graces_us=(DAY_US, DAY_US, HOUR))
    at.submit("before", 4, grace_us=HOUR)
    tight = msgspec.structs.replace(at.planner._state.policy, graces_us=(MINUTE, DAY_US, HOUR))
    at.planner.follow(tight, now_us=at.now)
    assert at.planner.longest_grace_us(["r0"]) == MINUTE, "also for who was let in before"
    assert at.submit("after", 4, grace_us=HOUR) == []
    again = Planner(msgspec.msgpack.decode(msgspec.msgpack.encode(at.planner._state), type=type(at.planner._state)))
    assert again.plan(now_us=at.now) == ()
    at.planner.follow(msgspec.structs.replace(tight, graces_us=(HOUR, DAY_US, HOUR)), now_us=at.now)
    assert at.plan() == ["after@r0:4"]


def test_the_cluster_file_says_each_pools_longest_grace():
    said = SchedulingSection.model_validate({"graces_s": {"reserved": 45}}).policy
    assert said.graces_us == (45 * S, *Policy().graces_us[1:])
    assert Policy(graces_us=(-1, 0, 0)).mistake == "graces_us"
    assert Policy(graces_us=(0, 0, LONGEST_GRACE_US + 1)).mistake == "graces_us"


@pytest.mark.parametrize("given", [{"reserved": -1}, {"reserved": 86_401}, {"lent": 5}])
def test_a_grace_that_can_not_be_meant_is_refused(given):
    with pytest.raises(ValueError, match="graces_s"):
        SchedulingSection.model_validate({"graces_s": given})
