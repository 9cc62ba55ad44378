"""Job changes as streams: whatever is cut off, restarted or slow meanwhile, each watcher has every job as it stands, in order."""

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric.api import feed
from fabric.api.feed import ChangeFeed
from fabric.errors import Unavailable

PAGE = 3
JOBS = 7
WATCHERS = (None, "ann", "bob")


@dataclass(frozen=True)
class View:
    job_id: str
    account_id: str
    revision: int


class Gate:
    """What the door asks: jobs by the revision of their last change, which a restart keeps, as the journal has it."""

    def __init__(self):
        self.jobs, self.revision, self.away, self.changed = {}, 0, False, asyncio.Event()

    def change(self, number):
        self.revision += 1
        name = f"j{number}"
        self.jobs.pop(name, None)
        self.jobs[name] = View(name, ("ann", "bob")[number % 2], self.revision)
        self.changed.set()

    async def ask(self, _):
        await self._answers()
        return self.revision

    async def changes(self, *, account_id, after_revision, timeout_s):
        await self._answers()
        found = self._since(account_id, after_revision)
        if not found and timeout_s:
            self.changed.clear()
            await self.changed.wait()
            await self._answers()
            found = self._since(account_id, after_revision)
        return found

    async def _answers(self):
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("it starts again")

    def _since(self, account_id, after):
        views = [each for each in self.jobs.values() if each.revision > after]
        return [each for each in views if account_id in (None, each.account_id)][:PAGE]


class Watcher:
    """A client that reads when it is told to, and begins again after the last revision that it has seen."""

    def __init__(self, feed, account):
        self.feed, self.account, self.after, self.seen, self.stream = feed, account, 0, {}, None
        self.waiting = None

    async def read(self, most=10**6):
        """As much as comes without anything else happening."""
        if self.stream is None:
            self.stream = self.feed.watch(self.account, after_revision=self.after)
        for _ in range(most):
            self.waiting = self.waiting or asyncio.ensure_future(anext(self.stream))
            for _ in range(20):
                if not self.waiting.done():
                    await asyncio.sleep(0)
            if not self.waiting.done():
                return
            got, self.waiting = self.waiting.result(), None
            if isinstance(got, View):
                assert got.revision > self.after, "out of order, or twice"
                assert self.account in (None, got.account_id), "somebody else's"
                self.after, self.seen[got.job_id] = got.revision, got.revision

    async def cut(self):
        if self.waiting is not None:
            self.waiting.cancel()
            await asyncio.gather(self.waiting, return_exceptions=True)
            self.waiting = None
        if self.stream is not None:
            await self.stream.aclose()
            self.stream = None


steps = st.one_of(
    st.tuples(st.just("change"), st.integers(0, JOBS - 1)),
    st.tuples(st.just("restart"), st.booleans()),
    st.tuples(st.sampled_from(["read", "cut"]), st.integers(0, len(WATCHERS) - 1)),
)


@pytest.fixture(autouse=True)
def _pages(monkeypatch):
    monkeypatch.setattr(feed, "CHANGES_MAX", PAGE)
    monkeypatch.setattr(feed, "_PAUSE_S", 0.0)


@settings(max_examples=300)
@example([("read", 0), *[("change", n) for n in range(JOBS)], ("cut", 0), ("restart", True), ("change", 0)])
@given(st.lists(steps, max_size=60))
def test_whatever_is_cut_or_restarted_every_watcher_has_every_job_as_it_stands_in_order(taken):
    async def story():
        gate = Gate()
        changes = ChangeFeed(gate)
        watchers = [Watcher(changes, account) for account in WATCHERS]
        for kind, what in taken:
            match kind:
                case "change" if not gate.away:
                    gate.change(what)
                case "restart":
                    gate.away = what
                    gate.changed.set()
                case "read" if not gate.away:
                    await watchers[what].read(2)
                case "cut":
                    await watchers[what].cut()
        gate.away = False
        gate.changed.set()
        for watcher in watchers:
            if watcher.stream is None or watcher.waiting is None or watcher.waiting.done():
                await watcher.read()
            for _ in range(200):
                await asyncio.sleep(0)
            await watcher.read()
            due = {
                each.job_id: each.revision for each in gate.jobs.values() if watcher.account in (None, each.account_id)
            }
            assert watcher.seen == due
            await watcher.cut()
        await changes.close()

    asyncio.run(story())
