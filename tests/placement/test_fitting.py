"""Where a gang goes on a given cluster."""

import pytest

from tests.placement.conftest import MINUTE

MIXED = ("h0 H100 8 spot", "h1 H100 8 spot", "h2 H100 4 spot", "a0 A100 8 spot", "a1 A100 8 spot")


@pytest.mark.parametrize(
    ("devices", "each", "kinds", "expected"),
    [
        (1, None, (), "x@h2:1"),
        (4, None, ("H100",), "x@h2:4"),
        (5, None, ("H100",), "x@h0:5"),
        (8, None, ("A100",), "x@a0:8"),
        (12, None, ("H100",), "x@h0:8+h2:4"),
        (20, None, ("H100",), "x@h0:8+h1:8+h2:4"),
        (16, 8, ("H100",), "x@h0:8+h1:8"),
        (12, 4, ("H100",), "x@h2:4+h0:4+h1:4"),
        (16, 8, ("A100", "H100"), "x@a0:8+a1:8"),
        (20, None, ("A100", "H100"), "x@h0:8+h1:8+h2:4"),
    ],
)
def test_a_gang_takes_the_tightest_nodes_of_one_type_it_prefers(story, devices, each, kinds, expected):
    assert story(*MIXED).submit("x", devices, each=each, kinds=kinds) == [expected]


@pytest.mark.parametrize(
    ("facts", "code", "told"),
    [
        ({"kinds": ("B200",)}, "unknown_accelerator", {"given": "B200", "known": "H100, A100"}),
        ({"kinds": ("H100", "b2")}, "unknown_accelerator", {"given": "b2", "known": "H100, A100"}),
        ({"devices": 21}, "gang_too_large", {"devices": 21, "largest": 20, "accelerator": "H100"}),
        ({"devices": 24, "each": 8}, "gang_too_large", {"devices": 24, "largest": 16, "accelerator": "H100"}),
        ({"devices": 17, "kinds": ("A100",)}, "gang_too_large", {"devices": 17, "largest": 16, "accelerator": "A100"}),
        (
            {"devices": 16, "each": 16},
            "gang_too_large",
            {"devices": 16, "largest": 0, "accelerator": "H100", "devices_per_node": 16, "on_a_node": 8},
        ),
        ({"devices": 6, "each": 4}, "uneven_gang", {"devices": 6, "devices_per_node": 4}),
        ({"devices": 0}, "uneven_gang", {"devices": 0, "devices_per_node": 0}),
    ],
)
def test_what_can_never_run_is_told_why(story, facts, code, told):
    at = story(*MIXED)
    facts = {"devices": 1, **facts}
    refusal = at.planner.check(at.request("x", **facts))
    assert refusal is not None
    assert (refusal.code, refusal.facts) == (code, told)


