"""A short story with an event of every kind, for the golden journals: what the gate's model test leaves out, one refusal
that is kept, and jobs that compete for days. Its customers and nodes are its own, and nothing of it is left when it ends.
"""

import random
from typing import Any

from fabric.charging.rates import Rate
from fabric.gate import Gate
from fabric.gate.account_events import CreateKey, OpenAccount, RevokeKey
from fabric.gate.events import (
    BuyBundle,
    Cancel,
    ClosePeriod,
    ForgetJobs,
    Grant,
    HoldMode,
    LeaseFinished,
    LeaseOutcome,
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
    Pool,
    RaiseLimit,
    RecordPayment,
    Resume,
    RolledBack,
    Sample,
    SaveNow,
    Submit,
    Subscribe,
    Tick,
    TopUp,
    Unsubscribe,
    VoidLot,
)
from fabric.gate.instructions import Accepted, AnyInstruction, Refusal, RemoveLease, StartLease, StopLease
from fabric.gate.invoice_events import CreditInvoice
from fabric.gate.limit_events import LearnZone, LimitTerms, SetLimit, Whose
from fabric.gate.payment_events import (
    AskPayment,
    PaymentStarted,
    PaymentState,
    PaymentTold,
    ReconcilePayments,
    RefundPayment,
    Said,
    SetAutoTopUp,
    SettleSuspense,
)
from fabric.gate.periods import Period, Zone
from fabric.gate.serving_events import (
    Authorize,
    CallUsed,
    KeepUsage,
    ModelSpec,
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
from fabric.ledger import Service, Use
from fabric.placement.locality import Dataset, Holdings
from fabric.units import PPM
from tests.gate.world import CONFIGURE, T0, S, spec
from tests.journals.organisation_story import organise

BEGINS = T0 - 30 * 86_400 * S
USE = Use(service=Service.INFERENCE, accelerators=("H100",), models=("tiny",))
RATES = (
    Rate(
        input_uhs_per_mtok=40 * S,
        cached_uhs_per_mtok=4 * S,
        output_uhs_per_mtok=399_999_999,
        reasoning_uhs_per_mtok=7,
    ),
)


class Telling:
    """A gate that is told a story, which is written down."""

    def __init__(self) -> None:
        self.gate, self.now_us = Gate(), BEGINS
        self.events: list[tuple[Any, int]] = []
        self.said: list[AnyInstruction] = []
        self.chance = random.Random(12)

    def tell(self, *events: Any, after: int = 1, kind: type = Accepted) -> Any:
        for event in events:
            self.now_us += after * S
            decision = self.gate.handle(event, self.now_us)
            assert isinstance(decision.outcome, kind), (event, decision.outcome)
            self.events.append((event, self.now_us))
            self.said += decision.instructions
        return decision.outcome

    def heed(self) -> None:
        """Do what the gate has said, as a cluster would."""
        while self.said:
            match self.said.pop(0):
                case StartLease(lease=lease):
                    self.tell(LeaseStarted(lease_id=lease.lease_id))
                case StopLease(lease_id=lease_id, save=save):
                    step = self.chance.randrange(1_000)
                    if save:
                        self.tell(
                            LeaseSaved(lease_id=lease_id, step=step, write_us=step * 9_000, restore_us=step * 1_000)
                        )
                    self.tell(LeaseFinished(lease_id=lease_id, outcome=LeaseOutcome.SAVED, step=step))
                case RemoveLease(lease_id=lease_id):
                    self.tell(LeaseRemoved(lease_id=lease_id))

    def metered(self, lease: str, *, seq: int, seconds: int, part: int = 1) -> Metered:
        return Metered(samples=(Sample(lease_id=lease, seq=seq, window_us=seconds * S, busy_us=seconds * S // part),))


def call(name: str, **more: Any) -> CallUsed:
    return CallUsed(
        **{
            "call_id": name,
            "model": "tiny",
            "accelerator": "H100",
            "prompt_tokens": 1_000,
            "cached_tokens": 10,
            "completion_tokens": 333,
            "reasoning_tokens": 3,
            "started_at_us": BEGINS + 200 * S,
            "ended_at_us": BEGINS + 201 * S,
            "ended": "stop",
            **more,
        }
    )


def story() -> list[tuple[Any, int]]:
    """Its events and their times."""
    told = Telling()
    open_for_business(told)
    train(told)
    serve(told)
    settle(told)
    pay(told)
    told.said.clear()
    compete(told)
    keep_back(told)
    organise(told)
    return told.events


def open_for_business(told: Telling) -> None:
    dan: dict[str, Any] = {"account_id": "dan"}
    told.tell(
        CONFIGURE,
        OpenAccount(account_id="dan", name="Dan", plan="starter", request_id="open"),
        OpenAccount(account_id="eve", name="Eve", plan="post"),
        SetShare(weight_ppm=2 * PPM, cohort="one", request_id="share", **dan),
        SetCohort(cohort="one", weight_ppm=3 * PPM),
        SetQuota(cohort="one", accelerator="H100", nominal=0, lend_max=0, request_id="quota"),
        SetQuota(cohort="one", accelerator="H100", nominal=None),
        TopUp(amount_uhs=5_000 * S, payment_ref="p-1", request_id="pay", **dan),
        BuyBundle(bundle="edge", payment_ref="p-2", **dan),
        Subscribe(subscription="weekly", **dan),
        Unsubscribe(subscription="weekly", **dan),
        CreateKey(key_id="k-dan", secret_sha256="0" * 64, name="laptop", limit_uhs=4_000 * S, **dan),
        LearnZone(zone=Zone(name="Asia/Shanghai", offsets_s=(28_800,))),
        SetLimit(
            whose=Whose.KEY,
            name="k-dan",
            terms=LimitTerms(period=Period.MONTH, amount=3_000 * S, zone="Asia/Shanghai", starts_on=31),
            **dan,
        ),
        NodeUp(node_id="x1", accelerator="H100", devices=4, pool=Pool.SPOT),
        NodeUp(node_id="x2", accelerator="A100", devices=8, pool=Pool.RESERVED, notice_us=30 * S),
        NodeHolds(node_id="x1", holdings=Holdings(bytes_by_prefix={"corpus": 10**9}, rate_bytes_per_s=10**8)),
    )
    lot = told.tell(Grant(amount_uhs=50 * S, lifetime_us=90 * 86_400 * S, **dan)).facts["lot_id"]
    told.tell(VoidLot(lot_id=lot, amount_uhs=20 * S, reason="too generous", **dan))
    told.tell(Grant(amount_uhs=7 * S, lifetime_us=10 * S, **dan))
    too_dear = Submit(job_id="dear", spec=spec(10**6 * S), **dan)
    told.tell(too_dear, after=11, kind=Refusal)  # kept, as something has expired meanwhile


def train(told: Telling) -> None:
    dan: dict[str, Any] = {"account_id": "dan"}
    wanted = spec(
        600 * S,
        hold=HoldMode.ROLLING,
        tags=("a", "b"),
        data=(Dataset(prefix="corpus", bytes=2 * 10**9),),
        max_retries=1,
    )
    told.tell(Submit(job_id="one", spec=wanted, key_id="k-dan", request_id="job", **dan))
    told.tell(LeaseStarted(lease_id="one.1"))
    told.tell(told.metered("one.1", seq=1, seconds=30), after=30)
    told.tell(SaveNow(job_id="one", **dan), LeaseSaved(lease_id="one.1", step=3, write_us=S, bytes=10**6))
    told.tell(told.metered("one.1", seq=2, seconds=20, part=5), after=20)
    told.tell(Pause(job_id="one", **dan), LeaseSaved(lease_id="one.1", step=5, write_us=S // 2, bytes=10**6))
    told.tell(LeaseFinished(lease_id="one.1", outcome=LeaseOutcome.SAVED, step=5), LeaseRemoved(lease_id="one.1"))
    told.tell(RolledBack(job_id="one", step=3, bytes=10**6, **dan), RaiseLimit(job_id="one", limit_uhs=700 * S, **dan))
    told.tell(Resume(job_id="one", **dan), LeaseStarted(lease_id="one.2"))
    told.tell(told.metered("one.2", seq=1, seconds=10), after=10)
    told.tell(LeaseTooLarge(lease_id="one.2", error="too much on its disk"))
    told.tell(LeaseFinished(lease_id="one.2", outcome=LeaseOutcome.SAVED, step=6), LeaseRemoved(lease_id="one.2"))
    told.tell(Cancel(job_id="one", save=True, request_id="stop", **dan))
    told.tell(
        Submit(job_id="two", spec=spec(100 * S, devices=4, devices_least=2), **dan), LeaseStarted(lease_id="two.1")
    )
    told.tell(told.metered("two.1", seq=1, seconds=5), NodeDrain(node_id="x1", grace_us=20 * S), after=5)
    told.tell(NodeDown(node_id="x1"))
    told.tell(Submit(job_id="three", spec=spec(10 * S, types=("A100",)), **dan))
    told.tell(Cancel(job_id="three", **dan), Cancel(job_id="two", **dan), Tick(), ForgetJobs(keep=0, **dan))


def serve(told: Telling) -> None:
    dan: dict[str, Any] = {"account_id": "dan"}
    model = ModelSpec(name="tiny", source="/models/tiny", accelerators=("H100",), replicas_max=2)
    told.tell(OfferModel(spec=model, rates=RATES), ScaleModel(model="tiny", replicas_min=1, replicas_max=3))
    slices = {"amount_uhs": 2 * S, "use": USE, "ttl_us": 600 * S, **dan}
    told.tell(*(Authorize(hold_id=name, key_id="k-dan", **slices) for name in ("s1", "s2")))
    told.tell(UpdateHold(hold_id="s1", seq=1, calls=(call("c1"), call("c2")), more_uhs=S, **dan))
    told.tell(
        SettleHold(hold_id="s1", seq=2, calls=(call("c3"),), used_uhs=5, **dan), ReleaseHold(hold_id="s2", seq=1, **dan)
    )
    told.tell(RecordCalls(calls=(call("own", covered=True),), **dan))
    told.tell(KeepUsage(hold_id="gone", call=call("k1"), code="not_found", reason="no such hold", **dan))
    told.tell(KeepUsage(hold_id="gone", call=call("k2"), code="not_found", reason="no such hold", **dan))
    told.tell(SettleUsage(call_id="k1", **dan), WriteOffUsage(call_id="k2", reason="ours", **dan))
    told.tell(WithdrawModel(model="tiny"))


def pay(told: Telling) -> None:
    """Payments that are asked of the operator: paid, refunded, charged back, and one that nobody knows."""
    ivy: dict[str, Any] = {"account_id": "ivy"}
    told.tell(OpenAccount(account_id="ivy", name="Ivy", plan="starter"))
    for number in range(3):
        told.tell(AskPayment(payment_id=f"y{number}", provider="operator", amount_uhs=700 * S, **ivy))
    told.tell(PaymentStarted(payment_id="y0", provider_ref="asked"))
    price = told.gate.state.till.payments["y0"].price_microcny
    told.tell(said("y0", price), said("y0", price), said("y1", price), said("y2", 0, PaymentState.DECLINED))
    told.tell(Authorize(hold_id="i1", amount_uhs=900 * S, use=USE, ttl_us=600 * S, **ivy))
    told.tell(SettleHold(hold_id="i1", seq=1, used_uhs=800 * S, **ivy))
    told.tell(RefundPayment(payment_id="y1", amount_uhs=50 * S, reason="asked for", **ivy))
    told.tell(said("y0", price, charged_back=price), TopUp(amount_uhs=80 * S, **ivy))
    told.tell(said("y0", price, charged_back=price, reinstated=price), said("lost", 7_000_000, provider="stripe"))
    told.tell(SettleSuspense(suspense_id="stripe/lost", how="booked", reason="found", **ivy))
    rule = {"threshold_uhs": 100_000 * S, "amount_uhs": 3_600 * S, "month_max_uhs": 7_200 * S}
    told.tell(SetAutoTopUp(**rule, **ivy), Tick(), SetAutoTopUp(on=False, **ivy))
    gone = said("gone", 10_000, provider="stripe").said
    told.tell(ReconcilePayments(provider="stripe", from_us=BEGINS, until_us=told.now_us, listed=(gone,)))


def said(payment_id: str, amount: int, state: PaymentState = PaymentState.PAID, **more: Any) -> PaymentTold:
    return PaymentTold(
        said=Said(
            **{
                "provider": "operator",
                "payment_id": payment_id,
                "provider_ref": f"ref {payment_id}",
                "state": state,
                "amount": amount,
                **more,
            }
        )
    )


def compete(told: Telling) -> None:
    """Three customers of three plans, and more work than there is room for; nodes come and go."""
    nodes = {"y1": ("H100", 4, Pool.SPOT), "y2": ("H100", 8, Pool.SPOT), "y3": ("A100", 8, Pool.RESERVED)}
    for account, plan in (("fay", "starter"), ("gil", "pro"), ("hal", "post")):
        told.tell(OpenAccount(account_id=account, name=account, plan=plan, cohort="two" if plan != "post" else ""))
        told.tell(TopUp(account_id=account, amount_uhs=40_000 * S, payment_ref="first"))
    for name, (kind, devices, pool) in nodes.items():
        told.tell(NodeUp(node_id=name, accelerator=kind, devices=devices, pool=pool))
        told.tell(NodeHolds(node_id=name, holdings=Holdings(bytes_by_prefix={"d": devices * 10**9}, region="north")))
    told.heed()
    for number in range(28):
        told.tell(
            wanted_at_random(told.chance, f"job{number}"),
            after=told.chance.choice((1, 60, 900)),
            kind=Accepted | Refusal,
        )
        told.heed()
        metered_and_ended(told, list(told.gate.state.leases.values()))
        if number % 9 == 8:
            name = told.chance.choice(tuple(nodes))
            kind, devices, pool = nodes[name]
            told.tell(NodeDown(node_id=name), after=40)
            told.heed()
            told.tell(NodeUp(node_id=name, accelerator=kind, devices=devices, pool=pool), after=700)
            told.heed()
    for job_id in [job.job_id for job in told.gate.state.jobs.values() if job.ended_at_us is None]:
        told.tell(Cancel(job_id=job_id, account_id=told.gate.state.jobs[job_id].account_id), kind=Accepted | Refusal)
        told.heed()
    for name in nodes:
        told.tell(NodeDown(node_id=name))
    told.tell(Tick(), after=2 * 86_400)


def keep_back(told: Telling) -> None:
    """What is kept back: time to save before a limit, and notice for a job whose saves take long."""
    told.tell(NodeUp(node_id="z1", accelerator="H100", devices=4, pool=Pool.SPOT, notice_us=20 * S))
    told.tell(NodeUp(node_id="z2", accelerator="A100", devices=4, pool=Pool.SPOT))
    fay: dict[str, Any] = {"account_id": "fay"}
    told.tell(Submit(job_id="near", spec=spec(100 * S, grace_us=30 * S), **fay))
    told.tell(Submit(job_id="slow", spec=spec(300 * S, types=("H100", "A100")), **fay))
    told.heed()
    told.tell(told.metered("near.1", seq=1, seconds=75), after=75)
    told.tell(LeaseSaved(lease_id="slow.1", step=5, write_us=12 * S))
    told.tell(Pause(job_id="slow", **fay))
    told.heed()
    told.tell(Resume(job_id="slow", **fay))
    told.heed()
    told.tell(Cancel(job_id="slow", **fay), Cancel(job_id="near", **fay), kind=Accepted | Refusal)
    told.heed()
    told.tell(NodeDown(node_id="z1"), NodeDown(node_id="z2"), Tick())


def wanted_at_random(chance: random.Random, job_id: str) -> Submit:
    types = chance.choice((("H100",), ("A100",), ("H100", "A100"), ()))
    service = chance.choice((Service.TRAINING, Service.TRAINING, Service.INFERENCE))
    more: dict[str, Any] = {
        "devices": chance.choice((1, 2, 4, 8)),
        "service": service,
        "preemptible": service is Service.TRAINING,
        "hold": chance.choice(tuple(HoldMode)),
        "time_limit_us": chance.choice((None, 900 * S)),
        "auto_park_us": chance.choice((None, 120 * S)),
        "max_retries": chance.choice((0, 2)),
        "data": chance.choice(((), (Dataset(prefix="d", bytes=9 * 10**9, region="south"),))),
        "estimate_us": chance.choice((None, 1_000 * S)),
        "grace_us": chance.choice((5, 30)) * S,
    }
    wanted = spec(chance.choice((300, 2_000, 9_000)) * S, types=types, **more)
    return Submit(job_id=job_id, account_id=chance.choice(("fay", "gil", "hal")), spec=wanted, request_id=f"r-{job_id}")


def metered_and_ended(told: Telling, leases: list[Any]) -> None:
    for record in leases:
        lease_id, devices = record.lease.lease_id, record.lease.devices
        if record.state != "running" or told.chance.random() < 0.4:
            continue
        seconds, seq = told.chance.choice((10, 60, 300)), told.gate.state.sessions[lease_id].seq + 1
        busy_us = seconds * S * devices * told.chance.choice((0, 1, 8, 10)) // 10
        told.tell(
            Metered(samples=(Sample(lease_id=lease_id, seq=seq, window_us=seconds * S, busy_us=busy_us),)),
            after=seconds,
        )
        told.heed()
        if lease_id in told.gate.state.leases and told.chance.random() < 0.35:
            outcome = told.chance.choice((LeaseOutcome.SUCCEEDED, LeaseOutcome.FAILED, LeaseOutcome.LOST))
            told.tell(LeaseFinished(lease_id=lease_id, outcome=outcome, step=70), kind=Accepted)
            told.heed()


def settle(told: Telling) -> None:
    eve: dict[str, Any] = {"account_id": "eve"}
    told.tell(Authorize(hold_id="credit", amount_uhs=300 * S, use=Use(service=Service.INFERENCE), ttl_us=60 * S, **eve))
    told.tell(SettleHold(hold_id="credit", seq=1, used_uhs=200 * S, **eve), ClosePeriod(period="2023-10"))
    told.tell(CreditInvoice(invoice_id="2023-10/eve", amount_microcny=10_000, reason="a slip", **eve))
    told.tell(RecordPayment(amount_microcny=1_000, payment_ref="bank-1", **eve))
    told.tell(RevokeKey(key_id="k-dan"), NodeDown(node_id="x2"))
    told.tell(Tick(), after=20 * 86_400)
