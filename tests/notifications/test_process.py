"""The process that tells: a real one beside a real journal, killed between a job's end and its word."""

import asyncio
import json
import os
import signal

import msgspec
from standardwebhooks.webhooks import Webhook

from fabric import versions
from fabric.audit.merkle import Tree, leaf_hash
from fabric.journal.followers import Position
from fabric.journal.place import InFiles
from fabric.journal.process import FollowerProcess
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Snapshot, TreeHead
from fabric.journal.versions import label
from fabric.notifications.process import Task
from fabric.notifications.store import open_store
from tests.gate.conftest import finished, node, removed, started, submit, top_up
from tests.notifications.house import House
from tests.notifications.receivers import SECRET, endpoint, listening


async def until(is_so):
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


async def test_a_job_that_ends_is_told_of_by_a_process_that_was_killed_meanwhile(tmp_path):
    house = House("ada", "bob")
    path = str(tmp_path / "journal.db")
    place, journal = InFiles(path), SqliteJournal(path)
    await journal.open()
    tree = Tree()

    async def keep():
        entries = [house.log.entries[seq] for seq in range(tree.size, house.log.size)]
        for entry in entries:
            tree.append(leaf_hash(entry.leaf))
        await journal.append(entries, TreeHead(size=tree.size, root=tree.root()))

    house.must(top_up(1_000))
    house.must(node())
    await keep()
    state = label(versions.RULES) + house.gate.snapshot()
    await journal.save_snapshot(Snapshot(size=tree.size, root=tree.root(), edge=tuple(tree.edge), state=state))
    store = open_store(place)
    async with listening() as receiver:
        await store.add(endpoint(receiver), from_here=Position(house.log.size))
        task = Task(place, ("127.0.0.0/8",))
        process = FollowerProcess(place, module="fabric.notifications", said=msgspec.json.encode(task))
        running = asyncio.create_task(process.run())
        try:
            await until(lambda: process.pid is not None)
            os.kill(process.pid, signal.SIGKILL)
            house.must(submit())
            house.do(started())
            house.at(5).do(finished("succeeded"))
            house.do(removed())
            await keep()
            await until(lambda: "job.ended" in receiver.kinds)
        finally:
            running.cancel()
            await asyncio.wait([running])
        headers, body = receiver.got[receiver.kinds.index("job.ended")]
    await store.close()
    await journal.close()
    assert Webhook(SECRET).verify(body, headers) == json.loads(body)
    assert json.loads(body)["data"]["job_id"] == "j"
