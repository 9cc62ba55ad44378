"""Stories of attempts that end though nobody asked them to: the job goes on, with a bound and a reason, and is never paused."""

import itertools
import re

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.attempts import LOSSES_IN_A_ROW
from fabric.gate.events import LeaseSaved, NodeDrain, Pause, Resume
from fabric.gate.instructions import Accepted, StartLease
from fabric.gate.questions import JobsOf
from fabric.gate.timeline import told
from tests.gate.conftest import finished, removed, started, submit, top_up
from tests.gate.world import S

SILENT = "peer_lost: rank 1 of 2 is silent"
PAUSE = Pause(job_id="j", account_id="ada")
DRAIN = NodeDrain(node_id="h1", grace_us=30 * S)
OUTCOMES = ("succeeded", "failed", "saved", "lost", "interrupted", "no_room")
WISHES = ("nobody", "pause", "drain", "drain, pause", "pause, resume")


def saved_at(step, lease="j.1"):
    return LeaseSaved(lease_id=lease, step=step, write_us=1_000, bytes=64)


def attempt(story, number, *, step=0, error=SILENT, **more):
    """One that ends saved, as a session does that has lost a peer."""
    lease = f"j.{number}"
    story.do(started(lease))
    if step:
        story.do(saved_at(step, lease))
    story.do(finished("saved", lease, error=error, **more))
    return story.do(removed(lease)).instructions


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("step", [0, 5], ids=["nothing new saved", "saved"])
def test_a_gang_that_gave_up_a_silent_rank_is_queued_anew(story, again, step):
    story.do(submit())
    (start,) = attempt(story, 1, step=step, again=again)
    assert isinstance(start, StartLease)
    assert story.job().state.value == "starting"
    assert any(moment.why == SILENT for moment in story.job().timeline)


def test_an_end_that_nobody_asked_for_says_why_while_the_job_waits(story):
    story.do(submit())
    story.do(started())
    story.play((0, finished("saved", error=f"Traceback\n{SILENT}"), ["remove j.1"], f"queued {SILENT}"))


def test_its_story_tells_why_an_attempt_ended_and_that_nothing_is_lost(story):
    """Whatever it says: a line that begins with no code of ours is no word of the story."""
    story.do(submit())
    attempt(story, 1, step=5)
    attempt(story, 2, step=6, error="")
    attempt(story, 3, step=7, error="Traceback\nValueError: rank 1")
    line = told(story.job().timeline, submitted_at_us=story.now_us, now_us=story.now_us)
    assert re.findall(r"([A-Z ]+) at step (\d), 0 steps lost", line) == [
        (" PEER LOST", "5"), (" ASKED", "6"), (" ASKED", "7"),
    ]  # fmt: skip


def test_one_that_gives_no_reason_is_said_to_have_asked_for_it(story):
    story.do(submit())
    story.play((0, started(), []), (0, finished("saved"), ["remove j.1"], "queued asked"))


@pytest.mark.parametrize("again", [False, True])
def test_a_gang_that_stalls_for_ever_is_not_tried_for_ever(story, again):
    """A start of the gate forgets none of the tries."""
    story.do(submit(limit=500 * S))
    tries = 0
    while story.job().state.value == "starting":
        tries += 1
        assert tries <= LOSSES_IN_A_ROW + 1
        attempt(story, tries, step=5, again=again)
        story.gate = Gate.restore(story.gate.snapshot())
    assert (story.job().state.value, story.job().reason) == ("parked", "stopped_too_often")
    assert "times in a row at step 5" in story.job().error
    assert SILENT in story.job().error


@pytest.mark.parametrize("before", ["nothing", "saved, and lost", "saved, and asked"])
def test_one_that_saves_nothing_and_asks_to_be_queued_anew_is_tried_once_more(story, before):
    """It says that it has saved and hasn't: whatever it saved in an earlier attempt, and whether it has a step to tell."""
    story.do(submit(limit=900 * S))
    number = 1
    if before != "nothing":
        attempt(story, 1, step=5) if before == "saved, and asked" else lost_at(story, 5)
        number = 2
    assert attempt(story, number, error="")
    assert story.job().state.value == "starting"
    story.gate = Gate.restore(story.gate.snapshot())
    assert attempt(story, number + 1, error="") == ()
    assert (story.job().state.value, story.job().reason) == ("parked", "stopped_too_often")
    assert "saved nothing" in story.job().error
    assert "fabric resume" in story.job().error


