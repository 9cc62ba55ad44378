"""The placement gate: one total function from what happens to what is to be done about it.

`Gate.handle(event, now_us)` is pure apart from the state it owns: no clock, no I/O, no randomness, nothing but integers.
The live actor and a replay of its journal drive the same code to the same decisions, byte for byte; a difference is a bug.
Money and placement are decided in the same step, so neither can leak without the other.

Knows tokens, jobs, leases and devices; does not know Ray, journals, networks, or what a job does.
Ideas: dask's worker state machine (events in, instructions out), TigerBeetle (idempotent for ever, refusals as values),
RFC 8506 (two-phase credit control), Borg (one code base for the live and the simulated world).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Self, assert_never

import msgspec

from fabric import versions
from fabric.gate import (
    accounts,
    auto_top_up,
    backoff,
    calls,
    checkout,
    configuration,
    consequences,
    corrections,
    credit,
    dated_prices,
    deadlines,
    derived,
    holds,
    idempotency,
    invoices,
    jobs,
    leases,
    limit_setting,
    models,
    nodes,
    parked,
    paybacks,
    payments,
    reconciling,
    refusals,
    rules,
    shares,
    subscriptions,
    suspense,
    treasury,
    usage,
)
from fabric.gate.account_events import AnyAccountEvent
from fabric.gate.answers import answer
from fabric.gate.core import SILENCE_US, Core
from fabric.gate.events import (
    AdoptRules,
    AnyEvent,
    BuyBundle,
    Cancel,
    ClosePeriod,
    Configure,
    ForgetJobs,
    Grant,
    LeaseFinished,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    LeaseTooLarge,
    Metered,
    NodeDown,
    NodeDrain,
    NodeHolds,
    NodeUp,
    Pause,
    RaiseLimit,
    RecordPayment,
    Resume,
    RolledBack,
    SaveNow,
    Submit,
    Subscribe,
    Tick,
    TopUp,
    Unsubscribe,
    VoidLot,
)
from fabric.gate.instructions import Accepted, AnyInstruction, Decision, Outcome, RemoveLease, StartLease, StopLease
from fabric.gate.invoice_events import CreditInvoice
from fabric.gate.limit_events import LearnZone, SetLimit
from fabric.gate.payment_events import (
    AskPayment,
    PaymentStarted,
    PaymentTold,
    ReconcilePayments,
    RefundPayment,
    SetAutoTopUp,
    SettleSuspense,
)
from fabric.gate.pieces import pieces
from fabric.gate.questions import AnyAnswer, AnyQuestion
from fabric.gate.serving_events import (
    Authorize,
    KeepUsage,
    OfferModel,
    RecordCalls,
    ReleaseHold,
    ScaleModel,
    SettleHold,
    SettleUsage,
    UpdateHold,
    WithdrawModel,
    WriteOffUsage,
)
from fabric.gate.share_events import SetCohort, SetQuota, SetShare
from fabric.gate.state import GateState, Job
from fabric.ledger import Book
from fabric.placement import PlacementState
from fabric.units import AccountId, JobId

_ACCEPTED = Accepted()
_Often = (
    Authorize | UpdateHold | SettleHold | ReleaseHold | Metered | Submit | LeaseStarted | LeaseFinished | LeaseRemoved
)
_OFTEN: Final[Mapping[type, Callable[[Core, Any], Outcome | None]]] = {
    Authorize: credit.authorize,
    UpdateHold: credit.update,
    SettleHold: credit.settle,
    ReleaseHold: credit.release,
    Metered: leases.metered,
    Submit: jobs.submit,
    LeaseStarted: leases.started,
    LeaseFinished: leases.finished,
    LeaseRemoved: leases.removed,
}
"""What decides events of which there are very many: found at once. None for an answer is a yes."""


class Gate:
    """The state of tokens and accelerators, and the rules that change it."""

    def __init__(self, state: GateState | None = None, *, silence_us: int = SILENCE_US) -> None:
        """Make a gate of this state; None = a new one, which decides by the newest rules.

        `silence_us` is how long a running lease may go unmetered before the gap is charged as estimated. Only a simulation,
        whose meters never fail, says another one than all journals are decided with.
        """
        self._core = Core(state or _new_state(versions.RULES), silence_us=silence_us)
        idempotency.index(self._core)
        holds.note_waiting(self._core)
        deadlines.watch_all(self._core)

    @property
    def state(self) -> GateState:
        """For looking at. Whoever changes it breaks the journal's promise."""
        return self._core.state

    @property
    def rules(self) -> int:
        """The rules version by which it decides."""
        return self._core.state.rules

    def handle(self, event: AnyEvent, now_us: int) -> Decision:
        """Apply one event and say what follows from it. Never raises for anything a client can send.

        Args:
            event: what happened.
            now_us: µs since the epoch. A time before the last one counts as the last one.
        """
        core, before_us = self._core, self._core.state.now_us
        core.begin(now_us)
        request_id: str = getattr(event, "request_id", "")
        name = ""
        if request_id:
            name = f"{getattr(event, 'account_id', None) or ''}/{request_id}"
            if name in core.state.answered and (before := idempotency.recall(core, name, now_us=core.now_us)):
                core.now_us = core.state.now_us = before_us
                same = before.digest == idempotency.digest_of(event)
                return Decision(outcome=before.outcome if same else _reused(request_id), kept=False)
        is_quiet = not consequences.let_time_pass(core, most=consequences.PORTION if isinstance(event, Tick) else None)
        decision = self._decide(event)
        if isinstance(decision.outcome, Accepted):
            if request_id:
                idempotency.remember(core, name, event, outcome=decision.outcome)
        elif is_quiet and not (decision.transfers or decision.records or decision.instructions):
            core.now_us = core.state.now_us = before_us
            return Decision(outcome=decision.outcome, kept=False)
        return decision

    def ask(self, question: AnyQuestion, now_us: int) -> AnyAnswer:
        """Look something up. Changes nothing; a time before the last event counts as that."""
        return answer(self._core, question, max(now_us, self._core.state.now_us))

    def next_due_us(self) -> int | None:
        """When a Tick next has something to do; None if nothing is due by time alone."""
        core = self._core
        times = (
            deadlines.next_due_us(core),
            backoff.next_due_us(core),
            core.book.next_due_us(),
            core.planner.next_due_us(),
            core.renewal_due_us,
            core.dunning_due_us,
            dated_prices.due_us(core),
        )
        return min((time for time in times if time is not None), default=None)

    def is_behind(self, now_us: int) -> bool:
        """Whether more falls due by now than one tick sees to: whoever has events lets it tick until it isn't."""
        return consequences.is_behind(self._core, max(now_us, self._core.state.now_us))

    def outstanding(self) -> tuple[AnyInstruction, ...]:
        """The instructions whose end was not yet reported: what to say again to the adapter after a restart."""
        said: list[AnyInstruction] = []
        for record in self._core.state.leases.values():
            if record.state == "removing":
                said.append(RemoveLease(lease_id=record.lease.lease_id, lease=record.lease))
                continue
            said.append(StartLease(lease=record.lease))
            if record.stop_reason is not None and record.deadline_us is not None:
                said.append(
                    StopLease(
                        lease_id=record.lease.lease_id,
                        reason=record.stop_reason.value,
                        deadline_us=record.deadline_us,
                        save=not record.stop_unsaved,
                    )
                )
        return tuple(said)

    def jobs_of(self, account_id: AccountId) -> Sequence[Job]:
        """An account's jobs, oldest first. For looking at."""
        return self._core.jobs_of.get(account_id, ())

    def crowded(self) -> tuple[AccountId, ...]:
        """Accounts with more jobs that never ran than are kept."""
        return tuple(account_id for account_id, count in self._core.unrun_of.items() if count > jobs.UNRUN_MAX)

    def take_changed(self) -> tuple[JobId, ...]:
        """Ids of the jobs that changed since the last call, in order: for those who watch."""
        changed, self._core.changed = tuple(self._core.changed), {}
        return changed

    def check(self) -> None:
        """Assert every invariant of the whole. Slow: for tests, and for an operator in doubt."""
        state = self._core.state
        state.book.check()
        assert self._core.planner.at_rest, "an event has changed what can be done, and nobody has planned since"
        self._core.planner.check_invariants()
        derived.assert_same(self._core)
        deadlines.check(self._core)
        held_by_jobs = {job.hold_id: job.held_uhs for job in state.jobs.values() if job.hold_id is not None}
        for hold_id, held_uhs in held_by_jobs.items():
            assert state.book.holds[hold_id].held_uhs == held_uhs, f"hold {hold_id} and its job disagree"
        for key in state.keys.values():
            held = sum(job.held_uhs for job in state.jobs.values() if job.key_id == key.key_id)
            standing = (*state.book.holds.values(), *state.book.lapsed.values())
            held += sum(hold.held_uhs for hold in standing if hold.key_id == key.key_id)
            assert key.held_uhs == held, f"key {key.key_id} and what is held with it disagree"
        for record in state.leases.values():
            job = state.jobs[record.lease.job_id]
            assert job.lease_id == record.lease.lease_id, f"lease {record.lease.lease_id} without its job"
            assert job.hold_id is not None, f"lease {record.lease.lease_id} without a hold"
        for job in state.jobs.values():
            assert 0 <= job.burned_uhs <= job.limit_uhs, f"{job.job_id} burned beyond its limit"

    def snapshot(self) -> bytes:
        """The whole state; `restore` gives a gate that goes on as if nothing had been."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """`snapshot`, a piece at a time. Nothing may be handled before the last one was taken."""
        return pieces(self._core.state)

    @classmethod
    def restore(cls, state: bytes | None) -> Self:
        """A gate from a snapshot; None = one at the beginning of its journal, which says itself by which rules it goes on."""
        return cls(msgspec.msgpack.decode(state, type=GateState) if state else _new_state(versions.BEFORE))

    def _decide(self, event: AnyEvent) -> Decision:
        core, often = self._core, _OFTEN.get(type(event))
        outcome = self._apply(event) if often is None else often(core, event) or _ACCEPTED
        consequences.follow(core)
        return Decision(
            outcome=outcome,
            transfers=core.book.drain() if core.book.pending else (),
            records=tuple(core.records) if core.records else (),
            instructions=tuple(core.instructions) if core.instructions else (),
        )

    def _apply(self, event: AnyEvent) -> Outcome:  # noqa: C901, PLR0911, PLR0912, PLR0915 - a table
        core = self._core
        match event:
            case LeaseSaved():
                leases.saved(core, event)
            case LeaseTooLarge():
                leases.too_large(core, event)
            case ForgetJobs():
                jobs.forget(core, event)
            case Tick():
                if core.behind:  # what is due of leases may hang on what others still owe: a later tick sees to it
                    return _ACCEPTED
                leases.overdue(core)
                backoff.over(core, parked.try_again)
                core.replan = True
            case RecordCalls():
                return calls.record(core, event)
            case KeepUsage() | SettleUsage() | WriteOffUsage():
                return usage.decide(core, event)
            case Cancel():
                return jobs.cancel(core, event)
            case Pause():
                return jobs.pause(core, event)
            case Resume():
                return jobs.resume(core, event)
            case SaveNow():
                return jobs.save_now(core, event)
            case RaiseLimit():
                return jobs.raise_limit(core, event)
            case RolledBack():
                return jobs.rolled_back(core, event)
            case TopUp():
                return payments.once(core, event, treasury.top_up)
            case BuyBundle():
                return payments.once(core, event, treasury.buy_bundle)
            case Grant():
                return treasury.grant(core, event)
            case VoidLot():
                return corrections.void(core, event)
            case Subscribe():
                return payments.once(core, event, subscriptions.subscribe)
            case RecordPayment():
                return payments.once(core, event, invoices.record_payment)
            case CreditInvoice():
                return invoices.credit(core, event)
            case PaymentTold():
                return checkout.told(core, event)
            case AskPayment():
                return checkout.ask(core, event)
            case PaymentStarted():
                return checkout.started(core, event)
            case RefundPayment():
                return paybacks.refund(core, event)
            case SettleSuspense():
                return suspense.settle(core, event)
            case SetAutoTopUp():
                return auto_top_up.set_rule(core, event)
            case ReconcilePayments():
                return reconciling.reconcile(core, event)
            case Unsubscribe():
                return subscriptions.unsubscribe(core, event)
            case OfferModel():
                return models.offer(core, event)
            case ScaleModel():
                return models.scale(core, event)
            case WithdrawModel():
                return models.withdraw(core, event)
            case SetShare():
                return shares.set_share(core, event)
            case SetCohort():
                return shares.set_cohort(core, event)
            case SetQuota():
                return shares.set_quota(core, event)
            case SetLimit():
                return limit_setting.set_limit(core, event)
            case LearnZone():
                return limit_setting.learn_zone(core, event)
            case AdoptRules():
                return rules.adopt(core, event)
            case Configure():
                return configuration.configure(core, event)
            case ClosePeriod():
                return treasury.close_period(core, event)
            case NodeUp():
                return nodes.up(core, event)
            case NodeDown():
                nodes.down(core, event)
            case NodeDrain():
                return nodes.drain(core, event)
            case NodeHolds():
                return nodes.holds(core, event)
            case _:
                if isinstance(event, AnyAccountEvent):
                    return accounts.decide(core, event)
                assert not isinstance(event, _Often), f"{event} is decided by the table"
                assert_never(event)
        return _ACCEPTED


def _new_state(version: int) -> GateState:
    return GateState(book=Book(), placement=PlacementState(), rules=version)


def _reused(request_id: str) -> Outcome:
    return refusals.conflict(
        f"request id {request_id!r} was used before for something else: use a new one",
        code="request_id_reused",
        request_id=request_id,
    )
