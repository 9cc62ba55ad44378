"""A user's script on several ranks: evicted, killed, resumed on other numbers of them, it ends as if nothing had been."""

import json
import random
import signal
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from fabric.checkpoints import Checkpoints, DirectoryStore
from tests.training.gang import crew
from tests.training.gang.crew import Crew
from tests.training.gang.test_losses import steps_done, wait_for
from tests.training.gang.test_worlds import lines
from tests.training.gang.work import EVICTED, REFUSED, Order
from training.gang.gradients import Reproducible
from training.gang.session import silent_steps
from training.state import randomness, rank_parts
from training.state.moment import Moment
from training.state.rank_parts import RankParts, apart


def durable(folder):
    found = Checkpoints(DirectoryStore(folder), prefix="session").newest()
    return found.step if found else 0


def undisturbed(folder, **options):
    order = Order(folder=folder, steps=0, **options)
    folder.mkdir()
    assert crew.run(order, world=1, doing="script") == [0]
    return order.path("digest").read_text()


def seen_once(order):
    """How often each sample was seen in steps that counted: of a step that was done twice, the last time."""
    last = {}
    for line in sorted((line for line in lines(order.folder) if "rows" in line), key=lambda line: line["at"]):
        last.setdefault(line["did"], []).append(line)
    return Counter(row for step in last.values() for line in step for row in line["rows"])


@pytest.mark.parametrize("samples", [144, 146])
def test_an_epoch_in_a_gang_of_any_size_ends_with_the_same_bits_and_each_sample_seen_once(tmp_path, samples):
    """Of 146 samples two are left for the last step, in which all ranks but two have nothing to do."""
    want = undisturbed(tmp_path / "one", samples=samples)
    for world, workers in ((2, 0), (3, 1), (8, 0)):
        order = Order(folder=tmp_path / str(world), steps=0, workers=workers, samples=samples)
        order.folder.mkdir()
        assert crew.run(order, world=world, doing="script") == [0] * world
        assert order.path("digest").read_text() == want, f"world {world}"
        assert set(seen_once(order).values()) == {1}
        assert seen_once(order).total() == samples


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["evicted", "killed"])
def test_a_script_is_stopped_at_random_instants_in_gangs_of_many_sizes_and_loses_no_step(tmp_path, number):
    dice = random.Random(number)
    order = Order(folder=tmp_path / "many", steps=0, epochs=2, pause_s=0.004)
    order.folder.mkdir()
    for _ in range(4):
        world = dice.choice([2, 3, 4])
        before, gang = steps_done(order.folder), Crew(order, world=world, doing="script")
        wait_for(lambda before=before: steps_done(order.folder) > before)
        time.sleep(dice.uniform(0, 0.1))
        victim = dice.randrange(world)
        gang.kill(victim, number)
        ends = gang.end()
        assert set(ends.values()) <= ({EVICTED} if number == signal.SIGTERM else {EVICTED, -9}), ends
        at_work = steps_done(order.folder)
        assert at_work - 1 <= durable(order.folder) <= at_work, "the step under way may be lost, and none before it"
    assert crew.run(replace(order, pause_s=0.0), world=2, doing="script") == [0, 0]
    assert order.path("digest").read_text() == undisturbed(tmp_path / "one", epochs=2)


@pytest.mark.parametrize(
    ("laps_us", "steps"),
    [((50_000, 40_000), 0), ((5_000, 4_000), 4), ((5_000, 21_000), 0), ((10, 10), 15), ((5_000, 0), 0), ((0, 0), 0)],
)
def test_ranks_agree_at_every_step_that_takes_its_time_and_once_in_several_quick_ones(laps_us, steps):
    assert silent_steps(laps_us) == steps


def test_a_script_whose_peer_hangs_ends_saved_long_before_a_collective_times_out(tmp_path):
    order = Order(folder=tmp_path, steps=0, epochs=9, pause_s=0.004, silent_s=1.5, timeout_s=300.0)
    gang = Crew(order, world=3, doing="script")
    wait_for(lambda: steps_done(tmp_path) >= 2)
    gang.kill(2, signal.SIGSTOP)
    ends = gang.end(60, but=[2])
    assert (ends[0], ends[1]) == (EVICTED, EVICTED)
    assert steps_done(tmp_path) - 1 <= durable(tmp_path) <= steps_done(tmp_path)


def whole_and_stopped(tmp_path, doing):
    """The orders of two runs that have come to their end: one as it is, and one that was stopped three times, by either rank."""
    for name, stops in (("whole", 0), ("stopped", 3)):
        order = Order(folder=tmp_path / name, steps=40, pause_s=0.01)
        order.folder.mkdir()
        for stop in range(stops):
            before, gang = steps_done(order.folder), Crew(order, world=2, doing=doing)
            wait_for(lambda before=before, order=order: steps_done(order.folder) > before + 2)
            gang.kill(stop % 2, signal.SIGTERM)
            assert set(gang.end().values()) == {EVICTED}
            assert durable(order.folder) == steps_done(order.folder)
        assert crew.run(order, world=2, doing=doing) == [0, 0]
        yield order


def test_a_loop_of_ones_own_with_ddp_stops_on_all_ranks_after_the_same_step_and_goes_on_as_if_nothing_had_been(
    tmp_path,
):
    whole, stopped = (order.path("digest").read_text() for order in whole_and_stopped(tmp_path, "plain_script"))
    assert stopped == whole


def drawn(folder):
    """What each rank drew in each step; of one that was made twice, the last time."""
    texts = {rank: (folder / f"rank-{rank}.jsonl").read_text() for rank in range(2)}
    said = [(rank, json.loads(line)) for rank, text in texts.items() for line in text.splitlines()]
    return {(rank, line["did"]): line["drew"] for rank, line in said}


