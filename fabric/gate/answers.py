"""Answers to what can be asked of the gate: views built from the state, which they never change.

Statements, receipts and past charging records are answered from the journal by whoever holds it; not here.
"""

import re
from typing import Final, assert_never

import msgspec

from fabric.charging.burn import REFERENCE_PPM
from fabric.charging.rating import burn_per_s
from fabric.gate import (
    configuration,
    credit,
    grace,
    history,
    holds,
    invoices,
    jobs,
    key_views,
    keys,
    limit_answers,
    listing,
    node_views,
    offers,
    package_answers,
    requests,
    starts,
    till_views,
    why,
)
from fabric.gate.core import Core
from fabric.gate.events import JobSpec
from fabric.gate.instructions import Refusal
from fabric.gate.lifecycle import TERMINAL
from fabric.gate.questions import (
    AccountsOf,
    AnyAnswer,
    AnyQuestion,
    BalanceOf,
    BlobsOf,
    BlobUse,
    BookedOf,
    CallerOf,
    CheckpointOf,
    FreeOf,
    JobOf,
    JobsOf,
    KeyOf,
    KeysOf,
    LeasesOf,
    LimitsOf,
    LotTermsOf,
    ModelsOf,
    NodesOf,
    NoticesOf,
    OpenUsageOf,
    OrganisationOf,
    PaymentsOf,
    PolicyOf,
    Prices,
    PricesOf,
    QuoteOf,
    ReceiptsOf,
    RecordsOf,
    RevisionOf,
    SpecOf,
    StatementOf,
    SuspenseOf,
    WhyOf,
    ZonesOf,
)
from fabric.gate.state import BURNING, Account, Job, LeaseRecord
from fabric.gate.timeline import told
from fabric.gate.views import (
    BalanceView,
    JobView,
    LeaseView,
    LotView,
    OpenUsageView,
    QuoteView,
    UnitsView,
)
from fabric.ledger import LotBalance
from fabric.ledger import packages as ledgers
from fabric.ledger.balances import lot_balance
from fabric.ledger.scopes import ANYTHING
from fabric.units import INT32_MAX, INT64_MAX, PPM, UHS_PER_CT, JobId

_BLOB: Final = re.compile(r'"(blobs/[^"\\]+)"')
"""A key of the archive in a payload, which is JSON."""


def answer(core: Core, question: AnyQuestion, now_us: int) -> AnyAnswer:  # noqa: C901, PLR0911, PLR0912 - a case each
    state = core.state
    match question:
        case JobOf():
            job = state.jobs.get(question.job_id)
            visible = job is not None and question.account_id in (None, job.account_id)
            return job_view(core, job, now_us) if job is not None and visible else None
        case SpecOf():
            job = state.jobs.get(question.job_id)
            return job.spec if job is not None and question.account_id in (None, job.account_id) else None
        case JobsOf():
            return [job_view(core, job, now_us) for job in listing.jobs(core, question)]
        case RevisionOf():
            return state.revision
        case BalanceOf():
            account = state.accounts.get(question.account_id)
            return None if account is None else _balance(core, account, now_us, lots=True)
        case FreeOf():
            return credit.room(core, question.account_id, question.hold_id, now_us)
        case AccountsOf():
            return [_balance(core, account, now_us, lots=False) for account in state.accounts.values()]
        case BlobsOf():
            return [
                BlobUse(key=key, ended_at_us=job.ended_at_us if job.state in TERMINAL else None)
                for job in core.jobs_of.get(question.account_id, ())
                for key in _BLOB.findall(job.spec.payload)
            ]
        case QuoteOf():
            return _quote(core, question, now_us)
        case KeyOf():
            key = state.keys.get(question.key_id)
            return None if key is None else key_views.key(core, key, now_us)
        case KeysOf():
            asked = question.account_id
            found = state.keys.values() if asked is None else core.keys_of.get(asked, ())
            return [key_views.key(core, key, now_us) for key in found]
        case OrganisationOf():
            return key_views.organisation(core, question.account_id)
        case CallerOf():
            return offers.caller(core, question.key_id, now_us)
        case ModelsOf():
            return offers.to(core, question.account_id)
        case NodesOf():
            return node_views.nodes(core)
        case LeasesOf():
            return [
                LeaseView(
                    lease_id=record.lease.lease_id,
                    job_id=record.lease.job_id,
                    account_id=record.account_id,
                    accelerator=record.lease.accelerator,
                    shares=record.lease.shares,
                    fraction=record.lease.fraction,
                    state=record.state,
                    sampled=session.seq if (session := state.sessions.get(record.lease.lease_id)) else 0,
                )
                for record in state.leases.values()
                if question.account_id in (None, record.account_id)
            ]
        case OpenUsageOf():
            return [
                OpenUsageView(**{name: getattr(each, name) for name in OpenUsageView.__struct_fields__})
                for each in state.open_usage.values()
            ]
        case LotTermsOf():
            return _lots(core, question, now_us)
        case PricesOf():
            return Prices(tariffs=core.tariffs, catalogue=core.catalogue, announced=tuple(state.announced))
        case WhyOf():
            job = state.jobs.get(question.job_id)
            visible = job is not None and question.account_id in (None, job.account_id)
            return why.of(core, job, question.account_id, now_us) if job is not None and visible else None
        case PaymentsOf():
            return till_views.payments(core, question)
        case SuspenseOf():
            return till_views.suspense(core, question)
        case LimitsOf():
            return limit_answers.asked(core, question, now_us)
        case ZonesOf():
            return list(state.zones.values())
        case NoticesOf():
            return till_views.notices(core, question)
        case PolicyOf():
            return configuration.policy(core)
        case StatementOf() | ReceiptsOf() | CheckpointOf() | RecordsOf() | BookedOf():
            raise TypeError(f"{type(question).__name__} is answered from the journal")
        case _:
            assert_never(question)


