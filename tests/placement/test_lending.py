"""What is idle is used: inference on spot nodes, and everybody, until the owner asks, on cells of others."""

import msgspec
import pytest

from fabric.placement import PlacementState, Planner, Unplaceable

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


def of_reserved(story, **policy):
    """Two reserved nodes: a job that saves every twenty minutes and is restored in two, and inference on the other."""
    at = story("r0 H100 8 reserved", "r1 H100 8 reserved", **policy)
    at.submit("borrows", 8, grace_us=0)
    at.submit("serves", 8, service="inference")
    for _ in range(2):
        at.now += 20 * MINUTE
        at.planner.note_checkpoint("borrows", now_us=at.now, write_us=MINUTE, restore_us=2 * MINUTE)
    assert at.submit("waits", 4) == []
    return at


def test_what_inference_leaves_is_lent_once_it_has_been_idle_for_as_long_as_an_eviction_loses(story):
    at = of_reserved(story)
    assert at.release("serves") == []
    assert at.planner.next_due_us() is not None
    assert at.wait(12 * MINUTE - 1) == []
    assert at.wait(1) == ["waits@r1:4"]


def test_inference_that_goes_and_comes_again_evicts_nobody(story):
    at = of_reserved(story)
    for number in range(10):
        assert at.release("serves" if number == 0 else f"serves{number - 1}") == []
        at.now += 10 * MINUTE
        assert at.submit(f"serves{number}", 8, service="inference") == [f"serves{number}@r1:8"]


@pytest.mark.parametrize(("percent", "minutes"), [(50, 6), (300, 36)])
def test_how_long_what_inference_leaves_is_kept_is_a_setting(story, percent, minutes):
    at = of_reserved(story, keep_percent=percent)
    at.release("serves")
    assert at.wait(minutes * MINUTE - 1) == []
    assert at.wait(1) == ["waits@r1:4"]


def test_nothing_is_kept_of_a_pool_where_nobody_saves_nor_where_the_policy_says_so(story):
    assert of_reserved(story, keep_percent=0).release("serves") == ["waits@r1:4"]
    at = story("r0 H100 8 reserved")
    at.submit("serves", 8, service="inference")
    at.submit("waits", 4)
    assert at.release("serves") == ["waits@r0:4"]


def test_a_planner_made_anew_keeps_what_the_one_before_kept(story):
    at = of_reserved(story)
    at.release("serves")
    at.planner = Planner(msgspec.msgpack.decode(msgspec.msgpack.encode(at.planner._state), type=PlacementState))
    assert at.plan() == []
    assert at.wait(12 * MINUTE) == ["waits@r1:4"]


def test_a_node_that_went_and_came_back_is_kept_for_nobody(story):
    at = of_reserved(story)
    at.release("serves")
    at.planner.remove_node("r1")
    assert at.node("r1 H100 8 reserved") == ()
    assert at.plan() == ["waits@r1:4"]


def test_of_what_is_kept_it_is_said_that_it_is_for_inference(story):
    at = of_reserved(story)
    at.release("serves")
    waits = at.planner.waits("waits", now_us=at.now)
    assert [room.withheld for room in waits.rooms] == ["headroom"]
