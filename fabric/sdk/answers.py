"""What the SDK answers: amounts as integers of µHs, and the same as text in tokens for people."""

from dataclasses import dataclass

from fabric.units import format_ct
from fabric.wire import fabric_pb2 as pb

_US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What a job would cost, before it exists."""

    accelerator: str
    devices: int
    hold_uhs: int
    burn_uhs_per_s: int
    """At 80 % utilisation."""
    burn_idle_uhs_per_s: int
    burn_max_uhs_per_s: int
    runtime_s: float
    """How long the limit lasts at 80 % utilisation."""
    cost_microcny: int
    free_uhs: int
    affordable: bool
    placeable_now: bool
    refusal: str
    """Why it would be refused; "" if it wouldn't be."""

    @property
    def hold_ct(self) -> str:
        return format_ct(self.hold_uhs, round_up=True)

    @property
    def free_ct(self) -> str:
        return format_ct(self.free_uhs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a job has burned so far; final once `settled`."""

    burned_uhs: int
    held_uhs: int
    limit_uhs: int
    burn_uhs_per_s: int
    utilisation: float
    runway_s: float | None
    settled: bool

    @property
    def burned_ct(self) -> str:
        return format_ct(self.burned_uhs, decimals=8)

    @property
    def held_ct(self) -> str:
        return format_ct(self.held_uhs)

    @property
    def limit_ct(self) -> str:
        return format_ct(self.limit_uhs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What an account owns: free and held apart."""

    account_id: str
    plan: str
    posted_uhs: int
    free_uhs: int
    held_uhs: int
    debt_uhs: int
    burn_uhs_per_s: int
    runway_s: float | None

    @property
    def free_ct(self) -> str:
        return format_ct(self.free_uhs)

    @property
    def held_ct(self) -> str:
        return format_ct(self.held_uhs)


def quote_of(reply: pb.QuoteReply) -> Quote:
    return Quote(
        accelerator=reply.accelerator,
        devices=reply.devices,
        hold_uhs=reply.hold_uhs,
        burn_uhs_per_s=reply.burn_uhs_per_s,
        burn_idle_uhs_per_s=reply.burn_idle_uhs_per_s,
        burn_max_uhs_per_s=reply.burn_max_uhs_per_s,
        runtime_s=reply.runtime_us / _US_PER_S,
        cost_microcny=reply.cost_microcny,
        free_uhs=reply.free_uhs,
        affordable=reply.affordable,
        placeable_now=reply.placeable_now,
        refusal=reply.refusal,
    )


def cost_of(job: pb.Job) -> Cost:
    return Cost(
        burned_uhs=job.burned_uhs,
        held_uhs=job.held_uhs,
        limit_uhs=job.limit_uhs,
        burn_uhs_per_s=job.burn_uhs_per_s,
        utilisation=job.utilisation_ppm / 1_000_000,
        runway_s=job.runway_us / _US_PER_S if job.HasField("runway_us") else None,
        settled=job.settled,
    )


def balance_of(reply: pb.BalanceReply) -> Balance:
    return Balance(
        account_id=reply.account_id,
        plan=reply.plan,
        posted_uhs=reply.posted_uhs,
        free_uhs=reply.free_uhs,
        held_uhs=reply.held_uhs,
        debt_uhs=reply.debt_uhs,
        burn_uhs_per_s=reply.burn_uhs_per_s,
        runway_s=reply.runway_us / _US_PER_S if reply.HasField("runway_us") else None,
    )
