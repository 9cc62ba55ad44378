"""What a job asks of the planner: its gang, its class, and where it would rather be."""

from typing import Final

import msgspec

from fabric.accelerators import vendor_of
from fabric.gate import holds, notice, rates, shares
from fabric.gate.core import Core
from fabric.gate.events import JobKind
from fabric.gate.state import Job
from fabric.ledger.scopes import Service
from fabric.placement import Request as PlacementRequest
from fabric.placement import locality
from fabric.placement.score import Wish
from fabric.units import PPM

WAITS_FOR_CAPACITY: Final = "waiting_for_capacity"
_NAMES: Final = {service: service.value for service in Service}


def enqueue(core: Core, job: Job, request: PlacementRequest | None = None) -> None:
    """The job waits for devices from now on, and says for which if not any would do."""
    found = request or request_of(core, job)
    if job.saves_us:
        found = notice.heeded(core, job, found)
        job.reason = notice.waits(job, found) or job.reason
    is_barred = found.grace_us > core.planner.shortest_grace_us
    if is_barred and not found.notice_us and job.reason == WAITS_FOR_CAPACITY:
        job.reason = notice.not_lent(core, found) or job.reason
    core.planner.enqueue(found, now_us=core.now_us)
    core.replan = True


def request_of(core: Core, job: Job) -> PlacementRequest:
    spec, account = job.spec, core.state.accounts[job.account_id]
    speeds: rates.Speeds = ()
    wish: Wish | None = None
    if spec.prefer or spec.devices_least is not None or not spec.accelerators:
        speeds, wish = _choice(core, job)
    warm, saves_us = locality.warmest(spec.data, core.state.holdings, devices=spec.devices) if spec.data else ((), 0)
    if wish is not None and saves_us:
        wish = msgspec.structs.replace(wish, cold_us=saves_us)
    return PlacementRequest(
        job_id=job.job_id,
        account_id=job.account_id,
        devices=spec.devices,
        devices_per_node=spec.devices_per_node,
        accelerators=spec.accelerators,
        tier_rank=core.rank_of(job.account_id),
        service=_NAMES[spec.service],
        preemptible=spec.preemptible,
        weight_ppm=account.weight_ppm,
        cohort=account.cohort,
        cohort_weight_ppm=shares.of_cohort(core, account) if account.cohort else PPM,
        grace_us=spec.grace_us,
        submitted_at_us=job.submitted_at_us,
        devices_least=spec.devices_least,
        speeds=speeds,
        prefers=job.saved_on + tuple([node_id for node_id in warm if node_id not in job.saved_on])
        if warm
        else job.saved_on,
        patience_us=locality.patience_us(estimate_us=spec.estimate_us, saves_us=saves_us) if saves_us else 0,
        mixtures=() if spec.mix == "never" else _mixtures(core, job),
        fraction=spec.fraction,
        wish=wish,
    )


def _choice(core: Core, job: Job) -> tuple[rates.Speeds, Wish | None]:
    """How fast its types are for it, where that counts, and its wish, if it has one and several types to choose from."""
    spec = job.spec
    if spec.prefer and len(spec.accelerators) != 1:
        return rates.wish_of(core, job, _speeds(core, job))
    return (_speeds(core, job) if spec.devices_least is not None or not spec.accelerators else ()), None


def _mixtures(core: Core, job: Job) -> tuple[tuple[str, ...], ...]:
    """The types that may be one gang of this job."""
    if job.spec.kind is JobKind.LEASE:
        return ()
    types = job.spec.accelerators or tuple(core.prices.accelerators)
    if job.spec.mix == "islands":
        return (types,) if len(types) > 1 else ()
    vendors: dict[str, list[str]] = {}
    for name in types:
        vendors.setdefault(vendor_of(name), []).append(name)
    return tuple(tuple(names) for names in vendors.values() if len(names) > 1)


def _speeds(core: Core, job: Job) -> tuple[tuple[str, int], ...]:
    """What a device of each type gets done for this job: what it is charged for."""
    types = job.spec.accelerators or tuple(core.prices.accelerators)
    return tuple((name, holds.weight_of(core, job, name)) for name in types)
