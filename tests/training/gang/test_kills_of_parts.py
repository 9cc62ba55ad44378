"""kill -9 amid the saves of ranks that each keep their part: what a session goes on from is all parts of one step, as they were."""

import random
import time
from dataclasses import replace

import pytest

from tests.training.gang import crew
from tests.training.gang.crew import Crew
from tests.training.gang.test_losses import wait_for
from tests.training.gang.test_parts import WORLDS, kept
from tests.training.gang.test_worlds import lines, lines_of
from tests.training.gang.work import Order

STEPS = 300


def resumed_in(folder, *, world):
    """What the ranks of the newest attempt went on from; fewer than all, if some have not said it yet."""
    texts = [(folder / f"rank-{rank}.jsonl") for rank in range(world)]
    said = [lines_of(text) if text.exists() else [] for text in texts]
    found = [[line for line in theirs if "resumed" in line] for theirs in said]
    newest = max(map(len, found))
    return newest, [theirs[-1] for theirs in found if theirs and len(theirs) == newest]


@pytest.mark.parametrize("way", ["fsdp", pytest.param("both", marks=pytest.mark.soak)])
@pytest.mark.parametrize("kills", [10, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.timeout(3600)
def test_ranks_killed_while_all_save_come_back_as_they_were(tmp_path, way, kills):
    seed = random.SystemRandom().getrandbits(32)
    dice, world, round_, least, resumed = random.Random(seed), WORLDS[way], 0, 0, []
    whole = Order(folder=tmp_path / "whole", steps=STEPS, sharding=way, digests=True)
    whole.folder.mkdir()
    assert crew.run(whole, world=world, doing="parted_script") == [0] * world
    expected = {line["after"]: line["digest"] for line in lines(whole.folder) if "after" in line}
    order = replace(whole, folder=tmp_path / "0", digests=False, snapshot_every_s=0.0, pause_s=0.002)
    order.folder.mkdir()
    for kill in range(kills):
        begun, gang = resumed_in(order.folder, world=world)[0], Crew(order, world=world, doing="parted_script")

        def is_there(begun=begun, order=order):
            count, came = resumed_in(order.folder, world=world)
            return count == begun + 1 and len(came) == world

        wait_for(is_there)
        came = resumed_in(order.folder, world=world)[1]
        steps = {line["resumed"] for line in came}
        assert len(steps) == 1, f"seed {seed}, kill {kill}: ranks went on from {steps}"
        (step,) = steps
        assert step >= least, f"seed {seed}, kill {kill}: step {least} stood, {step} came back"
        assert {line["digest"] for line in came} == ({expected[step]} if step else {""}), f"seed {seed}, kill {kill}"
        resumed.append(step)
        if dice.random() < 0.7:  # amid the saves after the first; else wherever it is
            wait_for(lambda step=step, order=order: kept(order.folder) > step)
        time.sleep(dice.uniform(0.0, 0.1))
        least = kept(order.folder)
        for victim in dice.choice([range(world), [dice.randrange(world)]]):
            gang.kill(victim)
        assert -9 in gang.end().values()
        if kept(order.folder) > STEPS - 100:
            round_, least = round_ + 1, 0
            order = replace(order, folder=tmp_path / str(round_ + 1))
            order.folder.mkdir()
    print(
        f"\n{kills} kills of {way}, seed {seed}: {sum(step > 0 for step in resumed)} went on, the newest from {max(resumed)}"
    )
    assert sum(step > 0 for step in resumed) >= kills // 2
