"""Elastic gangs take the best of what is free, and gangs go where what they need lies already."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from fabric.placement import Unplaceable

SPEEDS = (("H100", 1_000_000), ("A100", 315_000), ("910B", 259_000))


def elastic(most, least=1, **facts):
    return {"devices": most, "devices_least": least, "speeds": SPEEDS, **facts}


def test_an_elastic_gang_takes_all_it_may_and_less_where_there_is_less(story):
    placed = story("n0 H100 4 spot")
    assert placed.submit("a", **elastic(3)) == ["a@n0:3"]
    assert placed.submit("b", **elastic(8)) == ["b@n0:1"]
    assert placed.submit("c", **elastic(8)) == []
    assert placed.release("a") == ["c@n0:3"]


def test_two_fast_devices_beat_six_slow_ones_and_seven_slow_ones_beat_two_fast(story):
    assert story("h H100 2 spot", "a A100 6 spot").submit("j", **elastic(8)) == ["j@h:2"]
    assert story("h H100 2 spot", "a A100 7 spot").submit("j", **elastic(8)) == ["j@a:7"]


def test_between_equals_the_order_of_types_decides(story):
    for kinds in (("A100", "H100"), ("H100", "A100")):
        placed = story("h H100 2 spot", "a A100 2 spot")
        (line,) = placed.submit("j", devices=2, devices_least=1, kinds=kinds)
        assert line == f"j@{kinds[0][0].lower()}:2"


def test_less_than_the_least_is_waited_for(story):
    placed = story("n0 H100 4 spot")
    assert placed.submit("a", 3) == ["a@n0:3"]
    assert placed.submit("j", **elastic(4, least=2)) == []
    assert placed.release("a") == ["j@n0:4"]


def test_a_gang_by_nodes_grows_by_whole_nodes(story):
    placed = story("n0 H100 4 spot", "n1 H100 4 spot", "n2 H100 2 spot")
    (line,) = placed.submit("j", **elastic(12, least=2), each=2)
    assert line == "j@n2:2+n0:2+n1:2"


def test_what_can_never_be_is_said_of_the_least(story):
    planner = story("n0 H100 4 spot").planner
    request = story().request
    assert planner.check(request("j", **elastic(100, least=4))) is None
    too_large = planner.check(request("j", **elastic(100, least=5)))
    assert too_large == Unplaceable("gang_too_large", {"devices": 5, "largest": 4, "accelerator": "H100"})
    for least, each in ((0, None), (9, None), (3, 2)):
        assert planner.check(request("j", **elastic(8, least=least), each=each)).code == "uneven_gang"


def test_inference_evicts_only_what_it_must_for_the_least_it_runs_on(story):
    placed = story("r0 H100 4 reserved")
    assert placed.submit("a", 2) == ["a@r0:2"]
    assert placed.submit("b", 2) == ["b@r0:2"]
    assert len(placed.submit("i", **elastic(4, least=2), service="inference")) == 1


def test_a_gang_goes_where_its_last_checkpoint_lies_if_it_fits_there(story):
    nodes = ("n0 H100 4 spot", "n1 H100 4 spot")
    assert story(*nodes).submit("j", 2) == ["j@n0:2"]
    assert story(*nodes).submit("j", 2, prefers=("n1",)) == ["j@n1:2"]
    busy = story(*nodes)
    busy.submit("other", 3, prefers=("n1",))
    assert busy.submit("j", 2, prefers=("n1",)) == ["j@n0:2"]
    assert story(*nodes).submit("j", 2, prefers=("gone",)) == ["j@n0:2"]


def test_a_preference_is_no_way_into_a_reservation(story):
    placed = story("n0 H100 4 spot", "n1 H100 4 spot", "n2 H100 4 spot", bypasses_max=1)
    placed.submit("a", 1, prefers=("n0",), preemptible=False)
    placed.submit("b", 1, prefers=("n1",), preemptible=False)
    placed.submit("gang", 12, each=4, account="acme")
    for at in range(3):
        placed.submit(f"small{at}", 1, prefers=("n2",), preemptible=False)
    assert placed.planner._state.pins, "the gang has a reservation by now"
    pinned = {node for pin in placed.planner._state.pins.values() for node in pin.nodes}
    free = {view.node_id: view.free for view in placed.planner.nodes()}
    placed.submit("late", 1, prefers=tuple(pinned), preemptible=False)
    after = {view.node_id: view.free for view in placed.planner.nodes()}
    assert all(free[node] == after[node] for node in pinned)


@given(
    free=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    slow=st.lists(st.integers(0, 4), max_size=3),
    most=st.integers(1, 9),
    least=st.integers(1, 4),
    each=st.sampled_from((None, 1, 2)),
)
def test_nothing_better_was_free(free, slow, most, least, each):
    """Against trying everything."""
    from tests.placement.conftest import Story

    step = each or 1
    most, least = max(most // step, 1) * step, max(min(least, most) // step, 1) * step
    placed = Story()
    for name, frees in (("H100", free), ("A100", slow)):
        for at, devices in enumerate(frees):
            placed.node(f"{name}-{at} {name} 4 spot")
            if devices < 4:
                placed.submit(f"{name}-{at}-other", 4 - devices, prefers=(f"{name}-{at}",), kinds=(name,))
    left = {view.node_id: view.free for view in placed.planner.nodes()}

    def fits(name, devices):
        nodes = [count for node, count in left.items() if node.startswith(name)]
        return (sum(count >= each for count in nodes) * each if each else sum(nodes)) >= devices

    speeds = dict(SPEEDS)
    could = [speeds[n] * d for n, d in product(("H100", "A100"), range(least, most + 1, step)) if fits(n, d)]
    steps = placed.submit("j", devices=most, devices_least=least, each=each, speeds=SPEEDS)
    if not could:
        assert steps == []
        return
    (line,) = steps
    got = sum(int(share.split(":")[1]) * speeds[share.split("-")[0]] for share in line.partition("@")[2].split("+"))
    assert got == max(could)
