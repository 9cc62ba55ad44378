"""Data draw jobs: by the seconds their devices would wait, and what crossing a border costs; and jobs wait a little for them."""

from hypothesis import given
from hypothesis import strategies as st

from fabric.placement.locality import (
    OVERLAP_US,
    PATIENCE_US_MAX,
    Dataset,
    Holdings,
    cost_us,
    patience_us,
    warmest,
)

GB = 10**9
S = 1_000_000
IMAGENET = Dataset(prefix="s3://data/imagenet/", bytes=150 * GB, region="north")
sizes = st.integers(0, 2**50)
datasets = st.lists(
    st.builds(Dataset, prefix=st.sampled_from("abc"), bytes=sizes, region=st.sampled_from(("", "north", "south"))),
    max_size=3,
    unique_by=lambda each: each.prefix,
)
held = st.builds(
    Holdings,
    bytes_by_prefix=st.dictionaries(st.sampled_from("abcd"), sizes, max_size=3),
    rate_bytes_per_s=st.integers(0, 10**11),
    region=st.sampled_from(("", "north", "south")),
)


def test_what_is_fetched_behind_the_training_is_not_waited_for():
    fast = Holdings(rate_bytes_per_s=GB)
    assert cost_us([IMAGENET], fast, devices=1) == 150 * S - OVERLAP_US
    nearly = Holdings(rate_bytes_per_s=GB, bytes_by_prefix={IMAGENET.prefix: 141 * GB})
    assert cost_us([IMAGENET], nearly, devices=8) == 0


def test_all_devices_of_a_gang_wait():
    assert cost_us([IMAGENET], Holdings(rate_bytes_per_s=GB), devices=8) == 8 * (150 * S - OVERLAP_US)


def test_crossing_a_border_costs_as_much_as_it_is_billed():
    here, there = (Holdings(rate_bytes_per_s=100 * GB, region=region) for region in ("north", "south"))
    assert cost_us([IMAGENET], here, devices=1) == 0
    assert cost_us([IMAGENET], there, devices=1) == 150 * 20 * S


@given(data=datasets, node=held, prefix=st.sampled_from("abc"), more=sizes, devices=st.integers(1, 64))
def test_holding_more_never_makes_a_node_worse(data, node, prefix, more, devices):
    fuller = {**node.bytes_by_prefix, prefix: node.bytes_by_prefix.get(prefix, 0) + more}
    richer = Holdings(bytes_by_prefix=fuller, rate_bytes_per_s=node.rate_bytes_per_s, region=node.region)
    assert 0 <= cost_us(data, richer, devices=devices) <= cost_us(data, node, devices=devices)


@given(data=datasets, nodes=st.dictionaries(st.sampled_from(("n0", "n1", "n2")), held), devices=st.integers(1, 8))
def test_the_best_node_comes_first_and_none_that_is_no_better_than_an_empty_one(data, nodes, devices):
    ranked, saves_us = warmest(data, nodes, devices=devices)
    costs = [cost_us(data, nodes[node_id], devices=devices) for node_id in ranked]
    assert costs == sorted(costs)
    assert all(cost < cost_us(data, None, devices=devices) for cost in costs)
    assert (saves_us >= 0) if ranked else (saves_us == 0)


@given(estimate_us=st.one_of(st.none(), st.integers(1, 2**50)), saves_us=st.integers(0, 2**50))
def test_a_wait_is_never_longer_than_it_saves_a_tenth_of_the_job_or_a_minute(estimate_us, saves_us):
    waits_us = patience_us(estimate_us=estimate_us, saves_us=saves_us)
    assert 0 <= waits_us <= min(saves_us, PATIENCE_US_MAX)
    assert waits_us * 10 <= (estimate_us or 0)


NODES = ("cold H100 4 spot", "warm H100 4 spot")


def test_a_job_waits_for_the_node_that_holds_its_data_and_takes_it_when_it_comes_free(story):
    placed = story(*NODES)
    assert placed.submit("other", 4, prefers=("warm",)) == ["other@warm:4"]
    assert placed.submit("j", 2, prefers=("warm",), patience_us=30 * S) == []
    assert placed.wait(10 * S) == []
    assert placed.release("other") == ["j@warm:2"]


def test_and_takes_another_when_its_patience_ends(story):
    placed = story(*NODES)
    placed.submit("other", 4, prefers=("warm",))
    assert placed.submit("j", 2, prefers=("warm",), patience_us=30 * S) == []
    assert placed.planner.next_due_us() == placed.now + 30 * S
    assert placed.wait(30 * S) == ["j@cold:2"]


def test_nobody_else_waits_with_it(story):
    placed = story(*NODES)
    placed.submit("other", 4, prefers=("warm",))
    assert placed.submit("j", 2, prefers=("warm",), patience_us=30 * S) == []
    assert placed.submit("k", 2) == ["k@cold:2"]


def test_it_evicts_nobody_while_it_waits(story):
    placed = story("warm H100 4 spot", run_us_min=0)
    assert placed.submit("batch", 4, service="batch") == ["batch@warm:4"]
    assert placed.submit("j", 2, tier=0, prefers=("warm",), patience_us=30 * S) == []
    assert placed.wait(30 * S) == ["batch>j"]


def test_data_on_another_type_it_accepts_are_worth_that_type(story):
    nodes = ("h H100 4 spot", "a A100 4 spot")
    wanted = {"kinds": ("H100", "A100"), "prefers": ("a",)}
    assert story(*nodes).submit("j", 2, patience_us=30 * S, **wanted) == ["j@a:2"]
    assert story(*nodes).submit("j", 2, **wanted) == ["j@h:2"]
