"""Who computes what of which step, and how a gang stops: the arithmetic of it, without a gang."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidRequest
from training.gang.members import choose
from training.gang.shares import Shares
from training.loop.virtual import Plan, VirtualRanks, fitting_count


@given(
    st.integers(1, 9),
    st.integers(0, 60),
    st.lists(st.lists(st.integers(1, 10**6), min_size=9, max_size=9), max_size=12),
)
def test_every_micro_batch_of_every_step_has_one_worker_however_often_shares_change(world, more, laps):
    count = world + more
    ranks = [Shares(count, world=world, rank=rank, ahead=2, balances=True) for rank in range(world)]
    read_ahead = {}
    for step in range(1, len(laps) + 1):
        for later in range(step - 1, step + 2):  # what was read ahead must still be what is computed
            blocks = [(rank.block(later, count).start, rank.block(later, count).stop) for rank in ranks]
            assert read_ahead.setdefault(later, blocks) == blocks
            assert [blocks[0][0], *(stop for _, stop in blocks)][-1] == count
            assert all(stop == start for (_, stop), (start, _) in pairwise(blocks))
        for rank in ranks:
            rank.observe(step, tuple(laps[step - 1][:world]))


@given(st.integers(1, 9), st.integers(1, 9))
def test_the_end_of_the_data_is_shared_evenly_and_rank_0_is_never_without(parts, world):
    plan = Shares(64, world=world, rank=0).plan(3, parts)
    assert sum(plan.shares) == parts
    assert max(plan.shares) - min(plan.shares) <= 1
    assert plan.shares[0] >= 1


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 9))
def test_micro_batches_of_a_step_follow_each_other_and_weigh_one(count, more, step):
    ranks = VirtualRanks(count, count + more)
    micros = [ranks.micro(step, vrank) for vrank in range(count)]
    assert micros[0].start == step * (count + more)
    assert micros[-1].stop == (step + 1) * (count + more)
    assert all(one.stop == next_.start for one, next_ in pairwise(micros))
    assert sum(map(ranks.weight, micros)) == pytest.approx(1.0)


def test_no_two_micro_batches_of_a_long_run_share_a_seed():
    ranks = VirtualRanks(64, 64, seed=1)
    seeds = {ranks.seed_of(step, vrank) for step in range(200) for vrank in range(64)}
    assert len(seeds) == 200 * 64


@pytest.mark.parametrize(("world", "batch", "count"), [(2, 256, 16), (8, 256, 64), (3, 96, 32), (4, 6, 6), (1, 1, 1)])
def test_a_good_number_of_virtual_ranks_divides_the_batch_where_it_can(world, batch, count):
    assert fitting_count(world, batch) == count


@pytest.mark.parametrize("shares", [(), (0, 0), (2, -1)])
def test_a_plan_that_computes_nothing_is_refused(shares):
    with pytest.raises(InvalidRequest) as refused:
        Plan(shares)
    assert refused.value.code == "shares_invalid"


@pytest.mark.parametrize(
    ("left_s", "step_s", "save_s", "at_once"),
    [(None, 9.0, 9.0, False), (10.0, 1.0, 2.0, False), (4.0, 1.0, 2.0, True), (0.1, 0.5, 0.0, True)],
)
def test_a_gang_stops_together_when_two_steps_and_a_save_fit(left_s, step_s, save_s, at_once):
    assert choose(left_s=left_s, step_s=step_s, save_s=save_s).at_once is at_once
