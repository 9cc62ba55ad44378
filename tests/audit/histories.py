"""Random histories of accounts, by the real gate: what each event booked, and when."""

import random
from dataclasses import dataclass, field

from fabric.audit.usage import own
from fabric.charging.rates import Rate
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import (
    BuyBundle,
    ClosePeriod,
    Grant,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    Metered,
    NodeUp,
    Pool,
    RecordPayment,
    Sample,
    Submit,
    Subscribe,
    Tick,
    TopUp,
    VoidLot,
)
from fabric.gate.instructions import StartLease
from fabric.gate.serving_events import Authorize, CallUsed, ModelSpec, OfferModel, SettleHold, UpdateHold
from fabric.ledger.scopes import Service, Use
from tests.gate.world import CONFIGURE, DAY, T0, S, spec

USE = Use(service=Service.INFERENCE, accelerators=("H100",), models=("tiny",))
RATE = Rate(
    input_uhs_per_mtok=40_000_000_000,
    cached_uhs_per_mtok=4_000_000_000,
    output_uhs_per_mtok=399_999_999_999,
    reasoning_uhs_per_mtok=7,
)
WAITS = (S, 5 * S, 40 * S, 300 * S, 3 * 3_600 * S, DAY, 4 * DAY, 11 * DAY)


@dataclass
class History:
    """What happened, by one seed."""

    seed: int
    gate: Gate = field(default_factory=Gate)
    now_us: int = T0
    entries: list = field(default_factory=list)
    """(seq, at_us, transfers, records) of each event."""
    leases: dict = field(default_factory=dict)
    """Those that run: how many samples, and up to when they are metered."""
    slices: dict = field(default_factory=dict)
    made: int = 0

    def do(self, event):
        decision = self.gate.handle(event, self.now_us)
        self.entries.append((len(self.entries), self.now_us, decision.transfers, decision.records))
        for each in decision.instructions:
            if isinstance(each, StartLease):
                self.leases[each.lease.lease_id] = [0, self.now_us]
                self.do(LeaseStarted(lease_id=each.lease.lease_id))
        return decision.outcome

    def of(self, account):
        return [own(account, *entry) for entry in self.entries]

    def name(self, kind):
        self.made += 1
        return f"{kind}{self.made}"


def history(seed: int, *, events: int = 25) -> History:
    """Two accounts, one prepaid and one on credit, with purchases, jobs, calls, losses, expiry and invoices."""
    found, dice = History(seed), random.Random(seed)
    for event in (
        CONFIGURE,
        NodeUp(node_id="n", accelerator="H100", devices=4, pool=Pool.SPOT),
        OpenAccount(account_id="ada", name="ada", plan="starter"),
        OpenAccount(account_id="cyd", name="cyd", plan="post"),
        OfferModel(spec=ModelSpec(name="tiny", source="/m", accelerators=("H100",)), rates=(RATE,)),
        TopUp(account_id="ada", amount_uhs=600 * S + dice.randrange(S), request_id="first"),
    ):
        found.do(event)
    for _ in range(events):
        found.now_us += dice.choice(WAITS) + dice.randrange(S)
        dice.choice(_HAPPENINGS)(found, dice)
    return found


def _buy(found, dice):
    account = dice.choice(("ada", "cyd"))
    amount = dice.randrange(1, 700 * S)
    found.do(
        dice.choice(
            (
                TopUp(account_id=account, amount_uhs=amount, request_id=found.name("r")),
                BuyBundle(account_id=account, bundle="edge", request_id=found.name("r")),
                Subscribe(account_id=account, subscription="daily", request_id=found.name("r")),
                Grant(account_id=account, amount_uhs=amount, request_id=found.name("r")),
            )
        )
    )


def _submit(found, dice):
    limit = dice.randrange(20, 900) * S
    found.do(
        Submit(
            job_id=found.name("job-"),
            account_id=dice.choice(("ada", "cyd")),
            spec=spec(limit),
            request_id=found.name("r"),
        )
    )


def _burn(found, dice):
    for lease_id, at in list(found.leases.items()):
        window = min(found.now_us - at[1], 60 * S)
        at[0], at[1] = at[0] + 1, found.now_us
        sample = Sample(lease_id=lease_id, seq=at[0], window_us=window, busy_us=dice.randrange(window + 1))
        found.do(Metered(samples=(sample,)))
        if dice.random() < 0.3:
            found.do(LeaseSaved(lease_id=lease_id))


def _end(found, dice):
    for lease_id in list(found.leases)[:2]:
        del found.leases[lease_id]
        outcome = dice.choice(
            (
                LeaseOutcome.SUCCEEDED,
                LeaseOutcome.FAILED,
                LeaseOutcome.LOST,
                LeaseOutcome.SAVED,
                LeaseOutcome.INTERRUPTED,
            )
        )
        found.do(LeaseFinished(lease_id=lease_id, outcome=outcome))
        found.now_us += dice.choice((S, 700 * S, DAY))
        found.do(LeaseRemoved(lease_id=lease_id))


def _call(found, dice):
    account = dice.choice(("ada", "cyd"))
    hold_id = found.slices.get(account)
    if hold_id is None:
        hold_id = found.slices[account] = found.name(dice.choice(("gateway:", "own:")))
        found.do(
            Authorize(account_id=account, hold_id=hold_id, amount_uhs=dice.randrange(S, 60 * S), use=USE, ttl_us=DAY)
        )
        found.made += 1
    seq = found.made = found.made + 1
    used = tuple(
        CallUsed(
            call_id=found.name("call"), model="tiny", accelerator="H100", prompt_tokens=dice.randrange(90),
            completion_tokens=dice.randrange(60), started_at_us=found.now_us - S, ended_at_us=found.now_us, ended="stop",
        )
        for _ in range(dice.randrange(4))
    )  # fmt: skip
    extra = dice.choice((0, 0, dice.randrange(5 * S)))
    if dice.random() < 0.4:
        del found.slices[account]
        found.do(SettleHold(account_id=account, hold_id=hold_id, seq=seq, calls=used, used_uhs=extra))
    else:
        more = dice.randrange(30 * S)
        found.do(UpdateHold(account_id=account, hold_id=hold_id, seq=seq, calls=used, used_uhs=extra, more_uhs=more))


def _close(found, dice):
    found.do(ClosePeriod(period=found.name("period")))
    owed = found.gate.state.book.accounts["cyd"].receivable_microcny
    if owed and dice.random() < 0.7:
        found.do(
            RecordPayment(
                account_id="cyd", amount_microcny=dice.randrange(1, owed + 1), channel="bank", payment_ref="p"
            )
        )


def _void(found, dice):
    lots = [lot for lot in found.gate.state.book.lots.values() if lot.free_uhs]
    if lots:
        lot = dice.choice(lots)
        found.do(
            VoidLot(
                account_id=lot.account_id,
                lot_id=lot.lot_id,
                reason="mistake",
                amount_uhs=dice.choice((None, dice.randrange(lot.free_uhs) + 1)),
            )
        )


def _wait(found, _):
    found.do(Tick())


_HAPPENINGS = (_buy, _submit, _submit, _burn, _burn, _burn, _burn, _end, _call, _call, _call, _close, _void, _wait)
