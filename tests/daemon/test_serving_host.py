"""The process that hosts models: started, started again, ended with its gateways, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fabric.daemon import end_remains, serving_host
from fabric.daemon.serving_host import Hosting, hosts_of, ingress_file

ROOT = Path(__file__).parents[2]
STARTS_HOST = """
import asyncio, sys
from pathlib import Path
from fabric.daemon import serving_host
serving_host.MODULE = "tests.daemon.host_standin"
asyncio.run(serving_host.Hosting(Path(sys.argv[1]), listen="127.0.0.1:1", config=None, grace_s=1).run())
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(serving_host, "MODULE", "tests.daemon.host_standin")
    monkeypatch.setattr(serving_host, "STOP_S", 0.2)
    monkeypatch.setattr(serving_host, "_PAUSES_S", (0.01,))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield tmp_path
    end_remains(tmp_path)


async def until(met):
    async with asyncio.timeout(30):
        while not (found := met()):  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.02)
    return found


def starts(place, role):
    with suppress(FileNotFoundError):
        return [line for line in (place / "starts").read_text().splitlines() if line.startswith(role)]
    return []


def run(place, **more):
    return asyncio.create_task(Hosting(place, listen="127.0.0.1:7480", grace_s=0.2, **{"config": None, **more}).run())


async def end(task):
    task.cancel()
    await asyncio.wait((task,))


async def test_it_is_told_where_to_listen_and_what_file_it_serves(place):
    task = run(place, config=place / "lab.yaml")
    (line,) = await until(lambda: starts(place, "host"))
    assert line == f"host --state-dir {place} --listen 127.0.0.1:7480 --config {place / 'lab.yaml'}"
    await end(task)


async def test_it_is_started_again_when_it_dies_and_its_gateways_go_with_it(place):
    task = run(place)
    await until(lambda: len(starts(place, "gateway")) == 1)
    old = list(hosts_of(place))
    assert len(old) == 2
    next(process for process in old if process.cmdline()[-1] != "gateway").kill()
    await until(lambda: len(starts(place, "gateway")) == 2)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in old)
    await end(task)


@pytest.mark.parametrize("temper", ["mild", "stubborn"])
async def test_it_ends_in_order_or_is_killed_and_nothing_of_it_is_left(place, temper):
    place = place / temper
    place.mkdir()
    task = run(place)
    await until(lambda: starts(place, "gateway"))
    assert len(list(hosts_of(place))) == 2
    await end(task)
    assert list(hosts_of(place)) == []


async def test_what_another_fabric_hosts_is_left_alone(place):
    other, mine = place / "other", place / "mine"
    for each in (other, mine):
        each.mkdir()
    tasks = [run(other), run(mine)]
    await until(lambda: starts(other, "gateway") and starts(mine, "gateway"))
    await end(tasks[1])
    assert len(list(hosts_of(other))) == 2
    await end(tasks[0])


async def test_it_ends_with_a_parent_that_is_killed_and_what_is_left_is_known(place):
    parent = subprocess.Popen([sys.executable, "-c", STARTS_HOST, str(place)])  # noqa: ASYNC220 - it returns at once
    await until(lambda: starts(place, "gateway"))
    (host,) = [process for process in hosts_of(place) if process.cmdline()[-1] != "gateway"]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    await until(lambda: not host.is_running() or host.status() == psutil.STATUS_ZOMBIE)
    assert end_remains(place) >= 1
    assert list(hosts_of(place)) == []


async def test_an_ingress_that_is_left_behind_is_known_by_its_file(place):
    words = ["import time; time.sleep(60)", "-f"]
    left, other = (
        subprocess.Popen([sys.executable, "-c", *words, str(ingress_file(where))])  # noqa: ASYNC220 - it returns at once
        for where in (place, place / "other")
    )
    await until(lambda: [each.pid for each in hosts_of(place)] == [left.pid])
    assert end_remains(place) == 1
    left.wait(10)
    assert other.poll() is None
    other.kill()
    other.wait()


async def test_without_the_serving_package_nothing_is_started(place, monkeypatch):
    monkeypatch.setattr(serving_host, "MODULE", "serving.nothing_of_that_name")
    await asyncio.wait_for(run(place), 10)
    assert not (place / "serving.log").exists()
