"""A log that was not moved into the archive, because the gate died or the archive was away, is moved later. Without Ray."""

import asyncio
import os
import time

import pytest
import ray

from fabric.cluster.ray_cluster import RayCluster
from fabric.cluster.settings import ClusterSettings
from fabric.errors import Unavailable
from fabric.gate.views import JobView
from fabric.node.agent import NodeAgent
from fabric.storage import log_ends
from fabric.storage.archive import DirectoryArchive
from fabric.system.private_folder import YOUNG_S, attempt_folder
from tests.cluster.shells import Method

LOG = b"".join(b"line %03d\n" % number for number in range(100))


class Archive(DirectoryArchive):
    """One that is away for its next writes, if it is told so; or whose writer dies before one of them."""

    away = 0
    dies_at = None

    def put(self, key, data):
        if self.away:
            self.away -= 1
            raise Unavailable("the archive is out of reach")
        if self.dies_at == 0:
            raise SystemExit
        if self.dies_at is not None:
            self.dies_at -= 1
        super().put(key, data)


class Handle:
    """What looks like Ray's handle of an agent that is here."""

    def __init__(self, agent):
        self.agent = agent

    def __getattr__(self, name):
        async def called(*given, **options):
            try:
                return await getattr(self.agent, name)(*given, **options)
            except Unavailable as error:
                raise ray.exceptions.RayError(str(error)) from error

        return Method(called)


class Machine:
    """One machine with its agent, and a gate's side that comes and goes."""

    def __init__(self, work_dir, archive):
        self.work_dir, self.archive = work_dir, archive
        self.jobs = {}

    async def a_gate_comes(self, leases=()):
        """It starts, and compares what is there with what it knows; as often as it does so by itself."""
        cluster = RayCluster(
            report=None,
            archive=self.archive,
            settings=ClusterSettings(work_dir=self.work_dir, metrics=False, reconcile_s=0),
        )
        cluster._agents._actors["10.0.0.1"] = Handle(NodeAgent(meter="cpu", archive=self.archive))
        await cluster.reconcile(list(leases), jobs=self.asked)
        return cluster

    async def asked(self, job_ids):
        return [self.jobs[job_id] for job_id in job_ids if job_id in self.jobs]

    def ran(self, job_id="job-1", *, epoch=1, ranks=1, attempts=None, lease_id=None, log=LOG):
        """An attempt of a job that the gate knows has left its folder, long ago."""
        top = attempt_folder(self.work_dir, f"{job_id}.{epoch}")
        for rank in range(ranks):
            (top / str(rank) / "work").mkdir(parents=True)
            (top / str(rank) / "work" / "data").write_bytes(b"much")
            (top / str(rank) / "log").write_bytes(log)
        long_ago = time.time() - 2 * YOUNG_S
        os.utime(top, (long_ago, long_ago))
        self.jobs[job_id] = view(job_id, attempts=attempts or epoch, lease_id=lease_id)
        return top

    def kept(self, job_id="job-1", *, epoch=1, rank=0):
        """The log as the archive has it; b"" = not at all."""
        prefix = f"jobs/acme/{job_id}/logs"
        pieces = log_ends.pieces_of(self.archive.list(prefix)).get((epoch, rank), [])
        return b"".join(self.archive.get(piece.key) for piece in pieces)


def view(job_id, *, attempts, lease_id):
    """Of what a job's view says, what counts here."""
    facts = dict.fromkeys(JobView.__struct_fields__, 0)
    return JobView(**{**facts, "job_id": job_id, "account_id": "acme", "attempts": attempts, "lease_id": lease_id})


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "work", Archive(tmp_path / "archive"))


async def test_a_log_that_was_not_moved_when_the_gate_died_is_moved_by_the_next(machine):
    """The end of its lease is journaled, so nobody says it again."""
    top = machine.ran(ranks=2)
    await machine.a_gate_comes()
    assert machine.kept(rank=0) == machine.kept(rank=1) == LOG
    assert not top.exists()


async def test_a_log_that_an_archive_did_not_take_is_moved_when_it_is_back(machine):
    top = machine.ran()
    machine.archive.away = 1
    gate = await machine.a_gate_comes()
    assert machine.kept() == b""
    assert (top / "0" / "log").read_bytes() == LOG
    assert not (top / "0" / "work").exists(), "what waits is the log alone"
    await gate.reconcile([], jobs=machine.asked)
    assert machine.kept() == LOG
    assert not top.exists()


@pytest.mark.parametrize("written", [0, 1, 2])
async def test_a_move_that_was_broken_off_anywhere_is_done_again(machine, monkeypatch, written):
    """A long log is kept in two parts."""
    monkeypatch.setattr(log_ends, "LOG_BYTES_MAX", 400)
    monkeypatch.setattr(log_ends, "SLACK_BYTES", 0)
    machine.ran("whole")
    await machine.a_gate_comes()
    top = machine.ran("broken")
    machine.archive.dies_at = written
    rank = top / "0"
    try:
        NodeAgent(meter="cpu", archive=machine.archive)._tidy(rank, rank / "log", "jobs/acme/broken/logs/000001/000000")
    except SystemExit:
        assert written < 2
    machine.archive.dies_at = None
    await machine.a_gate_comes()
    assert machine.kept("broken") == machine.kept("whole")
    assert len(machine.kept("whole")) < len(LOG)


STAYS = {
    "of a lease that lives": {"lease_id": "job-1.1"},
    "of an attempt that the gate has not begun": {"epoch": 2, "attempts": 1},
}


@pytest.mark.parametrize("facts", STAYS.values(), ids=STAYS)
async def test_a_log_is_left_alone(machine, facts):
    machine.ran(**facts)
    await machine.a_gate_comes()
    assert machine.kept(epoch=facts.get("epoch", 1)) == b""


async def test_what_a_job_has_left_that_nobody_knows_is_swept_away(machine):
    top = machine.ran()
    machine.jobs.clear()
    await machine.a_gate_comes()
    assert machine.kept() == b""
    assert not top.exists()


async def test_a_machine_that_does_not_say_what_is_left_there_is_not_swept(machine):
    gate = await machine.a_gate_comes()
    top = machine.ran()
    handle = gate._agents._actors["10.0.0.1"]
    handle.left = Method(fails)
    await gate.reconcile([], jobs=machine.asked)
    assert (top / "0" / "log").exists()


async def fails(*_):
    await asyncio.sleep(0)
    raise TimeoutError
