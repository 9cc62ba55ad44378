"""Trainings in the frameworks that others wrote: each as it is, and with the documented lines changed and evicted again and again.

Both end with the same bits, having seen the same samples and logged the same lines. Each script of `loops` runs in a process
of its own with a folder for its checkpoints: SIGTERM at random instants, exit code 75, and it is started again elsewhere.
"""

import importlib.util
import random
import re

import pytest
import torch

from tests.strangers import launch, launchers

# Looked for, not imported: that takes a quarter of a minute, and whoever collects tests would pay it.
if not all(map(importlib.util.find_spec, ("peft", "trl", "diffusers", "gymnasium"))):
    pytest.skip("install the group `strangers`", allow_module_level=True)

FEW, MANY = 2, 20
LONG = (pytest.mark.soak, pytest.mark.timeout(1_800))
"""Twenty starts of a launcher take minutes where others are at work too."""
ROUNDS = 5
"""For each eviction that is wanted: how many times a script is run for it at most."""
TIMES = re.compile(r", 'eval_(runtime|samples_per_second|steps_per_second)': '?[0-9.e-]+'?")
OFTEN = ("nanogpt", "dqn", "folds", "accelerated 4", "transformer", "lightning 3")
"""Of which the run of all tests evicts; the others are evicted by the long tests, as each takes a quarter of a minute to import."""
SESSIONS = {
    "nanogpt": 2,
    "lora_loop": 2,
    "folds": 2,
    "diffusion": 2,
    "ppo": 2,
    "dqn": 2,
    "accelerated": 3,
    "accelerated 4": 3,
}
"""Loops around `training.session`: how many lines they change, besides imports; epochs over a loader become one loop. Words after the name are the script's arguments.
"""
LINES_OF_A_STEP = {"accelerated 4": 4}
TRAINERS = {"transformer": 1, "transformer jit": 1, "lora": 1, "tuned": 1, "lightning": 1, "lightning 3": 1}
"""Trainers with an adapter; words after the name are the script's arguments."""


