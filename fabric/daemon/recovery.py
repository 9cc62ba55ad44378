"""What the process that serves does about a Ray cluster of its own of which something has ended.

A control store is started again with all that it knew, and jobs don't notice; a node is started again, and its jobs go on
from what they saved. Where the head has ended, the gate has with it, or where a part doesn't come back, the process begins
again: it becomes a new one, at the same addresses, which ends what is left and starts everything anew, until that succeeds.
"""

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import ray
import structlog

from fabric import daemon
from fabric.cluster.local import LocalCluster
from fabric.errors import Unavailable
from fabric.outage import Outage

LOOK_S: Final = 0.5
"""How often it looks whether all is there."""
TRIES: Final = 8
"""After so many in a row that failed, in about 15 s, a new cluster is started."""
AGAIN_S: Final = 5.0
"""Between two tries to start everything anew."""
SILENT_S: Final = 5.0
"""An end doesn't wait longer for a control store that says nothing."""
ASK_S: Final = 60.0
"""How long Ray may take to say which nodes it takes for alive."""

log = structlog.get_logger()


class Recovery:
    """Watches a cluster."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._outage: Outage | None = None

    @property
    def wrong(self) -> str:
        """What can't be started again, in a sentence; "" if nothing is wrong."""
        return "" if self._outage is None else self._outage.said()

    async def run(self) -> str:
        """Start again what has ended; what can't be is tried again, with pauses. Ends when nothing but a new cluster helps,
        and says why.
        """
        while not self._cluster.is_gone:
            await asyncio.sleep(LOOK_S if self._outage is None else self._outage.pause_s)
            try:
                await self._look()
            except Exception as error:
                self._outage = self._outage or Outage("a part of Ray", Unavailable("it has ended"), code="ray_away")
                self._outage.tried(error)
                log.exception("ray_not_mended", tries=self._outage.tries)
                if self._outage.tries == TRIES:
                    return self.wrong
            else:
                self._outage = None
        return "the head of its Ray cluster has ended"

    async def _look(self) -> None:
        for found in self._cluster.mend():
            log.warning("ray_ended", told=found)
        if self._cluster.away:
            table = await asyncio.wait_for(asyncio.to_thread(ray.nodes), ASK_S)
            self._cluster.return_nodes({node["NodeID"] for node in table if node["Alive"]})


async def end_if_silent(place: Path, work_dir: Path) -> None:
    """What ends in order asks the control store much, and would wait for it: where that doesn't answer, end at once, with all
    processes of the cluster that is ours.
    """
    asking = asyncio.ensure_future(asyncio.to_thread(ray.nodes))
    done, _ = await asyncio.wait((asking,), timeout=SILENT_S)
    if done and asking.exception() is None:
        return
    log.warning("ray_silent", told="Ray doesn't answer: its processes are ended without a word to it")
    daemon.end_remains(place)
    shutil.rmtree(work_dir, ignore_errors=True)
    os._exit(0)


def begin_again(given: argparse.Namespace, *, ports: Sequence[int]) -> NoReturn:
    """Become a new process of the same number, so that whoever ends it finds it.

    Args:
        given: what this one was started with.
        ports: of the door, the dashboard and the models.
    """
    config = [] if given.config is None else ["--config", str(given.config)]
    options = ["--state-dir", str(given.state_dir), *config, *(["--any-port"] if given.any_port else [])]
    options += ["--ports", *map(str, ports)]
    if given.lock is not None:
        os.set_inheritable(given.lock, True)  # noqa: FBT003 - positional there
        options += ["--lock", str(given.lock)]
    os.execv(sys.executable, [sys.executable, "-m", "fabric.daemon", *options])  # noqa: S606 - our own module, no shell


def try_again(given: argparse.Namespace) -> NoReturn:
    """One that has begun again, and failed, does so until it succeeds or somebody else serves from its state directory."""
    given.lock = None
    time.sleep(AGAIN_S)
    begin_again(given, ports=given.ports)
