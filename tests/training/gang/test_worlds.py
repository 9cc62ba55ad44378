"""Any sequence of gangs, of any size and split, ends with the weights of one process that was never stopped."""

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.training.gang import crew
from tests.training.gang.work import EVICTED, Order
from training.gang.gradients import Reproducible

SEED = 20_251


def lines(folder):
    return [line for path in folder.glob("rank-*.jsonl") for line in lines_of(path)]


def lines_of(path):
    """What a rank has noted; who reads while it writes may see the last line half."""
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def uninterrupted(folder, **options):
    folder.mkdir()
    assert crew.run(Order(folder=folder, **options), world=1) == [0]
    return (folder / "digest").read_text()


def random_shares(dice, *, world, virtual):
    cuts = sorted(dice.sample(range(1, virtual), world - 1))
    return tuple(stop - start for start, stop in zip([0, *cuts], [*cuts, virtual], strict=True))


def through_worlds(tmp_path, *, changes, seed):
    """Stop after a few steps each time, go on with another number of ranks and another split."""
    dice = random.Random(seed)
    lengths = [dice.randint(1, 3) for _ in range(changes + 1)]
    want = uninterrupted(tmp_path / "one", steps=sum(lengths))
    order = Order(folder=tmp_path / "many", steps=sum(lengths))
    order.folder.mkdir()
    worlds = []
    while not (order.folder / "digest").exists():
        world = dice.choice([number for number in range(1, 9) if number != (worlds or [0])[-1]])
        shares = random_shares(dice, world=world, virtual=order.virtual)
        stop_after = (lengths[len(worlds)] - 1) if len(worlds) < changes else None
        ends = crew.run(replace(order, shares=shares, stop_after=stop_after, asked=dice.randrange(world)), world=world)
        worlds.append(world)
        assert set(ends) <= {0, EVICTED}, f"seed {seed}, world {world}: ended {ends}"
    return worlds, want, order


def check_worlds(tmp_path, *, changes, seed=SEED):
    worlds, want, order = through_worlds(tmp_path, changes=changes, seed=seed)
    said = [
        line for line in lines(order.folder) if "did" in line
    ]  # a busy machine's peer may be lost, and is noted, too
    assert (order.folder / "digest").read_text() == want, f"seed {seed}: worlds {worlds}"
    assert len(worlds) > changes * 0.8
    done = Counter((line["did"], vrank) for line in said for vrank in line["vranks"])
    assert done == Counter((step, vrank) for step in range(order.steps) for vrank in range(order.virtual))
    for step in range(order.steps):
        assert len({line["loss"] for line in said if line["did"] == step}) == 1, "ranks differ in the loss"


def test_forty_changes_of_world_end_with_the_same_bits_and_see_each_sample_once(tmp_path):
    check_worlds(tmp_path, changes=40)


@pytest.mark.soak
def test_five_hundred_changes_of_world_end_with_the_same_bits(tmp_path):
    check_worlds(tmp_path, changes=500, seed=7)


def test_a_plain_reduction_gives_other_bits_in_other_worlds(tmp_path):
    """That the test above can fail: the same run in fast mode."""
    digests = set()
    for world in (1, 2, 3):
        order = Order(folder=tmp_path / str(world), steps=4, mode=Reproducible.FAST)
        order.folder.mkdir()
        assert crew.run(order, world=world) == [0] * world
        digests.add((order.folder / "digest").read_text())
    assert len(digests) == 3


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
@pytest.mark.parametrize("shares", [(5, 3), (1, 6, 1)])
def test_fast_gradients_of_uneven_shares_are_those_of_one_process_to_rounding(tmp_path, shares, sharded):
    one, many = (Order(folder=tmp_path / name, steps=1) for name in ("one", "many"))
    for order in (one, many):
        order.folder.mkdir()
    assert crew.run(one, world=1, doing="reduced_grads") == [0]
    fast = replace(many, shares=shares, mode=Reproducible.FAST, sharded=sharded)
    assert crew.run(fast, world=len(shares), doing="reduced_grads") == [0] * len(shares)
    want = torch.load(one.folder / "grads-0")
    for rank in range(len(shares)):
        got = torch.load(many.folder / f"grads-{rank}")
        torch.testing.assert_close(got["grads"], want["grads"], rtol=1e-12, atol=1e-14)
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-6)
