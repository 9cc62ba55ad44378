"""What the gate knows of training: gangs of several types, notice against learned grace, how often a pool takes devices."""

import pytest

from fabric.gate import hazards, notice
from fabric.gate.events import (
    LeaseOutcome,
    LeaseSaved,
    NodeDown,
    NodeDrain,
    NodeUp,
    Pause,
    Pool,
    RolledBack,
    Tick,
)
from fabric.gate.hazards import Hazard
from fabric.gate.instructions import Refusal, StartLease
from fabric.gate.lifecycle import StopReason
from fabric.gate.questions import JobOf
from tests.gate.conftest import finished, metered, node, removed, sample, started, submit
from tests.gate.world import S

HOUR = 3600 * S


def view(story, job_id="j"):
    return story.gate.ask(JobOf(job_id=job_id), story.now_us)


def saved_at(step, *, lease="j.1", write_s=0.02, restore_s=0.0):
    return LeaseSaved(lease_id=lease, step=step, write_us=round(write_s * S), bytes=64, restore_us=round(restore_s * S))


# -- gangs of several types --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mix", "kind", "granted"),
    [
        ("islands", "910B", True),
        ("same-vendor", "A100", True),
        ("same-vendor", "910B", False),
        ("never", "A100", False),
    ],
)
def test_a_gang_is_mixed_as_far_as_its_owner_asked(story, mix, kind, granted):
    story.must(node("other", kind, 4))
    decision = story.do(submit(types=("H100", kind), devices=6, mix=mix))
    if not granted:
        assert isinstance(decision.outcome, Refusal)
        assert decision.outcome.code == "gang_too_large"
        return
    (start,) = decision.instructions
    assert [(share.node_id, share.devices, share.accelerator) for share in start.lease.shares] == [
        ("h1", 4, "H100"), ("other", 2, kind),
    ]  # fmt: skip
    assert start.lease.accelerator == f"H100+{kind}"
    story.do(started())
    assert view(story).timeline.endswith(f"RUNNING on 4 × H100 + 2 × {kind}")


def test_a_mixed_gang_is_charged_at_the_mean_of_its_weights(story):
    """Four H100 of weight 1 and two A100 of 0.315: 0.771666 each, what is left of a millionth is not charged."""
    story.must(node("a1", "A100", 4))
    story.play(
        (0, submit(types=("H100", "A100"), devices=6, mix="islands"), ["start j.1 epoch 1 on h1:4 a1:2"]),
        (0, started(), []),
        (10, metered(10, busy=60 * 0.8), []),
        (10, finished("succeeded"), ["remove j.1"]),
        (11, removed(final=sample(0, seq=2, busy=0)), []),
    )
    exact = 10 * (4 * 1_000_000 + 2 * 315_000)
    assert exact - 60 <= story.job().burned_uhs <= exact


def test_a_gang_that_fits_one_type_is_not_mixed(story):
    story.must(node("a1", "A100", 8))
    (start,) = story.do(submit(types=("H100", "A100"), devices=6, mix="islands")).instructions
    assert start.lease.accelerator == "A100"
    assert [share.accelerator for share in start.lease.shares] == [""]


# -- notice ------------------------------------------------------------------------------------------------------------


def noted(node_id, notice_s, *, kind="H100", devices=4):
    return NodeUp(node_id=node_id, accelerator=kind, devices=devices, pool=Pool.SPOT, notice_us=round(notice_s * S))


