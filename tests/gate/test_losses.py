"""Stories of attempts that are lost, or interrupted, over and over: who pays, and when it ends."""

from fabric.gate import Gate
from fabric.gate.events import Resume
from tests.gate.conftest import finished, metered, removed, saved, started, submit
from tests.gate.world import S

START = "start j.1 epoch 1 on h1:1"
RESUME = Resume(job_id="j", account_id="ada")


def losing(attempts, *, outcome="lost", first=1, seconds=10, save_at=None):
    """Attempts that start, burn, and come to nothing."""
    at = first * 100
    for attempt in range(first, first + attempts):
        lease, then = f"j.{attempt}", [f"start j.{attempt + 1} epoch {attempt + 1} on h1:1"]
        yield (at, started(lease), [], "running")
        if save_at is not None:
            yield (at + save_at, metered(save_at, lease), [])
            yield (at + save_at, saved(lease), [])
        yield (at + seconds, finished(outcome, lease, error="node h1 was lost"), [f"remove {lease}"])
        yield (at + seconds, removed(lease), then)
        at += 100


def test_what_is_lost_is_given_back_five_times_in_a_row_and_then_no_more(story):
    """Counted over starts: whoever could bring losses about would otherwise compute for nothing, for ever."""
    *rows, last = losing(5)
    story.play((0, submit(limit=500 * S), [START]), *rows, (*last[:2], [], "parked lost_too_often"))
    assert story.job().burned_uhs == 0
    assert "5 times in a row" in story.job().error
    story.play(
        (600, RESUME, ["start j.6 epoch 6 on h1:1"], "starting"),
        (600, started("j.6"), [], "running"),
        (610, finished("lost", "j.6"), ["remove j.6"], "parked lost_too_often"),
        (610, removed("j.6"), []),
    )
    assert story.job().burned_uhs == 10 * S, "the sixth is not given back"


def test_a_restart_of_the_gate_forgets_no_loss(story):
    story.play((0, submit(limit=500 * S), [START]), *list(losing(4)))
    story.gate = Gate.restore(story.gate.snapshot())
    *rows, last = losing(1, first=5)
    story.play(*rows, (*last[:2], [], "parked lost_too_often"))


def test_a_job_that_pays_for_more_than_it_was_given_back_may_lose_again(story):
    story.play((0, submit(limit=900 * S), [START]), *losing(4), *losing(1, first=5, seconds=60, save_at=50))
    assert story.job().losses == 1
    assert story.job().burned_uhs == 50 * S, "what was saved is paid for, and the rest given back"


def test_a_save_that_cost_nothing_is_no_new_beginning(story):
    *rows, last = losing(5, save_at=1)
    story.play((0, submit(limit=500 * S), [START]), *rows, (*last[:2], [], "parked lost_too_often"))


def test_an_interruption_that_only_the_job_saw_is_paid_for_and_ends(story):
    """Its own process says that storage failed: it is tried again, it pays, and nobody learns anything of the pool."""
    *rows, last = losing(5, outcome="interrupted")
    story.play((0, submit(limit=500 * S), [START]), *rows, (*last[:2], [], "parked lost_too_often"))
    assert story.job().burned_uhs == 50 * S
    assert story.gate.state.hazards["spot/H100"].lost == 0
    assert story.job().failures == 0
