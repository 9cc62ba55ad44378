"""Our gate as a policy of a simulation: the same `Gate` that runs live, told by events and obeyed to the letter.

Every instruction is carried out at once, as if leases were built and cleared in no time. Tokens never run out here: each
account has all that its jobs could burn. Leases are metered now and then instead of every second; what fairness knows of a
running lease is up to `METERED_US` old.
"""

from collections import deque
from typing import Final

from fabric.charging.catalogue import Catalogue, Plan
from fabric.charging.tariffs import Tariffs, Weight
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import (
    AnyEvent,
    Configure,
    JobKind,
    JobSpec,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    Metered,
    NodeDown,
    NodeDrain,
    NodeUp,
    Pool,
    RaiseLimit,
    Resume,
    Sample,
    Submit,
    Tick,
    TopUp,
)
from fabric.gate.instructions import Accepted, AnyInstruction, Lease, Refusal, RemoveLease, StartLease, StopLease
from fabric.gate.lifecycle import JobState, StopReason
from fabric.ledger.scopes import Service
from fabric.placement.quotas import Policy as Numbers
from fabric.simulation.workload import DAY_US, HOUR_US, TIERS, Work
from fabric.simulation.world import Task, World
from fabric.units import AMOUNT_UHS_MAX, PPM, AccountId, JobId, LeaseId, NodeId

METERED_US: Final = 4 * HOUR_US
"""How old what the gate knows of a lease's use may be."""
_SILENCE_US: Final = 3650 * DAY_US
_LIFE_DAYS: Final = 3650
_PAYMENT_REQUIRED: Final = 402