def evicted_after_a_slow_save(story, *, types):
    """Its save takes six seconds: with half as much again and some slack it needs 9.5 s of notice."""
    story.play(
        (0, submit(types=types), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (1, saved_at(5, write_s=6), []),
        (2, NodeDrain(node_id="h1", grace_us=9 * S), ["stop j.1 drained by 11"]),
        (3, finished("saved"), ["remove j.1"]),
    )


def test_a_job_is_not_placed_where_it_gets_less_notice_than_its_grace_was_found_to_be(story):
    story.must(noted("a1", 5, kind="A100"))
    evicted_after_a_slow_save(story, types=("H100", "A100"))
    story.play((4, removed(), [], "queued waiting_for_capacity with 10 s of notice: its saves take that long"))
    story.play((5, node("h1"), ["start j.2 epoch 2 on h1:1"]))


def test_a_job_that_gets_too_little_notice_everywhere_runs_and_saves_ahead(story):
    story.must(noted("a1", 5, kind="A100"))
    evicted_after_a_slow_save(story, types=("H100", "A100"))
    story.do(NodeDown(node_id="h1"))
    story.gate.state.hazards["spot/H100"] = Hazard(leased_us=8 * HOUR, taken=11)
    story.at(4)
    story.do(noted("h1", 5))
    (start,) = story.do(removed()).instructions
    assert isinstance(start, StartLease)
    said = "saves ahead: a save needs 10 s of notice and gets 5 s"
    assert story.job().reason.startswith(said)
    story.do(started("j.2"))
    assert view(story).reason.startswith(said)
    assert start.lease.loss_every_us == (12 * HOUR + 3 * S) // 13, "for such a job each of twelve evictions is a loss"


def test_the_notice_that_a_node_gives_changes_nothing_for_a_job_that_has_not_saved(story):
    story.must(noted("a1", 0, kind="A100"))
    story.play((0, submit(types=("A100",)), ["start j.1 epoch 1 on a1:1"], "starting"))


def test_a_grace_shorter_than_a_save_is_said_to_be(story):
    story.play(
        (0, submit(grace_us=2 * S), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (1, saved_at(5, write_s=6), []),
        (2, Pause(job_id="j", account_id="ada"), ["stop j.1 paused by 4"]),
    )
    assert notice.outlasts(story.gate._core, story.job())


def test_a_notice_below_nothing_is_refused(story):
    assert story.do(noted("a1", -1)).outcome.code == "invalid_notice"


# -- how often a pool takes devices away -------------------------------------------------------------------------------


def test_of_a_pool_that_nobody_knows_a_loss_is_expected_in_four_hours(story):
    (start,) = story.do(submit()).instructions
    assert start.lease.loss_every_us == 4 * HOUR


def test_a_pool_that_loses_leases_is_told_to_those_that_follow(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (3600, NodeDown(node_id="h1"), ["remove j.1"]),
        (3600, removed(), []),
    )
    (start,) = story.do(node("h2")).instructions
    assert start.lease.loss_every_us == 5 * HOUR // 2
    assert story.gate.state.hazards == {"spot/H100": Hazard(leased_us=HOUR, lost=1)}


@pytest.mark.parametrize(
    ("outcome", "reason", "saves_in_time", "outlasts"),
    [
        (LeaseOutcome.LOST, None, 2, 2),
        (LeaseOutcome.LOST, StopReason.EVICTED, 2, 2),
        (LeaseOutcome.SAVED, StopReason.EVICTED, 1, 2),
        (LeaseOutcome.SAVED, StopReason.DRAINED, 1, 2),
        (LeaseOutcome.SAVED, StopReason.PAUSED, 1, 1),
        (LeaseOutcome.LOST, StopReason.PAUSED, 1, 1),
        (LeaseOutcome.FAILED, None, 1, 1),
        (LeaseOutcome.SUCCEEDED, None, 1, 1),
    ],
)
def test_only_what_the_platform_took_counts_and_an_eviction_only_for_who_can_not_save_in_time(
    outcome, reason, saves_in_time, outlasts
):
    known = {}
    hazards.note(known, "spot/H100", ran_us=4 * HOUR, outcome=outcome, reason=reason)
    assert hazards.loss_every_us(known, "spot/H100", outlasts_notice=False) == 8 * HOUR // saves_in_time
    assert hazards.loss_every_us(known, "spot/H100", outlasts_notice=True) == 8 * HOUR // outlasts


def test_what_was_long_ago_counts_ever_less():
    known = {}
    for _ in range(100):
        hazards.note(known, "p", ran_us=HOUR, outcome=LeaseOutcome.LOST, reason=None)
    for _ in range(100):
        hazards.note(known, "p", ran_us=40 * 24 * HOUR, outcome=LeaseOutcome.SUCCEEDED, reason=None)
    assert known["p"].lost == 0


# -- what a resumption takes, and going back ---------------------------------------------------------------------------


def test_how_long_a_resumed_attempt_took_to_its_first_step_is_told_and_decides_what_its_eviction_costs(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (1, saved_at(5, restore_s=0.7), []),
        (2, NodeDrain(node_id="h1", grace_us=5 * S), ["stop j.1 drained by 7"]),
        (3, finished("saved", step=5), ["remove j.1"]),
        (4, removed(), []),
        (4, node("h2"), ["start j.2 epoch 2 on h2:1"]),
        (5, started("j.2"), []),
        (7, saved_at(9, lease="j.2", restore_s=1.25), []),
    )
    assert view(story).timeline.endswith("RESUMED on 1 × H100, first step in 1 s")
    assert "RUNNING on 1 × H100 →" in view(story).timeline, "of a first start there is nothing to restore"
    assert story.gate.state.placement.running["j"].restore_us == 1.25 * S


def test_going_back_to_an_older_checkpoint_is_seen(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (5, saved_at(140), []),
        (5, Pause(job_id="j", account_id="ada"), ["stop j.1 paused by 15"]),
        (6, finished("saved", step=140), ["remove j.1"]),
    )
    back = RolledBack(job_id="j", account_id="ada", step=100, bytes=32)
    assert story.do(back).outcome.code == "job_runs"
    story.at(7).do(removed())
    story.must(back)
    seen = view(story)
    assert (seen.step, seen.saved_step, seen.saved_bytes) == (100, 100, 32)
    assert story.do(RolledBack(job_id="j", account_id="bob", step=1)).outcome.code == "not_found"
    for step, size in ((-1, 0), (2**63, 0), (1, 2**63), (1, -1)):
        assert story.do(RolledBack(job_id="j", account_id="ada", step=step, bytes=size)).outcome.code == "invalid_step"
    story.do(Tick())
