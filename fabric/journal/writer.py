"""The one writer: collects what arrives, decides it in order, commits the batch, and only then answers and acts.

Group commit: while one batch is being made durable, the next one gathers; a batch costs one fsync however large it is.
What is in memory never runs ahead of the journal: when a commit fails, nobody gets an answer, and the state is rebuilt
from the journal before anything else is decided, tried until it works, whether or not anybody asks for anything; meanwhile
callers are told at once. Starting is the same thing (`fabric.journal.restoring`).

Knows the journal and the core by what they promise; does not know Ray, tokens, or what an event means.
Ideas: LMAX (one thread decides, batches are durable), TigerBeetle (the log is the truth), dask (events in, instructions out).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final, Generic, TypeVar

import structlog

from fabric import versions
from fabric.audit.merkle import Tree, leaf_hash
from fabric.clock import Clock
from fabric.errors import Conflict, FabricError, Internal, JournalCorrupt, Unavailable
from fabric.gate.events import AdoptRules, AnyEvent, Tick
from fabric.gate.instructions import Accepted, AnyInstruction, Outcome, StartLease
from fabric.journal.encoding import entries_of
from fabric.journal.replay import Core
from fabric.journal.restoring import Progress, restored
from fabric.journal.store import Entry, Journal, Snapshot, TreeHead
from fabric.journal.versions import label
from fabric.outage import Outage

BATCH_MAX: Final = 1_024
"""Events in one commit, unless a single call brings more."""
QUEUE_MAX: Final = 20_000
"""Events that may wait. Beyond, callers are told to come back."""
SNAPSHOT_EVERY: Final = 10_000
"""Entries between snapshots at least; a long journal is snapshotted when it has grown by a twentieth."""
PATIENCE_S: Final = 5.0
"""A commit that takes longer keeps nobody waiting: callers are told that the journal is away, until it has answered."""
REBUILD_PATIENCE_S: Final = 1.0
"""A rebuild that takes longer keeps nobody waiting either."""
JOURNAL: Final = "the journal's database"
CLOSE_S: Final = 8.0
"""What an end waits at most for a journal that doesn't answer, at each of its steps."""
_GROWTH: Final = 20
_NOTHING_TO_DO: Final = Accepted()
_IN_DOUBT: Final = "Whether this call was written is not known, and asking again with the same request id is safe"


C = TypeVar("C", bound=Core)
T = TypeVar("T")
Waiting = tuple[Sequence[AnyEvent], "asyncio.Future[list[Outcome]]"]

log = structlog.get_logger()