def job_view(core: Core, job: Job, now_us: int) -> JobView:
    session = core.state.sessions.get(job.lease_id) if job.lease_id else None
    key = core.state.keys.get(job.key_id) if job.key_id else None
    record = core.state.leases.get(job.lease_id) if job.lease_id else None
    burning = session is not None and record is not None and record.state in BURNING
    burn = session.burn_uhs_per_s if session is not None and burning else 0
    reach_uhs = job.limit_uhs - job.burned_uhs
    if job.hold_id is not None:
        others_free = core.book.free(job.account_id, now_us=now_us, use=holds.use_of(job.spec))
        reach_uhs = min(reach_uhs, job.held_uhs + others_free)
    return JobView(
        job_id=job.job_id,
        account_id=job.account_id,
        name=job.spec.name,
        kind=job.spec.kind.value,
        state=job.state.value,
        reason=job.reason,
        accelerator=job.accelerator or "|".join(job.spec.accelerators) or "any",
        devices=_devices(job, record),
        nodes=job.nodes if job.lease_id or job.state in TERMINAL else (),
        limit_uhs=job.limit_uhs,
        held_uhs=job.held_uhs,
        burned_uhs=job.burned_uhs,
        burn_uhs_per_s=burn,
        utilisation_ppm=session.utilisation_ppm if session is not None and burning else 0,
        runway_us=_lasts_us(reach_uhs, burn) if burn else None,
        attempts=job.attempts,
        submitted_at_us=job.submitted_at_us,
        started_at_us=job.started_at_us,
        ended_at_us=job.ended_at_us,
        settled=job.settled,
        error=job.error,
        result_ref=job.result_ref,
        lease_id=job.lease_id,
        revision=job.revision,
        step=max(job.step, job.saved_step),
        timeline=told(job.timeline, submitted_at_us=job.submitted_at_us, now_us=now_us),
        saved_step=job.saved_step,
        saved_at_us=job.saved_at_us,
        saved_bytes=job.saved_bytes,
        grace_needed_us=grace.needed_us(job.saves_us),
        tier=core.state.accounts[job.account_id].plan,
        key_id=job.key_id or "",
        devices_least=job.spec.devices_least,
        fraction=job.spec.fraction,
        idle_us=_idle_us(record, now_us),
        exit_code=job.exit_code if (job.exit_code or 0) <= INT32_MAX else None,
        tags=job.spec.tags,
        project=keys.project_of(key) if key is not None and not key.operator else job.account_id,
        member=key.member if key is not None else "",
        ran=tuple(job.ran),
    )


