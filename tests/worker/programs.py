"""One rank's machine side for a script or a command, without Ray: executed by a runner, or forked from a zygote."""

import asyncio
import io
import json
import os
import threading
import time
import zipfile

from fabric.cluster.validation import end_of
from fabric.gate.events import JobKind
from fabric.gate.instructions import Share
from fabric.node.zygote_keeper import Zygote
from fabric.storage.archive import DirectoryArchive
from fabric.system.ports import free_port
from fabric.system.processes import end_all
from fabric.worker.execution import perform
from fabric.worker.fork import Fork
from fabric.worker.runner import Order, encode_order, stage_of
from tests.worker.leases import lease_of

WITHIN_S = 150


class Zygotes:
    """One for all tests of a module, on a loop of its own."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.keeper = Zygote()

    def socket(self):
        return asyncio.run_coroutine_threadsafe(self.keeper.socket(), self.loop).result(120)

    def close(self):
        async def end():
            if self.keeper._process is not None:
                self.keeper._process.kill()
                await self.keeper._process.wait()

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Machine:
    """Runs jobs of one customer, one attempt after another."""

    def __init__(self, folder, *, zygote=""):
        self.folder, self.zygote = folder, zygote
        self.archive = DirectoryArchive(folder / "archive")
        self.saves, self.leases = [], []

    def begin(self, *command, **more):
        (attempt,) = self.begin_gang(*command, **more)
        return attempt

    def begin_gang(self, *command, files=None, env=None, job_id="job-1", nodes=1):
        """A rank for each node, all of which are this machine."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as out:
            for name, text in (files or {}).items():
                out.writestr(name, text)
        self.archive.put("blobs/acme/code", packed.getvalue())
        payload = {"entrypoint": list(command), "working_dir_blob": "blobs/acme/code", "env": env or {}}
        epoch = len(self.leases) + 1
        lease = lease_of(
            job_id, epoch=epoch, lease_id=f"{job_id}-{os.getpid()}-{id(self)}.{epoch}", kind=JobKind.SCRIPT,
            payload=json.dumps(payload), shares=tuple(Share(f"h{at + 1}", 2) for at in range(nodes)),
        )  # fmt: skip
        self.leases.append(lease)
        attempts, port = [], free_port()
        for rank in range(nodes):
            order = Order(
                lease=lease, rank=rank, master_addr="127.0.0.1", master_port=port, work_dir=str(self.folder / "work")
            )
            stage = stage_of(
                order, archive=self.archive, devices=("0", "1"), on_saved=lambda *facts: self.saves.append(facts),
                on_report=lambda: None,
            )  # fmt: skip
            attempts.append(Attempt(stage, order, zygote=self.zygote))
        return attempts

    def run(self, *command, **more):
        return self.begin(*command, **more).ended()

    def close(self):
        for lease in self.leases:
            end_all((), lease_id=lease.lease_id)


class Attempt:
    """One, in a thread of its own as a runner has it."""

    def __init__(self, stage, order, *, zygote):
        self.stage, self.lease = stage, order.lease
        self.end = None
        if zygote:
            stage.fork = Fork.begin(stage, zygote=zygote, order=encode_order(order), devices=("0", "1"))
            assert stage.fork is not None
        self.thread = threading.Thread(target=self._perform, daemon=True)
        self.thread.start()

    def _perform(self):
        said = self.stage.fork.perform(self.stage) if self.stage.fork is not None else perform(self.stage)
        self.end = end_of(said, lease=self.lease)

    @property
    def log(self):
        return self.stage.log_file.read_text() if self.stage.log_file.exists() else ""

    def until(self, found):
        """Until the log has this, or the call says so."""
        look = found if callable(found) else lambda: found in self.log
        give_up_at = time.monotonic() + WITHIN_S
        while not look():
            assert self.end is None, (self.end, self.log)
            assert time.monotonic() < give_up_at, self.log
            time.sleep(0.02)

    def stop(self, reason="evicted", *, seconds_left=WITHIN_S):
        """Give the notice, and hear how it ends."""
        self.stage.ask_to_stop(reason, seconds_left=seconds_left, save=True)
        return self.ended()

    def ask_to_stop(self, *, seconds_left=WITHIN_S):
        self.stage.ask_to_stop("evicted", seconds_left=seconds_left, save=True)

    def ended(self):
        self.thread.join(WITHIN_S)
        assert self.end is not None, self.log
        return self.end, self.log