class Writer(Generic[C]):
    """Owns a journal and the core whose decisions it keeps."""

    def __init__(
        self,
        journal: Journal,
        *,
        restore: Callable[[bytes | None], C],
        clock: Clock,
        carry_out: Callable[[Sequence[AnyInstruction]], Awaitable[None]],
        committed: Callable[[C], None] = lambda _: None,
        recovered: Callable[[C], Sequence[AnyInstruction]] = lambda _: (),
        idle: Callable[[C, AnyEvent, int], bool] | None = None,
        batch_max: int = BATCH_MAX,
        queue_max: int = QUEUE_MAX,
        snapshot_every: int = SNAPSHOT_EVERY,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Put the parts together; `start` begins.

        Args:
            journal: closed by `close`.
            restore: the core from a snapshot's bytes, or a new one from None.
            clock: read once for each batch; an entry's time is never less than the one before it.
            carry_out: awaited after each commit with the instructions of the batch, which may be none; in order, one call
                at a time, and beside the next batch, so it may `submit`. What it raises goes to the loop's handler.
            committed: called at once after each commit, while all that the core holds is durable: to look, and be quick.
            recovered: called when the core was made anew after an outage, in which a commit may have landed that nobody heard
                of; what it returns is carried out.
            idle: says of an event that handling it now would change nothing. Such an event is answered without being
                handled and leaves no entry, which is safe for replay because it never touched the core. Ask it only of
                ticks: a refusal is an answer that must be remembered.
            batch_max: events in one commit.
            queue_max: events that may wait.
            snapshot_every: entries between snapshots, at least.
            patience_s: how long a commit may take until callers are told that the journal is away.
        """
        self._journal = journal
        self._restore = restore
        self._clock = clock
        self._carry_out = carry_out
        self._committed = committed
        self._recovered = recovered
        self._idle = idle
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._snapshot_every = snapshot_every
        self._patience_s = patience_s
        self.progress = Progress()
        """Of the last time that the journal was decided again."""
        self._outage: Outage | None = None
        """Why callers are turned away: the journal could not be read again, or a commit takes too long."""
        self._why_away: FabricError | None = None
        """What a commit failed of, until the core is there again."""
        self._core: C | None = None
        """None after a failed commit: what it was must be read from the journal first."""
        self._tree = Tree()
        self._head = TreeHead(size=0, root=self._tree.root())
        self._at_us = 0
        self._snapshot_size = 0
        self._waiting: deque[Waiting] = deque()
        self._events_waiting = 0
        self._wake = asyncio.Event()
        self._between_commits = asyncio.Lock()
        self._ended: FabricError | None = None
        """Why nothing more will be written, once that is so."""
        self._task: asyncio.Task[None] | None = None
        self._to_carry_out: asyncio.Queue[list[AnyInstruction] | None] = asyncio.Queue()
        self._carrying_out: asyncio.Task[None] | None = None

    @property
    def journal(self) -> Journal:
        return self._journal

    @property
    def core(self) -> C:
        """The state. Between `submit`s it may hold what is not durable yet: questions go through `look`."""
        if self._core is None:
            raise self._refusal() or _unavailable("its state is being read from the journal again")
        return self._core

    @property
    def outage(self) -> Outage | None:
        """Why nothing can be decided or looked up now; None if it can."""
        return self._outage

    @property
    def ended(self) -> FabricError | None:
        """Why nothing more will be written here; None while something may be."""
        return self._ended

    @property
    def head(self) -> TreeHead:
        """The last committed tree head."""
        return self._head

    @property
    def at_us(self) -> int:
        """The time of the last entry."""
        return self._at_us

    @property
    def tree(self) -> Tree:
        """A copy of the tree, by its right edge."""
        return self._tree.copy()

    async def start(self, *, replay_from: int | None = None) -> None:
        """Take the journal over, fencing out any former writer, and bring the core to where it ends.

        Args:
            replay_from: go on from the newest snapshot after at most so many entries; 0 = decide the whole journal again.
                None = from the newest, or an older one where what follows it comes out differently.

        Raises:
            Conflict: newer rules have taken the journal over (`journal_newer`), or a writer has after this one.
            JournalCorrupt: what is stored is not what was committed, or deciding an entry again gives something else; then
                the message says how to start from elsewhere.
            Unavailable: the store can't be reached.
        """
        await self._rebuild(replay_from)
        self._task = asyncio.create_task(self._run(), name="journal-writer")
        self._carrying_out = asyncio.create_task(self._act(), name="journal-instructions")

    async def submit(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        """Have events decided, in order and in one commit; the answers come when they are durable.

        Raises:
            Unavailable: not written, or not known to be: safe to ask again with the same request ids. `code` is
                `overloaded`, `journal_unavailable`, or `writer_fenced` for a writer that was replaced.
            JournalCorrupt: the journal is damaged; nothing more will be written.
            Internal: deciding failed by our own mistake; nothing of this call was written.
        """
        if (refusal := self._refusal()) is not None:
            raise refusal
        if not events:
            return []
        if self._events_waiting + len(events) > max(self._queue_max, len(events)):
            raise Unavailable(
                f"{self._events_waiting} events wait to be written, at most {self._queue_max} may: retry in a moment",
                code="overloaded",
                waiting=self._events_waiting,
                limit=self._queue_max,
            )
        answered: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._waiting.append((events, answered))
        self._events_waiting += len(events)
        self._wake.set()
        return await answered

    async def look(self, question: Callable[[C], T]) -> T:
        """Ask the core something when all that it holds is durable.

        Raises:
            Unavailable: at once in an outage of the journal.
        """
        if (refusal := self._refusal()) is not None:
            raise refusal
        if self._between_commits.locked():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s), self._between_commits:
                    return question(self.core)
            raise self._refusal() or _unavailable("its journal has not answered for long")
        async with self._between_commits:
            return question(self.core)

    async def close(self) -> None:
        """Write what waits, keep a snapshot, let the journal go. Ends soon, whether or not the journal answers."""
        if self._task is not None:
            self._ended = self._ended or _unavailable("the gate is closing")
            self._wake.set()
            await _ended_within(CLOSE_S, self._task)
            self._task = None
            self._refuse_all(self._ended)
            self._to_carry_out.put_nowait(None)
            if self._carrying_out is not None:
                await _ended_within(CLOSE_S, self._carrying_out)
            if self._core is not None and self._outage is None and self._snapshot_size < self._head.size:
                await _ended_within(CLOSE_S, asyncio.ensure_future(self._save_snapshot()))
        await _ended_within(CLOSE_S, asyncio.ensure_future(self._journal.close()))

    # -- the loop ------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while self._ended is None or self._waiting:
            if self._core is None:
                await self._come_back_later()
                continue
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            async with self._between_commits:
                await self._write(self._take())
                if self._core is None and self._ended is None:
                    await self._come_back()

    async def _come_back_later(self) -> None:
        """Wait a while, longer each time, and try again; an end doesn't wait."""
        if self._ended is not None:
            self._refuse_all(self._ended)
            return
        self._wake.clear()
        if self._outage is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._outage.pause_s)
        if self._ended is None:
            async with self._between_commits:
                await self._come_back()

    async def _come_back(self) -> None:
        """Make the core anew from the journal. A short try keeps callers waiting, a long one or a failed one turns them away."""
        taking_long = Unavailable("its state is being read from the journal again", code="journal_unavailable")
        stall = asyncio.get_running_loop().call_later(
            REBUILD_PATIENCE_S, self._note_outage, self._why_away or taking_long
        )
        try:
            await self._rebuild()
        except Conflict as error:
            self._end(Unavailable(error.message, code=error.code, **error.facts), [])
        except JournalCorrupt as error:
            self._end(error, [])
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing else brings the gate back
            outage = self._note_outage(error)
            outage.tried(error)
            log.warning("journal_tried", tries=outage.tries, why=outage.why, next_in_s=outage.pause_s)
        else:
            self._note_return()
            self._to_carry_out.put_nowait([*self._recovered(self.core)])
        finally:
            stall.cancel()

    def _note_outage(self, error: BaseException) -> Outage:
        """From now on callers are turned away, those that wait included."""
        if self._outage is None:
            self._outage = Outage(JOURNAL, error)
            log.error("journal_away", why=self._outage.why)
        self._refuse_all(self._outage.refusal())
        return self._outage

    def _note_return(self) -> None:
        if self._outage is not None:
            log.info("journal_back", lasted_s=round(self._outage.lasted_s, 1), tries=self._outage.tries)
        self._outage = self._why_away = None

    def _refusal(self) -> FabricError | None:
        """What callers are told; None while they are heard."""
        if self._ended is not None:
            return self._ended
        return None if self._outage is None else self._outage.refusal()

    def _refuse_all(self, error: FabricError) -> None:
        """Nothing of what waits was written."""
        _fail(self._waiting, error)
        self._waiting.clear()
        self._events_waiting = 0

    async def _act(self) -> None:
        while (instructions := await self._to_carry_out.get()) is not None:
            try:
                await self._carry_out(instructions)
            except Exception as error:  # noqa: BLE001 - the journal has the decision: it is said again after a restart
                context = {"message": "instructions were not carried out", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def _take(self) -> list[Waiting]:
        """The next batch: all that waits, up to the limit, never part of a call."""
        batch = [self._waiting.popleft()]
        count = len(batch[0][0])
        while self._waiting and count + len(self._waiting[0][0]) <= self._batch_max:
            batch.append(self._waiting.popleft())
            count += len(batch[-1][0])
        self._events_waiting -= count
        return batch

    async def _write(self, batch: list[Waiting]) -> None:
        stall = asyncio.get_running_loop().call_later(self._patience_s, self._stall, batch)
        try:
            await self._decide_and_commit(batch)
        except Conflict as error:
            self._end(Unavailable(error.message, code="writer_fenced", **error.facts), batch)
        except JournalCorrupt as error:
            self._end(error, batch)
        except FabricError as error:
            self._core, self._why_away = None, error
            _fail(batch, Outage(JOURNAL, error).refusal(_IN_DOUBT) if isinstance(error, Unavailable) else error)
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, and the next batch may be well
            self._core = None
            _fail(batch, Internal(f"the journal's writer failed: {error!r}"))
        else:
            if self._core is not None and self._outage is not None:
                self._note_return()
        finally:
            stall.cancel()

    def _stall(self, batch: list[Waiting]) -> None:
        """The commit takes too long: whoever waits for it, or for the next, is told so; it may land all the same."""
        outage = self._note_outage(Unavailable(f"a commit has had no answer for {self._patience_s:g} s"))
        _fail(batch, outage.refusal(_IN_DOUBT))

    def _end(self, error: FabricError, batch: list[Waiting]) -> None:
        """Nothing more will be written here: say so to all, and keep no state that nobody journals."""
        self._ended, self._core = error, None
        _fail(batch, error)
        self._refuse_all(error)
        log.error("journal_ended", code=error.code, why=error.message)

    async def _decide_and_commit(self, batch: list[Waiting]) -> None:
        entries: list[Entry] = []
        instructions: list[AnyInstruction] = []
        answers: list[list[Outcome]] = []
        at_us = self._at_us = max(self._clock.now_us(), self._at_us)
        for waiting in batch:
            try:
                self._catch_up(at_us, entries, instructions)
                answers.append([self._decide(event, at_us, entries, instructions) for event in waiting[0]])
            except Exception as error:  # noqa: BLE001 - a mistake in the core costs its caller, never the others
                _fail([waiting], Internal(f"deciding failed: {error!r}; nothing of this call was written"))
                self._again([other for other in batch if other is not waiting])
                self._core = None
                return
        if entries:
            await self._commit(entries)
        # What is to be done goes first: somebody may wait for it who has not even heard the answer.
        self._to_carry_out.put_nowait(instructions)
        if self._core is not None:
            self._committed(self._core)
        if any(isinstance(each, StartLease) for each in instructions):
            await asyncio.sleep(0)  # it is begun in the meantime: to write an answer takes as long as to begin it
        for (_, answered), outcomes in zip(batch, answers, strict=True):
            if not answered.done():
                answered.set_result(outcomes)
        if self._head.size - self._snapshot_size >= max(self._snapshot_every, self._head.size // _GROWTH):
            await self._save_snapshot()

    def _catch_up(self, at_us: int, entries: list[Entry], instructions: list[AnyInstruction]) -> None:
        """Where much has fallen due at once, let it happen in portions before the next event: no decision takes long."""
        while self._core is not None and self._core.is_behind(at_us):
            self._decided(Tick(), at_us, entries, instructions)

    def _decide(self, event: AnyEvent, at_us: int, entries: list[Entry], instructions: list[AnyInstruction]) -> Outcome:
        core = self._core
        assert core is not None, "the core is rebuilt before anything is decided"
        if self._idle is not None and self._idle(core, event, at_us):
            return _NOTHING_TO_DO
        return self._decided(event, at_us, entries, instructions)

    def _decided(
        self, event: AnyEvent, at_us: int, entries: list[Entry], instructions: list[AnyInstruction]
    ) -> Outcome:
        core = self._core
        assert core is not None, "the core is rebuilt before anything is decided"
        decision = core.handle(event, at_us)
        if decision.kept:
            entries += entries_of(self._head.size + len(entries), at_us=at_us, event=event, decision=decision)
        instructions += decision.instructions
        return decision.outcome

    async def _commit(self, entries: list[Entry]) -> None:
        tree = self._tree.copy()
        for entry in entries:
            tree.append(leaf_hash(entry.leaf))
        head = TreeHead(size=tree.size, root=tree.root())
        try:
            await self._journal.append(entries, head)
        except (FabricError, AssertionError):
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            raise Unavailable(
                f"the journal can't be written: {said}", code="journal_unavailable", reason=said
            ) from error
        self._tree, self._head = tree, head

    def _again(self, batch: Iterable[Waiting]) -> None:
        """Put calls that were not written back where they were: at the front."""
        for waiting in reversed(list(batch)):
            self._waiting.appendleft(waiting)
            self._events_waiting += len(waiting[0])

    async def _save_snapshot(self) -> None:
        """Keep the state as it is committed. Failing is no loss, for whatever reason: the journal has everything, replay takes
        longer.
        """
        self._snapshot_size = self._head.size
        encoded: list[bytes] = [label(self.core.rules)]
        try:
            for piece in self.core.pieces():
                encoded.append(piece)
                await asyncio.sleep(0)  # the rest of the process goes on meanwhile
            state = b"".join(encoded)
            snapshot = Snapshot(size=self._head.size, root=self._head.root, edge=self._tree.edge, state=state)
            await self._journal.save_snapshot(snapshot)
        except (Unavailable, Conflict):
            return
        except JournalCorrupt:
            raise
        except Exception:
            log.exception("snapshot_not_kept", size=self._snapshot_size)

    async def _rebuild(self, replay_from: int | None = None) -> None:
        """The core and the tree as the journal has them, under a new epoch."""
        found = await restored(self._journal, self._restore, replay_from=replay_from, progress=self.progress)
        self._at_us = max(self._at_us, found.at_us)
        self._tree, self._head = found.tree, found.head
        self._snapshot_size = found.snapshot_size
        await self._adopt_rules(found.core)
        self._core = found.core

    async def _adopt_rules(self, core: C) -> None:
        """Have the newest rules decide from here on, and an entry say so. No time passes by it: a clock that is wrong may be
        found only after this.
        """
        if core.rules >= versions.RULES:
            return
        size, release = self._head.size, versions.SINCE[versions.RULES]
        at_us = self._at_us if size else self._clock.now_us()
        event = AdoptRules(rules=versions.RULES, release=release)
        decision = core.handle(event, at_us)
        await self._commit(entries_of(size, at_us=at_us, event=event, decision=decision))
        self._at_us = at_us
        if size:  # of a new journal there is nothing to tell
            log.info("rules_adopted", rules=versions.RULES, release=release, entry=size)


def _fail(batch: Iterable[Waiting], error: FabricError) -> None:
    for _, answered in batch:
        if not answered.done():
            answered.set_exception(error)


async def _ended_within(seconds: float, task: "asyncio.Task[None]") -> None:
    """Wait for it, then cancel it; what it raises is logged."""
    _, pending = await asyncio.wait((task,), timeout=seconds)
    if pending:
        task.cancel()
        await asyncio.wait((task,), timeout=1)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        log.warning("journal_not_closed", why=str(error))


def _unavailable(why: str) -> Unavailable:
    return Unavailable(f"the gate can't answer now: {why}. Retry in a moment", code="journal_unavailable")
