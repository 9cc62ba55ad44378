"""The section `scheduling:` of a cluster file: the numbers by which jobs are placed."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from fabric.config.sections import Section
from fabric.placement.quota_terms import POLICY_COUNT_MAX, Quota
from fabric.placement.quotas import HOUR_US, LONGEST_GRACE_US, MINUTE_US, PERCENT_MAX, POOLS, Policy
from fabric.placement.score import TERMS
from fabric.units import MICROS_PER_S

_COHORT = "cohort:"
_MINUTES_MAX = 365 * 24 * 60
Minutes = Annotated[int, Field(ge=0, le=_MINUTES_MAX)]
Count = Annotated[int, Field(ge=1, le=POLICY_COUNT_MAX)]


class WaitsSection(Section):
    """By class of service, how many minutes a job may wait before devices are reserved for it."""

    inference: Minutes = 1
    enterprise: Minutes = 5
    professional: Minutes = 10
    starter: Minutes = 60
    batch: Minutes = 360


Grace = Annotated[int, Field(ge=0, le=LONGEST_GRACE_US // MICROS_PER_S)]


class GracesSection(Section):
    """By pool, the longest that a job may take to leave when it is evicted, in seconds."""

    reserved: Grace = 120
    """Of jobs that reserved nodes are lent to: how long reserved inference waits for a reclaim, at most."""
    dedicated: Grace = 86_400
    spot: Grace = 600


class QuotaSection(Section):
    """Devices of one type, in Kueue's terms."""

    nominal: Annotated[int, Field(ge=0, le=POLICY_COUNT_MAX)]
    """Guaranteed: whoever borrowed them leaves within his grace as soon as they are asked for."""
    borrow: Annotated[int, Field(ge=0, le=POLICY_COUNT_MAX)] | None = None
    """So many more are held at most; null = as many as there are."""
    lend: Annotated[int, Field(ge=0, le=POLICY_COUNT_MAX)] | None = None
    """So many of them at most are lent while they aren't used; null = all."""


Percent = Annotated[int, Field(ge=0, le=PERCENT_MAX)]


class ScoreSection(Section):
    """How much each term of the score counts, in percent, where a job may have several types and says what it prefers."""

    tokens: Percent = 100
    """What it burns there."""
    time: Percent = 100
    """How long it takes there, a device-second as a token-second; a tenth of that, of a job that prefers to burn fewest tokens."""
    data: Percent = 100
    """What its devices burn while its data are fetched."""
    energy: Percent = 10
    """What its devices draw, a full H100's second as a token-second."""
    risk: Percent = 100
    """What is expected to be lost when devices are taken away there."""
    others: Percent = 100
    """What it burns there once more, as far as the type is in use."""


