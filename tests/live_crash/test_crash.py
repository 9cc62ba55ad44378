"""A one-node fabric that is stopped, interrupted or killed: nothing of it stays, and the next start goes on.

It is one fabric: a start takes half a minute of a machine.
"""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fabric import daemon
from fabric.client.client import new_request_id
from fabric.daemon.cleanup import processes_of, recorded
from fabric.daemon.serving_host import hosts_of
from fabric.errors import NotFound
from fabric.sdk import connect
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb

CONFIG = "name: small\nray: {mode: local, nodes: [{node: n, accelerator: H100, devices: 2}]}\nserving: {listen: '127.0.0.1:0'}\n"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    file = tmp_path_factory.mktemp("crash") / "small.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="module")
def place(config):
    """The state directory of one fabric, which goes from test to test as the one before has left it."""
    place = config.with_name("state")
    yield place
    with suppress(NotFound):
        daemon.down(place, now=True)


@pytest.fixture
def other_place(config):
    """One of which nothing runs in the end."""
    place = config.with_name("other")
    yield place
    with suppress(NotFound):
        daemon.down(place)


def up(place, config):
    """The fabric, which may be up."""
    return daemon.running(place) or daemon.up(config, state_dir=place, any_port=True)


def connected(found, place):
    return connect(found.address, daemon.operator_key(place), found.ca, account="local")


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


def wait_until(true, *, within_s=90):
    deadline = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_an_interrupted_start_is_taken_down_again(other_place, config):
    sessions = []

    def interrupt(doing):
        sessions.append(recorded(other_place))
        if "node n" in doing:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        daemon.up(config, state_dir=other_place, any_port=True, say=interrupt)
    assert daemon.running(other_place) is None
    assert list(processes_of(sessions[-1])) == []
    assert not sessions[-1].exists()
    assert recorded(other_place) is None


def test_a_killed_fabric_is_cleared_away_by_the_next_which_goes_on(place, config):
    killed = up(place, config)
    with connected(killed, place) as fabric:
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
    with connected(found, place) as fabric:
        assert fabric.job(job.id).info().job_id == job.id
        fabric.job(job.id).cancel()
        assert fabric.job(job.id).wait(timeout=60) == "cancelled"


def save_when_asked(steps, step_s):
    from fabric import context

    job = context.current()
    at = began = int(job.load() or b"0")
    while at < steps:
        time.sleep(step_s)
        at += 1
        if job.stop_requested:
            job.save(str(at).encode(), step=at)
            job.park()
    return {"steps": at, "resumed_at": began}


def opened(fabric, account):
    """An account with ten tokens; its connection."""
    opening = pb.OpenAccountRequest(request_id=new_request_id(), account_id=account, name=account, plan="starter")
    fabric.client.call(opening, pb.Accepted)
    fabric.top_up("10")


def test_a_fabric_goes_down_without_a_trace_and_what_runs_is_asked_to_save_and_goes_on_when_it_is_up_again(
    place, config
):
    first = up(place, config)
    with_its_gateway(place)
    with connect(first.address, daemon.operator_key(place), first.ca, account="acme") as fabric:
        opened(fabric, "acme")
        job = fabric.submit(save_when_asked, 40, 0.1, tokens="0.2", accelerators="H100:1")
        wait_until(lambda: job.cost().burned_uhs > 0)
        job_id = job.id
    session, are = recorded(place), [psutil.Process(first.pid), *everything_below(first.pid)]
    said = []
    daemon.down(place, say=said.append)
    assert daemon.running(place) is None
    assert said
    assert "saving what runs: 1 left" in said[0]
    assert living(are) == []
    assert not session.exists()

    second = up(place, config)
    assert second.verifier_key == first.verifier_key
    with connect(second.address, daemon.operator_key(place), second.ca, account="acme") as fabric:
        job = fabric.job(job_id)
        result = job.result(timeout=90)
        assert result["steps"] == 40
        assert result["resumed_at"] > 0
        told = rf"RUNNING on 1 × H100 → FABRIC DOWN at step {result['resumed_at']}, durable in .* → RESUMED on 1 × H100"
        assert re.search(told, job.timeline), job.timeline
        cost = wait_until(lambda: job.cost() if job.cost().settled else None)
        records = fabric.usage(job_id=job_id)
        assert sum(record.charged_uhs for record in records) == cost.burned_uhs
        assert fabric.balance().free_uhs == 10 * UHS_PER_CT - cost.burned_uhs


def test_down_clears_away_what_a_killed_fabric_left(place, config):
    killed = up(place, config)
    with_its_gateway(place)
    were, session = everything_below(killed.pid), recorded(place)
    os.kill(killed.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(killed.pid)], timeout=10)
    assert daemon.down(place).name == "small"
    assert living(were) == []
    assert not Path(session).exists()
