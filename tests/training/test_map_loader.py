"""A loader over data with an index goes on where it was without reading what was seen, and gives the same bits as ever."""

import itertools
import multiprocessing
import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler, WeightedRandomSampler

from training.loop import map_loader
from training.loop.data import feed_of
from training.loop.map_loader import MapLoader
from training.state import randomness
from training.state.plain import plain, restored

SAMPLES, BATCH = 48, 4
DICE = random.Random(9)


class Counted(Dataset):
    """Counts how often it is read, in whichever process; `change` makes a sample of a number."""

    def __init__(self, change=float):
        self.reads, self.change = multiprocessing.Value("i", 0), change

    def __len__(self):
        return SAMPLES

    def __getitem__(self, at):
        with self.reads.get_lock():
            self.reads.value += 1
        return torch.tensor([float(at), self.change(at)])


def torchs(at):
    return torch.rand(()).item()


def numpys(at):
    return np.random.rand()  # noqa: NPY002


def pythons(at):
    return random.random()


def seldom(at):
    return random.random() if at == 3 else 0.0


def drawn_without_effect(at):
    random.random()
    return 0.0


def of_the_module(at):
    return DICE.random()


def counting():
    count = iter(range(10**6))
    return lambda at: float(next(count))


def enclosed():
    dice = random.Random(4)
    return lambda at: dice.random()


class Late:
    """A generator of its own that it makes when it is first asked."""

    def __init__(self):
        self.dice = None

    def __call__(self, at):
        self.dice = self.dice or np.random.default_rng(5)
        return float(self.dice.random())


class Lazy(Sampler):
    """Draws each number when it is asked for it, and never one twice."""

    def __init__(self, dice=None):
        self.dice = dice or random.Random(2)

    def __len__(self):
        return SAMPLES

    def __iter__(self):
        left = list(range(SAMPLES))
        while left:
            yield left.pop(self.dice.randrange(len(left)))


class Torchs:
    """Numbers of torch's own generator."""

    def randrange(self, end):
        return int(torch.randint(end, ()))


class Eager(Sampler):
    """Draws all when it is begun, before the loader draws itself."""

    def __len__(self):
        return SAMPLES // BATCH

    def __iter__(self):
        order = torch.randperm(SAMPLES).tolist()
        return iter([order[at : at + BATCH] for at in range(0, SAMPLES, BATCH)])


LOADERS = {
    "in order": {"batch_size": BATCH},
    "shuffled": {"batch_size": BATCH, "shuffle": True},
    "own generator": {"batch_size": BATCH, "shuffle": True, "generator": 3},
    "for ranks": {"batch_size": BATCH, "sampler": lambda: DistributedSampler(range(SAMPLES), num_replicas=1, rank=0)},
    "weighted": {"batch_size": BATCH, "sampler": lambda: WeightedRandomSampler(torch.arange(1.0, 49.0), SAMPLES)},
    "lazy": {"batch_sampler": lambda: BatchSampler(Lazy(), BATCH, drop_last=False)},
    "eager": {"batch_sampler": Eager},
    "single samples": {"batch_size": None, "shuffle": True},
    "uneven": {"batch_size": 5, "shuffle": True},
}
WORKERS = {"num_workers": 2, "multiprocessing_context": "fork"}
PERSISTENT = {**WORKERS, "persistent_workers": True}
HOW = {"here": {}, "workers": WORKERS, "persistent": PERSISTENT}
FORKING = ("workers", "persistent")
"""Ways of reading that start processes for it, which takes most of a case's time."""


def cases(every, *lists):
    """Every combination, of which one in `every` runs with all tests and the rest with the long ones: each two values meet in one."""
    kept, made = [], []
    for at in itertools.product(*(range(len(each)) for each in lists)):
        values = [each[number] for each, number in zip(lists, at, strict=True)]
        is_kept = sum(at) % every == 0
        kept += [values] if is_kept else []
        made.append(pytest.param(*values, marks=() if is_kept else pytest.mark.soak))
    for one, other in itertools.combinations(range(len(lists)), 2):
        pairs = {(str(values[one]), str(values[other])) for values in kept}
        assert len(pairs) == len(lists[one]) * len(lists[other]), "two values meet nowhere"
    return made


