"""Elastic gangs through the gate: they give way to who waits, and grow back where devices are idle and that is worth a start."""

import pytest

from fabric.gate import Gate
from fabric.gate.events import LeaseSaved
from tests.gate.conftest import finished, node, removed, started, submit, top_up
from tests.gate.world import S

MINUTE = 60 * S


def gang(story, *, least=1, most=8, grace_us=30 * S, **more):
    """An elastic gang that found half of a node taken, which is free now."""
    story.must(node("s1", "A100", 8))
    for account in ("ada", "bob"):
        story.must(top_up(900_000, account))
    facts = {"types": ("A100",), "limit": 90_000 * S}
    story.must(submit("other", "bob", devices=4, **facts))
    story.must(submit("j", devices=most, devices_least=least, grace_us=grace_us, **facts, **more))
    assert devices(story) == 4
    story.do(started("j.1"))
    story.do(started("other.1"))
    story.do(finished("succeeded", "other.1"))
    story.do(removed("other.1"))


def devices(story, job="j"):
    record = story.gate.state.leases[story.job(job).lease_id]
    return record.lease.devices


def saves(story, *, at, write_s=2, restore_s=3, lease="j.1"):
    decision = story.at(at).do(LeaseSaved(lease_id=lease, step=at, write_us=write_s * S, restore_us=restore_s * S))
    return [type(each).__name__ for each in decision.instructions]


def test_a_gang_grows_back_once_it_has_saved_and_devices_are_idle(story):
    gang(story)
    assert saves(story, at=900) == ["StopLease"]
    assert story.job().reason == "resized"
    story.at(903).do(LeaseSaved(lease_id="j.1", step=903, write_us=2 * S))
    story.do(finished("saved", "j.1"))
    story.do(removed("j.1"))
    assert (devices(story), story.job().lease_id, story.job().saved_step) == (8, "j.2", 903)
    story.do(started("j.2"))
    assert saves(story, at=5_000, lease="j.2") == [], "it has all it asked for"


def test_it_does_not_grow_while_somebody_waits(story):
    gang(story)
    story.must(submit("waits", "bob", types=("A100",), devices=8, limit=90_000 * S))
    assert saves(story, at=900) == []


def test_it_does_not_grow_soon_after_it_has_started(story):
    gang(story)
    assert saves(story, at=599) == []


@pytest.mark.parametrize(("write_s", "restore_s"), [(2, 900), (29, 3)])
def test_it_does_not_grow_where_a_start_costs_more_than_it_brings(story, write_s, restore_s):
    gang(story)
    assert saves(story, at=900, write_s=write_s, restore_s=restore_s) == []


def test_a_gang_that_could_not_save_in_time_is_left_alone(story):
    gang(story, grace_us=2 * S)
    assert saves(story, at=5_000, write_s=3) == []


def test_a_gang_of_one_size_and_one_that_shares_no_more_than_it_may_have_stay_as_they_are(story):
    gang(story, most=4, least=4)
    assert saves(story, at=5_000) == []


def test_a_restored_gate_grows_it_at_the_same_save(story):
    gang(story)
    again = Gate.restore(story.gate.snapshot())
    event = LeaseSaved(lease_id="j.1", step=1, write_us=2 * S, restore_us=3 * S)
    now_us = story.now_us + 900 * S
    assert again.handle(event, now_us) == story.gate.handle(event, now_us)
    assert again.state.jobs["j"].reason == "resized"


def test_what_is_lost_on_the_way_is_the_platform_s(story):
    gang(story)
    saves(story, at=900)
    story.at(905).do(finished("lost", "j.1", error="did not end within its grace"))
    decision = story.do(removed("j.1"))
    assert [record.refunded_uhs > 0 for record in decision.records] == [True]
    assert story.job().state == "starting"
