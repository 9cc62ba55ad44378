"""Every sample exactly once an epoch, whatever happens; and a run on a dataset ends with the same bits whatever happens."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler, TensorDataset

from fabric import context
from fabric.errors import Conflict, InvalidRequest
from tests.training.workload import CLASSES, FEATURES, Attempts, Dice, Script, ended_by, linger, running, stopped
from training import session
from training.loop.data import Permutation, feed_of, micros_of
from training.loop.virtual import VirtualRanks

SAMPLES, BATCH, EPOCHS = 110, 10, 4


class Million(Dataset):
    """Samples that are their own number, read many at once."""

    def __len__(self):
        return 1_000_000

    def __getitems__(self, indices):
        return indices

    def __getitem__(self, index):
        return index


class Stream(IterableDataset):
    """Comes in an order of its own, and nobody knows how long it is."""

    def __init__(self, count, *, tells=False):
        self.count, self.at, self.read = count, 0, 0
        if tells:
            self.state_dict = lambda: {"at": self.at}
            self.load_state_dict = lambda state: setattr(self, "at", state["at"])

    def __iter__(self):
        while self.at < self.count:
            self.at, self.read = self.at + 1, self.read + 1
            yield self.at - 1
        self.at = 0


def dataset():
    dice = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(SAMPLES, FEATURES, generator=dice), torch.randint(CLASSES, (SAMPLES,), generator=dice)
    )


def counted(attempts, data, dice, *, evict_each, **options):
    """How often each sample counted in a step that stayed, over all attempts."""
    attempts.seen = {}  # by step: one that is done again counts once

    def work(job):
        run = session(extra={"nothing": {}}, snapshot_every_s=3600)
        for step in [step for step in attempts.seen if step >= run.resumed_at]:
            del attempts.seen[step]
        for batch in run.batches(data(), collate=list, **options):
            if dice.random() < 1 / evict_each:
                stopped(job)
            attempts.seen.setdefault(run.done, []).extend(batch)
            run.step(torch.zeros((), requires_grad=True))

    attempts.run(work)
    return torch.bincount(torch.tensor([sample for step in attempts.seen.values() for sample in step]))


def test_a_million_samples_are_seen_once_each_through_evictions(tmp_path):
    attempts, seed = Attempts(tmp_path), random.randrange(2**32)
    times = counted(attempts, Million, Dice(seed), evict_each=20, global_batch=4096)
    assert len(times) == 1_000_000
    assert bool((times == 1).all()), f"seed {seed}"
    assert attempts.count > 1


@pytest.mark.parametrize("virtual", [1, 4])
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize(
    "data", [range, Stream, lambda count: Stream(count, tells=True)], ids=["index", "stream", "tells"]
)
@pytest.mark.parametrize("count", [103, 100])
def test_each_epoch_sees_each_sample_once(tmp_path, data, count, epochs, virtual):
    seed = random.randrange(2**32)
    options = {"global_batch": 10, "epochs": epochs, "virtual": virtual}
    times = counted(Attempts(tmp_path), lambda: data(count), Dice(seed), evict_each=20, **options)
    assert times.tolist() == [epochs] * count, f"seed {seed}"


def test_a_dataset_that_says_where_it_is_is_not_read_twice(tmp_path):
    attempts, read = Attempts(tmp_path), []

    def data():
        read.append(Stream(200, tells=True))
        return read[-1]

    counted(attempts, data, Dice(1), evict_each=5, global_batch=10)
    assert attempts.count > 2
    assert sum(stream.read for stream in read) <= 200 + 10 * attempts.count


def trained(job, dice, **options):
    script = Script()
    run = script.session()
    data = options.pop("data", dataset)
    for samples, classes in run.batches(data(), **options):
        if job is not None and dice.random() < 0.15:
            stopped(job)
        run.step(script.loss(samples, classes))
    return run.done, script.digest()


def shuffled_loader():
    return DataLoader(dataset(), batch_size=BATCH, shuffle=True)


def seeded_loader():
    return DataLoader(dataset(), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(3))


class Shuffling(Sampler):
    """Draws from a generator of its own, of whichever library."""

    def __init__(self, dice):
        self.settings = {"dice": [dice]}

    def __len__(self):
        return SAMPLES

    def __iter__(self):
        dice, order = self.settings["dice"][0], list(range(SAMPLES))
        dice.shuffle(order)
        return iter(order)


class Augmented(Dataset):
    """Changes each sample by a generator of its own."""

    def __init__(self):
        self.samples, self.dice = dataset(), np.random.default_rng(6)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, at):
        sample, label = self.samples[at]
        return sample * float(self.dice.random()), label


def sampled(dice):
    return lambda: DataLoader(dataset(), batch_size=BATCH, sampler=Shuffling(dice()))


def by_epochs():
    """As for one of several ranks, whose samplers are told the epoch."""
    return DataLoader(dataset(), batch_size=BATCH, sampler=DistributedSampler(dataset(), num_replicas=1, rank=0))


@pytest.mark.parametrize(
    "options",
    [
        {"data": seeded_loader},
        {"data": sampled(lambda: random.Random(4))},
        {"data": sampled(lambda: np.random.default_rng(5))},
        {"data": sampled(lambda: np.random.RandomState(5))},
        {"data": lambda: DataLoader(Augmented(), batch_size=BATCH)},
        {"data": by_epochs},
        {"global_batch": BATCH},
        {"global_batch": BATCH, "virtual": 4},
        {"global_batch": BATCH, "shuffle": False},
        {"data": shuffled_loader},
        {"data": lambda: (batch for _ in range(1) for batch in shuffled_loader())},
    ],
    ids=[
        "own generator",
        "own sampler",
        "numpy's",
        "old numpy's",
        "own changes",
        "told the epoch",
        "whole",
        "virtual",
        "in-order",
        "loader",
        "unknown-length",
    ],
)
def test_a_run_on_data_that_is_evicted_ends_with_the_same_bits(tmp_path, options):
    epochs = 1 if "data" in options and not hasattr(options["data"](), "__len__") else EPOCHS
    whole = trained(None, None, epochs=epochs, **options)
    seed = random.randrange(2**32)
    attempts, dice = Attempts(tmp_path), Dice(seed)
    assert attempts.run(lambda job: trained(job, dice, epochs=epochs, **options)) == whole, f"seed {seed}"
    assert whole[0] == epochs * SAMPLES // BATCH


def test_a_sampler_that_wants_to_know_the_epoch_gives_each_another_order(tmp_path):
    told = []
    loader = by_epochs()
    loader.sampler.set_epoch = told.append
    feed = feed_of(loader, None, epochs=3)
    for _ in feed.portions(0, {}):
        pass
    assert told == [0, 1, 2]
    alone = by_epochs()
    alone.sampler.set_epoch = told.append
    for _ in feed_of(alone, None, epochs=1).portions(0, {}):
        pass
    assert told == [0, 1, 2], "where there is one epoch, the script's own loop has said which"


def test_a_scaler_and_clipping_are_part_of_the_steps_and_of_the_checkpoint(tmp_path):
    def scaled(job):
        script, norms = Script(), []
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=5)
        weights = list(script.model.parameters())
        run = script.session(
            scaler=scaler, clip_norm=0.1,
            before_update=lambda: norms.append(torch.nn.utils.get_total_norm([weight.grad for weight in weights])),
        )  # fmt: skip
        script.opt.register_step_pre_hook(
            lambda *_: norms.append(torch.nn.utils.get_total_norm([weight.grad for weight in weights]))
        )
        for at, (samples, classes) in enumerate(run.batches(dataset(), global_batch=BATCH, epochs=2)):
            if job is not None and at == 7 and attempts.count < 3:
                stopped(job)
            run.step(script.loss(samples, classes))
        assert all(clipped <= 0.1001 for clipped in norms[1::2])
        assert any(unclipped > 0.2 for unclipped in norms[::2])
        return script.digest(), scaler.get_scale()

    attempts = Attempts(tmp_path)
    whole = scaled(None)
    assert whole[1] > 2**4
    assert attempts.run(scaled) == whole
    assert attempts.count == 3


def test_processes_that_read_ahead_change_no_bit(tmp_path):
    alone = trained(None, None, global_batch=BATCH)
    assert trained(None, None, global_batch=BATCH, workers=2) == alone


def test_a_run_that_waits_for_its_loader_is_saved_and_ended_there(tmp_path):
    attempts = Attempts(tmp_path)
    job = attempts.next()

    def slow():
        for number in range(20):
            if number == 7:
                stopped(job)
                linger()
            yield number

    with ended_by(context.Saved, job):
        run = session(extra={"nothing": {}})
        for _ in run.batches(slow()):
            run.step(torch.zeros((), requires_grad=True))
    assert attempts.saves == [7]
    assert run.timers.seconds()["waiting_data"] > 0


def test_a_batch_without_a_loss_has_no_part_in_its_step():
    script = Script()
    run = script.session()
    for at, (samples, classes) in enumerate(run.batches(dataset(), global_batch=BATCH)):
        if at % 2 == 0:
            run.step(script.loss(samples, classes))
    assert run.done == SAMPLES // BATCH
    assert script.sched.last_epoch == 6


def test_a_loss_without_a_batch_is_refused():
    run = Script().session()
    with pytest.raises(InvalidRequest, match="one loss for each batch"):
        run.step(torch.zeros(()))


@pytest.mark.parametrize("virtual", [1, 2, 5])
def test_parts_of_a_step_weigh_what_they_hold(virtual):
    """The mean over the whole batch, to rounding, though 13 samples make uneven parts."""
    data = TensorDataset(torch.randn(13, 4), torch.randn(13, 1))
    model = torch.nn.Linear(4, 1).double()
    wanted = torch.nn.functional.mse_loss(model(data.tensors[0].double()), data.tensors[1].double())
    wanted.backward()
    gradient = model.weight.grad.clone()
    model.weight.grad = None
    seen = []
    run = session(
        model=model,
        opt=torch.optim.SGD(model.parameters(), lr=0.1),
        before_update=lambda: seen.append(model.weight.grad.clone()),
    )
    for samples, targets in run.batches(data, global_batch=13, virtual=virtual):
        run.step(torch.nn.functional.mse_loss(model(samples.double()), targets.double()))
    torch.testing.assert_close(seen, [gradient], rtol=1e-12, atol=1e-12)


def test_the_same_data_in_another_number_is_refused(tmp_path):
    attempts = Attempts(tmp_path)
    job = attempts.next()
    with ended_by(context.Saved, job):
        run = session(extra={"nothing": {}})
        for at, _ in enumerate(run.batches(range(100), global_batch=10)):
            if at == 3:
                stopped(job)
            run.step(torch.zeros((), requires_grad=True))
    for other in ({"data": range(90), "global_batch": 10}, {"data": range(100), "global_batch": 20}):
        with running(attempts.next()), pytest.raises(Conflict) as raised:
            next(session(extra={"nothing": {}}).batches(other.pop("data"), **other))
        assert raised.value.code == "checkpoint_of_another_run"


@pytest.mark.parametrize("tells", [False, True])
@pytest.mark.parametrize("other", [{"global_batch": 20}, {"global_batch": 10, "seed": 3}])
def test_a_stream_in_other_batches_or_of_another_seed_is_refused(tmp_path, tells, other):
    attempts = Attempts(tmp_path)
    job = attempts.next()
    with ended_by(context.Saved, job):
        run = session(extra={"nothing": {}})
        for at, _ in enumerate(run.batches(Stream(100, tells=tells), global_batch=10)):
            if at == 5:
                stopped(job)
            run.step(torch.zeros((), requires_grad=True))
    with running(attempts.next()), pytest.raises(Conflict) as raised:
        next(session(extra={"nothing": {}}).batches(Stream(100, tells=tells), **other))
    assert raised.value.code == "checkpoint_of_another_run"


def test_a_stream_that_became_shorter_is_refused(tmp_path):
    attempts = Attempts(tmp_path)
    job = attempts.next()
    with ended_by(context.Saved, job):
        run = session(extra={"nothing": {}})
        for at, _ in enumerate(run.batches(Stream(100), global_batch=10)):
            if at == 5:
                stopped(job)
            run.step(torch.zeros((), requires_grad=True))
    with running(attempts.next()), pytest.raises(Conflict) as raised:
        next(session(extra={"nothing": {}}).batches(Stream(20), global_batch=10))
    assert raised.value.code == "dataset_changed"


@pytest.mark.parametrize(("data", "global_batch"), [(7, 4), (7, None), ([], 4)])
def test_what_can_not_be_trained_on_is_refused(data, global_batch):
    with pytest.raises(InvalidRequest) as raised:
        next(session(extra={"nothing": {}}).batches(data, global_batch=global_batch))
    assert raised.value.code == "dataset_unusable"


def test_epochs_are_shuffled_each_in_its_own_way_and_the_same_everywhere():
    order = Permutation(count=50, shuffle=True, seed=3)
    first, second = order.indices(0, 50), order.indices(50, 100)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert order.indices(40, 60) == first[40:] + second[:10]
    assert Permutation(count=50, shuffle=True, seed=4).indices(0, 50) != first
    assert first[:5] == [12, 31, 18, 36, 48]


@pytest.mark.parametrize("size", [0, 1, 5, 16])
def test_any_gang_shares_a_step_without_gap_or_overlap(size):
    ranks = VirtualRanks(8, 16)
    for cut in range(9):
        micros = micros_of(ranks, range(cut), 2, size) + micros_of(ranks, range(cut, 8), 2, size)
        assert [at for micro in micros for at in range(micro.start, micro.stop)] == list(range(32, 32 + size))


def test_a_feed_begins_at_any_step_as_if_it_had_come_there():
    ranks = VirtualRanks(2, 10, seed=5)
    feed = feed_of(range(35), ranks, collate=list, epochs=2)
    whole = [(portion.step, portion.vrank, portion.batch) for portion in feed.portions(0, {})]
    assert feed.steps_total == 7
    for step in range(7):
        again = [(portion.step, portion.vrank, portion.batch) for portion in feed.portions(step, feed.cursor())]
        assert again == whole[2 * step :]
