"""Gangs of processes forked from one that has torch imported: a gang starts in tenths of a second, without Ray."""

import atexit
import functools
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from fabric.system.ports import free_port

ROOT = Path(__file__).parents[3]


class Nest:
    """The process that forks (see `nest`), and what it says."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.training.gang.nest"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )  # fmt: skip
        self.said = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.codes = {}
        atexit.register(self.end)

    def _read(self):
        for line in self.process.stdout:
            self.said.put(json.loads(line))
        self.said.put(None)

    def start(self, orders):
        """The pid each rank became."""
        for order in orders:
            self.process.stdin.write(pickle.dumps(order).hex() + "\n")
        self.process.stdin.flush()
        pids = {}
        while len(pids) < len(orders):
            heard = self.hear(60)
            if "rank" in heard:
                self.codes.pop(heard["pid"], None)  # of an earlier process with the same number
                pids[heard["rank"]] = heard["pid"]
        return pids

    def hear(self, timeout_s):
        heard = self.said.get(timeout=timeout_s)
        assert heard is not None, "the nest died"
        if "code" in heard:
            self.codes[heard["pid"]] = heard["code"]
        return heard

    def end(self):
        self.process.stdin.close()
        self.process.terminate()
        self.process.wait(20)
        self.reader.join(20)
        self.process.stdout.close()


@functools.cache
def nest():
    return Nest()


class Crew:
    """The processes of one attempt."""

    def __init__(self, order, *, world, doing="train", absent=()):
        port = free_port()
        self.pids = nest().start([(doing, rank, world, port, order) for rank in range(world) if rank not in absent])

    def kill(self, rank, number=signal.SIGKILL):
        os.kill(self.pids[rank], number)

    def end(self, timeout_s=90, *, but=()):
        """Wait for all ranks, but those that are not expected to end by themselves; exit codes by rank."""
        codes, deadline = nest().codes, time.monotonic() + timeout_s
        try:
            while late := [rank for rank, pid in self.pids.items() if pid not in codes and rank not in but]:
                assert time.monotonic() < deadline, f"ranks {late} did not end within {timeout_s} s"
                try:
                    nest().hear(0.1)
                except queue.Empty:
                    continue
        finally:
            for pid in self.pids.values():
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        return {rank: codes.get(pid) for rank, pid in self.pids.items()}


def run(order, *, world, timeout_s=90, **options):
    """An attempt that ends by itself; exit codes in order of rank."""
    return list(Crew(order, world=world, **options).end(timeout_s).values())
