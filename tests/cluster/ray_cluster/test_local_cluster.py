"""Nodes of a local cluster start, however busy the machine is, and whatever ends them meanwhile."""

import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import services

from fabric.cluster.local import LocalCluster, LocalNode
from tests.shared import shared

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
RAYS_OWN_LIMIT_S = 30
NODE = LocalNode(node_id="a", accelerator="A100", devices=2)


@pytest.fixture(autouse=True)
def _alone():
    """A process can have one cluster: the one that this folder shares begins anew afterwards."""
    shared.end(Path(__file__).parent)


@pytest.fixture
def cluster():
    started = LocalCluster.start(nodes=[], dashboard=False)
    yield started
    started.stop()


@contextmanager
def the_next_raylet(happens):
    """Does that to the next raylet that this process starts, as soon as it is there."""
    before, done = set(psutil.Process().children()), threading.Event()

    def watch():
        while not done.is_set():
            for process in set(psutil.Process().children()) - before:
                with suppress(psutil.NoSuchProcess):
                    if process.name() == "raylet":
                        happens(process)
                        return
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def nodes_with(accelerator):
    return [node for node in ray.nodes() if node["Alive"] and accelerator in node["Resources"]]


def test_a_node_whose_raylet_ends_while_it_starts_is_started_again_and_nothing_of_the_first_is_left(cluster):
    ended = []
    with the_next_raylet(lambda raylet: (raylet.kill(), ended.append(raylet))):
        cluster.add(NODE)
    assert ended
    assert len(nodes_with("A100")) == 1
    raylets = [each for each in psutil.Process().children() if each.name() == "raylet" and each.status() != "zombie"]
    assert len(raylets) == 2, "the head's and the node's"


def test_a_control_store_that_ends_as_it_begins_is_started_again_and_not_waited_for(monkeypatch):
    """Ray alone waits for its port, two minutes or as long as it is told."""
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", "100000")
    start, ended = services.start_gcs_server, []

    def started_and_killed(*words, **options):
        found = start(*words, **options)
        if not ended:
            found.process.kill()
            ended.append(found)
        return found

    monkeypatch.setattr(services, "start_gcs_server", started_and_killed)
    cluster = LocalCluster.start(nodes=[NODE], dashboard=False)
    try:
        assert ended
        assert len(nodes_with("A100")) == 1
    finally:
        cluster.stop()


@pytest.mark.soak
def test_a_node_that_takes_longer_to_start_than_ray_waits_is_waited_for(cluster):
    def slow(raylet):
        raylet.suspend()
        time.sleep(RAYS_OWN_LIMIT_S + 10)
        raylet.resume()

    with the_next_raylet(slow):
        cluster.add(NODE)
    assert len(nodes_with("A100")) == 1
