"""How the ends of ranks make one."""

import pytest

from fabric.gate.events import LeaseOutcome
from fabric.worker.outcomes import SPOILED_S, STRAGGLERS_S, SURVIVORS_S, earliest, patience_s, together
from fabric.worker.stage import JobEnd
from training.gang.session import SILENT_S

DONE = JobEnd(outcome=LeaseOutcome.SUCCEEDED, result_ref="r", step=9)
SAVED = JobEnd(outcome=LeaseOutcome.SAVED, step=8)
RAISED = JobEnd(outcome=LeaseOutcome.FAILED, error="ValueError: no", result_ref="e")
DIED = JobEnd(outcome=LeaseOutcome.FAILED, error="worker_died: its process was ended by SIGKILL")
NO_ROOM = JobEnd(outcome=LeaseOutcome.NO_ROOM, error="the archive takes no 5 bytes more")
LOST = JobEnd(outcome=LeaseOutcome.LOST, error="node h1 is gone")


@pytest.mark.parametrize(
    ("ends", "outcome", "again"),
    [
        ((DONE, DONE), LeaseOutcome.SUCCEEDED, False),
        ((SAVED, SAVED), LeaseOutcome.SAVED, False),
        ((DONE, RAISED), LeaseOutcome.FAILED, False),
        ((DIED, SAVED), LeaseOutcome.SAVED, True),
        ((SAVED, DIED, DIED), LeaseOutcome.SAVED, True),
        ((RAISED, SAVED), LeaseOutcome.FAILED, False),
        ((RAISED, DIED, SAVED), LeaseOutcome.FAILED, False),
        ((DIED, DONE), LeaseOutcome.FAILED, False),
        ((LOST, SAVED), LeaseOutcome.LOST, False),
        ((NO_ROOM, SAVED), LeaseOutcome.NO_ROOM, False),
        ((DIED, RAISED, NO_ROOM), LeaseOutcome.NO_ROOM, False),
        ((NO_ROOM, LOST), LeaseOutcome.LOST, False),
    ],
)
def test_a_gang_ends_as_its_worst_rank_unless_others_outlived_the_dead_and_saved(ends, outcome, again):
    end = together(ends, saved=True)
    assert (end.outcome, end.again) == (outcome, again)
    assert end.step == max(each.step for each in ends)


def test_why_a_rank_died_is_told_where_the_others_saved():
    assert "SIGKILL" in together((SAVED, DIED), saved=True).error


def test_why_a_gang_ended_that_nobody_asked_to_is_told_by_whichever_rank_knows():
    knows = JobEnd(outcome=LeaseOutcome.SAVED, again=True, error="peer_lost: rank 1 of 2 is silent")
    assert together((SAVED, knows), saved=True).error == together((knows, SAVED), saved=True).error == knows.error
    assert together((SAVED, DIED, knows), saved=True).error == DIED.error


def test_only_an_end_that_the_others_can_not_outlive_bounds_their_time():
    own_will = JobEnd(outcome=LeaseOutcome.SAVED, again=True)
    assert [patience_s(end) for end in (DONE, SAVED, own_will, DIED)] == [None, None, STRAGGLERS_S, SURVIVORS_S]
    assert [patience_s(end) for end in (LOST, RAISED, NO_ROOM)] == [SURVIVORS_S, SPOILED_S, SPOILED_S]
    assert earliest(None, [DONE, SAVED], now=5.0) is None
    assert earliest(7.0, [own_will, DIED], now=5.0) == 7.0
    assert earliest(None, [own_will, DIED], now=5.0) == 5.0 + SURVIVORS_S


def test_the_result_is_rank_zeros():
    assert together((DONE, JobEnd(outcome=LeaseOutcome.SUCCEEDED)), saved=False).result_ref == "r"
    assert together((SAVED, SAVED), saved=True).result_ref == ""


def test_a_gang_that_saved_nothing_new_before_a_rank_died_has_failed():
    assert together((DIED, SAVED), saved=False).outcome is LeaseOutcome.FAILED


def test_who_outlives_a_rank_has_time_to_save_after_it_has_noticed_by_silence():
    assert SURVIVORS_S >= 2 * SILENT_S
