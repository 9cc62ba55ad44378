"""A user's loop over a model that no rank holds whole: each rank keeps its part, and a save is all parts or none."""

import random
import signal
import time
from dataclasses import replace

import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore
from tests.training.gang import crew
from tests.training.gang.crew import Crew
from tests.training.gang.test_losses import steps_done, wait_for
from tests.training.gang.test_worlds import lines
from tests.training.gang.work import EVICTED, Order

WORLDS = {"fsdp": 2, "hsdp": 4, "tp": 2, "both": 4}


def kept(folder):
    found = Checkpoints(DirectoryStore(folder), prefix="session").newest()
    return found.step if found else 0


def ended(order):
    """What each rank had at the end: weights and moments, its next random number, its own buffer."""
    said = [line for line in lines(order.folder) if "drawn" in line]
    return sorted((line["digest"], line["drawn"], line["seen"]) for line in said)


@pytest.mark.parametrize("way", WORLDS)
def test_a_loop_over_a_sharded_model_is_evicted_and_ends_with_the_same_bits_on_all_ranks(tmp_path, way):
    dice, world, found = random.Random(way), WORLDS[way], []
    for name, stops in (("whole", 0), ("stopped", 3)):
        order = Order(folder=tmp_path / name, steps=40, pause_s=0.01, sharding=way)
        order.folder.mkdir()
        for _ in range(stops):
            before, gang = steps_done(order.folder), Crew(order, world=world, doing="parted_script")
            wait_for(lambda before=before, order=order: steps_done(order.folder) > before + 2)
            time.sleep(dice.uniform(0, 0.03))
            gang.kill(dice.randrange(world), signal.SIGTERM)
            assert set(gang.end().values()) == {EVICTED}
            assert kept(order.folder) == steps_done(order.folder)
        assert crew.run(replace(order, pause_s=0.0), world=world, doing="parted_script") == [0] * world
        found.append(ended(order))
    assert found[0] == found[1]


def begun_with(order, *, step):
    """The weights and moments that ranks had when they went on from this step."""
    return {line["digest"] for line in lines(order.folder) if line.get("resumed") == step}


@pytest.mark.parametrize("ways", [("fsdp", "hsdp", "whole", "both"), ("tp", "whole", "fsdp")], ids="-".join)
def test_weights_and_moments_move_between_worlds_and_ways_without_a_changed_bit(tmp_path, ways):
    """Also onto a model that a rank holds whole, and from it."""
    worlds, ended_with = {"fsdp": 3, "hsdp": 4, "tp": 2, "whole": 1, "both": 4}, set()
    for attempt, way in enumerate(ways):
        order = Order(folder=tmp_path, steps=3 + 3 * attempt, sharding=way)
        assert crew.run(order, world=worlds[way], doing="parted_script") == [0] * worlds[way]
        newest = Checkpoints(DirectoryStore(tmp_path), prefix="session").newest()
        assert ("frozen" in {shard.name for shard in newest.shards}) == (way == "whole")
        if attempt:
            assert begun_with(order, step=order.steps - 3) == ended_with
        ended_with = {line["digest"] for line in lines(tmp_path) if line.get("at_step") == order.steps}
        assert len(ended_with) == 1


@pytest.mark.parametrize("way", ["fsdp", "hsdp"])
def test_a_rank_that_dies_while_all_save_leaves_the_checkpoint_before(tmp_path, way):
    world = WORLDS[way]
    order = Order(folder=tmp_path, steps=4, sharding=way, timeout_s=20.0)
    assert crew.run(order, world=world, doing="parted_script") == [0] * world
    ends = crew.run(replace(order, steps=8, dies_saving=(1,)), world=world, doing="parted_script")
    assert ends[1] == -9
    assert kept(tmp_path) == 4
    assert crew.run(replace(order, steps=12), world=world, doing="parted_script") == [0] * world
    assert {line["resumed"] for line in lines(tmp_path)[-20:] if "resumed" in line} <= {0, 4}
    assert kept(tmp_path) == 12


def test_a_rank_that_is_killed_costs_what_came_after_the_last_snapshot_and_no_more(tmp_path):
    order = Order(folder=tmp_path / "killed", steps=60, pause_s=0.01, snapshot_every_s=0.05)
    order.folder.mkdir()
    for victim in (1, 0):
        before, gang = kept(order.folder), Crew(order, world=2, doing="parted_script")
        wait_for(lambda before=before: kept(order.folder) > before + 2)
        gang.kill(victim)
        assert gang.end()[victim] == -9
        assert kept(order.folder) > before + 2
    assert crew.run(order, world=2, doing="parted_script") == [0, 0]
    whole = replace(order, folder=tmp_path / "whole", pause_s=0.0)
    whole.folder.mkdir()
    assert crew.run(whole, world=2, doing="parted_script") == [0, 0]
    assert ended(order) == ended(whole)


def test_moments_of_a_sharded_model_are_kept_where_only_the_optimizer_is_tracked(tmp_path):
    order = Order(folder=tmp_path, steps=3, kinds=("optimizer only",))
    assert crew.run(order, world=2, doing="parted_script") == [0, 0]
    newest = Checkpoints(DirectoryStore(tmp_path), prefix="session").newest()
    assert {"rank-0/state", "rank-1/state", "layout"} == {shard.name for shard in newest.shards}
    assert crew.run(replace(order, steps=5), world=2, doing="parted_script") == [0, 0]
