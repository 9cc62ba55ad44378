"""A function in a process of its own, without Ray around it: attempts of one job, one after another."""

import base64
import json
import os
import signal
import threading
import time

import cloudpickle

from fabric.gate.events import JobKind, LeaseOutcome
from fabric.results import read_parcel
from fabric.storage.archive import DirectoryArchive
from fabric.storage.results import read_result
from fabric.system.processes import end_all
from fabric.worker.runner import Order, Runner, stage_of
from tests.worker.leases import lease_of

WITHIN_S = 120


class Attempt:
    """One, in a thread of its own as a runner has it."""

    def __init__(self, place, function, *, epoch, env, zygote):
        self.saves, self.end = [], None
        payload = {
            "inline": base64.b64encode(cloudpickle.dumps((function, (), {}))).decode(),
            "env": env,
        }
        kind, lease_id = JobKind.FUNCTION if zygote else JobKind.PROGRAM, f"j-{os.getpid()}-{id(place)}.{epoch}"
        self.lease = lease_of("j", lease_id=lease_id, epoch=epoch, kind=kind, payload=json.dumps(payload))
        work_dir = str(place.folder / "work")
        order = Order(
            lease=self.lease, rank=0, master_addr="127.0.0.1", master_port=1, work_dir=work_dir, zygote=zygote
        )
        self.archive = place.archive
        self.stage = stage_of(
            order, archive=place.archive, devices=("0", "1"), on_saved=lambda step, *_: self.saves.append(step),
            on_report=lambda: None,
        )  # fmt: skip

        runner = object.__new__(Runner)  # what chooses the way; Ray tells one that it has made what devices it has
        runner._devices = ("0", "1")
        self._thread = threading.Thread(
            target=lambda: setattr(self, "end", runner._perform(self.stage, order)), daemon=True
        )
        self._thread.start()

    @property
    def log(self):
        return self.stage.log_file.read_text() if self.stage.log_file.exists() else ""

    def ended(self):
        self._thread.join(WITHIN_S)
        assert self.end is not None
        return self.end

    def value(self):
        end = self.ended()
        assert end.outcome is LeaseOutcome.SUCCEEDED, end.error
        return read_parcel(read_result(self.archive, end.result_ref)).value()

    def until(self, found):
        deadline = time.monotonic() + WITHIN_S
        while not found():
            assert self.end is None, (self.end, self.log)
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self):
        for pid in self.stage.fork.processes():
            os.kill(pid, signal.SIGKILL)
        return self.ended()


class Calls:
    """All of one job."""

    def __init__(self, folder, *, zygote="", **env):
        """In processes that are forked from a zygote, or started."""
        self.folder, self.env, self.attempts, self.zygote = folder, env, [], zygote
        self.archive = DirectoryArchive(folder / "archive")

    def begin(self, function):
        epoch = len(self.attempts) + 1
        self.attempts.append(Attempt(self, function, epoch=epoch, env=self.env, zygote=self.zygote))
        return self.attempts[-1]

    def close(self):
        for attempt in self.attempts:
            end_all((), lease_id=attempt.lease.lease_id)
