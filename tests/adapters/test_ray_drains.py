"""Notices of Ray's that a node will go are drains to the gate, each told once, with the time that is left."""

import msgspec
import pytest

from fabric.adapters.ray_drains import NO_BOUND_US, Drains
from tests.adapters.leases import NODE

S = 1_000_000
T0 = 1_700_000_000 * S
ANEW = msgspec.structs.replace(NODE, ray_id="ray-h1-anew")


@pytest.fixture
def look():
    """What the gate is told at each look."""
    drains = Drains()

    def look(deadlines, *, at_s=0, node=NODE):
        there = {} if node is None else {node.node_id: node}
        return [
            "undo" if told.undo else told.grace_us for told in drains.changes(there, deadlines, now_us=T0 + at_s * S)
        ]

    return look


def test_a_notice_is_told_once_with_what_is_left_to_leave_in_time(look):
    notice = {"ray-h1": T0 + 30 * S}
    assert [look({}), look(notice), look(notice, at_s=5)] == [[], [29 * S], []]


@pytest.mark.parametrize(("left_us", "grace_us"), [(2 * S, 1.5 * S), (8, 6), (0, 0), (-5 * S, 0)])
def test_a_short_notice_is_given_whole_and_a_late_one_is_none(look, left_us, grace_us):
    assert look({"ray-h1": T0 + left_us}) == [grace_us]


def test_a_notice_without_deadline_leaves_every_job_its_own_grace(look):
    assert look({"ray-h1": 0}) == [NO_BOUND_US]


def test_a_deadline_that_moves_is_told_again(look):
    assert look({"ray-h1": T0 + 30 * S}) == [29 * S]
    assert look({"ray-h1": T0 + 11 * S}, at_s=5) == [5 * S]


def test_a_notice_that_is_taken_back_is_undone_and_a_new_node_is_not_drained(look):
    notice = {"ray-h1": T0 + 30 * S}
    assert [look(notice), look({}), look({})] == [[29 * S], ["undo"], []]
    assert [look(notice), look(notice, node=ANEW)] == [[29 * S], []]


def test_a_node_that_has_gone_and_comes_back_is_told_of_anew(look):
    notice = {"ray-h1": T0 + 30 * S}
    assert [look(notice), look({}, node=None), look({}), look(notice)] == [[29 * S], [], [], [29 * S]]


def test_a_notice_for_a_node_that_is_not_sold_is_nobodys_affair(look):
    assert look({"ray-other": T0 + 30 * S}) == []
