"""The zygote's socket is open to every process of its user, a job's among them: what it forks is where its asker is."""

import asyncio
import subprocess
import sys
from contextlib import suppress

from fabric.node.zygote_keeper import Zygote
from fabric.system.processes import kill
from fabric.worker.members import Members
from fabric.worker.runner import Order, encode_order
from tests.worker.leases import lease_of

ASKING = """
import os, sys, time
sys.stdin.readline()
from fabric.worker.fork_messages import Commission, Talk
import socket
class Gadget:
    def __reduce__(self):
        return exec, ("import os, time; open({told!r}, 'w').write(str(os.getpid())); time.sleep(120)",)
import pickle
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    talk = Talk(connection)
    talk.say(Commission(order=bytes.fromhex({order!r}), archive=pickle.dumps(Gadget()), lease_id="victim.1", devices=(), environment={{}}))
    time.sleep(120)
"""


async def test_whatever_a_job_has_forked_from_the_zygote_is_its_own_leases(tmp_path):
    """The socket is its user's, and a job's own code may be that user too."""
    told = tmp_path / "told"
    keeper = Zygote()
    path = await keeper.socket()
    order = Order(lease=lease_of(), rank=0, master_addr="127.0.0.1", master_port=1, work_dir=str(tmp_path))
    words = ASKING.format(told=str(told), path=path, order=encode_order(order).hex())
    members = Members()
    with subprocess.Popen([sys.executable, "-c", words], stdin=subprocess.PIPE, text=True) as job:  # noqa: ASYNC220
        try:
            members.follow("attacker.1", (job.pid,))
            members.follow("victim.1", ())
            job.stdin.write("\n")
            job.stdin.flush()
            with suppress(TimeoutError):
                async with asyncio.timeout(60):
                    while not (told.exists() and told.read_text()):  # noqa: ASYNC110  # of another process
                        await asyncio.sleep(0.02)
            mine, others = members.of("attacker.1"), members.of("victim.1")
            pid = int(told.read_text()) if told.exists() else job.pid
            assert (pid in mine, others) == (True, [])
        finally:
            for pid in members.of("attacker.1") + members.of("victim.1"):
                kill(pid)
            keeper._process.kill()
            await keeper._process.wait()
