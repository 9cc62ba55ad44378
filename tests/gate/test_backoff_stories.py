"""Stories of jobs whose attempts come to nothing: they are tried again ever later, and none fails for an outage."""

import itertools

import pytest

from fabric.gate import Gate
from fabric.gate.events import Cancel, NodeDown, NodeDrain, Pause, Resume, Tick
from tests.gate.conftest import finished, node, removed, started, submit, top_up
from tests.gate.world import T0, S

START = "start j.1 epoch 1 on h1:1"
RESUME = Resume(job_id="j", account_id="ada")
PAUSE, CANCEL = Pause(job_id="j", account_id="ada"), Cancel(job_id="j", account_id="ada")


def test_a_platform_that_can_start_nothing_for_a_while_costs_no_job_its_life(story):
    """Nothing of the job has run: however often it is tried, it fails for nothing. Tries become few, and never end it soon."""
    story.do(submit())
    starts = tried_until(story, 3_500)
    assert story.job().state.value in ("queued", "starting")
    assert [round(after - before) for before, after in itertools.pairwise(starts)][:7] == [1, 3, 9, 33, 121, 121, 121]
    if story.job().state.value == "queued":
        story.at(4_000).do(Tick())
    story.play((4_000, started(story.job().lease_id), [], "running"))


def test_a_job_that_the_platform_cannot_start_for_an_hour_is_parked_and_holds_nothing(story):
    story.do(submit())
    tried_until(story, 3_900)
    assert (story.job().state.value, story.job().reason, story.job().held_uhs) == ("parked", "lost_too_often", 0)
    assert "could not be started" in story.job().error
    assert "fabric resume" in story.job().error
    assert len(story.do(RESUME).instructions) == 1
    lease = story.job().lease_id
    story.do(finished("lost", lease))
    assert len(story.do(removed(lease)).instructions) == 1, "its owner has given it another hour"


def tried_until(story, end_s):
    """Each start is lost within a second, as on a node that is gone and isn't known to be. When each began."""
    begun, now_s = [], 0
    while now_s < end_s and story.job().state.value not in ("parked", "failed"):
        if (lease := story.job().lease_id) is not None:
            begun.append(now_s)
            now_s += 1
            story.at(now_s).do(finished("lost", lease, error="the lease could not be built"))
            story.do(removed(lease))
        elif story.job().state.value == "queued":
            now_s = (story.gate.next_due_us() - T0) / S
            story.at(now_s).do(Tick())
    return begun


def test_a_start_that_goes_well_ends_the_row_of_those_that_were_lost(story):
    story.do(submit(limit=500 * S))
    for lease in ("j.1", "j.2"):
        story.do(finished("lost", lease))
        story.do(removed(lease))
    assert (story.job().unstarted, story.job().losses) == (2, 0)
    story.at(2).do(Tick())
    story.do(started("j.3"))
    assert (story.job().unstarted, story.job().losses) == (0, 0)


def test_the_first_loss_costs_no_wait_and_a_drained_or_evicted_attempt_none_ever(story):
    story.must(node("h2"))
    story.play(
        (0, submit(limit=500 * S), [START]),
        (0, started(), []),
        (1, NodeDown(node_id="h1"), ["remove j.1"]),
        (1, removed(), ["start j.2 epoch 2 on h2:1"]),
        (1, started("j.2"), []),
        (2, NodeDrain(node_id="h2", grace_us=5 * S), ["stop j.2 drained by 7"]),
        (3, finished("lost", "j.2"), ["remove j.2"]),
        (3, removed("j.2"), []),
        (3, node("h3"), ["start j.3 epoch 3 on h3:1"]),
    )


def test_an_attempt_that_ran_long_begins_a_new_row(story):
    """A node that is lost now and then is nobody's fault: who saves nothing for hours is not parked for the fifth of them."""
    story.must(top_up(20_000))
    story.do(submit(limit=20_000 * S))
    for number in range(1, 9):
        at = number * 1_000
        story.at(at).do(started(f"j.{number}"))
        story.at(at + 600).do(finished("lost", f"j.{number}"))
        assert story.do(removed(f"j.{number}")).instructions, "tried again at once"


def set_back(story, *, at=0):
    """After two losses: it waits from second 2 to second 4."""
    story.at(at).do(submit())
    for number in (1, 2):
        story.at(at + number).do(started(f"j.{number}"))
        story.do(finished("lost", f"j.{number}"))
        story.do(removed(f"j.{number}"))
    assert (story.job().state.value, story.job().waits_until_us) == ("queued", T0 + (at + 4) * S)


def test_while_it_waits_its_devices_are_others(story):
    story.must(top_up(1_000, "bob"))
    set_back(story)
    story.play((3, submit("other", "bob", devices=4), ["start other.1 epoch 1 on h1:4"]), (4, Tick(), []), job="other")
    assert story.job().state.value == "queued"


def test_its_owner_says_that_it_is_to_go_on_now(story):
    set_back(story)
    story.play((3, RESUME, ["start j.3 epoch 3 on h1:1"], "starting"), (4, Tick(), [], "starting"))


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize(("word", "state"), [(PAUSE, "parked"), (CANCEL, "cancelled"), (None, "starting")])
def test_whatever_becomes_of_it_meanwhile_it_is_tried_again_only_where_it_still_waits(story, restored, word, state):
    set_back(story)
    if restored:
        story.gate = Gate.restore(story.gate.snapshot())
    if word is not None:
        story.at(3).must(word)
        assert story.gate.next_due_us() is None or story.gate.next_due_us() > T0 + 4 * S
    story.at(4).do(Tick())
    assert story.job().state.value == state
    assert (story.job().held_uhs > 0) == (state == "starting")


def test_tokens_that_expire_meanwhile_park_it(story):
    set_back(story, at=30 * 86_400 - 3)
    story.at(30 * 86_400).do(Tick())
    assert (story.job().state.value, story.job().reason) == ("parked", "tokens_expired")
    story.at(30 * 86_400 + 1).do(Tick())
    assert story.job().state.value == "parked"
    (start,) = story.do(top_up(100)).instructions
    assert start.lease.lease_id == "j.3", "and tokens that come let it go on at once"
