"""Shares and quotas: how accounts, and those who pay for several of them, stand to each other when they wait for devices."""

from typing import Final

import msgspec

from fabric.gate import refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.share_events import SetCohort, SetQuota, SetShare
from fabric.gate.specs import NAME_MAX
from fabric.gate.state import Account
from fabric.placement.quota_terms import POLICY_COUNT_MAX, QUOTAS_MAX, Quota
from fabric.units import PPM

WEIGHT_MIN_PPM: Final = PPM // 1_000
WEIGHT_MAX_PPM: Final = 1_000 * PPM


def set_share(core: Core, event: SetShare) -> Outcome:
    """Another weight or payer from now on; what was used stays the account's own."""
    account = core.state.accounts.get(event.account_id)
    if account is None:
        return refusals.not_found("account", event.account_id)
    weight_ppm = account.weight_ppm if event.weight_ppm is None else event.weight_ppm
    cohort = account.cohort if event.cohort is None else event.cohort
    if refusal := mistaken(weight_ppm, cohort):
        return refusal
    account.weight_ppm, account.cohort = weight_ppm, cohort
    apply(core, account)
    return Accepted()


def set_cohort(core: Core, event: SetCohort) -> Outcome:
    """Another weight for a payer, whether or not any account is its yet."""
    if not event.cohort:
        return refusals.invalid("a cohort has a name: give it one", code="invalid_cohort")
    if refusal := mistaken(event.weight_ppm, event.cohort):
        return refusal
    core.state.cohorts[event.cohort] = event.weight_ppm
    for account in core.state.accounts.values():
        if account.cohort == event.cohort:
            apply(core, account)
    return Accepted()


def set_quota(core: Core, event: SetQuota) -> Outcome:
    """Another quota, or none any more. Who runs goes on until an owner asks for what is his; nobody starts beyond it."""
    quota = Quota(
        accelerator=event.accelerator,
        account=event.account,
        cohort=event.cohort,
        nominal=event.nominal or 0,
        borrow_max=event.borrow_max,
        lend_max=event.lend_max,
    )
    policy = core.state.placement.policy
    others = [each for each in policy.quotas if each.owner != quota.owner]
    if event.nominal is None and len(others) == len(policy.quotas):
        return refusals.not_found("quota", f"{event.account or event.cohort} {event.accelerator}")
    if event.nominal is not None:
        if refusal := _no_quota(core, quota, others):
            return refusal
        others.append(quota)
    quotas = tuple(sorted(others, key=lambda each: each.owner))
    core.planner.follow(msgspec.structs.replace(policy, quotas=quotas), now_us=core.now_us)
    core.replan = True
    return Accepted()


def _no_quota(core: Core, quota: Quota, others: list[Quota]) -> Refusal | None:
    if refusal := _no_owner(core, quota):
        return refusal
    if quota.accelerator not in (known := core.prices.accelerators):
        return refusals.unknown_accelerator(quota.accelerator, tuple(known))
    if not quota.is_meant:
        return refusals.invalid(
            f"a quota, and what is borrowed or lent beside it, is of 0 to {POLICY_COUNT_MAX} devices, and no more is lent than"
            f" the quota, not {quota.nominal}, {quota.borrow_max} and {quota.lend_max}",
            code="invalid_quota",
        )
    if len(others) >= QUOTAS_MAX:
        return refusals.invalid(f"there are {QUOTAS_MAX} quotas already: remove one first", code="too_many_quotas")
    return None


def _no_owner(core: Core, quota: Quota) -> Refusal | None:
    if bool(quota.account) == bool(quota.cohort):
        return refusals.invalid("a quota is of an account or of a cohort: name one of them", code="invalid_quota")
    if quota.account and quota.account not in core.state.accounts:
        return refusals.not_found("account", quota.account)
    return mistaken(PPM, quota.cohort)


def apply(core: Core, account: Account) -> None:
    """Have those who wait stand in line by it."""
    core.planner.weigh(
        account.account_id,
        weight_ppm=account.weight_ppm,
        cohort=account.cohort,
        cohort_weight_ppm=of_cohort(core, account),
    )
    core.replan = True


def of_cohort(core: Core, account: Account) -> int:
    """The weight of the account's payer, in ppm."""
    return core.state.cohorts.get(account.cohort, PPM)


def mistaken(weight_ppm: int, cohort: str) -> Refusal | None:
    """What can't be meant; None if all can."""
    if not WEIGHT_MIN_PPM <= weight_ppm <= WEIGHT_MAX_PPM:
        return refusals.invalid(
            f"a weight is of 0.001 to {WEIGHT_MAX_PPM // PPM} ({WEIGHT_MIN_PPM} to {WEIGHT_MAX_PPM} ppm), not of"
            f" {weight_ppm} ppm",
            code="invalid_weight",
        )
    if len(cohort) > NAME_MAX:
        return refusals.invalid(
            f"a cohort's name has up to {NAME_MAX} characters, not {len(cohort)}", code="invalid_cohort"
        )
    return None
