"""A job that tries to outlive its lease, to be metered as another, or to leave more behind than a log."""

import asyncio
import os
import subprocess
import sys
import textwrap
import time

import pytest

from fabric.gate.events import JobKind, LeaseOutcome
from fabric.system.processes import tree_of

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]

DAEMON = textwrap.dedent("""
    import os, sys, time
    os.setsid()
    if os.fork():
        os._exit(0)
    with open(sys.argv[1], "w") as out:
        out.write(str(os.getpid()))
    while True:
        pass
""")


async def gone(pid):
    for _ in range(100):
        if tree_of([pid], lease_id="none") == []:
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize("kind", [JobKind.FUNCTION, JobKind.SCRIPT])
async def test_a_daemon_that_hides_burns_and_ends_with_its_lease(world, tmp_path, kind):
    where = tmp_path / "pid"
    command = [sys.executable, "-c", DAEMON, str(where)]

    def stay_behind(command, where):
        subprocess.run(command, env={}, check=True)
        while not (os.path.exists(where) and os.path.getsize(where)):  # noqa: PTH110, PTH202 - as a customer would
            time.sleep(0.02)
        time.sleep(1.0)

    if kind is JobKind.FUNCTION:
        payload = world.call(stay_behind, command, str(where))
    else:
        launcher = tmp_path / "launch.sh"
        launcher.write_text(
            f"env -i {sys.executable} {tmp_path / 'daemon.py'} {where} &\nwhile [ ! -s {where} ]; do sleep 0.02; done\nsleep 1"
        )
        (tmp_path / "daemon.py").write_text(DAEMON)
        payload = {"entrypoint": ["bash", str(launcher)]}
    lease = world.lease(payload, kind=kind)
    finished, _ = await world.run(lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED
    assert await gone(int(where.read_text()))
    _, busy_us, _ = world.metered(lease.lease_id)
    assert busy_us > 300_000


async def test_a_program_cannot_say_that_it_is_another_lease(world):
    lease = world.lease(
        {
            "entrypoint": ["python", "-c", "import os, time; print(os.environ['FABRIC_LEASE_ID'])"],
            "env": {"FABRIC_LEASE_ID": "job-x.1"},
        },
        kind=JobKind.PROGRAM,
    )
    await world.run(lease)
    chunks = [c async for c in world.cluster.logs(lease.job_id, account_id="acme", offsets={})]
    assert b"".join(chunk.data for chunk in chunks).decode().strip() == lease.lease_id
