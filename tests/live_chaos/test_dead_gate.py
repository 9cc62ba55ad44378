"""What takes a device while the gate is dead, and stays dead, is ended by the node agents' watchdogs."""

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from fabric.errors import Unavailable
from fabric.wire import fabric_pb2 as pb
from tests.cluster.ray_cluster.test_ray_squatters import SHORT

LIKE_A_GATE = "Gatehouse"
SEEN_S = 90
QUIET_S = 4
"""Longer than a retry, or a restart, takes to come back."""


class Death:
    """Keeps the gate dead: whatever comes up in its place is killed, too."""

    def __init__(self, place):
        self.place, self.killed = place, set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._kill()
        assert self.killed
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(0.05):
            self._kill()

    def _kill(self):
        for process in self.place.processes():
            with suppress(Exception):  # it ends in this moment
                if LIKE_A_GATE in process.name() or LIKE_A_GATE in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    self.killed.add(process.pid)


@pytest.mark.timeout(1_200)
def test_what_takes_a_device_while_the_gate_is_dead_is_ended_by_then(bare_place):
    """Each way after another death: agents look in the gate's place for some minutes only."""
    killed = []
    for way in sorted(SHORT):
        until_the_gate_is_there(bare_place)
        with Death(bare_place) as death:
            began = time.time()
            stranger = bare_place.stranger(way)
            deadline = time.monotonic() + SEEN_S
            took = False
            while not took or not is_quiet(bare_place, began):
                took = took or b"holds" in (stranger.stdout.read() or b"") or has_held(bare_place, began)
                assert time.monotonic() < deadline, f"{way}: {bare_place.looks()[-1]}"
                time.sleep(0.2)
            stranger.kill()
            stranger.communicate()
        killed.append(len(death.killed))
        print(f"{way}: {len(death.killed)} gates killed; {bare_place.squatted()}", flush=True)
    assert max(killed) > 1, "another gate came up meanwhile, and was killed"


def until_the_gate_is_there(place):
    """It is, and its agents have heard it."""
    deadline = time.monotonic() + SEEN_S
    with place.connect("") as operator:
        while True:
            with suppress(Unavailable):
                operator.client.call(pb.ListLeasesRequest(), pb.ListLeasesReply)
                break
            assert time.monotonic() < deadline
            time.sleep(0.5)
    time.sleep(3)


def has_held(place, began):
    return any(who for clock, who in place.looks() if clock >= began)


def is_quiet(place, began):
    """Whether nobody has had a device for a while."""
    since = max([began, *(clock for clock, who in place.looks() if who)])
    return place.looks()[-1][0] - since > QUIET_S