def _lasts_us(amount_uhs: int, uhs_per_s: int) -> int:
    """How long it lasts; what lasts longer than can be written lasts so long."""
    return min(amount_uhs * 1_000_000 // uhs_per_s, INT64_MAX)


def _devices(job: Job, record: LeaseRecord | None) -> int:
    """What it runs on, or ran on at its end; else what it wants."""
    if record is not None:
        return record.lease.devices
    return job.ran[-1].devices if job.state in TERMINAL and job.ran else job.spec.devices


def _idle_us(record: LeaseRecord | None, now_us: int) -> int | None:
    if record is None or record.state != "running" or record.idle_since_us is None:
        return None
    return max(now_us - record.idle_since_us, 0)


def _balance(core: Core, account: Account, now_us: int, *, lots: bool) -> BalanceView:
    balance = core.book.balance(account.account_id, now_us=now_us)
    assert balance is not None, account.account_id
    burning = [
        (session.burn_uhs_per_s, core.state.jobs[record.lease.job_id])
        for lease_id, session in core.state.sessions.items()
        if (record := core.state.leases[lease_id]).account_id == account.account_id and record.state in BURNING
    ]
    burn = sum(uhs_per_s for uhs_per_s, _ in burning)
    uses = {holds.use_of(job.spec) for _, job in burning}
    reach_uhs = balance.held_uhs + max(
        (core.book.free(account.account_id, now_us=now_us, use=use) for use in uses), default=0
    )
    plan = core.catalogue.plan(account.plan)
    return BalanceView(
        account_id=account.account_id,
        name=account.name,
        plan=account.plan,
        tier=plan.name if plan is not None else account.plan,
        posted_uhs=balance.posted_uhs,
        free_uhs=balance.free_uhs,
        held_uhs=balance.held_uhs,
        debt_uhs=balance.debt_uhs,
        credit_limit_uhs=balance.credit_limit_uhs,
        receivable_microcny=balance.receivable_microcny,
        invoiced_uhs=balance.invoiced_uhs,
        charged_back_uhs=core.book.accounts[account.account_id].charged_back_uhs,
        burn_uhs_per_s=burn,
        runway_us=_lasts_us(reach_uhs, burn) if burn else None,
        units=tuple(
            UnitsView(asset=each.asset, amount=each.amount, expires_at_us=each.expires_at_us)
            for each in account.entitlements
            if each.expires_at_us > now_us
        ),
        weight_ppm=account.weight_ppm,
        cohort=account.cohort,
        standing=account.standing.value,
        standing_why=account.standing_why,
        bound_uhs=sum(lot.free_uhs for lot in balance.lots if lot.scope != ANYTHING.text),
        lots=tuple(_lot(lot) for lot in balance.lots) if lots else (),
        packages=package_answers.of_account(core, account.account_id, now_us) if lots and core.book.packages else (),
        invoices=tuple(invoices.unpaid(core, account.account_id)),
    )


def _lots(core: Core, asked: LotTermsOf, now_us: int) -> list[LotView]:
    found = ((ledgers.with_lot(core.book, lot_id), lot_id) for lot_id in asked.lot_ids)
    lots = [ledger.lots[lot_id] for ledger, lot_id in found if ledger is not None]
    return [_lot(lot_balance(lot, now_us=now_us)) for lot in lots if lot.account_id == asked.account_id]


def _lot(lot: LotBalance) -> LotView:
    return LotView(
        lot_id=lot.lot_id,
        origin=lot.origin,
        granted_uhs=lot.granted_uhs,
        free_uhs=lot.free_uhs,
        held_uhs=lot.held_uhs,
        effective_at_us=lot.effective_at_us,
        expires_at_us=lot.expires_at_us,
        scope=lot.scope,
        price_microcny=lot.price_microcny,
    )


def _quote(core: Core, question: QuoteOf, now_us: int) -> QuoteView | None:
    """The same rules as a submission, without one: what it says is what `submit` would do now."""
    spec = question.spec
    if question.account_id not in core.state.accounts:
        return None
    job = jobs.draft(JobId("quote"), question.account_id, question.key_id, spec, now_us=now_us)
    request = requests.request_of(core, job)
    refusal = jobs.why_not(core, job, request)
    if refusal is not None:
        return _refused_quote(spec, refusal)
    plan = core.plan_of(job.account_id)
    accelerator, weight_ppm = core.prices.dearest(
        spec.accelerators, service=spec.service, tier=plan.name, at_us=core.now_us
    )
    hold_uhs = holds.wanted_uhs(core, job)
    free_uhs = holds.within_key(
        core, job, core.book.free(job.account_id, now_us=now_us, use=holds.use_of(spec)), now_us=now_us
    )

    is_free = core.planner.could_place_now(request)
    begins = None if is_free else starts.of_request(core, request, now_us)

    def burn(utilisation_ppm: int) -> int:
        return burn_per_s(
            devices=spec.devices,
            weight_ppm=weight_ppm,
            curve=core.prices.curve,
            utilisation_ppm=utilisation_ppm,
            fraction=spec.fraction,
        )

    return QuoteView(
        accelerator=accelerator,
        devices=spec.devices,
        fraction=spec.fraction,
        burn_uhs_per_s=burn(REFERENCE_PPM),
        burn_max_uhs_per_s=burn(PPM),
        burn_idle_uhs_per_s=burn(0),
        hold_uhs=hold_uhs,
        runtime_us=_lasts_us(spec.limit_uhs, max(burn(REFERENCE_PPM), 1)),
        cost_microcny=spec.limit_uhs * plan.price_microcny_per_ct // UHS_PER_CT,
        free_uhs=free_uhs,
        affordable=free_uhs >= hold_uhs,
        placeable_now=is_free,
        refusal="",
        starts_known=0 if begins is None else begins.known,
        starts_p50_us=0 if begins is None else begins.p50_us,
        starts_p90_us=0 if begins is None else begins.p90_us,
        **msgspec.structs.asdict(history.of(core, job.account_id, spec.name)),
    )


def _refused_quote(spec: JobSpec, refusal: Refusal) -> QuoteView:
    return QuoteView(
        accelerator="|".join(spec.accelerators) or "any",
        devices=spec.devices,
        fraction=spec.fraction,
        burn_uhs_per_s=0,
        burn_max_uhs_per_s=0,
        burn_idle_uhs_per_s=0,
        hold_uhs=0,
        runtime_us=0,
        cost_microcny=0,
        free_uhs=0,
        affordable=False,
        placeable_now=False,
        refusal=refusal.message,
    )
