"""What a purchase grants and costs, and when a subscription grants again.

Pure arithmetic on the catalogue: money in 10⁻⁶ CNY, tokens in µHs, times in µs since the Unix epoch, calendar in UTC.
Does not know accounts, lots or payments; whoever asks turns what it says into lots.
"""

import calendar
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from fabric.charging.catalogue import COMPUTE, UNRESTRICTED, Bundle, Cycle, Overflow, Plan, Restriction, Subscription
from fabric.charging.packages import weights_of
from fabric.charging.rounding import half_even
from fabric.units import UHS_PER_CT

DAY_US: Final = 86_400_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_MONTHS_A_YEAR: Final = 12


class LotTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that were bought or granted, before they are a lot."""

    amount_uhs: int
    price_microcny: int
    effective_at_us: int
    expires_at_us: int
    restriction: Restriction = UNRESTRICTED
    asset: str = COMPUTE


class Entitlement(msgspec.Struct, frozen=True, kw_only=True):
    """Units of something else than compute tokens."""

    asset: str
    amount: int
    price_microcny: int
    expires_at_us: int


class BundleGrants(msgspec.Struct, frozen=True, kw_only=True):
    """What one purchase of a bundle gives. All of it or nothing."""

    lots: tuple[LotTerms, ...]
    entitlements: tuple[Entitlement, ...]


class CycleGrants(msgspec.Struct, frozen=True, kw_only=True):
    """What one cycle of a subscription gives."""

    grant: LotTerms
    rollover: LotTerms | None
    """What is carried over from the cycle before, in place of what is left of its lots."""


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """How an amount is met under an overflow policy. The four parts add up to it."""

    included_uhs: int
    wallet_uhs: int
    credit_uhs: int
    uncovered_uhs: int
    """What a new hold must not be given; what a settlement writes off."""


def price_of(plan: Plan, *, amount_uhs: int) -> int:
    """What tokens cost on a plan, half-even, but never nothing: no tokens are given away by rounding."""
    price = half_even(amount_uhs * plan.price_microcny_per_ct, UHS_PER_CT)
    return max(price, 1) if amount_uhs and plan.price_microcny_per_ct else price


def top_up(plan: Plan, *, amount_uhs: int, now_us: int) -> LotTerms:
    """The lot that a top-up buys."""
    return LotTerms(
        amount_uhs=amount_uhs,
        price_microcny=price_of(plan, amount_uhs=amount_uhs),
        effective_at_us=now_us,
        expires_at_us=now_us + plan.lifetime_days * DAY_US,
    )


def bundle_grants(bundle: Bundle, *, now_us: int) -> BundleGrants:
    """The lots and other units that a bundle buys; their prices add up to the bundle's."""
    lots: list[LotTerms] = []
    entitlements: list[Entitlement] = []
    for part in bundle.components:
        expires_at_us = now_us + part.lifetime_days * DAY_US
        if part.asset == COMPUTE or weights_of(part.asset) is not None:
            lots.append(
                LotTerms(
                    amount_uhs=part.amount,
                    price_microcny=part.share_microcny,
                    effective_at_us=now_us,
                    expires_at_us=expires_at_us,
                    restriction=part.restriction,
                    asset=part.asset,
                )
            )
        else:
            entitlements.append(
                Entitlement(
                    asset=part.asset,
                    amount=part.amount,
                    price_microcny=part.share_microcny,
                    expires_at_us=expires_at_us,
                )
            )
    return BundleGrants(lots=tuple(lots), entitlements=tuple(entitlements))


def cycle_start_us(subscription: Subscription, *, started_at_us: int, index: int) -> int:
    """When cycle `index` starts; cycle 0 is the subscription's start.

    A month is a calendar month counted from the start, never from the month before: from the 31st of January it is the
    28th (or 29th) of February, then the 31st of March again.
    """
    if subscription.cycle is Cycle.DAYS:
        return started_at_us + index * subscription.cycle_days * DAY_US
    start = _EPOCH + timedelta(microseconds=started_at_us)
    years, month = divmod(start.month - 1 + index, _MONTHS_A_YEAR)
    year, month = start.year + years, month + 1
    day = min(start.day, calendar.monthrange(year, month)[1])
    return (start.replace(year=year, month=month, day=day) - _EPOCH) // _MICROSECOND


def next_cycle_us(subscription: Subscription, *, started_at_us: int, index: int) -> int:
    """When cycle `index` ends, which is when the one after it starts."""
    return cycle_start_us(subscription, started_at_us=started_at_us, index=index + 1)


def cycle_grants(subscription: Subscription, *, started_at_us: int, index: int, left_uhs: int = 0) -> CycleGrants:
    """What cycle `index` grants, given what is left of the cycle before."""
    start_us = cycle_start_us(subscription, started_at_us=started_at_us, index=index)
    end_us = next_cycle_us(subscription, started_at_us=started_at_us, index=index)
    if subscription.lifetime_days is not None:
        end_us = start_us + subscription.lifetime_days * DAY_US
    carried_uhs = rollover_uhs(left_uhs, subscription=subscription) if index else 0
    return CycleGrants(
        grant=_granted(subscription, subscription.amount_uhs, subscription.price_microcny, start_us, end_us),
        rollover=_granted(subscription, carried_uhs, 0, start_us, end_us) if carried_uhs else None,
    )


def rollover_uhs(left_uhs: int, *, subscription: Subscription) -> int:
    """How much of what is left is carried over: at least the one bound, at most the other (OpenMeter's rule)."""
    return min(subscription.rollover_max_uhs, max(left_uhs, subscription.rollover_min_uhs))


def spend(policy: Overflow, *, amount_uhs: int, included_uhs: int, wallet_uhs: int, credit_uhs: int) -> Spending:
    """Meet an amount from a subscription's own tokens, then from whatever its overflow policy lets in.

    The same rule for a hold and for a settlement: what is authorised and what is booked never disagree.
    """
    included = min(amount_uhs, max(included_uhs, 0))
    wallet = 0 if policy is Overflow.BLOCK else min(amount_uhs - included, max(wallet_uhs, 0))
    beyond = amount_uhs - included - wallet
    credit = min(beyond, max(credit_uhs, 0)) if policy is Overflow.POSTPAID else 0
    return Spending(included_uhs=included, wallet_uhs=wallet, credit_uhs=credit, uncovered_uhs=beyond - credit)


def _granted(subscription: Subscription, amount_uhs: int, price_microcny: int, start_us: int, end_us: int) -> LotTerms:
    return LotTerms(
        amount_uhs=amount_uhs,
        price_microcny=price_microcny,
        effective_at_us=start_us,
        expires_at_us=end_us,
        restriction=subscription.restriction,
        asset=subscription.asset,
    )
