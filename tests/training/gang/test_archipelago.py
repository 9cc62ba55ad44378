"""A gang of several kinds as islands: each sample is seen once, all end at the same weights, and any gang goes on from it."""

import signal
import time
from dataclasses import replace

import pytest

from fabric.checkpoints import Checkpoints, DirectoryStore
from tests.training.gang import crew
from tests.training.gang.crew import Crew
from tests.training.gang.test_losses import steps_done, wait_for
from tests.training.gang.test_together import durable, seen_once
from tests.training.gang.test_worlds import lines
from tests.training.gang.work import EVICTED, REFUSED, Order
from training.gang.gradients import Reproducible
from training.state import shards

KINDS = ("H100", "A100", "H100")


def order_in(folder, *, kinds=KINDS, **options):
    folder.mkdir(exist_ok=True)
    return Order(folder=folder, steps=0, kinds=kinds, mix="islands", **options)


def ended_alike(order):
    """Whether all ranks ended with the same weights."""
    return len({line["weights"] for line in lines(order.folder) if "weights" in line}) == 1


@pytest.mark.parametrize(
    ("mode", "samples"), [(Reproducible.BITWISE, 146), (Reproducible.FAST, 144), (Reproducible.FAST, 146)]
)
def test_islands_see_each_sample_once_and_end_with_the_same_weights(tmp_path, mode, samples):
    """Of 146 samples two are left for a last step that is too short to have a part for every rank."""
    order = order_in(tmp_path / "run", samples=samples, mode=mode)
    assert crew.run(order, world=3, doing="script") == [0] * 3
    assert set(seen_once(order).values()) == {1}
    assert seen_once(order).total() == samples
    assert ended_alike(order)


@pytest.mark.parametrize("then", [("H100", "A100"), ("A100", "A100")], ids="+".join)
def test_islands_that_are_evicted_meet_first_and_any_gang_goes_on_from_there(tmp_path, then):
    order = order_in(tmp_path / "run", epochs=2, pause_s=0.004)
    gang = Crew(order, world=3, doing="script")
    wait_for(lambda: steps_done(order.folder) >= 6)
    gang.kill(1, signal.SIGTERM)
    assert set(gang.end().values()) == {EVICTED}
    assert durable(order.folder) == steps_done(order.folder)
    _, saved = Checkpoints(DirectoryStore(order.folder), prefix="session").load()
    state = shards.load(saved["state"])
    assert state["objects"]["fabric.islands"]["steps"] == 0, (
        "they have just met: what is saved is what all have learned"
    )
    assert set(state["learned"]["speeds"]) == {"H100", "A100"}
    after = replace(order, kinds=then, pause_s=0.0)
    assert crew.run(after, world=len(then), doing="script") == [0] * len(then)
    assert set(seen_once(order).values()) == {2}, "once an epoch"
    assert ended_alike(order)


def test_an_island_that_is_lost_takes_what_it_learned_since_the_last_meeting_and_no_step_of_the_others(tmp_path):
    order = order_in(tmp_path / "run", epochs=2, pause_s=0.004, silent_s=2.0)
    gang = Crew(order, world=3, doing="script")
    wait_for(lambda: steps_done(order.folder) >= 6)
    time.sleep(0.05)
    gang.kill(1)
    ends = gang.end(but=[1])
    assert (ends[0], ends[2]) == (EVICTED, EVICTED)
    assert steps_done(order.folder) - 1 <= durable(order.folder) <= steps_done(order.folder)
    assert crew.run(replace(order, kinds=("H100", "H100"), pause_s=0.0), world=2, doing="script") == [0, 0]
    assert ended_alike(order)


def test_a_loop_of_ones_own_on_islands_is_refused(tmp_path):
    order = order_in(tmp_path / "run")
    assert crew.run(order, world=3, doing="own_loop_on_islands") == [REFUSED] * 3
    assert {line["code"] for line in lines(order.folder)} == {"islands_need_batches"}


@pytest.mark.parametrize(
    ("mix", "kinds", "code"),
    [("never", ("H100", "A100"), "mix_not_asked"), ("same-vendor", ("H100", "910B"), "mix_across_vendors")],
)
def test_a_gang_that_may_not_be_mixed_is_refused_on_all_ranks(tmp_path, mix, kinds, code):
    order = replace(order_in(tmp_path / "run", kinds=kinds), mix=mix)
    assert crew.run(order, world=2, doing="refused_script") == [REFUSED] * 2
    assert {line["code"] for line in lines(order.folder)} == {code}


def test_unequal_devices_of_one_vendor_are_one_gang_with_the_bits_of_one_process(tmp_path):
    digests = []
    for name, kinds in (("one", ("H100",)), ("two", ("H100", "A100"))):
        order = replace(order_in(tmp_path / name, kinds=kinds, samples=144), mix="same-vendor")
        assert crew.run(order, world=len(kinds), doing="script") == [0] * len(kinds)
        digests.append(order.path("digest").read_text())
    assert digests[0] == digests[1]


def test_a_batch_without_a_loss_has_no_part_in_its_step_whoever_has_it(tmp_path):
    digests = []
    for world in (1, 2, 3):
        order = Order(folder=tmp_path / str(world), steps=0, samples=240, skips=(3, 77, 200))
        order.folder.mkdir()
        assert crew.run(order, world=world, doing="script") == [0] * world
        digests.append(order.path("digest").read_text())
    assert len(set(digests)) == 1


def test_where_peers_would_wait_for_it_a_missing_loss_is_an_error_that_says_so(tmp_path):
    """All samples of the first batch's ranks are skipped, so that all ranks say it."""
    order = Order(folder=tmp_path, steps=0, mode=Reproducible.FAST, skips=tuple(range(504)))
    assert crew.run(order, world=2, doing="refused_script") == [REFUSED] * 2
    assert {line["code"] for line in lines(tmp_path) if "code" in line} == {"loss_missing"}
