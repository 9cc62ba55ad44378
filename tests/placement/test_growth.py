"""What an elastic gang could have more where it runs: idle devices that nobody waits for, and that aren't kept for anybody."""

import pytest

from fabric.placement.quota_terms import Quota

HOUR = 3_600_000_000


def gang(story, *nodes, taken=4, policy=None, **facts):
    """An elastic gang of up to 8 that found some devices taken, which are free now."""
    at = story(*(nodes or ("n0 H100 8 spot",)), **(policy or {}))
    assert at.submit("other", taken, account="x")
    assert at.submit("e", 8, devices_least=facts.pop("least", 1), account="acme", **facts)
    at.planner.release("other", now_us=at.now)
    at.plan()
    return at


def test_what_is_idle_beside_it_is_what_it_could_have(story):
    at = gang(story)
    assert at.planner.could_grow("e") == 4
    at.submit("x", 3, account="x")
    assert at.planner.could_grow("e") == 1


def test_nothing_while_somebody_waits_who_could_have_some(story):
    at = gang(story)
    at.submit("big", 8, account="x", tier=2)
    assert at.planner.could_grow("e") == 0


def test_nothing_for_whom_others_left_or_who_leaves_itself(story):
    at = gang(story)
    at.planner.note_leaving("e")
    assert at.planner.could_grow("e") == 0
    assert at.planner.could_grow("nobody") == 0


def test_devices_come_by_as_many_as_it_wants_on_a_node(story):
    at = gang(story, "n0 H100 8 spot", "n1 H100 3 spot", each=2, least=2)
    assert at.planner.could_grow("e") % 2 == 0


def test_nothing_of_what_is_lent(story):
    at = gang(story, "r0 H100 8 reserved")
    assert at.planner.could_grow("e") == 0


@pytest.mark.parametrize(("borrow", "more"), [(0, 0), (6, 2), (None, 4)])
def test_no_more_than_its_account_may_borrow(story, borrow, more):
    quotas = (Quota(accelerator="H100", account="acme", nominal=0, borrow_max=borrow),)
    at = gang(story)
    at.planner.follow(at.planner._state.policy.__class__(quotas=quotas), now_us=at.now)
    at.plan()
    assert at.planner.could_grow("e") == more
