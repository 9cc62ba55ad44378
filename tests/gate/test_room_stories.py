"""A job that keeps more than there is room for is not over: it waits for its owner, with what it saved before."""

import pytest

from fabric.gate.events import Cancel, LeaseTooLarge, Pause, Resume, Tick
from fabric.gate.instructions import Accepted
from tests.gate.conftest import Story, finished, metered, node, removed, saved, started, submit, top_up
from tests.gate.world import S

WHY = "archive_full: the account keeps 10 bytes, and may keep 10: delete some"
START, AGAIN = "start j.1 epoch 1 on h1:1", "start j.2 epoch 2 on h1:1"


@pytest.fixture
def story():
    story = Story("ada")
    story.must(top_up(900))
    story.must(node())
    return story


def test_what_can_not_be_kept_parks_the_job_and_it_resumes_when_its_owner_says_so(story):
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (30, metered(30), []),
        (30, saved(), []),
        (60, metered(30, seq=2), []),
        (60, finished("no_room", error=WHY), ["remove j.1"], "parked no_room"),
        (61, removed(), [], "parked no_room"),
        (90, Tick(), [], "parked no_room"),
    )
    assert story.job().error == WHY
    assert story.job().burned_uhs == 60 * S, "the platform kept its word, so nothing is given back"
    assert story.free() == 840 * S
    assert story.job().failures == 0
    story.play((100, Resume(job_id="j", account_id="ada"), [AGAIN], "starting"))


def test_it_parks_after_an_eviction_too_for_it_would_only_end_so_again(story):
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (10, LeaseTooLarge(lease_id="j.1", error="its folder has 9 GiB of the node's 10"), ["stop j.1 no_room by 20"]),
        (10, LeaseTooLarge(lease_id="j.1"), [], "stopping no_room"),
        (12, saved(), []),
        (12, finished("saved"), ["remove j.1"], "parked no_room"),
        (13, removed(), [], "parked no_room"),
    )
    assert "9 GiB" in story.job().error
    assert story.job().saved_at_us is not None


def test_work_that_a_job_too_large_did_not_save_in_its_grace_is_not_given_back(story):
    story.play(
        (0, submit(), [START]),
        (0, started(), []),
        (10, LeaseTooLarge(lease_id="j.1"), ["stop j.1 no_room by 20"]),
        (20, Tick(), ["remove j.1"], "parked no_room"),
        (21, removed(), [], "parked no_room"),
    )
    assert story.job().burned_uhs == 20 * S


@pytest.mark.parametrize(
    ("asked", "becomes"),
    [
        (Cancel(job_id="j", account_id="ada"), "cancelled cancelled"),
        (Pause(job_id="j", account_id="ada"), "parked paused"),
    ],
    ids=["cancelled", "paused"],
)
def test_what_its_owner_wanted_comes_before_want_of_room(story, asked, becomes):
    story.play((0, submit(), [START]), (0, started(), []))
    assert isinstance(story.at(5).do(asked).outcome, Accepted)
    story.play((6, finished("no_room", error=WHY), ["remove j.1"], becomes), (7, removed(), [], becomes))


def test_a_job_that_has_not_started_is_parked_at_once(story):
    story.play(
        (0, submit(), [START]),
        (1, LeaseTooLarge(lease_id="j.1"), ["remove j.1"], "parked no_room"),
        (2, removed(), [], "parked no_room"),
        (3, LeaseTooLarge(lease_id="j.1"), [], "parked no_room"),
    )