def loader_of(options, change=float):
    made = {key: value() if callable(value) else value for key, value in options.items()}
    if "generator" in made:
        made["generator"] = torch.Generator().manual_seed(made["generator"])
    return DataLoader(Counted(change), **made)


def begun():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    DICE.seed(9)


def drawn():
    """What a step draws beside its data."""
    return random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002


def read(loader, *, epochs=2, until=None, kept=None):
    """What each step saw and drew, from `kept` on; and what would be kept after `until` of them."""
    feed = feed_of(loader, None, epochs=epochs)
    step, cursor = 0, {}
    if kept is not None:
        step, cursor = kept["step"], restored(kept["cursor"])
        randomness.restore(restored(kept["random"]))
    seen = []
    for portion in feed.portions(step, cursor):
        seen.append((portion.batch.clone(), drawn()))
        step += 1
        if step == until:
            return seen, {
                "step": step, "cursor": plain(feed.cursor(), "cursor"), "random": plain(randomness.capture(), "random"),
            }  # fmt: skip
    return seen, None


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) and x == y for (a, x), (b, y) in zip(one, other, strict=True)
    )


def evicted(options, change, *, until, change_again=None):
    """What an uninterrupted run saw from `until` on, what one that was evicted there did, and how often that read."""
    begun()
    whole, _ = read(loader_of(options, change()))
    begun()
    _, kept = read(loader_of(options, change()), until=until)
    begun()
    drawn()  # another process has drawn other numbers by now
    loader = loader_of(options, (change_again or change)())
    rest, _ = read(loader, kept=kept)
    return whole[until:], rest, loader.dataset.reads.value


@pytest.mark.parametrize(
    ("name", "until", "how"), [*cases(1, [*LOADERS], [7, 16], ["here"]), *cases(2, [*LOADERS], [7, 16], FORKING)]
)
def test_what_was_seen_is_not_read_again_and_no_bit_changes(name, until, how):
    options = {**LOADERS[name], **HOW[how]}
    whole, rest, reads = evicted(options, lambda: float, until=until)
    assert same(whole, rest)
    left = sum(batch.numel() // 2 for batch, _ in rest)
    assert reads <= left + 2 * (options.get("batch_size") or (BATCH if "batch_sampler" in options else 1))


DRAWING = [torchs, numpys, pythons, seldom, drawn_without_effect]
DRAWN_FROM = [["shuffled", "lazy", "own generator"], DRAWING, [1, 7, 16]]


@pytest.mark.parametrize(
    ("name", "change", "until", "how"), [*cases(1, *DRAWN_FROM, ["here"]), *cases(3, *DRAWN_FROM, ["workers"])]
)
def test_data_that_draw_random_numbers_give_the_same_bits(name, change, until, how, capsys):
    """Whether what was seen is read again or not."""
    whole, rest, _ = evicted({**LOADERS[name], **HOW[how]}, lambda: change, until=until)
    assert same(whole, rest)
    assert "another batch" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "until", "how"),
    [*cases(1, DRAWING[:3], [2, 7, 16], ["here"]), *cases(2, DRAWING[:3], [2, 7, 16], FORKING)],
)
def test_data_that_draw_are_not_read_again_either(change, until, how):
    whole, rest, reads = evicted({**LOADERS["shuffled"], **HOW[how]}, lambda: change, until=until)
    assert same(whole, rest)
    assert reads <= (len(rest) + 2) * BATCH


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_run_that_is_evicted_again_and_again_gives_the_same_bits_and_reads_little_twice():
    options = {**LOADERS["shuffled"], "num_workers": 3, "multiprocessing_context": "fork", "prefetch_factor": 3}
    begun()
    whole, _ = read(loader_of(options, pythons))
    begun()
    seen, kept, reads = [], None, 0
    for until in (2, 3, 7, 11, 12, 13, 20, None):
        loader = loader_of(options, pythons)
        rest, kept = read(loader, kept=kept, until=until)
        seen += rest
        reads += loader.dataset.reads.value
        begun()
    assert same(whole, seen)
    assert reads <= 2 * SAMPLES + 7 * BATCH * 3 * (3 + 1), "what was read ahead, and at most one of each worker again"


