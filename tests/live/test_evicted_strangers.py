"""What others wrote, once as it is and once evicted at a random instant and cut off at another: it ends the same, and is paid once.

Functions use libraries as their users do (`programs`); programs are read from the installed packages when a test runs. None
knows the fabric: who is evicted begins anew. `pytest -m soak` tries many more instants.
"""

import importlib.util
import os
import random
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fabric.client.client import new_request_id
from fabric.errors import FabricError
from tests.strangers import programs

pytestmark = pytest.mark.timeout(600)

MARK = "STRANGERS_OF"
OURS = Path(__file__).parents[2]
WITHIN_S = 240
SOAKED = 12
"""Seeds of the long run."""


FUNCTIONS = {
    each.__name__: each
    for each in (
        programs.joblib_processes, programs.dask_graphs, programs.tables, programs.tensors, programs.models, programs.records,
    )
}  # fmt: skip
NEEDS = {"joblib_processes": ("joblib",), "dask_graphs": ("dask",), "tables": ("pandas", "polars"), "models": ("sklearn", "xgboost")}  # fmt: skip
TESTS_OF = "pytest", "-q", "-p", "no:cacheprovider", "--pyargs"
PROGRAMS = {
    "a benchmark of torch": ("torch.utils.benchmark.examples.simple_timeit", r"^Run: 2$"),
    "joblib's tests of its hashes": ([*TESTS_OF, "joblib.test.test_hashing"], r"^(\d+) passed"),
    "dask's tests of its threads": ([*TESTS_OF, "dask.tests.test_threaded"], r"^(\d+) passed"),
}
"""name -> (a module that is a file to be run, or what follows `python -m`; what it says at its end)"""
SHORT = ("joblib_processes", "dask_graphs", "joblib's tests of its hashes")
"""Those of the normal run."""


def submitted(fabric, name, mark):
    options = {"tokens": "1", "grace": 2, "max_retries": 3, "env": {MARK: mark}, "name": "stranger"}
    if name in FUNCTIONS:
        for module in NEEDS.get(name, ()):
            pytest.importorskip(module)
        return fabric.submit(FUNCTIONS[name], 3, **options)
    given, _ = PROGRAMS[name]
    if isinstance(given, str):
        return fabric.submit(importlib.util.find_spec(given).origin, **options)
    pytest.importorskip(given[-1].partition(".")[0])
    return fabric.submit([sys.executable, "-m", *given], **options)


def came_to(job, name):
    """What it returned, or what it said at its end."""
    if name in FUNCTIONS:
        return job.result(timeout=WITHIN_S)
    assert job.wait(timeout=WITHIN_S) == "succeeded", job.info().error
    said = re.findall(PROGRAMS[name][1], "".join(job.logs()), re.MULTILINE)
    assert said, f"{name} did not come to its end: {''.join(job.logs())[-500:]}"
    return said[-1]


def marked(mark):
    """Processes that carry a mark in their environment."""
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get(MARK) == mark and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each.pid)
    return found


def until(job, *states):
    deadline = time.monotonic() + WITHIN_S
    while job.state not in states:
        assert time.monotonic() < deadline, (job.id, job.state, job.info().timeline)
        time.sleep(0.05)
    return job.state


def evict(job):
    """Have it make room, as for a job that goes first, and come back; whether it was still there to be evicted."""
    with suppress(FabricError):  # it may have ended in this moment, which is no failure of anybody's
        job.pause()
    if until(job, "parked", "succeeded") == "succeeded":
        return False
    job.resume()
    return True


def cut(mark, dice):
    """Kill one process of it, as a kernel that is out of memory does; whether there was one."""
    found = marked(mark)
    if not found:
        return False
    with suppress(ProcessLookupError):
        os.kill(dice.choice(sorted(found)), signal.SIGKILL)
    return True


def tried(fabric, name, dice):
    """Once plain and once disturbed, side by side."""
    mark = new_request_id()
    plain, job = submitted(fabric, name, ""), submitted(fabric, name, mark)
    done = []
    for what in dice.sample(("evicted", "cut"), 2):
        until(job, "running", "succeeded")
        time.sleep(dice.uniform(0.0, 2.5))
        if evict(job) if what == "evicted" else cut(mark, dice):
            done.append(what)
    assert came_to(job, name) == came_to(plain, name), done
    for each in (plain, job):
        cost = each.cost()
        assert cost.settled
        assert sum(record.charged_uhs for record in fabric.usage(job_id=each.id)) == cost.burned_uhs
    if "evicted" in done:
        assert job.info().attempts > 1
    deadline = time.monotonic() + 30
    while left := marked(mark):
        assert time.monotonic() < deadline, f"{name} left {left}"
        time.sleep(0.2)


@pytest.mark.parametrize("name", SHORT)
def test_a_stranger_ends_the_same_plain_and_evicted_and_cut(acme, name):
    seed = random.randrange(10_000)
    print(f"seed {seed}")
    tried(acme, name, random.Random(seed))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SOAKED))
@pytest.mark.parametrize("name", [*FUNCTIONS, *PROGRAMS])
def test_every_stranger_ends_the_same_at_many_instants(acme, name, seed):
    tried(acme, name, random.Random(seed))


@pytest.mark.parametrize("name", [name for name, (given, _) in PROGRAMS.items() if isinstance(given, str)])
def test_a_strangers_program_is_read_from_a_package_of_others(name):
    file = Path(importlib.util.find_spec(PROGRAMS[name][0]).origin)
    assert file.is_file()
    assert "site-packages" in file.parts or not file.is_relative_to(OURS)
