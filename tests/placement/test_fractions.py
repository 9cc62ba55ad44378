"""Parts of a device: where they go, that they leave whole devices whole, and who gives way for them."""

import pytest

from fabric.placement import Node, Unplaceable
from fabric.placement.jobs import Request
from tests.placement.conftest import HOUR, MINUTE

QUARTER, HALF, THIRD = (1, 4), (1, 2), (1, 3)


def shared(story, *nodes, **policy):
    """Nodes `n0 8 4`: eight H100 of four units each; `n0 8 1` has whole ones only."""
    made = story(**policy)
    for line in nodes:
        node_id, devices, units, *pool = line.split()
        made.planner.add_node(
            Node(node_id, "H100", int(devices), *(pool or ["spot"]), units=int(units)), now_us=made.now
        )
    return made


def units_free(made):
    return {view.node_id: (view.free, view.free_units) for view in made.planner.nodes()}


def test_parts_fill_one_device_before_another_is_divided(story):
    made = shared(story, "n0 2 4")
    for at in range(4):
        assert made.submit(f"q{at}", fraction=QUARTER) == [f"q{at}@n0:1"]
    assert units_free(made) == {"n0": (1, (0,))}
    made.submit("q4", fraction=QUARTER)
    assert units_free(made) == {"n0": (0, (0, 3))}


def test_a_part_goes_where_it_leaves_least_over(story):
    made = shared(story, "n0 3 8")
    for job_id, part in (("a", (7, 8)), ("b", (1, 4)), ("c", HALF)):
        made.submit(job_id, fraction=part)
    assert units_free(made)["n0"] == (1, (1, 2))
    made.submit("d", fraction=(1, 8))
    assert units_free(made)["n0"] == (1, (0, 2)), "the device with one unit left, not that with two"


def test_a_device_is_divided_where_fewest_whole_ones_are_left(story):
    made = shared(story, "n0 8 4", "n1 8 4")
    made.submit("w", 6)
    made.submit("q", fraction=QUARTER)
    assert units_free(made) == {"n0": (1, (3,)), "n1": (8, ())}


def test_whole_and_part_are_never_on_one_device(story):
    made = shared(story, "n0 1 4")
    made.submit("q", fraction=QUARTER)
    assert made.submit("w") == []
    assert made.release("q") == ["w@n0:1"]
    assert made.submit("p", fraction=QUARTER) == []


def test_the_last_that_leaves_gives_the_device_back(story):
    made = shared(story, "n0 1 4")
    made.submit("a", fraction=QUARTER)
    made.submit("b", fraction=HALF)
    made.release("a")
    assert units_free(made) == {"n0": (0, (2,))}
    made.release("b")
    assert units_free(made) == {"n0": (1, ())}


@pytest.mark.parametrize("part", [(1, 5), (2, 3), (1, 8), (3, 8)])
def test_what_is_no_number_of_units_is_never_placed(story, part):
    made = shared(story, "n0 8 4", "n1 2 2")
    refused = made.planner.check(made.request("x", fraction=part))
    assert refused == Unplaceable(
        "no_such_fraction", {"fraction": f"{part[0]}/{part[1]}", "offered": "1/2 of H100, 1/4 to 3/4 of H100"}
    )


def test_units_of_any_fineness_serve_what_they_are_a_multiple_of(story):
    made = shared(story, "n0 1 1", "n1 1 4", "n2 1 6")
    assert made.submit("t", fraction=THIRD) == ["t@n2:1"]
    assert made.submit("h", fraction=HALF) == ["h@n2:1"], "two sixths and three of six leave least over"
    assert made.submit("q", fraction=QUARTER) == ["q@n1:1"]


def test_devices_that_are_divided_for_good_take_only_their_own_part(story):
    made = story()
    made.planner.add_node(Node("mig", "H100", 7, "spot", fraction=(1, 7)), now_us=made.now)
    assert made.submit("s", fraction=(1, 7)) == ["s@mig:1"]
    assert made.planner.check(made.request("w")).code == "no_pool_for"
    assert made.planner.check(made.request("w", kinds=("H100",))) == Unplaceable(
        "only_parts", {"offered": "1/7 of H100"}
    )
    assert made.planner.check(made.request("h", fraction=HALF)).facts == {"fraction": "1/2", "offered": "1/7 of H100"}