def test_each_rank_of_a_loop_of_ones_own_goes_on_with_its_own_random_numbers(tmp_path):
    """And with its own generators, variables and lists: one rank saves for all."""
    whole, stopped = (
        (drawn(order.folder), order.path("digest").read_text()) for order in whole_and_stopped(tmp_path, "own_script")
    )
    assert stopped == whole
    assert {step: draws for (rank, step), draws in whole[0].items() if rank == 0} != {
        step: draws for (rank, step), draws in whole[0].items() if rank == 1
    }


def test_each_rank_goes_on_with_its_own_random_numbers_after_a_snapshot_too(tmp_path):
    """All are killed at once, so that no rank could tell what it had; steps after the snapshot are made again."""
    order = Order(folder=tmp_path / "killed", steps=60, pause_s=0.01, snapshot_every_s=0.05)
    order.folder.mkdir()
    for _ in range(3):
        before, gang = durable(order.folder), Crew(order, world=2, doing="own_script")
        wait_for(lambda before=before: durable(order.folder) > before + 3)
        for rank in range(2):
            gang.kill(rank)
        assert set(gang.end().values()) == {-9}
    assert crew.run(order, world=2, doing="own_script") == [0, 0]
    whole = replace(order, folder=tmp_path / "whole", pause_s=0.0, snapshot_every_s=None)
    whole.folder.mkdir()
    assert crew.run(whole, world=2, doing="own_script") == [0, 0]
    assert order.path("digest").read_text() == whole.path("digest").read_text()
    assert drawn(order.folder) == drawn(whole.folder)


def test_what_ranks_tell_each_other_has_a_bound_and_a_rank_beyond_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(rank_parts, "BYTES_MAX", 2 * 4_000)
    everyones = []
    for rank, count in ((0, 10), (1, 2_000)):
        ranks = RankParts(Tracked())
        ranks.rank, ranks.world, ranks.is_needed = rank, 2, True
        moment = Moment(
            step=5, cursor={"at": rank}, copied={}, random={}, versions={},
            variables={"replay": torch.zeros(count), "few": [rank]},
        )  # fmt: skip
        everyones.append(ranks.own(moment, late={}, is_kept=lambda _name, _value: True))
    assert [sorted(own) for own in everyones] == [
        ["cursor", "owned", "random", "step", "variables"],
        ["cursor", "random", "step"],
    ]
    said = capsys.readouterr().err
    assert "rank 1 has 8,0" in said
    assert "replay" in said
    ranks.everyones = everyones
    assert ranks.kept(5) == everyones
    state = {"step": 5, "ranks": everyones, "objects": {}, "random": {}, "cursor": {}, "variables": {"few": [0]}}
    assert ranks.taken(state)["cursor"] == {"at": 1}


class Tracked:
    def owned(self, copied):
        return {}

    def disowned(self, objects, owned):
        return objects


def test_ranks_whose_numbers_were_not_kept_draw_none_that_another_rank_draws():
    """As after a snapshot, which is one rank's alone, or where there were fewer."""
    torch.manual_seed(3)
    states = randomness.capture()
    draws = []
    for rank in range(1, 4):
        randomness.restore(apart(states, rank))
        draws.append((torch.rand(3).tolist(), random.random(), np.random.rand()))  # noqa: NPY002
    randomness.restore(states)
    draws.append((torch.rand(3).tolist(), random.random(), np.random.rand()))  # noqa: NPY002
    assert len({str(part) for each in draws for part in each}) == 3 * len(draws)


def test_with_too_little_time_to_stop_together_the_last_boundary_is_saved_at_once(tmp_path):
    """A step takes 0.8 s, and 0.6 s are left: mid-step, the side threads save what was complete."""
    order = Order(folder=tmp_path / "hurried", steps=0, pause_s=0.2, grace_s=0.6)
    order.folder.mkdir()
    gang = Crew(order, world=2, doing="script")
    wait_for(lambda: steps_done(order.folder) >= 3)
    for rank in (0, 1):
        gang.kill(rank, signal.SIGTERM)
    assert set(gang.end().values()) == {EVICTED}
    at_work = steps_done(order.folder)
    assert at_work - 1 <= durable(order.folder) <= at_work
    assert crew.run(replace(order, pause_s=0.0), world=3, doing="script") == [0, 0, 0]
    assert order.path("digest").read_text() == undisturbed(tmp_path / "one")


def test_fewer_virtual_ranks_than_workers_are_refused(tmp_path):
    order = Order(folder=tmp_path, steps=0, virtual=1)
    assert crew.run(order, world=2, doing="script") == [1, 1]


@pytest.mark.parametrize("way", ["fsdp1", "fsdp1 optimizer", "zero"])
def test_a_state_that_takes_all_ranks_to_read_is_refused_with_the_remedy(tmp_path, way):
    order = Order(folder=tmp_path, steps=0, sharding=way)
    assert crew.run(order, world=2, doing="flat_script") == [REFUSED, REFUSED]
    for line in lines(tmp_path):
        assert line["code"] == "sharded_model"
        assert "fully_shard" in line["message"]


@pytest.mark.parametrize("samples", [504, 145])
def test_the_fast_way_trains_too(tmp_path, samples):
    """Of 145 samples one is left for the last step, in which only one rank has something to do."""
    order = Order(folder=tmp_path, steps=0, mode=Reproducible.FAST, samples=samples, timeout_s=20.0)
    assert crew.run(order, world=2, doing="script") == [0, 0]
    assert durable(tmp_path) == -(-samples // 24)
    assert len({line["weights"] for line in lines(tmp_path) if "weights" in line}) == 1