class SchedulingSection(Section):
    """Changed by another `fabric up`, also while jobs run: what was decided before stands."""

    headroom_devices: Annotated[int, Field(ge=0, le=POLICY_COUNT_MAX)] = 0
    """Idle reserved devices of each type that are never lent. 0 lends everything: a reclaim frees them within the grace."""
    keep_percent: Annotated[int, Field(ge=0, le=PERCENT_MAX)] = 100
    """How long what reserved inference leaves is not lent, as a part of what an eviction usually loses of each device's work: 100
    = until keeping it idle has cost as much as having to evict who it would be lent to. 0 = lent at once."""
    lend_dedicated: bool = True
    """Whether idle cells of one account are lent to jobs of others that may be evicted, until their owner asks."""
    waits_min: WaitsSection = WaitsSection()
    bypasses_max: Count = 50
    """How many jobs of others, of its class or lower, may start past a job that can't, before devices are reserved for it."""
    run_min: Minutes = 10
    """A job runs at least so long before it is evicted, unless reserved inference reclaims its nodes."""
    evictions_max: Count = 3
    """After so many evictions within a day a job is left alone by its equals, and goes last of those that a better class may evict."""
    reserved_percent: Annotated[int, Field(ge=0, le=100)] = 8
    """Of a pool's devices of a type so many in a hundred are reserved at a time for jobs that waited too long, or one job's."""
    pins_max: Count = 6
    """So many jobs of a class have reservations in one pool's devices of a type at a time."""
    whole_node_waits: Annotated[int, Field(ge=0, le=POLICY_COUNT_MAX)] = 6
    """So many times as long as its class may wait for a reservation a gang waits for one node, where one could have it."""
    loss_percent: Annotated[int, Field(ge=1, le=PERCENT_MAX)] = 10
    """For a job with a reservation at most so much is lost of others' work as this part of how long it has been reserved for."""
    cheap_min: Minutes = 5
    """So many minutes of each device's work may be lost at once for a better class, where jobs save,"""
    patience: Count = 4
    """and one more for every so many minutes that it has waited."""
    retry_s: Annotated[int, Field(ge=1, le=3600)] = 60
    """How long a job that can't start waits before it is looked again for whom to evict."""
    half_life_h: Annotated[int, Field(ge=1, le=_MINUTES_MAX // 60)] = 168
    """After so many hours, use counts half as much against an account."""
    entry_min: Minutes = 10
    """Starting a job counts as the use of its devices for so many minutes, which its use is set off against."""
    graces_s: GracesSection = GracesSection()
    """A job that asks for a longer grace isn't let into the pool: it is told so when it is submitted."""
    score_percent: ScoreSection = ScoreSection()

    quotas: dict[str, dict[str, QuotaSection]] = Field(default_factory=dict)
    """By account, or `cohort:NAME`, and type. Of types that there is a quota of, whoever has none borrows what he runs on."""

    @classmethod
    def of(cls, policy: Policy) -> "SchedulingSection":
        """How a cluster file would say it."""
        names = ("inference", "enterprise", "professional", "starter", "batch")
        return cls(
            headroom_devices=policy.headroom_devices,
            keep_percent=policy.keep_percent,
            lend_dedicated=policy.lend_dedicated,
            waits_min=WaitsSection(**{name: us // MINUTE_US for name, us in zip(names, policy.waits_us, strict=True)}),
            bypasses_max=policy.bypasses_max,
            run_min=policy.run_us_min // MINUTE_US,
            evictions_max=policy.evictions_max,
            reserved_percent=policy.reserved_percent,
            pins_max=policy.pins_max,
            whole_node_waits=policy.whole_node_waits,
            loss_percent=policy.loss_percent,
            cheap_min=policy.cheap_us // MINUTE_US,
            patience=policy.patience,
            retry_s=policy.retry_us // MICROS_PER_S,
            half_life_h=policy.half_life_us // HOUR_US,
            entry_min=policy.entry_us // MINUTE_US,
            graces_s=GracesSection(
                **{pool: us // MICROS_PER_S for pool, us in zip(POOLS, policy.graces_us, strict=True)}
            ),
            quotas=_said(policy.quotas),
            score_percent=ScoreSection(**dict(zip(TERMS, policy.score_percent, strict=True))),
        )

    @property
    def policy(self) -> Policy:
        """As the gate has it: microseconds and counts."""
        waits, graces, score = self.waits_min, self.graces_s, self.score_percent
        minutes = (waits.inference, waits.enterprise, waits.professional, waits.starter, waits.batch)
        inference, enterprise, professional, starter, batch = (each * MINUTE_US for each in minutes)
        return Policy(
            headroom_devices=self.headroom_devices,
            keep_percent=self.keep_percent,
            lend_dedicated=self.lend_dedicated,
            waits_us=(inference, enterprise, professional, starter, batch),
            bypasses_max=self.bypasses_max,
            run_us_min=self.run_min * MINUTE_US,
            evictions_max=self.evictions_max,
            reserved_percent=self.reserved_percent,
            pins_max=self.pins_max,
            whole_node_waits=self.whole_node_waits,
            loss_percent=self.loss_percent,
            cheap_us=self.cheap_min * MINUTE_US,
            patience=self.patience,
            retry_us=self.retry_s * MICROS_PER_S,
            half_life_us=self.half_life_h * HOUR_US,
            entry_us=self.entry_min * MINUTE_US,
            graces_us=(graces.reserved * MICROS_PER_S, graces.dedicated * MICROS_PER_S, graces.spot * MICROS_PER_S),
            quotas=tuple(sorted(_meant(self.quotas), key=lambda quota: quota.owner)),
            score_percent=(score.tokens, score.time, score.data, score.energy, score.risk, score.others),
        )


def _said(quotas: tuple[Quota, ...]) -> dict[str, dict[str, QuotaSection]]:
    said: dict[str, dict[str, QuotaSection]] = {}
    for quota in quotas:
        owner = f"{_COHORT}{quota.cohort}" if quota.cohort else quota.account
        section = QuotaSection(nominal=quota.nominal, borrow=quota.borrow_max, lend=quota.lend_max)
        said.setdefault(owner, {})[quota.accelerator] = section
    return said


def _meant(said: dict[str, dict[str, QuotaSection]]) -> Iterator[Quota]:
    for owner, sections in said.items():
        cohort = owner.removeprefix(_COHORT) if owner.startswith(_COHORT) else ""
        for accelerator, section in sections.items():
            yield Quota(
                accelerator=accelerator,
                account="" if cohort else owner,
                cohort=cohort,
                nominal=section.nominal,
                borrow_max=section.borrow,
                lend_max=section.lend,
            )
