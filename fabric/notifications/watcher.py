"""The watcher: the follower's consumer that turns entries of the journal into notices.

It decides the journal again, as a replica of the gate: what an account is to hear of follows from the gate's state (a job that
is parked, a limit that is nearly used), which no entry says. It begins with the newest snapshot before its position. Only
accounts that have an endpoint are looked at. Notices, what was told and the position are kept together, so each notice is made
exactly once, whatever crashes; its delivery is at least once, under one id.

Where entries are missing nothing can be decided: nothing is told until the gate has kept a snapshot after them.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from fabric.errors import JournalCorrupt
from fabric.gate import Gate
from fabric.journal.followers import Batch, Gap, Position, moved
from fabric.journal.replay import Replay
from fabric.journal.store import Entry, Journal
from fabric.journal.versions import Unreadable, unlabelled
from fabric.notifications.notice import Notice
from fabric.notifications.rules import NOTHING, Told, of_account, of_job, of_payments
from fabric.notifications.store import NoticeStore

FROM_THE_END: Final = 2**62
"""Where a new follower begins: what was before nobody is told."""

log = structlog.get_logger()


class Watcher:
    """A `Consumer`."""

    def __init__(self, journal: Journal, store: NoticeStore, *, now_us: Callable[[], int]) -> None:
        """Put the parts together.

        Args:
            journal: read only.
            store: where notices are kept.
            now_us: what time it is, for when deliveries are made and what expires.
        """
        self._journal = journal
        self._store = store
        self._now_us = now_us
        self._gate: Gate | None = None
        self._replay: Replay | None = None
        self._seq = -1
        """How many entries the replica has decided."""
        self._kept: Position | None = None
        self._told: dict[str, Told] = {}
        self._looks: list[tuple[int, str]] = []
        """When time alone brings an account's lots nearer to their end: a heap."""
        self._look_at: dict[str, int] = {}
        """The same by account: what else the heap has is out of date."""
        self._watched: frozenset[str] = frozenset()
        self._missing = ""

    async def position(self) -> Position | None:
        kept = await self._store.kept()
        self._kept = kept.position if kept is not None else None
        self._told = kept.told if kept is not None else {}
        self._gate = None
        return self._kept

    async def begin_anew(self, why: str) -> None:
        log.warning("notices_begin_anew", why=why)
        await self._store.begin(None)
        self._gate = None

    async def take(self, batch: Batch) -> None:
        told, notices = dict(self._told), list[Notice]()
        try:
            if self._gate is None or self._seq != batch.before.seq:
                await self._restore(batch.before.seq)
            await self._watch_more()
            for item in batch.items:
                notices += self._after(item, told)
        except JournalCorrupt as error:
            self._gate = None
            told, notices = dict(self._told), []
            if self._missing != error.message:
                log.warning("notices_missing", entry=batch.before.seq, why=error.message)
            self._missing = error.message
        else:
            self._missing = ""
        await self._keep(batch.before, batch.after, told, notices)

    async def time_passes(self) -> None:
        """Tell what follows from the time alone: that lots are near their end."""
        now_us = self._now_us()
        if self._gate is None or self._kept is None or self._seq != self._kept.seq:
            return
        await self._watch_more()
        told, notices = dict(self._told), list[Notice]()
        for account_id in self._due(now_us):
            notices += self._look(account_id, told, now_us)
        if notices or told != self._told:
            await self._keep(self._kept, self._kept, told, notices)

    # -- the replica ----------------------------------------------------------------------------------------------------

    async def _restore(self, seq: int) -> None:
        """Be where the gate was after so many entries."""
        gate, self._seq = await self._from_snapshot(seq)
        self._gate, self._replay = gate, (replay := Replay(gate))
        if self._seq < seq:
            async for entry in self._journal.read(self._seq, seq):
                replay.feed(entry)
                self._seq = entry.seq + 1
        gate.take_changed()
        self._watched, self._looks, self._look_at = frozenset(), [], {}

    async def _from_snapshot(self, at_most: int) -> tuple[Gate, int]:
        """The newest replica there is of so many entries at most, and of how many."""
        while (snapshot := await self._journal.load_snapshot(at_most=at_most)) is not None:
            try:
                return Gate.restore(unlabelled(snapshot.state)), snapshot.size
            except Unreadable:
                at_most = snapshot.size - 1
        return Gate.restore(None), 0

    async def _watch_more(self) -> None:
        """Look at accounts that have an endpoint now. One that is new is told of what is the case already, with the next entry."""
        assert self._gate is not None
        watched = frozenset(each.account_id for each in await self._store.endpoints() if not each.ended)
        for account_id in sorted(watched - self._watched):
            if account_id in self._told:
                told, now_us = self._told[account_id], self._gate.state.now_us
                self._look_again(account_id, of_account(self._gate, account_id, told, now_us=now_us).look_at_us)
            else:
                self._look_again(account_id, 0)
        self._watched = watched

    def _after(self, item: Entry | Gap, told: dict[str, Told]) -> Iterable[Notice]:
        assert self._gate is not None
        assert self._replay is not None
        if isinstance(item, Gap):
            raise JournalCorrupt(f"entries {item.start} to {item.stop - 1} are not there ({item.why})", seq=item.start)
        self._replay.feed(item)
        self._seq = item.seq + 1
        gate, now_us = self._gate, self._gate.state.now_us
        changed = [job for job_id in gate.take_changed() if (job := gate.state.jobs.get(job_id)) is not None]
        found = [notice for job in changed if job.account_id in self._watched for notice in of_job(job, now_us=now_us)]
        for account_id in self._watched:
            found += of_payments(gate, account_id, now_us=now_us)
        accounts = itertools.chain(item.accounts, (job.account_id for job in changed), self._due(now_us))
        for account_id in dict.fromkeys(accounts):
            found += self._look(account_id, told, now_us)
        return found

    def _due(self, now_us: int) -> list[str]:
        found: list[str] = []
        while self._looks and self._looks[0][0] <= now_us:
            at_us, account_id = heapq.heappop(self._looks)
            if self._look_at.get(account_id) == at_us:
                del self._look_at[account_id]
                found.append(account_id)
        return found

    def _look_again(self, account_id: str, at_us: int | None) -> None:
        if at_us is None:
            self._look_at.pop(account_id, None)
        elif self._look_at.get(account_id) != at_us:
            self._look_at[account_id] = at_us
            heapq.heappush(self._looks, (at_us, account_id))

    def _look(self, account_id: str, told: dict[str, Told], now_us: int) -> list[Notice]:
        if self._gate is None or account_id not in self._watched:
            return []
        found = of_account(self._gate, account_id, told.get(account_id, NOTHING), now_us=now_us)
        told[account_id] = found.told
        self._look_again(account_id, found.look_at_us)
        return found.notices

    async def _keep(self, before: Position, after: Position, told: dict[str, Told], notices: list[Notice]) -> None:
        told = {
            account_id: each for account_id, each in told.items() if each != NOTHING and account_id in self._watched
        }
        kept = before if self._kept is not None else None
        if not await self._store.take(kept, after, told, notices, now_us=self._now_us()):
            self._gate = None
            raise moved(before, None)
        self._kept, self._told = after, told
