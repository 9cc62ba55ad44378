"""Notices of Ray's that a node will go are drains to the gate, each told once, with the time that is left; and until they are
taken back nothing opens the node again.
"""

import asyncio

import msgspec
import pytest
import ray

from fabric.cluster.offering import Offering
from fabric.gate.events import NodeDown, NodeDrain, NodeUp
from fabric.inventory import drains
from fabric.inventory.drains import NO_BOUND_US, Notices
from fabric.node.agent import Sight
from tests.worker.leases import NODE

S = 1_000_000
T0 = 1_700_000_000 * S
ANEW = msgspec.structs.replace(NODE, ray_id="ray-h1-anew")
NOTICE = {"ray-h1": T0 + 30 * S}
DRAIN = 29 * S
ALL, NONE = Sight(readable=("0", "1", "2", "3")), Sight(unreadable=("0", "1", "2", "3"))
THREE = Sight(readable=("0", "1", "2"), unreadable=("3",))


def told(change):
    match change:
        case NodeUp():
            return f"up {change.devices}"
        case NodeDown():
            return "down"
        case NodeDrain(cordon=True):
            return "cordon"
        case NodeDrain(undo=True):
            return "undo"
        case NodeDrain():
            return change.grace_us


@pytest.fixture
def see():
    """What the gate is told at each look: at what Ray says of drains, and at what the node's agent can read."""
    offering = Offering()

    def see(deadlines, sight=ALL, *, at_s=0, node=NODE, busy=False):
        there = {} if node is None else {node.node_id: node}
        notices = None if deadlines is None else Notices(deadlines, T0 + at_s * S)
        sights = {NODE.address: sight}
        return [told(each) for each in offering.changes(there, sights, busy={"h1"} if busy else set(), notices=notices)]

    return see


@pytest.fixture
def look(see):
    """What the gate is told of drains at each look at a node that it knows."""
    see({})

    def look(deadlines, **more):
        return [each for each in see(deadlines, **more) if each not in {"up 4", "down"}]

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


def test_what_ray_does_not_say_leaves_every_drain_as_it_is(look):
    assert [look(NOTICE), look(None), look(None), look(NOTICE)] == [[DRAIN], [], [], []]


@pytest.mark.parametrize(
    "error", [ray.exceptions.RaySystemError("away"), AttributeError("no state"), RuntimeError("away")]
)
def test_a_ray_that_does_not_answer_says_nothing(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(type(drains.state), "get_draining_nodes", fail)
    assert asyncio.run(drains.noticed()) is None


def test_a_node_that_will_go_is_not_offered_and_is_when_that_is_taken_back(see):
    """The gate may know it from before a restart, so it is told of the drain all the same."""
    assert [see(NOTICE), see(NOTICE), see(None), see({}), see({})] == [[DRAIN], [], [], ["up 4"], []]


def test_a_node_whose_agent_was_silent_when_it_was_drained_is_not_offered(see):
    assert [see(NOTICE, None), see(NOTICE), see(NOTICE)] == [[DRAIN], [], []]


def test_a_counter_that_comes_back_does_not_open_a_node_that_will_go(see):
    assert [see({}), see({}, NONE, busy=True), see(NOTICE, NONE, busy=True)] == [["up 4"], ["cordon"], [DRAIN]]
    assert [see(NOTICE, busy=True), see(NOTICE), see({})] == [[], [], ["undo"]]


def test_a_node_that_will_go_is_not_offered_with_fewer_devices(see):
    assert [see({}), see(NOTICE), see(NOTICE, THREE), see(NOTICE)] == [["up 4"], [DRAIN], [], []]


def test_a_node_that_goes_after_all_not_stays_closed_while_a_device_of_it_is_unreadable(see):
    assert [see({}), see(NOTICE), see({}, THREE, busy=True), see({}, busy=True)] == [["up 4"], [DRAIN], [], ["undo"]]


def test_a_node_that_came_anew_with_a_notice_is_drained_and_not_offered(see):
    assert see({}) == ["up 4"]
    assert see({"ray-h1-anew": T0 + 30 * S}, node=ANEW) == ["down", DRAIN]
    assert see({}, node=ANEW) == ["up 4"]
