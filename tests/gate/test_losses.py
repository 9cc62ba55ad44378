"""Stories of attempts that are lost, or interrupted, over and over: who pays, and when it ends."""

from math import isqrt

import pytest

from fabric.gate import Gate, cadence
from fabric.gate.events import Cancel, LeaseSaved, NodeDrain, Resume, Tick
from tests.gate.conftest import finished, metered, removed, saved, started, submit, top_up
from tests.gate.world import S
from training.state.cadence import snapshot_interval_s

START = "start j.1 epoch 1 on h1:1"
RESUME = Resume(job_id="j", account_id="ada")
WAITS_S = (0, 2, 8, 32)
"""Between an attempt that came to nothing and the next one, by how many in a row did."""


def losing(attempts, *, outcome="lost", first=1, seconds=10, save_at=None, row=None):
    """Attempts that start, burn, and come to nothing, of which the first is the `row`-th in a row (None = as its number says)."""
    at, row = first * 100, (row or first) - 1
    for attempt in range(first, first + attempts):
        lease, then = f"j.{attempt}", [f"start j.{attempt + 1} epoch {attempt + 1} on h1:1"]
        yield (at, started(lease), [], "running")
        if save_at is not None:
            yield (at + save_at, metered(save_at, lease), [])
            yield (at + save_at, saved(lease), [])
        yield (at + seconds, finished(outcome, lease, error="node h1 was lost"), [f"remove {lease}"])
        wait_s, row = WAITS_S[row] if row < len(WAITS_S) else 0, row + 1
        yield (at + seconds, removed(lease), [] if wait_s else then)
        if wait_s:
            yield (at + seconds + wait_s - 0.001, Tick(), [])
            yield (at + seconds + wait_s, Tick(), then, "starting")
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
    story.play((0, submit(limit=900 * S), [START]), *losing(4), *losing(1, first=5, seconds=60, save_at=50, row=1))
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


def lost_once(story, *, at, jobs, seconds=10):
    """Jobs whose node is lost at the same time; what each of them has paid at the end."""
    for job in jobs:
        story.at(at).must(submit(job, limit=100 * S))
    for job in jobs:
        story.at(at).do(started(f"{job}.1"))
    for job in jobs:
        story.at(at + seconds).do(finished("lost", f"{job}.1", error="node h1 was lost"))
        story.do(removed(f"{job}.1"))
    for job in jobs:
        story.do(Cancel(job_id=job, account_id="ada"))
        story.do(removed(f"{job}.2"))
    return [story.job(job).burned_uhs for job in jobs]


def test_new_jobs_are_no_new_losses_to_be_given_back(story):
    """A job can end its own node: whoever does it with one job after the other would compute for nothing, for ever."""
    paid = [lost_once(story, at=1_000 * at, jobs=[f"j{at}"]) for at in range(8)]
    assert paid == [[0]] * 5 + [[10 * S]] * 3
    story.gate = Gate.restore(story.gate.snapshot())
    assert lost_once(story, at=9_000, jobs=["late"]) == [10 * S]
    assert story.free() == 1_000 * S - 40 * S


def test_what_one_outage_takes_is_one_loss_however_many_jobs_it_takes(story):
    for at in range(4):
        lost_once(story, at=1_000 * at, jobs=[f"j{at}"])
    assert lost_once(story, at=5_000, jobs=["a", "b", "c", "d"]) == [0] * 4
    assert lost_once(story, at=6_000, jobs=["e"]) == [10 * S]


def test_who_has_paid_for_as_much_as_was_given_back_is_given_back_again(story):
    for at in range(5):
        lost_once(story, at=1_000 * at, jobs=[f"j{at}"])
    story.at(6_000).must(submit("works", limit=100 * S))
    story.do(started("works.1"))
    story.at(6_060).do(finished("succeeded", "works.1"))
    story.do(removed("works.1"))
    assert lost_once(story, at=7_000, jobs=["again"]) == [0]


def test_what_the_platform_itself_took_away_is_given_back_however_often(story):
    """Nobody brings about an eviction, or a drain, of his own job."""
    for at in range(8):
        job, second = f"j{at}", 1_000 * at
        story.at(second).must(submit(job, limit=100 * S))
        story.do(started(f"{job}.1"))
        story.at(second + 10).do(NodeDrain(node_id="h1", grace_us=5 * S))
        story.do(finished("lost", f"{job}.1"))
        story.do(removed(f"{job}.1"))
        story.do(Cancel(job_id=job, account_id="ada"))
        story.do(NodeDrain(node_id="h1", grace_us=0, undo=True))
        assert story.job(job).burned_uhs == 0


# -- how much of what was lost -----------------------------------------------------------------------------------------

HOUR = 3_600
BEFORE_LOSS_S = 4 * HOUR
"""What is told of a pool of which nothing is known."""


def refunded(story, *, hours, save_at=None, save_s=2):
    """What a job gets back that was lost after so long, of which it had saved once."""
    lease = "j.1"
    story.must(top_up(100_000))
    rows = [(0, submit(limit=100_000 * S), [START]), (0, started(lease), [])]
    if save_at is not None:
        rows += [(save_at, metered(save_at, lease), []), (save_at, LeaseSaved(lease_id=lease, write_us=save_s * S), [])]
    story.play(*rows)
    end = hours * HOUR
    story.at(end).do(metered(end - (save_at or 0), lease, seq=2))
    before = story.job().burned_uhs
    story.do(finished("lost", lease, error="node h1 was lost"))
    story.do(removed(lease))
    return before - story.job().burned_uhs


def test_a_job_that_saves_rarely_by_choice_gets_no_more_back_than_one_that_saves_as_it_should(story):
    """The issue's exploit: the rarer the saves, the larger the refund."""
    should_s = isqrt(2 * 2 * S * BEFORE_LOSS_S * S) // S
    assert should_s == 240
    assert refunded(story, hours=3, save_at=60) in range((2 * should_s - 1) * S, (2 * should_s + 1) * S)
    told = [moment.lost_uhs for moment in story.job().timeline]
    assert max(filter(None, told)) > 2 * HOUR * S, "it is told what it has paid for nothing"


def test_a_job_that_saves_as_it_should_gets_all_back(story):
    assert refunded(story, hours=1, save_at=HOUR - 300) == 300 * S


def test_a_job_that_never_saved_gets_back_what_it_should_have_saved_once_in(story):
    assert refunded(story, hours=7) == 7 * HOUR * S


def test_one_that_never_saves_has_a_bound_too(story):
    assert refunded(story, hours=24) == 2 * BEFORE_LOSS_S * S


@pytest.mark.parametrize("took_s", [0.001, 0.5, 2, 60, 900, 100_000])
@pytest.mark.parametrize("loss_every_s", [1, 60, 4 * HOUR, 90 * 86_400])
def test_what_is_reckoned_for_it_is_what_a_session_keeps_to(took_s, loss_every_s):
    ours = cadence.interval_us((int(took_s * S),), loss_every_us=loss_every_s * S)
    kept = snapshot_interval_s(took_s, loss_every_s=loss_every_s) * S
    assert ours == pytest.approx(max(kept, 60 * S), rel=1e-6, abs=2)
