"""What is idle is used: inference on spot nodes, and everybody, until the owner asks, on cells of others."""

import pytest

from fabric.placement import Unplaceable

MINUTE = 60_000_000
HOUR = 60 * MINUTE


def test_inference_takes_idle_spot_nodes_before_it_evicts_anybody(story):
    at = story("r0 H100 8 reserved", "s0 H100 8 spot")
    at.submit("fills", 8)
    at.submit("borrows", 8)
    at.release("fills")
    assert at.submit("serves", 8, service="inference") == ["serves@s0:8"]
    assert at.submit("serves too", 8, service="inference") == ["borrows>serves too"]


def test_on_a_cluster_of_spot_nodes_inference_is_served_too(story):
    at = story("s0 H100 8 spot")
    assert at.planner.check(at.request("serves", 8, service="inference")) is None
    at.submit("trains", 8)
    at.now += HOUR
    assert at.submit("serves", 8, service="inference") == [], "at first it waits for what is free"
    assert at.wait(MINUTE) == ["trains>serves"]
    assert at.release("trains") == ["serves@s0:8"]


def test_inference_evicts_nobody_from_spot_nodes_where_it_has_nodes_of_its_own(story):
    at = story("r0 H100 8 reserved", "s0 H100 8 spot")
    at.submit("first", 8, service="inference")
    at.submit("trains", 8)
    assert at.submit("second", 8, service="inference") == []
    assert at.wait(HOUR) == []


def test_no_inference_is_served_on_cells_of_others(story):
    at = story("e0 H100 8 dedicated acme")
    refusal = at.planner.check(at.request("serves", 8, service="inference"))
    told = {"service": "inference", "preemptible": 1, "pools": "dedicated"}
    assert refusal == Unplaceable("no_pool_for", told)


def test_an_idle_cell_is_lent_until_its_owner_asks_whatever_the_classes(story):
    at = story("e0 H100 8 dedicated acme", "s0 H100 8 spot")
    at.submit("fills", 8, account="bolt", tier=1)
    assert at.submit("guest", 8, account="cusp", tier=0) == ["guest@e0:8"]
    assert at.submit("own", 4, account="acme", tier=2, kinds=("H100",)) == ["guest>own"]
    assert at.submit("next", 4, account="cusp") == []
    assert at.release("guest") == ["own@e0:4", "next@e0:4"]


def test_nobody_borrows_a_cell_who_could_not_be_asked_to_leave(story):
    at = story("e0 H100 8 dedicated acme", "s0 H100 8 spot")
    at.submit("fills", 8, account="bolt")
    assert at.submit("stays", 8, account="cusp", preemptible=False) == []


def test_nothing_of_a_cell_is_lent_while_its_owner_waits_for_more_of_it(story):
    at = story("e0 H100 8 dedicated acme", "s0 H100 8 spot")
    at.submit("fills", 8, account="bolt", tier=0, preemptible=False)
    at.submit("own", 4, account="acme", tier=0)
    assert at.submit("own too", 8, account="acme", tier=0) == []
    assert at.submit("guest", 4, account="cusp") == []


NODES = ("h0 H100 8 spot", "h1 H100 8 spot", "a0 A100 8 spot", "b0 910B 8 spot", "h2 H100 8 reserved")


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 3, 1, 4)])
def test_the_order_in_which_nodes_came_decides_nothing(story, order):
    at = story(*(NODES[number] for number in order))
    placed = [at.submit(f"j{number}", 1 + number % 4) for number in range(12)]
    first = story(*NODES)
    assert placed == [first.submit(f"j{number}", 1 + number % 4) for number in range(12)]


def test_who_may_have_any_type_leaves_the_one_that_others_must_have(story):
    at = story("h0 H100 8 spot", "a0 A100 40 spot")
    at.submit("runs", 4, kinds=("H100",))
    assert at.submit("must", 6, kinds=("H100",)) == []
    placed = [line for number in range(10) for line in at.submit(f"any{number}", 2)]
    assert len(placed) == 10
    assert not any("@h0" in line for line in placed)
    assert at.release("runs") == ["must@h0:6"]


def test_who_may_have_any_type_takes_the_last_one_there_is(story):
    at = story("h0 H100 8 spot", "a0 A100 8 spot")
    at.submit("must", 4, kinds=("H100",))
    assert at.submit("any0", 8) == ["any0@a0:8"]
    assert at.submit("any1", 4) == ["any1@h0:4"]


def test_of_idle_types_the_fastest_is_taken(story):
    speeds = (("H100", 1_000_000), ("A100", 315_000))
    for nodes in (("h0 H100 8 spot", "a0 A100 16 spot"), ("a0 A100 16 spot", "h0 H100 8 spot")):
        assert story(*nodes).submit("any", 4, speeds=speeds) == ["any@h0:4"]
