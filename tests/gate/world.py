"""The small world of the gate's tests: prices, plans, and a gate that is driven in seconds."""

from fabric.charging.burn import BurnCurve
from fabric.charging.catalogue import (
    Bundle,
    Catalogue,
    Component,
    Cycle,
    Mode,
    Overflow,
    Plan,
    Restriction,
    Subscription,
)
from fabric.charging.tariffs import Tariffs, Weight
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Configure, JobKind, JobSpec
from fabric.units import UHS_PER_CT

S = 1_000_000
"""A second in µs; one device of weight 1 at the reference utilisation burns as many µHs in it."""
DAY = 86_400 * S
CT = UHS_PER_CT
T0 = 1_700_000_000 * S

TARIFFS = Tariffs(
    version=1,
    weights=(
        Weight(accelerator="H100", ppm=1_000_000),
        Weight(accelerator="A100", ppm=315_000),
        Weight(accelerator="A100", ppm=620_000, service="inference"),
        Weight(accelerator="910B", ppm=259_000),
        Weight(accelerator="910B", ppm=200_000, tier="post"),
    ),
)
STEEP = Tariffs(
    version=2,
    weights=(*TARIFFS.weights, Weight(accelerator="A100", ppm=400_000, hours=(8, 20))),
    curve=BurnCurve(((0, 300_000), (500_000, 600_000), (800_000, 1_000_000), (1_000_000, 1_250_000))),
)
INFERENCE = Restriction(services=("inference",))
CATALOGUE = Catalogue(
    version=1,
    plans=(
        Plan(name="starter", tier_rank=2, price_microcny_per_ct=500_000, lifetime_days=30),
        Plan(name="pro", tier_rank=1, price_microcny_per_ct=450_000, lifetime_days=90),
        Plan(
            name="post",
            tier_rank=0,
            price_microcny_per_ct=400_000,
            lifetime_days=180,
            mode=Mode.POSTPAID,
            credit_limit_uhs=2_000 * S,
        ),
    ),
    bundles=(
        Bundle(
            name="edge",
            price_microcny=60_000_000,
            components=(
                Component(
                    asset="CT", amount=300 * S, share_microcny=40_000_000, lifetime_days=9, restriction=INFERENCE
                ),
                Component(asset="CT", amount=200 * S, share_microcny=5_000_000, lifetime_days=3),
                Component(asset="5g-min", amount=600, share_microcny=15_000_000, lifetime_days=9),
            ),
        ),
    ),
    subscriptions=(
        Subscription(
            name="monthly",
            plan="pro",
            price_microcny=400_000_000,
            amount_uhs=2_000 * S,
            rollover_min_uhs=10 * S,
            rollover_max_uhs=500 * S,
            overflow=Overflow.WALLET,
        ),
        Subscription(
            name="weekly",
            plan="starter",
            price_microcny=45_000_000,
            amount_uhs=700 * S,
            cycle=Cycle.DAYS,
            cycle_days=7,
            lifetime_days=10,
            overflow=Overflow.BLOCK,
            restriction=Restriction(services=("training",)),
        ),
        Subscription(
            name="daily",
            plan="post",
            price_microcny=10_000_000,
            amount_uhs=100 * S,
            cycle=Cycle.DAYS,
            cycle_days=1,
            lifetime_days=2,
            rollover_max_uhs=60 * S,
            overflow=Overflow.POSTPAID,
        ),
    ),
)
CONFIGURE = Configure(tariffs=TARIFFS, catalogue=CATALOGUE)


def spec(limit=100 * S, *, types=("H100",), **more):
    """A function on one H100 that may burn a hundred device-seconds."""
    return JobSpec(
        name=more.pop("name", "train"),
        kind=JobKind.FUNCTION,
        limit_uhs=limit,
        accelerators=types,
        grace_us=more.pop("grace_us", 10 * S),
        **more,
    )


class Clockwork:
    """A gate whose time is told in seconds since the start, and which must be sound after every event."""

    def __init__(self, *accounts, plan="starter"):
        self.gate, self.now_us = Gate(), T0
        self.do(CONFIGURE)
        for account in accounts:
            self.do(OpenAccount(account_id=account, name=account, plan=plan))

    def at(self, seconds):
        self.now_us = T0 + round(seconds * S)
        return self

    def do(self, event):
        decision = self.gate.handle(event, self.now_us)
        self.gate.check()
        return decision

    def job(self, job_id="j"):
        return self.gate.state.jobs[job_id]