class GatePolicy:
    """Drives one gate."""

    hears_saves = True

    def __init__(self, numbers: Numbers | None = None, *, name: str = "fabric") -> None:
        """Decide by these numbers of the placement policy; None = the defaults."""
        self.name = name
        self.numbers = numbers or Numbers()
        self.gate = Gate(silence_us=_SILENCE_US)
        self.handled = 0
        self._due_us: int | None = None
        self._waiting: deque[AnyEvent] = deque()
        self._leases: dict[LeaseId, Lease] = {}
        self._lease_of: dict[str, LeaseId] = {}
        self._metered_us: dict[LeaseId, tuple[int, int]] = {}
        """Of each lease how many samples were sent, and up to when."""

    def begin(self, world: World) -> None:
        self.world = world
        types = tuple(dict.fromkeys(nodes.accelerator for nodes in world.cluster.nodes))
        plans = tuple(
            Plan(name=name, tier_rank=rank, price_microcny_per_ct=1_000_000, lifetime_days=_LIFE_DAYS)
            for rank, name in enumerate(TIERS)
        )
        weights = tuple(Weight(accelerator=name, ppm=min(world.behaviour.speed_ppm(name), 100 * PPM)) for name in types)
        self._say(
            Configure(
                tariffs=Tariffs(version=1, weights=weights),
                catalogue=Catalogue(version=1, plans=plans),
                policy=self.numbers,
            )
        )
        self._open_accounts(world)
        for node_id in world.floor.devices:
            if node_id not in world.floor.down:
                self.node_up(node_id)

    def submitted(self, task: Task) -> None:
        work = task.work
        reserved = work.is_reserved
        spec = JobSpec(
            name=(work.name or work.work_id)[:200],
            kind=JobKind.SCRIPT,
            service=Service(work.service),
            accelerators=work.types,
            devices=work.devices,
            devices_per_node=work.per_node,
            limit_uhs=_limit_uhs(work),
            preemptible=not reserved,
            prefer=work.prefer,
            grace_us=self.world.behaviour.grace_us,
        )
        self._say(Submit(job_id=JobId(work.work_id), account_id=_account(work), spec=spec), about=task)

    def ended(self, task: Task) -> None:
        lease_id = self._lease_of[task.work.work_id]
        self._say(LeaseFinished(lease_id=lease_id, outcome=LeaseOutcome.SUCCEEDED, step=self._step(task)))

    def left(self, task: Task) -> None:
        lease_id = self._lease_of[task.work.work_id]
        self._say(self._meter(lease_id), LeaseSaved(lease_id=lease_id, step=self._step(task), write_us=self._write_us))
        self._say(LeaseFinished(lease_id=lease_id, outcome=LeaseOutcome.SAVED))

    def saved(self, task: Task) -> None:
        lease_id, run = self._lease_of[task.work.work_id], task.run
        assert run is not None
        _, until_us = self._metered_us[lease_id]
        job = self.gate.state.jobs[JobId(task.work.work_id)]
        if job.losses or self.world.now_us - until_us >= METERED_US:
            self._say(self._meter(lease_id))
        restore_us = run.computes_us - run.started_us
        self._say(LeaseSaved(lease_id=lease_id, step=self._step(task), write_us=self._write_us, restore_us=restore_us))

    def node_down(self, node_id: str, tasks: tuple[Task, ...]) -> None:
        self._say(NodeDown(node_id=NodeId(node_id)))
        for task in tasks:
            lease_id = self._lease_of.get(task.work.work_id)
            if lease_id is not None and task.run is None:
                self._say(LeaseFinished(lease_id=lease_id, outcome=LeaseOutcome.LOST))

    def node_leaving(self, node_id: str, notice_us: int) -> None:
        self._say(NodeDrain(node_id=NodeId(node_id), grace_us=notice_us))

    def node_up(self, node_id: str) -> None:
        group = self.world.floor.group_of[node_id]
        devices = self.world.floor.devices[node_id]
        self._say(
            NodeUp(node_id=NodeId(node_id), accelerator=group.accelerator, devices=devices, pool=Pool(group.pool))
        )

    def decide(self) -> None:
        if self._due_us is not None and self._due_us <= self.world.now_us:
            self._say(Tick())
        self._due_us = self.gate.next_due_us()

    def due_us(self) -> int | None:
        return self._due_us

    # -- events and instructions ---------------------------------------------------------------------------------------

    def _say(self, *events: AnyEvent, about: Task | None = None) -> None:
        """Let the gate decide these, and all that follows from carrying them out."""
        waiting, now_us = self._waiting, self.world.now_us
        waiting.extend(events)
        while waiting:
            self.handled += 1
            event = waiting.popleft()
            decision = self.gate.handle(event, now_us)
            if not isinstance(decision.outcome, Accepted):
                if isinstance(event, Submit) and decision.outcome.http_status == _PAYMENT_REQUIRED:
                    self._fund(event.account_id)
                    decision = self.gate.handle(event, now_us)
                if isinstance(decision.outcome, Refusal):
                    assert about is not None, f"{event}: {decision.outcome}"
                    self.world.refuse(about, decision.outcome.message)
            for instruction in decision.instructions:
                self._obey(instruction)
            if isinstance(event, LeaseRemoved):
                self._resume(event.lease_id)

    def _obey(self, instruction: AnyInstruction) -> None:
        match instruction:
            case StartLease():
                self._start(instruction.lease)
            case StopLease():
                self._stop(instruction)
            case RemoveLease():
                self._remove(instruction.lease_id)

    def _start(self, lease: Lease) -> None:
        task = self.world.by_id[lease.job_id]
        self.world.start(task, tuple((share.node_id, share.devices) for share in lease.shares))
        self._leases[lease.lease_id] = lease
        self._lease_of[lease.job_id] = lease.lease_id
        self._metered_us[lease.lease_id] = (0, self.world.now_us)
        self._waiting.append(LeaseStarted(lease_id=lease.lease_id))

    def _stop(self, stop: StopLease) -> None:
        lease = self._leases[stop.lease_id]
        task = self.world.by_id[lease.job_id]
        grace_us = stop.deadline_us - self.world.now_us
        self.world.evict(task, grace_us=grace_us)
        if task.run is None:
            self._waiting.append(LeaseFinished(lease_id=stop.lease_id, outcome=LeaseOutcome.LOST))

    def _remove(self, lease_id: LeaseId) -> None:
        task = self.world.by_id[self._leases[lease_id].job_id]
        if task.run is not None and self._lease_of[task.work.work_id] == lease_id:
            self.world.vacate(task)
        sample = self._meter(lease_id).samples[0]
        self._waiting.append(LeaseRemoved(lease_id=lease_id, final=sample))

    def _resume(self, lease_id: LeaseId) -> None:
        """Where the gate asks a job's owner after too many losses, the owner says: go on."""
        lease = self._leases.pop(lease_id)
        del self._metered_us[lease_id]
        job = self.gate.state.jobs[lease.job_id]
        if job.lease_id is None:
            self._lease_of.pop(lease.job_id, None)
        if job.state is JobState.PARKED and job.reason == StopReason.LIMIT_REACHED:
            more_uhs = min(2 * job.limit_uhs, AMOUNT_UHS_MAX)
            self._waiting.append(RaiseLimit(job_id=lease.job_id, account_id=lease.account_id, limit_uhs=more_uhs))
        elif job.state is JobState.PARKED:
            self._waiting.append(Resume(job_id=lease.job_id, account_id=lease.account_id))

    def _meter(self, lease_id: LeaseId) -> Metered:
        seq, until_us = self._metered_us[lease_id]
        lease, now_us = self._leases[lease_id], self.world.now_us
        self._metered_us[lease_id] = (seq + 1, now_us)
        window_us = now_us - until_us
        busy_us = lease.devices * window_us * 4 // 5
        return Metered(samples=(Sample(lease_id=lease_id, seq=seq + 1, window_us=window_us, busy_us=busy_us),))

    # -- what it needs to know -----------------------------------------------------------------------------------------

    @property
    def _write_us(self) -> int:
        return self.world.behaviour.write_us

    def _step(self, task: Task) -> int:
        """What it has computed, in seconds of the reference type."""
        run = task.run
        done_us = task.work.duration_us - task.left_us
        if run is not None:
            done_us += (self.world.now_us - run.computes_us) * run.speed_ppm // PPM
        return max(done_us // 1_000_000, 1)

    def _open_accounts(self, world: World) -> None:
        needed: dict[AccountId, int] = {}
        plans: dict[AccountId, str] = {}
        for task in world.tasks:
            account_id = _account(task.work)
            needed[account_id] = needed.get(account_id, 0) + _limit_uhs(task.work)
            plans.setdefault(account_id, TIERS[task.work.tier])
        for account_id, uhs in needed.items():
            self._say(OpenAccount(account_id=account_id, name=account_id, plan=plans[account_id]))
            self._say(TopUp(account_id=account_id, amount_uhs=min(uhs, AMOUNT_UHS_MAX)))

    def _fund(self, account_id: AccountId) -> None:
        """Fill the account up to what it may own."""
        told = self.gate.handle(TopUp(account_id=account_id, amount_uhs=AMOUNT_UHS_MAX), self.world.now_us)
        if isinstance(told.outcome, Refusal):
            left_uhs = int(told.outcome.facts.get("limit_uhs") or 0) - int(told.outcome.facts.get("owned_uhs") or 0)
            if left_uhs > 0:
                self.gate.handle(TopUp(account_id=account_id, amount_uhs=left_uhs), self.world.now_us)


def _account(work: Work) -> AccountId:
    return AccountId(f"{_plain(work.user) or 'all'}-{TIERS[work.tier]}")


def _limit_uhs(work: Work) -> int:
    """More than it burns: what is lost is given back. Where it isn't enough, its owner raises it."""
    return min(work.devices * 2 * (work.duration_us + DAY_US), AMOUNT_UHS_MAX)


def _plain(user: str) -> str:
    """A user's name in the letters that an account's id has."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in user)[:40]
