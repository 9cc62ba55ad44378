"""The gate as one named Ray actor: journal the event, apply it, carry out the instructions.

The actor owns the writer (and through it the one gate and its journal), the cluster adapter that carries instructions
out, and the clock that drives deadlines. It has no state of its own that matters: killed at any instant, it is started
again by Ray, replays the journal, says the outstanding instructions again and finds the jobs that went on without it.
Its callers are doors, which have checked who is asking: the gate trusts the account in an event.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from typing import Any, Final

import structlog
from pydantic import SecretBytes

from fabric.api.zones import newer
from fabric.clock import SteadyClock
from fabric.cluster.ray_cluster import RayCluster
from fabric.config.cluster import ClusterConfig
from fabric.errors import Conflict, FabricError, JournalCorrupt, Unavailable
from fabric.gate import Gate
from fabric.gate.dated_prices import said_last
from fabric.gate.events import AnyEvent, Configure, ForgetJobs, Tick
from fabric.gate.instructions import Accepted, AnyInstruction, Outcome, Refusal
from fabric.gate.jobs import UNRUN_KEPT
from fabric.gate.lifecycle import TERMINAL
from fabric.gate.questions import AnyAnswer, AnyQuestion, FromJournal, JobOf, LeasesOf, are_jobs
from fabric.gate.views import CHANGES_MAX, JobView, LogChunk
from fabric.journal.auditor import Auditor
from fabric.journal.cosigning import EVERY_S
from fabric.journal.encoding import by_account
from fabric.journal.process import FollowerProcess, place_of
from fabric.journal.writer import Writer
from fabric.outage import Outage
from fabric.server.chores import again_and_again, next_due
from fabric.server.start_terms import CLOCK_AHEAD, IDLE_TICKS, Jumps, StartTerms, check_clock
from fabric.server.wiring import cluster_settings, open_archive_of, open_journal_of
from fabric.storage.archive import Archive
from fabric.units import JobId

ACTOR_NAME: Final = "gate"
TICK_MAX_S: Final = 1.0
FORGET_S: Final = 5.0
"""The longest nap of the clock: new deadlines are noticed at least this often."""
TICK_MIN_S: Final = 0.02
TICK_SHARE: Final = 20
"""The clock looks at every lease: with very many of them it naps so many times as long as it looked."""
ANNOUNCE_WITHIN_S: Final = 0.02
ANSWER_S: Final = 1.0  # what a call waits for a gate whose last start has failed
CLOSE_S: Final = 8.0  # what an end waits for a cluster that doesn't answer
RECONCILE_S: Final = 5.0
PUBLISH_S: Final = 1.0
LOG_PAGE_BYTES: Final = 2**20
"""What the gate takes into its memory of a log at once, for each that reads one."""

log = structlog.get_logger()


class GateActor:
    """What runs inside the Ray actor. Every public method waits until the gate is up."""

    def __init__(self, config: ClusterConfig, *, signing_key: SecretBytes, prices: Configure) -> None:
        """Put the parts together; the first call starts them.

        Args:
            config: with its secrets. Of its files none is read here: this may be another machine.
            signing_key: signs the journal's checkpoints.
            prices: in force until `price` brings others; only a journal that has none takes them from here.
        """
        self._config = config
        self._first_prices = prices
        self._clock = SteadyClock()
        self._archive: Archive = open_archive_of(config)
        self._writer: Writer[Gate] = Writer(
            open_journal_of(config),
            restore=Gate.restore,
            clock=self._clock,
            carry_out=self._carry_out,
            committed=self._note_changes,
            recovered=self._begin_anew,
        )
        place = place_of(config)
        self._follower = FollowerProcess(place)
        self._read, self._tables = place.journal(), place.tables()
        key = signing_key.get_secret_value()
        self._auditor = Auditor(
            self._read, origin=config.name, signing_key=key, tables=self._tables, witnesses=config.witnesses
        )
        self._cluster = RayCluster(
            report=self._report,
            archive=self._archive,
            settings=cluster_settings(config, key=key),
            clock=self._clock,
        )
        self._latest: dict[JobId, int] = {}
        """Jobs by their last change, the newest last: what watchers read from."""
        self._to_publish: dict[JobId, None] = {}
        self._news = asyncio.Event()
        """Set once, for those who watch now; those who come later get another."""
        self._news_due: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None
        self._writes = False
        self._terms = StartTerms()
        self._time_is_right = False
        self._jumps = Jumps(self._clock, limit_us=config.clock.ahead_max_us)
        self._trying: asyncio.Task[None] | None = None
        """Comes up by itself after a start that failed, whether or not anybody calls."""
        self._down: Outage | None = None
        """Why it isn't up, once a start has failed."""
        self._stuck: FabricError | None = None  # why no start can succeed before somebody does something
        self._chores: list[asyncio.Task[None]] = []

    # -- for the doors -------------------------------------------------------------------------------------------------

    async def ready(self) -> str:
        """Wait until the gate answers; then the public key that signs its checkpoints, for whoever verifies."""
        await self._up(patient=True)
        return self._auditor.verifier_key

    async def prepare(self, terms: StartTerms) -> None:
        """Start like that.

        Raises:
            Conflict: it has started already.
        """
        if self._writes and self._time_is_right:
            raise Conflict(
                "the gate runs already, so --replay-from and --accept-time come too late: stop it first, with fabric down"
                " --gate --config FILE",
                code="gate_runs",
            )
        self._terms = terms
        self._stuck = None

    async def ailment(self) -> str:
        """What is wrong with the gate, in a sentence, and what it does about it; "" if nothing is. Answers at once."""
        outage = self._writer.outage or self._down or self._cluster.outage
        if outage is not None:
            asks = isinstance(outage.error, Unavailable) and outage.error.code == CLOCK_AHEAD
            return str(outage.error) if asks else outage.said()
        if ended := self._stuck or self._writer.ended:
            return ended.message
        return self._jumps.said() if self._time_is_right else ""

    async def price(self, prices: Configure) -> Outcome:
        """Journal the prices, unless they are in force: a replay never reads today's files."""
        await self._up()
        state = self._writer.core.state
        said = (prices.tariffs, prices.catalogue, prices.operator, prices.payments, prices.policy)
        if (*said_last(state), state.operator, state.payments, state.filed) == said:
            return Accepted()
        return (await self._writer.submit([prices]))[0]

    async def decide(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        """Hand events in; the answers come when they are durable."""
        await self._up()
        return await self._submit(events)

    async def ask(self, question: AnyQuestion) -> AnyAnswer:
        """Look something up."""
        await self._up()
        if isinstance(question, FromJournal):
            return await self._auditor.answer(question)
        found = await self._writer.look(lambda core: core.ask(question, self._clock.now_us()))
        if isinstance(found, JobView):
            return self._cluster.told_by(found)
        return [self._cluster.told_by(each) for each in found] if are_jobs(found) else found

    async def changes(self, account_id: str | None, after_revision: int, timeout_s: float) -> list[JobView]:
        """Jobs that changed after a revision, oldest change first, a page of them; waits for one, then gives []."""
        await self._up()
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            news = self._news
            found = await self._writer.look(lambda _: self._changed_since(account_id, after_revision))
            left_s = deadline - asyncio.get_running_loop().time()
            if found or left_s <= 0:
                return found
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await news.wait()

    async def logs(self, job_id: str, account_id: str, offsets: dict[str, int]) -> list[LogChunk]:
        """What a job has logged beyond `offsets` ("attempt/rank" → bytes already had), as much as fits on a page."""
        await self._up()
        page: list[LogChunk] = []
        size = 0
        async for chunk in self._cluster.logs(job_id, account_id=account_id, offsets=offsets):
            page.append(chunk)
            size += len(chunk.data)
            if size >= LOG_PAGE_BYTES:
                break
        return page

    async def export(self, account_id: str | None, since: int | None, start: int, count: int) -> list[bytes]:
        """A page of the audit export, in lines; [] after the last."""
        await self._up()
        return await self._auditor.export_page(account_id, since=since, start=start, count=count)

    async def close(self) -> None:
        """Keep a snapshot and let go of the journal. What runs goes on running."""
        if own := [*self._chores, *([self._trying] if self._trying is not None else [])]:
            for task in own:
                task.cancel()
            await asyncio.wait(own, timeout=CLOSE_S)
        for let_go in (self._cluster.close, self._read.close, self._tables.close):
            with suppress(TimeoutError):
                await asyncio.wait_for(let_go(), CLOSE_S)
        await self._writer.close()

    # -- coming up -----------------------------------------------------------------------------------------------------

    async def _up(self, *, patient: bool = False) -> None:
        """Be up. Where a start has failed, a call begins another one, and is told soon where that doesn't succeed."""
        if self._stuck is not None and not patient:
            raise copy(self._stuck)
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        starting, down = self._starting, self._down
        done, _ = await asyncio.wait((starting,), timeout=None if patient or down is None else ANSWER_S)
        if not done and down is not None:
            raise down.refusal()
        try:
            starting.result()
        except Exception as error:
            if self._starting is starting:
                self._starting = None
                self._try_again(error)
            raise
        self._down = self._stuck = None

    def _try_again(self, error: Exception) -> None:
        """A start has failed: begin others, with pauses, until one succeeds or none ever can."""
        if isinstance(error, JournalCorrupt | Conflict):
            self._down, self._stuck = None, error
            return
        if self._down is None:
            self._down = Outage("something that the gate needs to start", error, code="gate_starting")
        else:
            self._down.tried(error)
        log.warning("start_failed", why=self._down.why, tries=self._down.tries, next_in_s=self._down.pause_s)
        if self._trying is None or self._trying.done():
            self._trying = asyncio.create_task(self._keep_trying())

    async def _keep_trying(self) -> None:
        while self._down is not None:
            await asyncio.sleep(self._down.pause_s)
            with suppress(Exception):
                await self._up(patient=True)

    def _begin_anew(self, core: Gate) -> Sequence[AnyInstruction]:
        """The core was made anew after an outage: what landed meanwhile unheard is told, shown and carried out."""
        jobs = sorted(core.state.jobs.values(), key=lambda job: job.revision)
        self._latest = {job.job_id: job.revision for job in jobs}
        self._to_publish |= {job.job_id: None for job in jobs if not job.settled}
        self._wake_watchers()
        return core.outstanding()

    async def _start(self) -> None:
        """Come up. One that fails half-way (the archive is out of reach, say) is tried again by the next call, so each
        step either can be taken twice or isn't.
        """
        if not self._writes:
            await self._writer.start(replay_from=self._terms.replay_from)
            self._writes = True
        if not self._time_is_right:
            self._check_time()
        jobs = sorted(self._writer.core.state.jobs.values(), key=lambda job: job.revision)
        self._latest = {job.job_id: job.revision for job in jobs}
        self._to_publish = {job.job_id: None for job in jobs if not job.settled}
        if self._writer.core.state.tariffs is None:
            await self._report([self._first_prices])
        if changed := newer(self._writer.core.state.zones.values()):
            await self._report(changed)
        await self._cluster.start()
        outstanding = self._writer.core.outstanding()
        await self._reconcile()
        await self._cluster.carry_out(outstanding)
        gc.freeze()  # what was replayed stays: the collector needn't look through it again and again
        self._chores = [
            asyncio.create_task(self._follower.run()),
            *(
                asyncio.create_task(again_and_again(chore, pause_s, failed_pause_s=TICK_MAX_S))
                for chore, pause_s in (
                    (self._tick, TICK_MIN_S),
                    (self._forget, FORGET_S),
                    (self._reconcile, RECONCILE_S),
                    (self._publish, PUBLISH_S),
                    (self._auditor.cosigning.show, EVERY_S),
                )
            ),
        ]
        log.info("gate_up", entries=self._writer.head.size, outstanding=len(outstanding))

    def _check_time(self) -> None:
        """Go by the wall from now on, unless it is implausibly far ahead of the journal; asked again at every try."""
        self._clock.read_anew()
        if self._writer.head.size and not self._terms.accept_time:
            check_clock(self._clock.now_us(), last_us=self._writer.at_us, limit_us=self._config.clock.ahead_max_us)
        self._clock.go_on_from(self._writer.at_us)
        self._time_is_right = True

    # -- what goes on by itself ----------------------------------------------------------------------------------------

    async def _report(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        return await self._submit(
            [part for event in events for part in by_account(event, self._writer.core.state.leases)]
        )

    async def _submit(self, events: Sequence[AnyEvent]) -> list[Outcome]:
        began = time.monotonic()
        outcomes = await self._writer.submit(events)
        if (metrics := self._cluster.metrics) is not None:
            metrics.decided(Counter("refused" if isinstance(each, Refusal) else "accepted" for each in outcomes))
            metrics.committed((time.monotonic() - began) * 1_000)
        return outcomes

    async def _carry_out(self, instructions: Sequence[AnyInstruction]) -> None:
        if instructions:
            await self._cluster.carry_out(instructions)

    async def _tick(self) -> None:
        """A Tick whenever something is due, and now and then when nothing is, so that a start can tell an idle time from a
        clock that was set.
        """
        due_us, looked_s = await self._writer.look(next_due)
        now_us = self._clock.now_us()
        self._jumps.look()
        idle = now_us - self._writer.at_us > self._config.clock.ahead_max_us // IDLE_TICKS
        if idle or (due_us is not None and due_us <= now_us):
            await self._report([Tick()])
            await asyncio.sleep(looked_s * TICK_SHARE)
            return
        wait_s = TICK_MAX_S if due_us is None else (due_us - now_us) / 1_000_000
        await asyncio.sleep(max(min(wait_s, TICK_MAX_S), looked_s * TICK_SHARE))

    async def _forget(self) -> None:
        """Have the gate let go of jobs that never ran, of accounts that have ended many."""
        for account_id in await self._writer.look(lambda core: core.crowded()):
            await self._report([ForgetJobs(account_id=account_id, keep=UNRUN_KEPT)])
            there = self._writer.core.state.jobs
            self._latest = {job_id: revision for job_id, revision in self._latest.items() if job_id in there}

    async def _publish(self) -> None:
        await self._cluster.publish(await self._writer.look(lambda _: self._unpublished()))
        open_usage = await self._writer.look(lambda core: len(core.state.open_usage))
        if (metrics := self._cluster.metrics) is not None:
            metrics.open_usage(open_usage)
            metrics.calls(await self._auditor.served())

    async def _reconcile(self) -> None:
        leases: Any = await self._writer.look(lambda core: core.ask(LeasesOf(), self._clock.now_us()))
        await self._cluster.reconcile(leases, jobs=lambda ids: self._writer.look(lambda _: self._views(ids)))

    # -- watching ------------------------------------------------------------------------------------------------------

    def _note_changes(self, core: Gate) -> None:
        """Remember which jobs a commit has changed. Watchers hear of an end at once, of all else in a moment, because
        more may follow.
        """
        changed = core.take_changed()
        for job_id in changed:
            self._latest.pop(job_id, None)
            if job_id in core.state.jobs:
                self._latest[job_id] = core.state.jobs[job_id].revision
                self._to_publish[job_id] = None
        if any(core.state.jobs[job_id].state in TERMINAL for job_id in changed if job_id in core.state.jobs):
            self._wake_watchers()
        elif changed and self._news_due is None:
            self._news_due = asyncio.get_running_loop().call_later(ANNOUNCE_WITHIN_S, self._wake_watchers)

    def _wake_watchers(self) -> None:
        if self._news_due is not None:
            self._news_due.cancel()
            self._news_due = None
        self._news.set()
        self._news = asyncio.Event()

    def _unpublished(self) -> list[JobView]:
        due, self._to_publish = self._to_publish, {}
        return self._views(due)

    def _changed_since(self, account_id: str | None, after_revision: int) -> list[JobView]:
        jobs, newer = self._writer.core.state.jobs, list[JobId]()
        for job_id, revision in reversed(self._latest.items()):
            if revision <= after_revision:
                break
            if account_id is None or ((job := jobs.get(job_id)) is not None and job.account_id == account_id):
                newer.append(job_id)
        return self._views(newer[: -CHANGES_MAX - 1 : -1])

    def _views(self, job_ids: Any) -> list[JobView]:
        core, now_us = self._writer.core, self._clock.now_us()
        asked: list[Any] = [core.ask(JobOf(job_id=job_id), now_us) for job_id in job_ids if job_id in core.state.jobs]
        return [self._cluster.told_by(view) for view in asked]
