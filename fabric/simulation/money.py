"""What a simulation, or a journal, comes to in tokens, money and energy.

A simulation's jobs pay for the devices on which they compute and are restored, at their tier's price; what is lost when the
platform sends them away is given back, as live. Of what a journal's accounts let expire, as much less expires as more is
burned. Energy is of devices in use, at what their makers say a board draws.
"""

from collections.abc import Iterable, Sequence
from typing import Final, Self

import msgspec

from fabric.accelerators import watts_of
from fabric.charging.records import Cdr
from fabric.charging.tariffs import Tariffs
from fabric.gate.state import GateState
from fabric.ledger.transfers import Transfer
from fabric.simulation.workload import HOUR_US, TIERS
from fabric.simulation.world import Task
from fabric.units import PPM, UHS_PER_CT, AccountId

_MICRO: Final = 1_000_000


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What a token costs in each tier, and what a device burns."""

    tariffs: Tariffs
    microcny_per_ct: tuple[int, ...]
    """By rank of the tier."""
    operator: str = "op"

    @classmethod
    def of(cls, state: GateState) -> Self | None:
        """Those that are in force; None where nothing is configured."""
        if state.tariffs is None or state.catalogue is None:
            return None
        by_rank: dict[int, int] = {}
        for plan in state.catalogue.plans:
            by_rank.setdefault(plan.tier_rank, plan.price_microcny_per_ct)
        known = by_rank.values()
        prices = tuple(by_rank.get(rank, max(known, default=0)) for rank in range(len(TIERS)))
        return cls(tariffs=state.tariffs, microcny_per_ct=prices, operator=state.operator)

    def weight_ppm(self, accelerator: str, *, service: str) -> int:
        """What a device weighs there; of a type without a price what an H100 does."""
        found = self.tariffs.weight_ppm(accelerator, service=service, operator=self.operator)
        return PPM if found is None else found


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over all jobs."""

    burned_ct: float = 0.0
    revenue_cny: float = 0.0
    """What was burned, at the price of its tier."""
    breakage_cny: float = 0.0
    """What expired unused."""
    kwh: float = 0.0


class Sums:
    """Adds up what the entries of a journal have booked."""

    def __init__(self) -> None:
        self.burned_uhs = 0
        self.revenue_micro = 0
        self.breakage_micro = 0
        self.device_us: dict[str, int] = {}

    def take(self, transfers: Sequence[Transfer], records: Iterable[Cdr], state: GateState) -> None:
        """One entry more."""
        for record in records:
            price = _price(state, record.account_id)
            self.burned_uhs += record.charged_uhs
            self.revenue_micro += record.charged_uhs * price // UHS_PER_CT
            if record.devices:
                device_us = record.devices * record.metered_us
                self.device_us[record.accelerator] = self.device_us.get(record.accelerator, 0) + device_us
        for transfer in transfers:
            if transfer.kind == "expire":
                expired = max((abs(posting.amount) for posting in transfer.postings), default=0)
                self.breakage_micro += expired * _price(state, transfer.account_id) // UHS_PER_CT

    def money(self) -> Money:
        """All of it."""
        return Money(
            burned_ct=self.burned_uhs / UHS_PER_CT,
            revenue_cny=self.revenue_micro / _MICRO,
            breakage_cny=self.breakage_micro / _MICRO,
            kwh=kwh(self.device_us),
        )


def of_tasks(tasks: Iterable[Task], used_us: dict[str, int], prices: Prices, *, was: Money | None = None) -> Money:
    """What simulated jobs come to: `used_us` is device-time by type; `was` is what happened with the same jobs."""
    burned = revenue = 0.0
    share = _mix(used_us)
    for task in tasks:
        work = task.work
        device_h = ((work.duration_us - task.left_us) * work.devices + task.restored_us) / HOUR_US
        types = {kind: part for kind, part in share.items() if not work.types or kind in work.types} or share
        whole = sum(types.values()) or 1.0
        weight = sum(prices.weight_ppm(kind, service=work.service) * part for kind, part in types.items()) / whole / PPM
        burned += device_h * weight
        revenue += device_h * weight * prices.microcny_per_ct[work.tier] / _MICRO
    breakage = max(was.breakage_cny - max(revenue - was.revenue_cny, 0.0), 0.0) if was is not None else 0.0
    return Money(burned_ct=burned, revenue_cny=revenue, breakage_cny=breakage, kwh=kwh(used_us))


def kwh(used_us: dict[str, int]) -> float:
    """What devices draw in so much device-time, by type."""
    return sum(watts_of(kind) * us / HOUR_US / 1000 for kind, us in used_us.items())


def _mix(used_us: dict[str, int]) -> dict[str, float]:
    total = sum(used_us.values()) or 1
    return {kind: us / total for kind, us in used_us.items()} or {"H100": 1.0}


def _price(state: GateState, account_id: str) -> int:
    account = state.accounts.get(AccountId(account_id))
    if account is None or state.catalogue is None:
        return 0
    plan = state.catalogue.plan(account.plan)
    return 0 if plan is None else plan.price_microcny_per_ct
