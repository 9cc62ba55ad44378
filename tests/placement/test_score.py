"""One score in token-seconds: each term in µHs, and a job with a wish goes where it is least, as far as there is room."""

import pytest

from fabric.placement.quotas import Policy
from fabric.placement.score import Wish, reckon
from fabric.units import PPM
from tests.placement.conftest import Story

HOUR = 3_600_000_000
BURNS = (("A100", 320_000), ("H100", 1_000_000))
EQUAL = (("A100", 900_000), ("H100", 1_000_000))
"""A job that an A100 gets nearly as much done for."""
STEEP = (("A100", 100_000), ("H100", 1_000_000))


def wish(prefer, **more):
    return Wish(prefer=prefer, runs_us=HOUR, burns=BURNS, **more)


def score(prefer="soonest", kind="H100", *, speed=PPM, devices=2, warm=True, used=0, percent=(100,) * 6, **more):
    return reckon(
        wish(prefer, **more),
        pool="spot",
        accelerator=kind,
        devices=devices,
        speed_ppm=speed,
        warm=warm,
        used_ppm=used,
        percent=percent,
    )


def test_each_term_is_in_token_seconds_of_the_whole_gang():
    found = score(speed=500_000, kind="A100")
    assert (found.tokens, found.time) == (2 * 2 * HOUR * 320_000 // PPM, 2 * 2 * HOUR)
    assert found.energy == 2 * 2 * HOUR * 400 // 700
    assert (found.data, found.risk, found.others) == (0, 0, 0)
    assert score(warm=False, cold_us=60_000_000).data == 2 * 60_000_000
    assert score(used=500_000).others == HOUR
    lost = score(losses=(("spot/H100", 2 * HOUR),), unsaved_us=HOUR // 2)
    assert lost.risk == 2 * (HOUR * (HOUR // 2 + 60_000_000) // (2 * HOUR))
    assert found.total == sum(getattr(found, name) for name in found.__struct_fields__)


def test_the_policy_says_how_much_each_term_counts():
    assert score(percent=(0, 0, 0, 0, 0, 0)).total == 0
    assert score(percent=(200, 0, 0, 0, 0, 0)).total == 2 * score(percent=(100, 0, 0, 0, 0, 0)).total
    assert Policy(score_percent=(0, 0, 0, 0, 0, 1_001)).mistake == "score_percent"


def a_story():
    story = Story()
    story.node("a1 A100 8 spot")
    story.node("h1 H100 8 spot")
    return story


@pytest.mark.parametrize(
    ("prefer", "speeds", "goes"), [("tokens", EQUAL, "a1"), ("soonest", STEEP, "h1"), ("tokens", STEEP, "h1")]
)
def test_a_job_goes_where_its_score_is_least(prefer, speeds, goes):
    (line,) = a_story().submit("j", 2, speeds=speeds, wish=wish(prefer))
    assert f"@{goes}:2" in line


def test_permuting_the_nodes_changes_nothing():
    for order in (("a1 A100 8 spot", "h1 H100 8 spot"), ("h1 H100 8 spot", "a1 A100 8 spot")):
        story = Story()
        for node in order:
            story.node(node)
        assert "a1:2" in story.submit("j", 2, speeds=EQUAL, wish=wish("tokens"))[0]


def test_it_waits_for_a_better_type_twice_as_long_as_it_would_lose_by_a_worse_one_and_no_longer():
    story = a_story()
    story.submit("r", 8, kinds=("H100",))
    assert story.submit("j", 8, speeds=STEEP, wish=wish("soonest")) == [], "an A100 takes it ten times as long"
    due_us = story.planner.next_due_us()
    assert due_us is not None
    placed = []
    for _ in range(3_000):
        due_us = story.planner.next_due_us()
        if placed or due_us is None:
            break
        placed = [step for step in story.planner.plan(now_us=due_us) if step.job_id == "j"]
    assert placed, "it takes the other in the end"
    assert placed[0].accelerator == "A100"
    assert placed[0].because.score.total > 0
