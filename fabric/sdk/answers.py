"""What the SDK answers: amounts as integers of µHs, and the same as text in tokens for people."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fabric.units import Fraction, format_cny, format_ct, format_fraction, format_llm_tokens
from fabric.wire import fabric_pb2 as pb

_US_PER_S = 1_000_000
_S_PER_H = 3_600
_S_PER_D = 86_400


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
    runs: int = 0
    """How many jobs of the same name have succeeded: what follows is known of them."""
    burned_p50_uhs: int = 0
    burned_p90_uhs: int = 0
    took_p50_s: float = 0.0
    took_p90_s: float = 0.0
    starts_known: int = 0
    """When it would start if it can't now: reckoned from so many guesses about other jobs; 0 = it isn't known."""
    starts_p50_s: float = 0.0
    """Half of such jobs start within so long,"""
    starts_p90_s: float = 0.0
    """nine of ten within so long."""
    fraction: Fraction | None = None
    """Of its one device it would have such a part; None = whole devices."""

    @property
    def on(self) -> str:
        """`2 × H100`, or `1/4 × H100`."""
        return f"{format_fraction(self.fraction) or self.devices} × {self.accelerator}"

    def __str__(self) -> str:
        if self.refusal:
            return f"{self.on}: refused, {self.refusal}"
        enough = "enough" if self.affordable else "too few"
        start = "can start now" if self.placeable_now else "would wait for devices"
        if self.starts_known:
            start += f" {_time(self.starts_p50_s)} to {_time(self.starts_p90_s)} (half of such jobs, nine of ten)"
        return (
            f"{self.on}, {start}: lasts {_time(self.runtime_s)} at 80 % utilisation, costs at"
            f" most {format_cny(self.cost_microcny)} CNY\n"
            f"burns {_an_hour(self.burn_uhs_per_s)} CT/h at 80 % utilisation, {_an_hour(self.burn_idle_uhs_per_s)} idle,"
            f" {_an_hour(self.burn_max_uhs_per_s)} at most; holds {self.hold_ct} CT at the start, {self.free_ct} are free:"
            f" {enough}"
        )

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

    def __str__(self) -> str:
        if self.settled:
            return f"{self.burned_ct} of {self.limit_ct} CT burned"
        left = "" if self.runway_s is None else f", enough for {_time(self.runway_s)} more"
        return f"{self.burned_ct} of {self.limit_ct} CT burned so far, {self.held_ct} held{left}"

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
class Package:
    """What an account has of a package of LLM tokens, in thousandths of a token of weight 1."""

    family: str
    asset: str
    """With the weights by which it is counted: see docs/money.md."""
    free: int
    held: int
    used: int
    expired: int
    worth_uhs: int
    """The most that calls would cost in compute tokens which what is left can pay for."""

    def __str__(self) -> str:
        left, held = format_llm_tokens(self.free), format_llm_tokens(self.held)
        used, expired = format_llm_tokens(self.used), format_llm_tokens(self.expired)
        return f"{self.family}: {left} LLM tokens left, {held} held, {used} used, {expired} expired"


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
    """How long what is held, and free for what runs, lasts at this burn."""
    bound_uhs: int = 0
    """Of what is free: good for some uses only, as the lots say."""
    packages: tuple[Package, ...] = ()
    """Of LLM tokens: calls take of these first."""

    def __str__(self) -> str:
        bound = f" ({format_ct(self.bound_uhs)} for some uses only)" if self.bound_uhs else ""
        owed = f", {format_ct(self.debt_uhs)} owed" if self.debt_uhs else ""
        runway = "" if self.runway_s is None else f"; at this burn enough for {_time(self.runway_s)}"
        packages = "".join(f"; {package}" for package in self.packages)
        return f"{self.account_id}: {self.free_ct} CT free{bound}, {self.held_ct} held{owed}{runway}{packages}"

    @property
    def free_ct(self) -> str:
        return format_ct(self.free_uhs)

    @property
    def held_ct(self) -> str:
        return format_ct(self.held_uhs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What was bought, and what there is now."""

    bought_uhs: int
    price_microcny: int
    expires_at_us: int | None
    """None = never."""
    free_uhs: int

    def __str__(self) -> str:
        until = "for good"
        if self.expires_at_us is not None:
            until = (
                f"good until {dt.datetime.fromtimestamp(self.expires_at_us / _US_PER_S).astimezone():%Y-%m-%d %H:%M}"
            )
        price = format_cny(self.price_microcny)
        return f"{format_ct(self.bought_uhs)} CT for {price} CNY, {until}; {format_ct(self.free_uhs)} CT free now"


def quote_of(reply: pb.QuoteReply) -> Quote:
    return Quote(
        accelerator=reply.accelerator,
        devices=reply.devices,
        fraction=(reply.fraction[0], reply.fraction[1]) if reply.fraction else None,
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
        runs=reply.runs,
        burned_p50_uhs=reply.burned_p50_uhs,
        burned_p90_uhs=reply.burned_p90_uhs,
        took_p50_s=reply.took_p50_us / _US_PER_S,
        took_p90_s=reply.took_p90_us / _US_PER_S,
        starts_known=reply.starts_known,
        starts_p50_s=reply.starts_p50_us / _US_PER_S,
        starts_p90_s=reply.starts_p90_us / _US_PER_S,
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
        bound_uhs=reply.bound_uhs,
        packages=tuple(
            Package(
                family=each.family,
                asset=each.asset,
                free=each.free,
                held=each.held,
                used=each.used,
                expired=each.expired,
                worth_uhs=each.worth_uhs,
            )
            for each in reply.packages
        ),
    )


def purchase_of(amount_uhs: int, facts: Mapping[str, str | int | bool | None]) -> Purchase:
    """From what the door says beside its yes."""

    def number(name: str) -> int | None:
        value = facts.get(name)
        return int(value) if value is not None else None

    return Purchase(
        bought_uhs=amount_uhs,
        price_microcny=number("price_microcny") or 0,
        expires_at_us=number("expires_at_us"),
        free_uhs=number("free_uhs") or 0,
    )


def _an_hour(uhs_per_s: int) -> str:
    return format_ct(uhs_per_s * _S_PER_H, round_up=True)


def _time(seconds: float) -> str:
    """As people say it, rounded down."""
    for unit_s, unit in ((_S_PER_D, "d"), (_S_PER_H, "h"), (60, "min")):
        if seconds >= unit_s:
            return f"{int(seconds * 10 / unit_s) / 10:g} {unit}"
    return f"{int(seconds)} s"


@dataclass(frozen=True, slots=True)
class FetchedCheckpoint:
    """A checkpoint on this machine."""

    path: Path
    step: int
    bytes: int
    is_folder: bool
    """Whether it is a folder that a command kept, and not the state of a run."""