@pytest.mark.parametrize("workers", [{}, WORKERS], ids=["here", "workers"])
@pytest.mark.parametrize("change", [Late, enclosed, lambda: of_the_module], ids=["late", "enclosed", "the module's"])
def test_data_with_generators_of_their_own_are_read_again_as_ever(change, workers):
    whole, rest, reads = evicted({**LOADERS["shuffled"], **workers}, change, until=7)
    assert same(whole, rest)
    assert reads >= 2 * SAMPLES


@pytest.mark.parametrize("workers", [{}, WORKERS], ids=["here", "workers"])
def test_data_that_count_what_they_have_read_are_read_again_and_said_to(workers, capsys):
    whole, rest, reads = evicted({**LOADERS["shuffled"], **workers}, counting, until=7)
    assert reads >= 2 * SAMPLES
    if workers:  # which have not been asked before
        assert same(whole, rest)
    else:
        assert "gave another batch when they were read again" in capsys.readouterr().err


def test_a_sampler_that_draws_between_the_scripts_own_draws_is_said_to(capsys):
    """Its numbers depend on what each step draws, so that nobody can ask it for the same ones again."""
    sampler = {"batch_sampler": lambda: BatchSampler(Lazy(random), BATCH, drop_last=False)}
    evicted(sampler, lambda: float, until=7)
    assert "gave another batch when they were read again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dice", "between", "is_said"),
    [
        (random, random.random, True),
        (Torchs(), lambda: torch.rand(()), True),
        (Torchs(), lambda: None, False),
        (random.Random(2), random.random, False),
    ],
    ids=["python's", "torch's", "nothing between", "its own"],
)
def test_a_sampler_that_draws_from_what_the_script_draws_from_is_said_to_early(
    capsys, monkeypatch, dice, between, is_said
):
    monkeypatch.setattr(map_loader, "_said", set())
    begun()
    loader = DataLoader(Counted(), batch_sampler=BatchSampler(Lazy(dice), BATCH, drop_last=False))
    for _ in islice(MapLoader.of(loader).begin(), 3):
        between()
    assert ("draws from the process's random numbers" in capsys.readouterr().err) == is_said


def test_a_worker_that_draws_later_has_the_numbers_it_would_have_had(capsys):
    """Nothing was drawn before the eviction, so that the batches before it are passed over, and each worker draws after it."""
    options = {**LOADERS["in order"], **WORKERS}
    whole, rest, reads = evicted(options, lambda: lambda at: random.random() if at >= 44 else 0.0, until=5)
    assert same(whole, rest)
    assert reads == 2 * SAMPLES - 4 * BATCH, "of five batches seen, one is read again"


def test_data_that_are_shorter_than_they_were_are_refused():
    from fabric.errors import Conflict

    begun()
    _, kept = read(loader_of(LOADERS["in order"]), until=11)
    shorter = DataLoader(torch.utils.data.Subset(Counted(), range(20)), batch_size=BATCH)
    with pytest.raises(Conflict, match="11 batches of this epoch"):
        read(shorter, kept=kept)


def test_a_cursor_from_before_loaders_passed_over_batches_is_gone_on_from():
    begun()
    whole, _ = read(loader_of(LOADERS["shuffled"]))
    begun()
    _, kept = read(loader_of(LOADERS["shuffled"]), until=7)
    for name in ("last", "drew"):
        del kept["cursor"][name]
    rest, _ = read(loader_of(LOADERS["shuffled"]), kept=kept)
    assert same(whole[7:], rest)


def test_a_shuffled_epoch_is_the_one_that_torch_alone_would_give():
    begun()
    alone = list(DataLoader(Counted(torchs), batch_size=BATCH, shuffle=True))
    begun()
    seen = [portion.batch for portion in feed_of(loader_of(LOADERS["shuffled"], torchs), None).portions(0, {})]
    assert all(torch.equal(one, other) for one, other in zip(alone, seen, strict=True))
