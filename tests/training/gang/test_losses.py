"""Peers that die or hang without a word: the survivors keep the last step, and the run goes on from there."""

import json
import random
import signal
import statistics
import time
from dataclasses import replace

import pytest

from tests.training.gang import crew
from tests.training.gang.crew import Crew
from tests.training.gang.test_worlds import lines, uninterrupted
from tests.training.gang.work import EVICTED, REFUSED, Order, Shelf

SEED = 4_711


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def steps_done(folder):
    """The most that any rank has done, from the ends of what they noted."""
    done = 0
    for path in folder.glob("rank-*.jsonl"):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            said = [line for line in file.read().splitlines()[1:] if line.startswith(b'{"did"') and line.endswith(b"}")]
        done = max([done, *(json.loads(line)["did"] + 1 for line in said[-1:])])
    return done


def finish(order, *, world, want_folder):
    """Run to two steps beyond what is kept; the digest must be that of a run nobody disturbed."""
    last = replace(order, steps=Shelf(order.folder).newest() + 2, pause_s=0.0)
    assert crew.run(last, world=world) == [0] * world
    want = uninterrupted(want_folder, steps=last.steps)
    assert (order.folder / "digest").read_text() == want


def kill_at_random(tmp_path, *, kills, seed):
    dice = random.Random(seed)
    order = Order(folder=tmp_path / "killed", steps=10**6, pause_s=0.003)
    order.folder.mkdir()
    lost, noticed_s, durable_s, died_as = [], [], [], []
    for number in range(kills):
        world, before = dice.choice([2, 2, 3, 4]), steps_done(order.folder)
        gang, victim = Crew(order, world=world), dice.randrange(world)
        wait_for(lambda before=before: steps_done(order.folder) > before)
        time.sleep(dice.uniform(0.0, 0.08))
        killed_at = time.time()
        gang.kill(victim)
        ends = gang.end()
        assert ends == {rank: -9 if rank == victim else EVICTED for rank in range(world)}, f"kill {number}, seed {seed}"
        told = [line for line in lines(order.folder) if "lost" in line and line["durable"] > killed_at]
        assert not [line["lost"] for line in told if "is silent" in line["lost"]], f"kill {number}: waited for nobody"
        noticed_s.append(min(line["seen"] for line in told) - killed_at)
        durable_s.append(min(line["durable"] for line in told) - killed_at)
        lost.append(steps_done(order.folder) - Shelf(order.folder).newest())
        died_as.append(victim)
    assert lost == [0] * kills, f"seed {seed}: steps lost {lost}, victims {died_as}"
    print(
        f"\n{kills} kills: noticed p50 {statistics.median(noticed_s) * 1e3:.0f} ms, max {max(noticed_s) * 1e3:.0f} ms; "
        f"durable p50 {statistics.median(durable_s) * 1e3:.0f} ms, max {max(durable_s) * 1e3:.0f} ms; steps lost 0"
    )
    finish(order, world=2, want_folder=tmp_path / "one")


def test_thirty_peers_killed_at_random_instants_cost_no_step(tmp_path):
    kill_at_random(tmp_path, kills=30, seed=SEED)


@pytest.mark.soak
def test_a_hundred_peers_killed_at_random_instants_cost_no_step(tmp_path):
    kill_at_random(tmp_path, kills=100, seed=99)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_peer_that_hangs_is_found_silent_and_costs_no_step(tmp_path, victim):
    order = Order(folder=tmp_path / "hung", steps=10**6, pause_s=0.003, silent_s=1.5)
    order.folder.mkdir()
    gang = Crew(order, world=3)
    wait_for(lambda: steps_done(order.folder) > 3)
    gang.kill(victim, signal.SIGSTOP)
    ends = gang.end(but=[victim])
    assert ends == {rank: None if rank == victim else EVICTED for rank in range(3)}
    assert steps_done(order.folder) == Shelf(order.folder).newest()
    told = [line for line in lines(order.folder) if "lost" in line]
    assert all(line["silent"] == [victim] and f"rank {victim} of 3 is silent" in line["lost"] for line in told), told
    finish(order, world=2, want_folder=tmp_path / "one")


@pytest.mark.parametrize("how", ["dies_saving", "hangs_saving"])
def test_when_the_rank_that_saves_dies_or_hangs_the_next_one_saves(tmp_path, how):
    order = Order(folder=tmp_path / "saved", steps=30, stop_after=4, asked=1, silent_s=1.0, **{how: (0, 1)})
    order.folder.mkdir()
    gang = Crew(order, world=3)
    ends = gang.end(but=[] if how == "dies_saving" else [0, 1])
    assert ends[2] == EVICTED
    assert Shelf(order.folder).newest() == steps_done(order.folder)
    finish(replace(order, dies_saving=(), hangs_saving=(), stop_after=None), world=2, want_folder=tmp_path / "one")


def test_a_rank_that_dies_while_restoring_leaves_the_checkpoint_for_the_next_attempt(tmp_path):
    order = Order(folder=tmp_path / "restored", steps=30, stop_after=4)
    order.folder.mkdir()
    assert crew.run(order, world=2) == [EVICTED, EVICTED]
    ends = crew.run(replace(order, dies_restoring=(1,), timeout_s=2.0, stop_after=None), world=3)
    assert ends == [REFUSED, -9, REFUSED]
    finish(replace(order, stop_after=None), world=3, want_folder=tmp_path / "one")


def test_a_peer_that_never_comes_is_named(tmp_path):
    order = Order(folder=tmp_path, steps=3, timeout_s=1.0)
    assert set(Crew(order, world=3, absent=(2,)).end().values()) == {REFUSED}
    assert {line["code"] for line in lines(tmp_path)} == {"gang_incomplete"}
    assert all("rank 2 did not come" in line["refused"] for line in lines(tmp_path)), lines(tmp_path)
