"""What is told of a job: the moments the gate keeps, the line they make, and what it learns from its saves."""

import msgspec
import pytest

from fabric.gate import Gate, grace
from fabric.gate.events import (
    Cancel,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    NodeDrain,
    NodeUp,
    Pool,
    SaveNow,
    Tick,
)
from fabric.gate.instructions import Refusal, SaveLease, StopLease
from fabric.gate.questions import JobOf
from fabric.gate.timeline import KEPT_MAX, Moment, amended, noted, told
from tests.gate.conftest import finished, metered, node, removed, sample, started, submit
from tests.gate.world import T0, S


def line(story, job_id="j"):
    return story.gate.ask(JobOf(job_id=job_id), story.now_us).timeline


def saved_at(step, *, lease="j.1", write_s=0.02, size=64):
    return LeaseSaved(lease_id=lease, step=step, write_us=round(write_s * S), bytes=size)


def test_an_evicted_job_tells_what_its_eviction_cost_and_where_it_went_on(story):
    story.do(NodeUp(node_id="a1", accelerator="A100", devices=4, pool=Pool.SPOT))
    story.play(
        (0, submit(types=("H100", "A100"), devices=2), ["start j.1 epoch 1 on h1:2"]),
        (3, started(), []),
        (13, metered(10, busy=20), []),
        (13, NodeDrain(node_id="h1", grace_us=5 * S), ["stop j.1 drained by 18"]),
        (13.02, saved_at(140), []),
        (13.02, finished("saved", step=140), ["remove j.1"]),
        (14, removed(final=sample(0.02, seq=2, busy=0.04)), ["start j.2 epoch 2 on a1:2"]),
        (17, started("j.2"), []),
        (18, finished("succeeded", "j.2", step=600), ["remove j.2"]),
    )
    assert line(story) == (
        "WAITING 3 s → RUNNING on 2 × H100 → DRAINED at step 140, durable in 20 ms, 0 steps lost,"
        " 0.0001 CT burned after the last save"
        " → WAITING 3 s → RESUMED on 2 × A100 → SUCCEEDED"
    )


def test_a_job_whose_node_dies_tells_the_steps_since_its_last_checkpoint(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (10, metered(10), []),
        (10, saved_at(100), []),
        (15, metered(5, seq=2), []),
        (15, finished("lost", step=150), ["remove j.1"]),
        (16, removed(), ["start j.2 epoch 2 on h1:1"]),
    )
    assert "LOST at step 150, 50 steps lost, 0.00138888 CT refunded → WAITING" in line(story)
    assert story.job().burned_uhs == 10 * S, "the lost five seconds are given back"


def test_a_worker_that_ignores_the_notice_pays_only_up_to_its_last_durable_step(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (10, metered(10), []),
        (10, saved_at(7), []),
        (12, NodeDrain(node_id="h1", grace_us=2 * S), ["stop j.1 drained by 14"]),
        (13.5, metered(3.5, seq=2), []),
        (14, Tick(), ["remove j.1"]),
        (14.5, finished("saved", step=11), []),
        (15, LeaseRemoved(lease_id="j.1", final=sample(0.5, seq=3), step=11), []),
    )
    assert story.job().burned_uhs == 10 * S
    assert "DRAINED at step 11, 4 steps lost, 0.00111111 CT refunded" in line(story)


def test_the_grace_is_learned_from_the_slowest_of_the_last_saves(story):
    story.play((0, submit(), ["start j.1 epoch 1 on h1:1"]), (0, started(), []))
    assert story.gate.ask(JobOf(job_id="j"), story.now_us).grace_needed_us is None
    for step, write_s in enumerate((4, *[1] * grace.REMEMBERED)):
        story.do(saved_at(step, write_s=write_s))
        seen = story.gate.ask(JobOf(job_id="j"), story.now_us).grace_needed_us
        assert seen == (
            (4 if step < grace.REMEMBERED else 1) * 3 // 2 * S if step < grace.REMEMBERED else 3 * S // 2
        ) + (grace.SLACK_US)


def test_a_notice_counts_from_when_it_was_given(story):
    """A save that had to wait for the end of a step needs that notice too."""
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (5, NodeDrain(node_id="h1", grace_us=9 * S), ["stop j.1 drained by 14"]),
        (8, saved_at(1, write_s=0.1), []),
    )
    assert grace.needed_us(story.job().saves_us) == 4.5 * S + grace.SLACK_US


def test_a_checkpoint_on_request_is_asked_of_a_job_that_runs_and_of_no_other(story):
    ask = SaveNow(job_id="j", account_id="ada")
    story.do(submit(devices=4))
    assert isinstance(story.do(ask).outcome, Refusal)
    story.do(started())
    assert story.do(ask).instructions == (SaveLease(lease_id="j.1"),)
    assert story.do(SaveNow(job_id="j", account_id="bob")).outcome.code == "not_found"
    story.do(finished("succeeded"))
    assert story.do(ask).outcome.code == "job_ended"


@pytest.mark.parametrize("save", [False, True])
def test_a_cancelled_job_saves_only_if_its_owner_wants_that(story, save):
    story.play((0, submit(), ["start j.1 epoch 1 on h1:1"]), (0, started(), []))
    (stop,) = story.do(Cancel(job_id="j", account_id="ada", save=save)).instructions
    assert isinstance(stop, StopLease)
    assert stop.save is save
    again = [each for each in Gate.restore(story.gate.snapshot()).outstanding() if isinstance(each, StopLease)]
    assert again == [stop], "a restart says the same"


def test_a_job_that_ends_saved_and_asks_to_go_on_is_queued_anew(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (5, saved_at(5), []),
        (5, finished("saved", again=True), ["remove j.1"], "queued asked"),
        (6, removed(), ["start j.2 epoch 2 on h1:1"]),
        (6, started("j.2"), []),
        (7, finished("saved", "j.2", again=True), ["remove j.2"], "queued asked"),
    )


