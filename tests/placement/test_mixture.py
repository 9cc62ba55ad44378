"""Gangs of several types: only where no type alone has room, only from what is free, never left half owned."""

import pytest
from msgspec.structs import replace

from fabric.placement import Node
from tests.placement.conftest import MINUTE

NOTED = Node("a", "A100", 4, "spot", notice_us=MINUTE)
BOTH = (("H100", "A100"),)


def mixed(story):
    return story("h1 H100 2 spot", "a1 A100 4 spot", "n1 910B 4 spot")


def test_a_gang_that_one_type_has_room_for_is_of_one_type(story):
    at = mixed(story)
    assert at.submit("j", 4, kinds=("H100", "A100"), mixtures=BOTH) == ["j@a1:4"]


def test_a_gang_that_no_type_has_room_for_is_of_several_in_their_order(story):
    at = mixed(story)
    assert at.submit("j", 5, kinds=("H100", "A100"), mixtures=BOTH) == ["j@h1:2+a1:3"]
    assert at.submit("k", 1, kinds=("A100",)) == ["k@a1:1"]
    assert at.submit("l", 1, kinds=("H100",)) == []
    assert at.release("j") == ["l@h1:1"]


def test_a_gang_that_did_not_ask_for_it_waits_for_one_type(story):
    at = mixed(story)
    at.submit("k", 1, kinds=("A100",))
    assert at.submit("j", 4, kinds=("H100", "A100")) == []
    assert at.release("k") == ["j@a1:4"]


def test_types_that_may_not_be_one_gang_are_not(story):
    at = mixed(story)
    assert at.submit("j", 6, kinds=("A100", "910B"), mixtures=(("H100", "A100"),)) == []
    assert at.planner.check(at.request("j", 6, mixtures=(("H100", "A100"),))) is None
    assert at.planner.check(at.request("j", 7, kinds=("H100", "A100"), mixtures=BOTH)).code == "gang_too_large"


def test_an_elastic_mixture_takes_what_there_is(story):
    at = mixed(story)
    assert at.submit("j", 9, kinds=("H100", "A100"), mixtures=BOTH, devices_least=5) == ["j@h1:2+a1:4"]


def test_even_shares_stay_even_in_a_mixture(story):
    at = mixed(story)
    assert at.submit("j", 6, each=2, kinds=("H100", "A100"), mixtures=BOTH) == []
    at.node("a2 A100 3 spot")
    assert at.plan() == ["j@h1:2+a2:2+a1:2"]


def test_nobody_is_evicted_for_a_mixture_and_whoever_is_better_evicts_all_of_one(story):
    at = mixed(story)
    at.submit("worse", 1, kinds=("A100",), tier=2)
    at.wait(30 * MINUTE)
    assert at.submit("j", 6, kinds=("H100", "A100"), mixtures=BOTH, tier=1) == []
    assert at.release("worse") == ["j@h1:2+a1:4"]
    at.wait(30 * MINUTE)
    assert at.submit("best", 2, kinds=("H100",), tier=0, account="ent") == ["j>best"]
    assert at.release("j") == ["best@h1:2"]
    assert at.submit("after", 4, kinds=("A100",)) == ["after@a1:4"]


@pytest.mark.parametrize("gone", ["h1", "a1"])
def test_a_mixture_that_loses_a_node_keeps_the_rest_until_it_is_released(story, gone):
    at = mixed(story)
    at.submit("j", 6, kinds=("H100", "A100"), mixtures=BOTH)
    assert at.planner.remove_node(gone) == ("j",)
    at.planner.check_invariants()
    left = {"h1": "a1 A100 4 spot", "a1": "h1 H100 2 spot"}[gone]
    assert at.submit("k", 1, kinds=(left.split()[1],)) == []
    assert at.release("j") == [f"k@{left.split()[0]}:1"]


def test_a_job_that_needs_notice_goes_where_it_gets_it(story):
    at = story("n H100 4 spot", "r H100 4 reserved")
    at.planner.add_node(NOTED, now_us=at.now)
    assert at.planner.least_notice_us() == MINUTE
    assert at.planner.least_notice_us(["n"]) is None
    assert at.submit("any", 1, kinds=("A100",)) == ["any@a:1"]
    assert at.submit("choosy", 1, kinds=("A100", "H100"), notice_us=2 * MINUTE) == ["choosy@n:1"]
    assert at.submit("patient", 1, kinds=("A100",), notice_us=2 * MINUTE) == []
    assert at.planner.check(at.request("patient", 1, kinds=("A100",), notice_us=2 * MINUTE)).code == "no_pool_for"


def test_a_node_that_gives_another_notice_is_the_same_node(story):
    at = story()
    at.planner.add_node(NOTED, now_us=at.now)
    assert at.submit("j", 1) == ["j@a:1"]
    assert at.submit("k", 1, notice_us=2 * MINUTE) == []
    assert at.planner.add_node(replace(NOTED, notice_us=5 * MINUTE), now_us=at.now) == ()
    assert at.plan() == ["k@a:1"]
