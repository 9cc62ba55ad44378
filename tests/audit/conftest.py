"""A small log of a real gate, with a bit of everything in it, and an auditor that reads it."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from fabric.audit.records import Statement
from fabric.charging.catalogue import Bundle, Catalogue, Component, Plan
from fabric.charging.rates import Rate
from fabric.charging.tariffs import Tariffs, Weight
from fabric.clock import VirtualClock
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import (
    BuyBundle,
    Configure,
    JobKind,
    JobSpec,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    Metered,
    NodeUp,
    Pool,
    Sample,
    Submit,
    Tick,
    TopUp,
)
from fabric.gate.gate import Gate
from fabric.gate.instructions import StartLease
from fabric.gate.questions import ReceiptsOf, RecordsOf, StatementOf
from fabric.gate.serving_events import Authorize, CallUsed, ModelSpec, OfferModel, ReleaseHold, SettleHold, UpdateHold
from fabric.journal.auditor import Auditor
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.writer import Writer
from fabric.ledger.scopes import Service, Use
from fabric.units import UHS_PER_CT, KeyId

KEY = bytes(range(32))
ORIGIN = "fabric.example/test"
CT = UHS_PER_CT
CATALOGUE = Catalogue(
    version=1,
    plans=(Plan(name="starter", tier_rank=3, price_microcny_per_ct=500_000, lifetime_days=30),),
    bundles=(
        Bundle(
            name="edge",
            price_microcny=10_000_000,
            components=(
                Component(asset="CT", amount=20 * CT, share_microcny=9_000_000, lifetime_days=30),
                Component(asset="edge-minutes", amount=100, share_microcny=1_000_000, lifetime_days=30),
            ),
        ),
    ),
    settlement_hours=0,
)
USE = Use(service=Service.INFERENCE)


def opening(*accounts: str) -> list:
    return [
        Configure(
            tariffs=Tariffs(version=1, weights=(Weight(accelerator="H100", ppm=1_000_000),)), catalogue=CATALOGUE
        ),
        NodeUp(node_id="n1", accelerator="H100", devices=4, pool=Pool.SPOT),
        *(OpenAccount(account_id=name, name=name, plan="starter", request_id=f"open-{name}") for name in accounts),
        *(TopUp(account_id=name, amount_uhs=10 * CT, request_id=f"pay-{name}") for name in accounts),
    ]


def holds(account: str) -> list:
    of = {"account_id": account}
    return [
        Authorize(hold_id=f"{account}-1", amount_uhs=CT, use=USE, ttl_us=60_000_000, **of),
        UpdateHold(hold_id=f"{account}-1", seq=1, used_uhs=CT // 2, more_uhs=CT, **of),
        SettleHold(hold_id=f"{account}-1", seq=2, used_uhs=CT, **of),
        SettleHold(hold_id=f"{account}-1", seq=2, used_uhs=CT, **of),
        Authorize(hold_id=f"{account}-2", amount_uhs=CT, use=USE, ttl_us=60_000_000, **of),
        ReleaseHold(hold_id=f"{account}-2", seq=1, **of),
        Authorize(hold_id=f"{account}-3", amount_uhs=1000 * CT, use=USE, ttl_us=60_000_000, **of),
        TopUp(amount_uhs=10 * CT, request_id=f"pay-{account}", **of),
        TopUp(amount_uhs=11 * CT, request_id=f"pay-{account}", **of),
        BuyBundle(bundle="edge", request_id=f"bundle-{account}", **of),
        Authorize(hold_id=f"{account}-4", amount_uhs=CT, use=USE, ttl_us=1_000_000, **of),
    ]


async def pages(auditor, question):
    """Every page of an answer."""
    while question is not None:
        page = await auditor.answer(question)
        yield page
        question = page.following


async def whole_statement(auditor, question) -> Statement:
    """Of all its pages, which agree in everything but what is on them."""
    found = [page.statement async for page in pages(auditor, question)]
    bare = {msgspec.json.encode(msgspec.structs.replace(one, lines=(), records=())) for one in found}
    assert len(bare) == 1
    lines, records = ([item for one in found for item in getattr(one, name)] for name in ("lines", "records"))
    return msgspec.structs.replace(found[0], lines=tuple(lines), records=tuple(records))


@dataclass
class Log:
    """A gate, its journal and its auditor."""

    writer: Writer[Gate]
    clock: VirtualClock
    auditor: Auditor
    leases: list[str]

    async def write(self, events) -> list:
        answers = []
        for event in events:
            self.clock.advance(seconds=1)
            answers += await self.writer.submit([event])
        return answers

    async def run_job(
        self,
        account: str,
        *,
        job_id: str,
        metered_with: tuple[str, ...] = (),
        key_id: KeyId | None = None,
        **wanted: Any,
    ) -> None:
        """A job from submission to settlement, on one device for ten minutes."""
        spec = JobSpec(name="train", kind=JobKind.FUNCTION, accelerators=("H100",), limit_uhs=CT, **wanted)
        await self.write([Submit(job_id=job_id, account_id=account, spec=spec, key_id=key_id, request_id=job_id)])
        lease = self.writer.core.state.jobs[job_id].lease_id
        assert lease is not None, "there is room for it"
        await self.write([LeaseStarted(lease_id=lease)])
        self.clock.advance(seconds=600)
        leases = (lease, *metered_with)
        samples = tuple(Sample(lease_id=one, seq=1, window_us=600_000_000, busy_us=480_000_000) for one in leases)
        await self.write([Metered(samples=samples), LeaseFinished(lease_id=lease, outcome=LeaseOutcome.SUCCEEDED)])
        await self.write([LeaseRemoved(lease_id=lease)])

    async def records(self, question: RecordsOf) -> list:
        return [one async for page in pages(self.auditor, question) for one in page.records]

    async def receipts(self, question: ReceiptsOf) -> list:
        return [one async for page in pages(self.auditor, question) for one in page.receipts]

    async def statement(self, question: StatementOf) -> Statement:
        return await whole_statement(self.auditor, question)

    async def export(self, account: str | None = None, **options) -> list[str]:
        return [line.decode() async for line in self.auditor.export(account, **options)]


@pytest.fixture
async def log(tmp_path):
    leases: list[str] = []

    async def carry_out(instructions):
        leases.extend(one.lease.lease_id for one in instructions if isinstance(one, StartLease))

    clock = VirtualClock(1_700_000_000_000_000)
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    writer = Writer(journal, restore=Gate.restore, clock=clock, carry_out=carry_out)
    await writer.start()
    log = Log(writer, clock, Auditor(journal, origin=ORIGIN, signing_key=KEY), leases)
    await log.write([*opening("acme", "beta"), *holds("acme"), *holds("beta"), Tick()])
    yield log
    await writer.close()


RATES = (
    Rate(
        input_uhs_per_mtok=40_000_000,
        cached_uhs_per_mtok=4_000_000,
        output_uhs_per_mtok=399_999_999,
        reasoning_uhs_per_mtok=7,
    ),
)


def calls(account: str) -> list:
    """A slice that pays for calls, one of them reported twice, and a word that is repeated."""
    of = {"account_id": account, "hold_id": f"{account}-slice"}
    use = Use(service=Service.INFERENCE, accelerators=("H100",), models=("tiny",))
    used = [
        CallUsed(
            call_id=f"call-{number}", model="tiny", accelerator="H100", prompt_tokens=100 + number, cached_tokens=7,
            completion_tokens=33 * number, reasoning_tokens=number, started_at_us=1_800_000_000_000_000,
            ended_at_us=1_800_000_000_500_000, ended="stop",
        )
        for number in range(4)
    ]  # fmt: skip
    return [
        OfferModel(spec=ModelSpec(name="tiny", source="/m", accelerators=("H100",)), rates=RATES),
        Authorize(amount_uhs=100_000, use=use, ttl_us=60_000_000, **of),
        UpdateHold(seq=1, calls=tuple(used[:2]), more_uhs=50_000, **of),
        UpdateHold(seq=1, calls=tuple(used[:2]), more_uhs=50_000, **of),
        SettleHold(
            seq=2, calls=(*used[1:], msgspec.structs.replace(used[0], call_id="own", covered=True)), used_uhs=5, **of
        ),
    ]