def lost_at(story, step):
    story.do(started("j.1"))
    story.do(saved_at(step, "j.1"))
    story.do(finished("lost", "j.1"))
    story.do(removed("j.1"))


def test_one_that_stopped_too_often_goes_on_from_what_it_saved_when_its_owner_says_so(story):
    """It holds nothing meanwhile, and tokens that come don't start it. Once it gets on, all is forgotten."""
    story.do(submit(limit=900 * S))
    attempt(story, 1, step=5)
    attempt(story, 2)
    attempt(story, 3)
    assert (story.job().state.value, story.job().held_uhs) == ("parked", 0)
    assert story.do(top_up(500)).instructions == ()
    (start,) = story.do(Resume(job_id="j", account_id="ada")).instructions
    assert start.lease.epoch == 4
    assert attempt(story, 4, step=6), "it got on"
    assert attempt(story, 5)
    assert attempt(story, 6) == ()


@pytest.mark.parametrize("retries", [0, 3])
def test_no_attempt_that_says_it_saved_makes_the_job_a_failure(story, retries):
    story.do(submit(limit=900 * S, max_retries=retries))
    for number in itertools.count(1):
        if story.job().state.value != "starting":
            break
        attempt(story, number, step=5)
    assert (story.job().state.value, story.job().failures) == ("parked", 0)
    assert isinstance(story.do(Resume(job_id="j", account_id="ada")).outcome, Accepted)


def test_a_gang_that_stalls_now_and_then_gets_to_its_end(story):
    story.do(submit(limit=900 * S))
    for number in range(1, 4 * LOSSES_IN_A_ROW):
        assert attempt(story, number, step=number)
    assert story.job().state.value == "starting"


@pytest.mark.parametrize(
    ("outcome", "again", "step", "wish"),
    list(itertools.product(OUTCOMES, (False, True), (0, 5), WISHES)),
)
def test_paused_is_only_what_somebody_paused(story, outcome, again, step, wish):
    """However an attempt ends, and whatever was asked of it before."""
    story.do(submit())
    story.do(started())
    wishes = {"pause": PAUSE, "drain": DRAIN, "resume": Resume(job_id="j", account_id="ada")}
    for word in wish.split(", "):
        if word in wishes:
            story.do(wishes[word])
    if step:
        story.do(saved_at(step))
    story.do(finished(outcome, again=again, error="why"))
    story.do(removed())
    job = story.job()
    if "pause" not in wish:
        assert job.reason != "paused"
        assert not (job.state.value == "parked" and not job.reason)
    if outcome == "saved" and "pause" not in wish:
        assert job.state.value in ("queued", "starting")


@pytest.mark.parametrize("outcome", ["saved", "failed", "interrupted"])
@pytest.mark.parametrize("line", ["a" * 8_000, "peer_lost: " + "x " * 4_000])
def test_what_attempts_say_of_their_ends_takes_little_room_in_a_jobs_story(story, outcome, line):
    """It is kept for each of them, and told with the job in every list."""
    story.do(submit(limit=900 * S, max_retries=100))
    for number in range(1, 100):
        if story.job().state.value != "starting":
            break
        lease = f"j.{number}"
        story.do(started(lease))
        story.do(saved_at(number, lease))
        story.do(finished(outcome, lease, error=f"Traceback\n{line}"))
        story.do(removed(lease))
        story.do(Resume(job_id="j", account_id="ada"))  # one that came to nothing again needn't wait
    job, (view,) = story.job(), story.gate.ask(JobsOf(), story.now_us)
    assert number > 4
    assert len(msgspec.json.encode(job.timeline)) < 20_000
    assert len(view.timeline) < 5_000
    assert len(view.reason) <= 300
