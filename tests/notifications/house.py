"""A gate whose decisions become a journal, and whoever follows it for notices: restarted, cut and crashed as a test wants."""

import asyncio
import random

from fabric import versions
from fabric.gate import Gate
from fabric.journal.encoding import by_account, entries_of
from fabric.journal.followers import Follower, Position
from fabric.journal.store import Snapshot
from fabric.journal.versions import label
from fabric.notifications.endpoints import Endpoint
from fabric.notifications.rows import MADE
from fabric.notifications.scripts import SqliteScripts
from fabric.notifications.store import NoticeStore
from fabric.notifications.watcher import FROM_THE_END, Watcher
from tests.gate.conftest import Story
from tests.journal.test_followers import Crash, Shelf


class Log(Shelf):
    """A journal in memory that has snapshots."""

    def __init__(self):
        super().__init__()
        self.page, self.snapshots = 50, {}

    async def load_snapshot(self, *, at_most=None):
        sizes = [size for size in self.snapshots if at_most is None or size <= at_most]
        if not sizes:
            return None
        state = label(versions.RULES) + self.snapshots[max(sizes)]
        return Snapshot(size=max(sizes), root=b"", edge=(), state=state)


class House(Story):
    """Ada and Bob, and a journal of all that happens to them."""

    def __init__(self, *accounts, **more):
        self.log, self.snapshot_every = Log(), 0
        self.after = []
        super().__init__(*accounts, **more)

    def do(self, event):
        if not self.log.snapshots:
            self.log.snapshots[0] = Gate().snapshot()
        decision = None
        for part in by_account(event, self.gate.state.leases) or [event]:
            decision = self.gate.handle(part, self.now_us)
            if decision.kept:
                for entry in entries_of(self.log.size, at_us=self.now_us, event=part, decision=decision):
                    self.log.entries[entry.seq] = entry
                    self.log.size += 1
            for look in self.after:
                look()
        if (
            self.snapshot_every
            and self.log.size // self.snapshot_every > max(self.log.snapshots) // self.snapshot_every
        ):
            self.log.snapshots[self.log.size] = self.gate.snapshot()
        return decision


class CrashingScripts(SqliteScripts):
    """A store whose process dies now and then, before or after something is kept."""

    crash = ""

    async def run(self, script):
        if self.crash == "before":
            raise Crash
        found = await super().run(script)
        if self.crash == "after":
            raise Crash
        return found


def endpoint(account="ada", **more):
    named = {"endpoint_id": f"end-{account}", "account_id": account, "url": "https://hook.example/", "made_at_us": 0}
    return Endpoint(**{**named, **more})


async def followed(house, path, *, accounts=("ada", "bob"), batch=500, chance=None, begin_at=0):
    """What accounts are told of a journal, in order, by account; with `chance`, of a process that dies again and again."""
    scripts = CrashingScripts(path, MADE)
    store = NoticeStore(scripts)
    for account in accounts:
        await store.add(endpoint(account), from_here=Position(begin_at))
    draw = chance or random.Random(0)
    follower = None
    for _ in range(10_000):
        if follower is None:
            watcher = Watcher(house.log, store, now_us=lambda: house.now_us)
            follower = Follower(
                house.log,
                watcher,
                name="notices",
                first=FROM_THE_END,
                batch=draw.randint(1, 9) if chance else batch,
            )
        scripts.crash = draw.choice(("before", "after", "", "", "", "")) if chance else ""
        try:
            if not await follower.step() and not scripts.crash:
                break
        except Crash:
            follower = None
    scripts.crash = ""
    found = {
        account: [notice for _, notice in reversed(await store.deliveries(account, f"end-{account}", limit=10_000))]
        for account in accounts
    }
    await store.close()
    return found


def heard(house, path, **more):
    return asyncio.run(followed(house, path, **more))