def cases(kinds):
    """Each evicted many times by the long tests, some a few times by all."""
    few = [(kind, FEW) for kind in kinds if kind in OFTEN]
    return [*few, *(pytest.param(kind, MANY, marks=LONG) for kind in kinds)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """What each script comes to as it is."""
    found = {}

    def of(kind):
        if kind not in found:
            name, *words = kind.split()
            result, lines = launch.plain(name, words, tmp_path_factory.mktemp(name))
            found[kind] = torch.load(result, weights_only=True), lines
        return found[kind]

    return of


def differences(found, expected, at=""):
    """Where two results differ in any bit."""
    if isinstance(expected, torch.Tensor):
        return [] if found.dtype == expected.dtype and torch.equal(found, expected) else [at]
    if isinstance(expected, dict):
        items = ((f"{at}.{key}", found.get(key), expected.get(key)) for key in {**found, **expected})
    elif isinstance(expected, list | tuple) and len(found) == len(expected):
        items = ((f"{at}[{number}]", *both) for number, both in enumerate(zip(found, expected, strict=True)))
    else:
        return [] if found == expected or found != found else [f"{at}: {found}, not {expected}"]  # noqa: PLR0124  # NaN
    return [name for key, mine, theirs in items for name in differences(mine, theirs, key)]


def logged(lines):
    """What is said of a run's steps, without how long it took."""
    return [TIMES.sub("", line) for line in lines if "train_runtime" not in line]


def last_of_each(lines):
    """A step that was under way is made again, and then said again: the last line counts, as in curves."""
    return list({line.rpartition(" ")[0]: line for line in lines}.values())


def came_to(kind, folder, plain, *, evictions, said):
    """Evict it, compare, and tell how often it was."""
    seed = launch.seed()
    name, *words = kind.split()
    expected, lines = plain(kind)
    job, result = launch.evicted(name, words, folder, evictions=evictions, steps=len(lines), dice=random.Random(seed))
    assert differences(torch.load(result, weights_only=True), expected) == [], f"seed {seed}, codes {job.codes}"
    assert said(job.lines) == said(lines), f"seed {seed}"
    return job


def once(lines):
    return logged(lines)


def with_repeats(lines):
    return last_of_each(logged(lines))


def evictions_of(kind, folder, plain, *, at_least, said):
    count = 0
    for round_ in range(ROUNDS * at_least):  # a notice may come when all is trained
        job = came_to(kind, folder / str(round_), plain, evictions=at_least - count, said=said)
        count += len(job.codes) - 1
        again = (len(job.codes) - 1) * LINES_OF_A_STEP.get(kind, 1)
        assert len(job.lines) <= len(plain(kind)[1]) + again, "one step of an attempt at most is made again"
        if count >= at_least:
            return
    raise AssertionError(f"only {count} evictions")


@pytest.mark.parametrize(("kind", "evictions"), cases(SESSIONS))
def test_a_loop_with_the_documented_lines_is_evicted_and_ends_the_same(tmp_path, plain, kind, evictions):
    evictions_of(kind, tmp_path, plain, at_least=evictions, said=with_repeats)


@pytest.mark.parametrize(("kind", "evictions"), cases(TRAINERS))
def test_a_trainer_with_one_changed_line_is_evicted_and_ends_the_same(tmp_path, plain, kind, evictions):
    evictions_of(kind, tmp_path, plain, at_least=evictions, said=once)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What each launched script comes to as it is."""
    found = {}

    def of(name):
        if name not in found:
            result, lines = launchers.plain(name, tmp_path_factory.mktemp(name) / "plain")
            found[name] = torch.load(result, weights_only=True), lines
        return found[name]

    return of


@pytest.mark.parametrize(
    ("name", "evictions"),
    [
        ("torchrun", FEW),
        *(pytest.param(name, MANY, marks=LONG) for name in launchers.COMMANDS),
    ],
)
def test_whatever_launches_a_loop_it_is_evicted_and_ends_the_same(tmp_path, launched, name, evictions):
    expected, lines = launched(name)
    count = 0
    for round_ in range(ROUNDS * evictions):
        seed = launch.seed()
        result, said, times = launchers.evicted(
            name, tmp_path / str(round_), evictions=evictions - count, steps=len(lines), dice=random.Random(seed)
        )
        assert differences(torch.load(result, weights_only=True), expected) == [], f"seed {seed}"
        assert last_of_each(said) == lines, f"seed {seed}"
        assert len(said) <= len(lines) + times, "one step of an attempt at most is made again"
        count += times
        if count >= evictions:
            return
    raise AssertionError(f"only {count} evictions")


@pytest.mark.parametrize("name", launchers.COMMANDS)
def test_a_launched_script_changes_two_lines(name):
    assert launchers.lines_changed(name) == 2


@pytest.mark.parametrize(
    "kind", ["folds", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("nanogpt", "lora", "lightning"))]
)
def test_what_was_finished_is_not_trained_further_when_it_is_started_again(tmp_path, plain, kind):
    """As a job is that was told to stop when it had only to write its result."""
    name, *words = kind.split()
    expected, _ = plain(kind)
    job = launch.written(name, words, tmp_path / "job", is_changed=True)
    for _ in range(2):
        attempt = job.start(FABRIC_CHECKPOINT_DIR=str(job.folder / "kept"))
        assert job.end(attempt) == 0, attempt.errors[-2_000:]
        assert differences(torch.load(attempt.folder / "final.pt", weights_only=True), expected) == []


@pytest.mark.parametrize(("kind", "lines"), [*SESSIONS.items(), *TRAINERS.items()])
def test_a_script_changes_as_many_lines_as_are_claimed(kind, lines):
    text = (launch.LOOPS / f"{kind.split()[0]}.py").read_text()
    assert launch.changed(text)[1] == lines
