"""Stories of owners who change their minds: a job is cancelled, paused, resumed and limited in every state."""

import pytest

from fabric.gate.events import Cancel, NodeDown, NodeDrain, Pause, RaiseLimit, Resume, Tick
from fabric.gate.instructions import Refusal
from fabric.gate.questions import JobOf
from tests.gate.conftest import finished, metered, node, removed, started, submit, top_up
from tests.gate.world import S

START = "start j.1 epoch 1 on h1:1"
AGAIN = "start j.2 epoch 2 on h1:1"
CANCEL, PAUSE, RESUME = (verb(job_id="j", account_id="ada") for verb in (Cancel, Pause, Resume))


def raise_to(seconds):
    return RaiseLimit(job_id="j", account_id="ada", limit_uhs=seconds * S)


TO_QUEUED = [(0, NodeDown(node_id="h1"), []), (0, submit(), [], "queued waiting_for_capacity")]
TO_STARTING = [(0, submit(), [START])]
TO_RUNNING = [*TO_STARTING, (0, started(), [], "running")]
TO_STOPPING = [*TO_RUNNING, (5, PAUSE, ["stop j.1 paused by 15"], "stopping paused")]
TO_PARKED = [*TO_STOPPING, (6, finished("saved"), ["remove j.1"]), (6, removed(), [], "parked paused")]
TO_GOING = [*TO_STOPPING, (6, finished("saved"), ["remove j.1"], "parked paused")]
TO_DONE = [*TO_RUNNING, (6, finished("succeeded"), ["remove j.1"], "succeeded")]


@pytest.mark.parametrize(
    ("rows", "instructions", "state"),
    [
        (TO_QUEUED, [], "cancelled cancelled"),
        (TO_STARTING, ["remove j.1"], "cancelled cancelled"),
        (TO_RUNNING, ["stop j.1 cancelled by 20"], "stopping cancelled"),
        (TO_STOPPING, ["stop j.1 cancelled by 15"], "stopping cancelled"),
        (TO_PARKED, [], "cancelled cancelled"),
        (TO_GOING, [], "cancelled cancelled"),
        (TO_DONE, [], "succeeded"),
    ],
    ids=["queued", "starting", "running", "stopping", "parked", "going", "done"],
)
def test_a_job_is_cancelled_in_any_state(story, rows, instructions, state):
    story.play(*rows, (10, CANCEL, instructions, state))
    if state.startswith("stopping"):
        story.play((12, finished("saved"), ["remove j.1"], "cancelled cancelled"))
    story.do(removed())
    assert story.job().settled
    assert story.free() == 1_000 * S - story.job().burned_uhs


def test_a_paused_job_waits_for_its_owner_and_not_for_tokens(story):
    story.play(
        *TO_PARKED,
        (10, top_up(5), [], "parked paused"),
        (10, raise_to(300), [], "parked paused"),
        (11, RESUME, [AGAIN], "starting"),
    )


@pytest.mark.parametrize("before", [TO_STOPPING, TO_GOING], ids=["stopping", "going"])
def test_a_resume_while_the_old_lease_is_still_there_counts_once_it_is_gone(story, before):
    rest = [(8, finished("saved"), ["remove j.1"])] if before is TO_STOPPING else []
    story.play(*before, (7, RESUME, []), *rest, (9, removed(), [AGAIN], "starting"))


def test_a_pause_takes_a_resume_back(story):
    story.play(*TO_GOING, (7, RESUME, []), (8, PAUSE, []), (9, removed(), [], "parked paused"))


def test_a_job_that_makes_room_can_be_paused_meanwhile(story):
    story.play(
        *TO_RUNNING,
        (5, NodeDrain(node_id="h1", grace_us=9 * S), ["stop j.1 drained by 14"]),
        (6, PAUSE, [], "stopping paused"),
        (7, finished("saved"), ["remove j.1"], "parked paused"),
    )


def test_a_time_limit_parks_and_a_resume_gives_it_again(story):
    story.play(
        (0, submit(time_limit_us=30 * S), [START]),
        (0, started(), []),
        (29, metered(29), []),
        (30, Tick(), ["stop j.1 time_limit by 40"], "stopping time_limit"),
        (31, finished("saved"), ["remove j.1"], "parked time_limit"),
        (31, removed(), [], "parked time_limit"),
        (32, RESUME, [AGAIN]),
        (33, started("j.2"), []),
        (60, metered(27, "j.2"), []),
        (63, Tick(), ["stop j.2 time_limit by 73"]),
    )


def test_a_cordon_lets_what_runs_stay_and_takes_nothing_new(story):
    story.play(
        (0, submit(), ["start j.1 epoch 1 on h1:1"]),
        (0, started(), []),
        (1, NodeDrain(node_id="h1", grace_us=0, cordon=True), []),
        (2, submit("k"), []),
        (3, NodeDrain(node_id="h1", grace_us=0, undo=True), ["start k.1 epoch 1 on h1:1"]),
    )
    assert story.job().state == "running"


NOW = Cancel(job_id="j", account_id="ada", at_once=True)


def test_a_cancellation_that_saves_nothing_ends_at_once(story):
    story.play(
        *TO_RUNNING,
        (5, NOW, ["remove j.1"], "cancelled cancelled"),
        (5, finished("failed", error="late"), [], "cancelled cancelled"),
        (6, removed(), [], "cancelled cancelled"),
    )
    assert story.job().settled


def test_a_cancellation_at_once_ends_what_is_stopping_too(story):
    story.play(*TO_STOPPING, (6, NOW, ["remove j.1"], "cancelled cancelled"))
    assert isinstance(story.do(NOW).outcome, Refusal)


def test_a_job_that_has_ended_tells_where_each_attempt_ran_and_its_exit_code(story):
    story.must(node("a1", "A100", 3))
    story.must(submit(types=("H100", "A100"), devices=4, devices_least=1))
    story.do(started())
    story.play((3, NodeDrain(node_id="h1", grace_us=9 * S), ["stop j.1 drained by 12"]))
    story.do(finished("saved", exit_code=75))
    story.do(removed())
    story.do(started("j.2"))
    story.play((9, finished("failed", "j.2", exit_code=3), ["remove j.2"]))
    story.do(removed("j.2"))
    seen = story.gate.ask(JobOf(job_id="j"), story.now_us)
    assert (seen.state, seen.settled, seen.exit_code) == ("failed", True, 3)
    assert seen.nodes == ("a1",)
    assert seen.devices == seen.ran[-1].devices, "what it ran on, not what it asked for at most"
    assert [(stay.attempt, stay.nodes, stay.accelerator, stay.ended) for stay in seen.ran] == [
        (1, ("h1 × 4",), "H100", "drained"), (2, (f"a1 × {seen.devices}",), "A100", "failed"),
    ]  # fmt: skip
    assert all(stay.started_at_us < stay.ended_at_us for stay in seen.ran)


def test_a_job_with_very_many_attempts_keeps_its_first_and_its_newest(story):
    story.must(submit(max_retries=1_000))
    for at in range(1, 60):
        story.do(started(f"j.{at}"))
        story.play((at, finished("failed", f"j.{at}", exit_code=1), [f"remove j.{at}"]))
        story.do(removed(f"j.{at}"))
    kept = [stay.attempt for stay in story.gate.ask(JobOf(job_id="j"), story.now_us).ran]
    assert (kept[0], kept[-1], len(kept)) == (1, 60, 32)