def test_what_is_divided_for_good_is_taken_before_a_whole_device(story):
    made = shared(story, "n0 1 7")
    made.planner.add_node(Node("mig", "H100", 1, "spot", fraction=(1, 7)), now_us=made.now)
    assert made.submit("a", fraction=(1, 7)) == ["a@mig:1"]
    assert made.submit("b", fraction=(1, 7)) == ["b@n0:1"]


def test_a_better_class_takes_a_divided_device_from_all_that_are_on_it(story):
    made = shared(story, "n0 1 4", run_us_min=0)
    made.submit("a", fraction=QUARTER)
    made.submit("b", fraction=HALF)
    made.now += HOUR
    assert made.submit("w", tier=0) == ["a>w", "b>w"]
    assert made.submit("c", fraction=QUARTER) == [], "nobody comes onto a device that is being left"
    assert made.release("a") == []
    assert made.release("b") == ["w@n0:1"]


def test_a_better_part_takes_a_whole_device_and_leaves_the_rest_of_it_to_others(story):
    made = shared(story, "n0 1 4", run_us_min=0)
    made.submit("w")
    made.now += HOUR
    assert made.submit("q", fraction=QUARTER, tier=0) == ["w>q"]
    made.queue("s", fraction=HALF)
    assert made.release("w") == ["q@n0:1", "s@n0:1"]


def test_a_device_is_of_the_best_class_that_is_on_it(story):
    made = shared(story, "n0 1 4", run_us_min=0)
    made.submit("low", fraction=QUARTER)
    made.submit("high", fraction=QUARTER, tier=0)
    made.now += HOUR
    assert made.submit("w", tier=1) == []
    assert made.release("high") == []
    assert made.wait(MINUTE) == ["low>w"], "what stays of it is of a lower class"


def test_a_gang_that_waited_long_enough_is_not_kept_off_by_scattered_parts(story):
    """Parts that come onto a divided device, one before the other leaves, would hold it for ever."""
    made = shared(story, "n0 4 4", run_us_min=0)
    for at in range(4):
        made.submit(f"old{at}", fraction=(3, 4))
    made.submit("gang", 4, account="acme")
    steps, there = [], [f"old{at}" for at in range(4)]
    for at in range(500):
        steps = made.wait(10 * MINUTE) + made.submit(f"new{at}", fraction=QUARTER)
        leaving = [step.partition(">")[0] for step in steps if step.endswith(">gang")]
        for job_id in leaving or there[: at % 3 == 0]:
            steps += made.release(job_id)
        if any(step.startswith("gang@") for step in steps):
            return
        there += [step.partition("@")[0] for step in steps if "@" in step]
        there = [job_id for job_id in there if job_id in made.planner._state.running]
    raise AssertionError("it waits for ever")


def test_a_lost_node_takes_what_had_parts_of_its_devices(story):
    made = shared(story, "n0 1 4", "n1 1 4")
    made.submit("a", fraction=HALF)
    made.submit("b", fraction=HALF)
    assert made.planner.remove_node("n0") == ("a", "b")
    made.planner.check_invariants()
    assert made.release("a", "b") == []
    assert made.submit("c", fraction=HALF) == ["c@n1:1"]


def test_a_drain_asks_all_that_have_parts_and_takes_no_more(story):
    made = shared(story, "n0 1 4")
    made.submit("a", fraction=QUARTER)
    assert made.planner.drain_node("n0") == ("a",)
    assert made.submit("b", fraction=QUARTER) == []
    made.release("a")
    made.planner.undrain_node("n0")
    assert made.plan() == ["b@n0:1"]


def test_the_start_of_a_part_counts_as_its_part(story):
    made = shared(story, "n0 4 4")
    made.submit("w", account="acme")
    made.submit("q", fraction=QUARTER, account="bolt")
    accounts = made.planner._state.accounts
    assert accounts["bolt"].fees * 4 == accounts["acme"].fees


def test_headroom_is_counted_in_whole_devices(story):
    made = shared(story, "n0 2 4 reserved", headroom_devices=1)
    for at in range(4):
        assert made.submit(f"q{at}", fraction=QUARTER) == [f"q{at}@n0:1"]
    assert made.submit("q4", fraction=QUARTER) == [], "another device would have to be divided, which is kept free"


def test_a_part_of_a_reserved_device_gives_way_to_inference(story):
    made = shared(story, "n0 1 4 reserved", headroom_devices=0)
    made.submit("q", fraction=QUARTER)
    assert made.submit("m", service="inference", preemptible=False) == ["q>m"]


def test_requests_that_name_no_part_are_what_they_were():
    assert Request(job_id="a", account_id="b", devices=1, submitted_at_us=0).fraction is None