def test_a_node_that_is_down_may_come_back_so_its_gang_is_not_refused(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot")
    at.planner.remove_node("h1")
    assert at.planner.check(at.request("x", 16)) is None
    assert at.submit("x", 16) == []
    at.node("h1 H100 8 spot")
    assert at.plan() == ["x@h0:8+h1:8"]


def test_a_gang_never_mixes_types_or_pools(story):
    at = story("h0 H100 8 spot", "r0 H100 8 reserved", "a0 A100 8 spot")
    at.submit("small", 1, kinds=("A100",))
    assert at.planner.check(at.request("x", 12)) is not None


def test_non_preemptible_work_is_never_lent_reserved_nodes(story):
    at = story("h0 H100 4 spot", "r0 H100 8 reserved")
    assert at.submit("fills", 4) == ["fills@h0:4"]
    assert not at.planner.could_place_now(at.request("keeps", 1, preemptible=False))
    assert at.submit("keeps", 1, preemptible=False) == []
    assert at.submit("borrows", 1) == ["borrows@r0:1"]


def test_headroom_is_not_lent_but_inference_may_use_it(story):
    at = story("r0 H100 8 reserved", headroom_devices=3)
    assert at.submit("borrows", 5) == ["borrows@r0:5"]
    assert at.submit("waits", 1) == []
    assert at.submit("serves", 3, service="inference") == ["serves@r0:3"]
    refusal = at.planner.check(at.request("x", 6))
    assert refusal is not None
    assert refusal.facts["largest"] == 5


def test_a_dedicated_node_serves_its_owner_first_and_where_it_is_not_lent_nobody_else_ever(story):
    at = story("e0 H100 8 dedicated acme", "s0 H100 8 spot", lend_dedicated=False)
    assert at.submit("own", 8, account="acme", tier=0) == ["own@e0:8"]
    assert at.submit("spill", 8, account="acme", tier=0) == ["spill@s0:8"]
    assert at.release("own") == []
    assert at.submit("other", 1) == []
    assert at.submit("serves", 2, account="acme", tier=0, service="inference") == ["serves@e0:2"]


def test_a_drained_node_takes_nothing_until_it_is_added_again(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot")
    at.submit("a", 8)
    assert at.planner.drain_node("h0") == ("a",)
    assert at.submit("b", 8) == ["b@h1:8"]
    assert at.release("a") == []
    assert at.submit("c", 8) == []
    at.node("h0 H100 8 spot")
    at.node("h0 H100 8 spot")
    assert at.plan() == ["c@h0:8"]


def test_removing_a_node_names_the_jobs_that_lose_a_share(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot")
    at.submit("a", 16)
    assert at.planner.remove_node("h0") == ("a",)
    assert at.planner.remove_node("h0") == ()
    at.node("h0 H100 8 spot")
    assert at.submit("b", 8) == ["b@h0:8"], "what is gone is gone: the node comes back empty"
    assert at.submit("c", 8) == []
    assert at.release("a") == ["c@h1:8"]


def test_a_node_that_comes_back_as_something_else_has_lost_its_jobs(story):
    at = story("h0 H100 8 spot")
    at.submit("a", 4)
    assert at.node("h0 A100 8 spot") == ("a",)
    assert at.planner.release("a", now_us=at.now)
    assert at.submit("b", 8, kinds=("A100",)) == ["b@h0:8"]


def test_what_one_node_could_have_is_not_strewn_over_several(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot", "h2 H100 2 spot")
    for number in range(3):
        at.submit(f"runs{number}", 6 if number < 2 else 2)
    at.release("runs2")
    assert at.submit("gang", 4) == []
    assert at.release("runs0") == ["gang@h0:4"]


def test_what_has_waited_six_times_as_long_as_it_may_is_packed_on_several(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot", waits_us=(MINUTE,) * 5)
    for number in range(2):
        at.submit(f"runs{number}", 6, preemptible=False)
    assert at.submit("gang", 4, preemptible=False) == []
    assert at.wait(6 * MINUTE - 1) == []
    assert at.wait(MINUTE + 1) == ["gang@h0:2+h1:2"]


def test_a_model_is_never_packed_on_several_where_one_could_have_it(story):
    at = story("h0 H100 8 reserved", "h1 H100 8 reserved", waits_us=(MINUTE,) * 5)
    for number in range(2):
        at.submit(f"runs{number}", 6, service="inference")
    assert at.submit("model", 4, service="inference") == []
    assert at.wait(60 * MINUTE) == []
    assert at.release("runs0") == ["model@h0:4"]


def test_what_no_node_is_large_enough_for_is_packed_on_several(story):
    at = story("h0 H100 8 spot", "h1 H100 2 spot", "h2 H100 2 spot")
    at.planner.cordon_node("h0")
    assert at.submit("gang", 4) == ["gang@h1:2+h2:2"]


def test_an_elastic_gang_takes_what_it_gets_wherever_it_is(story):
    at = story("h0 H100 8 spot", "h1 H100 8 spot")
    at.submit("runs0", 6)
    at.submit("runs1", 6)
    assert at.submit("gang", 8, devices_least=2) == ["gang@h0:2+h1:2"]
