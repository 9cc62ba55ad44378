"""A one-node fabric whose process is interrupted or killed: nothing of it stays, and the next start goes on."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fabric import daemon
from fabric.daemon.cleanup import processes_of, recorded
from fabric.daemon.serving_host import hosts_of
from fabric.errors import NotFound
from fabric.sdk import connect

CONFIG = "name: small\nray: {mode: local, nodes: [{node: n, accelerator: H100, devices: 2}]}\nserving: {listen: '127.0.0.1:0'}\n"

pytestmark = pytest.mark.ray


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def place(tmp_path):
    """A state directory of which nothing runs in the end."""
    place = tmp_path / "state"
    yield place
    with suppress(NotFound):
        daemon.down(place)


def everything_below(pid):
    return psutil.Process(pid).children(recursive=True)


def with_its_gateway(place):
    """Wait until the host of models has started a gateway: they are to go like all the rest."""
    deadline = time.monotonic() + 90
    while len(list(hosts_of(place))) < 2:
        assert time.monotonic() < deadline, (place / "serving.log").read_text()
        time.sleep(0.1)


def living(processes):
    """The command lines of those that don't end: one that waits for its parent's end takes a moment."""
    deadline = time.monotonic() + 5
    while (alive := [process for process in processes if lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [process.cmdline() for process in alive]


def lives(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_interrupted_start_is_taken_down_again(place, config):
    sessions = []

    def interrupt(doing):
        sessions.append(recorded(place))
        if "node n" in doing:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        daemon.up(config, state_dir=place, any_port=True, say=interrupt)
    assert daemon.running(place) is None
    assert list(processes_of(sessions[-1])) == []
    assert not sessions[-1].exists()
    assert recorded(place) is None


def test_a_killed_fabric_is_cleared_away_by_the_next_which_goes_on_and_goes_down_without_a_trace(place, config):
    killed = daemon.up(config, state_dir=place, any_port=True)
    with connect(killed.address, daemon.operator_key(place), killed.ca, account="local") as fabric:
        fabric.top_up("10")
        job = fabric.submit(time.sleep, 600, tokens="5", accelerators="H100:1")
        while job.state != "running":
            time.sleep(0.1)
    with_its_gateway(place)
    session = recorded(place)
    were = everything_below(killed.pid)
    os.kill(killed.pid, signal.SIGKILL)
    found = daemon.up(config, state_dir=place, any_port=True)
    assert living(were) == []
    assert not session.exists()
    with connect(found.address, daemon.operator_key(place), found.ca, account="local") as fabric:
        assert fabric.job(job.id).info().job_id == job.id
        fabric.job(job.id).cancel()
    with_its_gateway(place)
    session, are = recorded(place), [psutil.Process(found.pid), *everything_below(found.pid)]
    daemon.down(place)
    assert living(are) == []
    assert not session.exists()


def test_down_clears_away_what_a_killed_fabric_left(place, config):
    killed = daemon.up(config, state_dir=place, any_port=True)
    with_its_gateway(place)
    were, session = everything_below(killed.pid), recorded(place)
    os.kill(killed.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(killed.pid)], timeout=10)
    assert daemon.down(place).name == "small"
    assert living(were) == []
    assert not Path(session).exists()
