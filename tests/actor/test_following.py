"""The follower's process beside the gate: it comes up, comes up again, ends with the gate, and is nobody's condition."""

import asyncio
import os
import subprocess
import sys

import msgspec
import psutil
import pytest

from fabric.gate.events import TopUp
from fabric.gate.questions import RecordsOf, StatementOf
from fabric.journal import process as process_module
from fabric.journal.place import InFiles
from fabric.journal.process import FollowerProcess
from fabric.journal.tables import READ_PROGRESS, NoTables
from fabric.units import UHS_PER_CT
from tests.actor.test_actor import JOB


async def reaches(gate, size):
    """Wait until the projection has so many entries."""
    while True:
        try:
            (found,) = await gate._tables.read(READ_PROGRESS)
        except NoTables:
            found = []
        if found and found[0][1] >= size:
            return
        await asyncio.sleep(0.05)


async def test_the_projection_follows_the_gate_and_its_process_ends_with_it(world):
    gate = world()
    await gate.decide(JOB)
    await reaches(gate, gate._writer.head.size)
    child = psutil.Process(gate._follower.pid)
    assert child.cmdline()[1:] == ["-m", "fabric.journal"]
    await gate.decide([TopUp(account_id="acme", amount_uhs=UHS_PER_CT, payment_ref="q", request_id="again")])
    await reaches(gate, gate._writer.head.size)
    await gate.close()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_a_follower_that_is_killed_is_started_again_and_meanwhile_everything_is_answered(world, monkeypatch):
    monkeypatch.setattr(process_module, "PAUSES_S", (0.1,))
    gate = world()
    await gate.decide(JOB)
    await reaches(gate, 1)
    first = gate._follower.pid
    os.kill(first, 9)
    await gate.decide([TopUp(account_id="acme", amount_uhs=UHS_PER_CT, payment_ref="q", request_id="again")])
    page = await gate.ask(StatementOf(account_id="acme"))
    assert page.statement.lines[-1].ref
    assert page.statement.until_size == gate._writer.head.size
    await reaches(gate, gate._writer.head.size)
    assert gate._follower.pid != first
    assert (await gate.ask(RecordsOf())).records == ()
    await gate.close()


async def test_a_follower_that_never_comes_up_costs_nobody_an_answer(world, monkeypatch):
    monkeypatch.setattr(process_module.sys, "executable", "/bin/false")
    monkeypatch.setattr(process_module, "PAUSES_S", (0.1,))
    gate = world()
    await gate.decide(JOB)
    page = await gate.ask(StatementOf(account_id="acme"))
    assert page.statement.closing.posted_uhs == 100 * UHS_PER_CT
    await gate.close()


@pytest.mark.parametrize("told", [b"", b'{"type":"sqlite","path":"PATH"}\n'])
def test_the_process_ends_when_its_parent_is_gone_however_that_came_about(tmp_path, told):
    told = told.replace(b"PATH", str(tmp_path / "journal").encode())
    child = subprocess.Popen([sys.executable, "-m", "fabric.journal"], stdin=subprocess.PIPE)
    child.stdin.write(told)
    child.stdin.close()
    assert child.wait(60) == 0


async def test_what_it_is_told_is_no_argument_that_others_can_read(tmp_path):
    follower = FollowerProcess(InFiles(str(tmp_path / "secret-place")))
    running = asyncio.create_task(follower.run())
    while not await asyncio.sleep(0.02, follower.pid):
        pass
    assert "secret-place" not in " ".join(psutil.Process(follower.pid).cmdline())
    running.cancel()
    await asyncio.wait([running])
    assert msgspec.json.decode(msgspec.json.encode(InFiles("x")))["type"] == "sqlite"
