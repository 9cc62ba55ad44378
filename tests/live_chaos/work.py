"""What the chaos runs: small jobs of many kinds, each with what it must come to whatever happens to it on the way."""

import asyncio
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fabric.errors import JobFailed

TOKENS = "0.5"


@dataclass(frozen=True)
class Work:
    """A kind of job."""

    name: str
    submit: Callable
    """(fabric, seed, common options) -> Job"""
    check: Callable
    """(job, seed): asserts what it came to."""


def returns(value_of):
    def check(job, seed):
        assert job.result(timeout=1) == value_of(seed)

    return check


def exits(code_of):
    def check(job, seed):
        code = code_of(seed)
        if code == 0:
            assert job.state == "succeeded", job.info().error
            return
        error = job.exception(timeout=1)
        assert isinstance(error, JobFailed)
        assert str(code) in str(error), error

    return check


def prints(line_of):
    def check(job, seed):
        assert job.state == "succeeded", job.info().error
        assert line_of(seed) in "".join(job.logs())

    return check


def raises(kind, text):
    def check(job, seed):
        error = job.exception(timeout=1)
        assert isinstance(error, JobFailed)
        assert kind in str(error), error
        assert text in str(error), error

    return check


def waits_and_adds(seed):
    time.sleep(seed % 5)
    return seed + 1


def counts_and_saves(seed):
    from fabric import context

    job = context.current()
    at = int(job.load() or b"0")
    while at < 20 + seed % 20:
        if job.stop_requested:
            job.save(str(at).encode(), step=at)
            job.park()
        time.sleep(0.1)
        at += 1
    return at


def fails(seed):
    time.sleep(seed % 3)
    raise ValueError(f"wrong number {seed}")


def forks(seed):
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(abs, range(-(seed % 50), 0)))


def uses_ray(seed):
    import ray

    @ray.remote
    def square(number):
        time.sleep(0.2)
        return number * number

    return sum(ray.get([square.remote(number) for number in range(seed % 7)]))


def leaves_an_actor(seed):
    """Tries to keep a device beyond its own end."""
    import ray

    @ray.remote(num_cpus=0, resources={"H100": 1}, max_restarts=-1, max_task_retries=-1)
    class Squatter:
        def sit(self):
            return "sits"

    squatter = Squatter.options(lifetime="detached", name=f"squatter-{seed}-{time.time()}", namespace="chaos").remote()
    ray.wait([squatter.sit.remote()], timeout=2)
    return "left"


async def comes_later(seed):
    await asyncio.sleep(seed % 4)
    return -seed


def fits(seed):
    """What a user of scikit-learn sends: a bound method's result, with a model of theirs."""
    from sklearn.linear_model import LogisticRegression

    numbers = np.random.default_rng(seed).normal(size=(100, 3))
    model = LogisticRegression().fit(numbers, numbers[:, 0] > 0)
    time.sleep(seed % 3)
    return model


def reads_data(seed):
    """Ray Data on the lease's devices."""
    import ray

    rows = ray.data.range(seed % 50 + 1).map(lambda row: {"id": row["id"] * 2})
    return sum(row["id"] for row in rows.take_all())


TRAP = textwrap.dedent(
    """\
    trap 'echo told; kill $child; exit 0' USR1
    sleep %d & child=$!
    wait $child
    echo counted %d
    exit %d
    """
)
SCRIPT = (
    "import atexit, os, signal, time; atexit.register(print, 'bye', {seed}); signal.alarm(600); time.sleep({wait});"
    " print('hello', {seed})"
)


WRAPPED = """
    set -eu
    run() { "$1" -c "import time; time.sleep({wait}); print('inner', {seed})"; }
    run "$1" | tee /dev/stderr
    true && "$1" -c "import sys; sys.exit({code})"
"""


def predicts(job, seed):
    model = job.result(timeout=1, trust=True)
    assert model.predict([[3.0, 0, 0], [-3.0, 0, 0]]).tolist() == [True, False]


def _wrapped(fabric, seed, options):
    script = WRAPPED.replace("{wait}", str(seed % 4)).replace("{seed}", str(seed)).replace("{code}", str(seed % 3))
    return fabric.submit(["bash", "-c", script, "wrapper", sys.executable], **options)


def _function(function, **more):
    return lambda fabric, seed, options: fabric.submit(function, seed, **{**options, **more})


KINDS = (
    Work("adds", _function(waits_and_adds), returns(lambda seed: seed + 1)),
    Work("saves", _function(counts_and_saves), returns(lambda seed: 20 + seed % 20)),
    Work("fails", _function(fails), raises("ValueError", "wrong number")),
    Work("forks", _function(forks), returns(lambda seed: sum(range(seed % 50 + 1)))),
    Work(
        "ray",
        _function(uses_ray, ray_program=True),
        returns(lambda seed: sum(number * number for number in range(seed % 7))),
    ),
    Work("later", _function(comes_later), returns(lambda seed: -seed)),
    Work("fits", _function(fits), predicts),
    Work("data", _function(reads_data, ray_program=True), returns(lambda seed: (seed % 50) * (seed % 50 + 1))),
    Work("wrapped", _wrapped, exits(lambda seed: seed % 3)),
    Work("squats", _function(leaves_an_actor, ray_program=True), returns(lambda seed: "left")),
    Work(
        "traps",
        lambda fabric, seed, options: fabric.submit(
            ["bash", "-c", TRAP % (seed % 6, seed, seed % 4)], **{**options, "name": "traps"}
        ),
        exits(lambda seed: seed % 4),
    ),
    Work(
        "command",
        lambda fabric, seed, options: fabric.submit(
            [sys.executable, "-c", SCRIPT.format(seed=seed, wait=seed % 4)], **options
        ),
        prints(lambda seed: f"bye {seed}"),
    ),
)
