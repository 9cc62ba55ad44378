"""A device that can't be metered isn't sold, and nothing that runs is ended for that."""

import msgspec
import pytest

from fabric.cluster.offering import Offering
from fabric.gate.events import NodeDown, NodeDrain, NodeUp
from fabric.node.agent import Sight
from tests.worker.leases import NODE

SIMULATED = msgspec.structs.replace(NODE, by_cpu=True)
ALL, NONE = Sight(readable=("0", "1", "2", "3")), Sight(unreadable=("0", "1", "2", "3"))
THREE = Sight(readable=("0", "1", "2"), unreadable=("3",))


def told(changes):
    words = []
    for change in changes:
        match change:
            case NodeUp():
                words.append(f"up {change.devices}")
            case NodeDown():
                words.append("down")
            case NodeDrain(cordon=True):
                words.append("cordon")
            case NodeDrain(undo=True):
                words.append("undo")
    return words


@pytest.fixture
def look():
    """One look at the node after the other; what the gate is told each time."""
    offering = Offering()

    def look(sight, *, busy=False, node=NODE):
        there = {} if node is None else {node.node_id: node}
        sights = {NODE.address: sight}
        return told(offering.changes(there, sights, busy={"h1"} if busy else set()))

    return look


def test_a_node_is_offered_once_with_what_can_be_read(look):
    assert [look(ALL), look(ALL), look(None), look(ALL)] == [["up 4"], [], [], []]


def test_a_node_whose_agent_says_nothing_is_not_offered_until_it_does(look):
    assert [look(None), look(None), look(ALL)] == [[], [], ["up 4"]]


def test_what_has_no_counter_by_declaration_is_offered_as_it_is(look):
    assert look(None, node=SIMULATED) == ["up 4"]


def test_what_an_agent_says_has_no_counter_by_declaration_is_offered_as_it_is(look):
    assert look(Sight(declared=True)) == ["up 4"]


def test_of_a_new_node_the_devices_that_can_be_read_are_offered(look):
    """First nothing new goes there: the gate may know the node from before a restart, with leases on all its devices."""
    assert [look(THREE), look(THREE), look(THREE), look(ALL)] == [["cordon"], ["up 3"], [], ["up 4"]]


def test_a_node_of_which_nothing_can_be_read_is_withheld_until_it_can(look):
    assert [look(NONE), look(NONE), look(NONE), look(THREE)] == [["cordon"], ["down"], [], ["up 3"]]


def test_what_runs_stays_when_its_device_can_not_be_read_any_more(look):
    assert look(ALL) == ["up 4"]
    assert [look(THREE, busy=True), look(THREE, busy=True), look(NONE, busy=True)] == [["cordon"], [], []]
    assert [look(NONE), look(NONE)] == [["down"], []]


def test_a_counter_that_comes_back_before_anything_left_opens_the_node_again(look):
    assert [look(ALL), look(NONE, busy=True), look(ALL, busy=True)] == [["up 4"], ["cordon"], ["undo"]]


def test_after_a_restart_what_runs_on_a_node_is_never_ended_for_a_counter(look):
    assert [look(NONE, busy=True), look(THREE, busy=True), look(THREE)] == [["cordon"], [], ["up 3"]]


def test_a_node_that_came_back_as_another_was_down_in_between(look):
    again = msgspec.structs.replace(NODE, ray_id="ray-2")
    assert [look(ALL), look(ALL, node=again), look(ALL, node=None)] == [["up 4"], ["down", "up 4"], ["down"]]


def test_a_node_that_is_gone_or_another_is_told_at_once_and_once():
    """Before anything is asked of agents: whatever is placed there until then fails."""
    offering, there = Offering(), {NODE.node_id: NODE}
    offering.changes(there, {NODE.address: ALL}, busy=())
    assert told(offering.gone(there)) == []
    assert told(offering.gone({NODE.node_id: msgspec.structs.replace(NODE, ray_id="another")})) == ["down"]
    assert told(offering.gone({})) == []
    assert told(offering.changes({}, {}, busy=())) == []


def test_devices_that_are_held_for_nobody_are_not_offered_until_they_are_back():
    """What runs stays; then the others are offered."""
    offering, there = Offering(), {SIMULATED.node_id: SIMULATED}

    def look(stuck, busy=()):
        return told(offering.changes(there, {}, busy=busy, stuck=stuck))

    assert look({}) == ["up 4"]
    assert [look({"h1": 1}, {"h1"}), look({"h1": 1}, {"h1"}), look({"h1": 1})] == [["cordon"], [], ["up 3"]]
    assert [look({"h1": 4}), look({"h1": 4}), look({}), look({})] == [["cordon"], ["down"], ["up 4"], []]