def test_a_job_that_asks_to_go_on_without_getting_anywhere_waits_for_its_owner(story):
    story.do(submit())
    for attempt in range(1, 7):
        lease = f"j.{attempt}"
        story.do(started(lease))
        story.do(saved_at(5, lease=lease))
        story.do(finished("saved", lease, again=True))
        story.do(removed(lease))
    assert (story.job().state.value, story.job().reason) == ("parked", "stopped_too_often")
    assert "5 times in a row at step 5" in story.job().error


def test_what_a_jobs_code_may_mix_reaches_it_with_its_lease(story):
    (start,) = story.do(submit(mix="same-vendor")).instructions
    assert start.lease.mix == "same-vendor"


def test_a_job_that_gets_farther_each_time_goes_on(story):
    story.do(submit())
    for attempt in range(1, 20):
        lease = f"j.{attempt}"
        story.do(started(lease))
        story.do(saved_at(attempt, lease=lease))
        story.do(finished("saved", lease, again=True))
        story.do(removed(lease))
    assert story.job().state.value == "starting"


def test_a_story_without_end_keeps_its_beginning_and_its_newest_part():
    moments = []
    for at in range(1_000):
        noted(moments, Moment(at_us=at, what="resumed" if at else "running", on="1 × H100"))
    assert len(moments) == KEPT_MAX
    assert moments[0].what == "running"
    assert moments[-1].at_us == 999


def test_facts_of_a_stop_never_go_to_one_before_the_last_start():
    moments = [Moment(at_us=0, what="stopping", why="evicted"), Moment(at_us=1, what="resumed", on="1 × H100")]
    amended(moments, step=7)
    assert moments[0].step is None
    assert told(moments, submitted_at_us=0, now_us=2) == "EVICTED → RESUMED on 1 × H100"


def test_a_job_of_an_older_snapshot_has_no_timeline_and_tells_so(story):
    story.do(submit())
    old = msgspec.msgpack.decode(story.gate.snapshot())
    for job in old["jobs"].values():
        for name in ("timeline", "step", "saved_step", "saved_bytes", "saved_at_us", "saved_on", "saves_us"):
            del job[name]
    gate = Gate.restore(msgspec.msgpack.encode(old))
    assert gate.ask(JobOf(job_id="j"), T0 + 2 * S).timeline == "WAITING 2 s"


def test_an_older_journal_says_no_step_and_no_size():
    old = b'{"event":"lease_finished","lease_id":"j.1","outcome":"saved","error":"","result_ref":""}'
    event = msgspec.json.decode(old, type=LeaseFinished)
    assert (event.outcome, event.step, event.again) == (LeaseOutcome.SAVED, 0, False)


def test_the_node_of_the_last_checkpoint_is_remembered(story):
    story.play((0, submit(), ["start j.1 epoch 1 on h1:1"]), (0, started(), []))
    story.do(saved_at(3, size=4096))
    job = story.job()
    assert (job.saved_on, job.saved_step, job.saved_bytes) == (("h1",), 3, 4096)
    assert node().node_id == "h1"


def test_an_elastic_job_resumes_on_what_there_is_and_pays_for_that(story):
    story.do(NodeUp(node_id="a1", accelerator="A100", devices=3, pool=Pool.SPOT))
    story.play(
        (0, submit(types=("H100", "A100"), devices=4, devices_least=1), ["start j.1 epoch 1 on h1:4"]),
        (0, started(), []),
        (10, metered(10, busy=40), []),
        (10, NodeDrain(node_id="h1", grace_us=5 * S), ["stop j.1 drained by 15"]),
        (10, saved_at(10), []),
        (10, finished("saved", step=10), ["remove j.1"]),
        (10, removed(), ["start j.2 epoch 2 on a1:3"]),
        (10, started("j.2"), []),
        (20, metered(10, "j.2", busy=30), []),
    )
    assert story.job().burned_uhs == 40 * S + 3 * 10 * S * 315 // 1000
    assert line(story).endswith("RESUMED on 3 × A100")
    view = story.gate.ask(JobOf(job_id="j"), story.now_us)
    assert (view.devices, view.devices_least, view.accelerator) == (3, 1, "A100")


@pytest.mark.parametrize(("wanted", "code"), [
    ({"devices": 2, "devices_least": 3}, "invalid_devices"),
    ({"devices": 2, "devices_least": 0}, "invalid_devices"),
    ({"devices": 4, "devices_least": 1, "devices_per_node": 2}, "invalid_devices"),
    ({"mix": "everything"}, "invalid_mix"),
    ({"devices": 8, "devices_least": 5}, "gang_too_large"),
])  # fmt: skip
def test_a_range_that_makes_no_sense_is_refused(story, wanted, code):
    assert story.do(submit(**wanted)).outcome.code == code


def test_what_fails_or_is_cancelled_says_so_once_and_what_it_burned_with_nothing_saved(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (10, metered(10), []),
        (10, finished("failed"), ["remove j.1"]),
        (11, removed(), []),
    )
    assert line(story) == "RUNNING on 1 × H100 → FAILED, 0.0028 CT burned, nothing saved"
    story.play(
        (20, submit("k"), ["start k.1 epoch 1 on h1:1"]),
        (20, started("k.1"), []),
        (21, Cancel(job_id="k", account_id="ada", request_id="c"), ["stop k.1 cancelled by 31"]),
        (22, finished("saved", "k.1", step=190), ["remove k.1"]),
        job="k",
    )
    assert line(story, "k") == "RUNNING on 1 × H100 → CANCELLED at step 190, 190 steps lost"
