"""Events of limits that reset: how much may be used in a day, a week, a month or ever, by whom it is counted, and what clocks
of a time zone show.
"""

from enum import StrEnum

import msgspec

from fabric.gate.event import Event
from fabric.gate.periods import UTC, Period, Zone
from fabric.units import AccountId, KeyId


class Unit(StrEnum):
    """What a limit counts."""

    CT = "ct"
    """Compute tokens; amounts in µHs."""
    CNY = "cny"
    """The same in money, at the account's price when they burned; amounts in 10⁻⁶ CNY."""
    LLM = "llm"
    """Tokens of language models, prompts' and completions' together."""


class Whose(StrEnum):
    """Whose use a limit counts."""

    KEY = "key"
    PROJECT = "project"
    """All keys of a project of the account's organisation."""
    MEMBER = "member"
    """All keys of a member of it, whichever wallet pays."""
    ACCOUNT = "account"


class LimitTerms(msgspec.Struct, frozen=True, kw_only=True):
    """One limit. Of one subject, those of other periods, units or kinds stand beside it; one like it takes its place."""

    period: Period
    unit: Unit = Unit.CT
    amount: int
    hard: bool = True
    """Whether more is refused, and what runs is parked; False = its owner is told, once a period."""
    zone: str = UTC
    """By whose calendar periods begin."""
    starts_on: int = 1
    """Of a week the weekday (1 = Monday), of a month the day, in shorter months their last."""


class LearnZone(Event, frozen=True, kw_only=True, tag="learn_zone"):
    """What clocks of a time zone show, from now on, as far as the machine knows that decides by it."""

    zone: Zone


class SetLimit(Event, frozen=True, kw_only=True, tag="set_limit"):
    """Limit what a key, a project, a member or the account as a whole may use, or take that limit away. Counts from now on; what is
    held counts too.
    """

    account_id: AccountId
    whose: Whose
    name: str = ""
    """The key's id, the project or the member; "" = the account."""
    terms: LimitTerms
    remove: bool = False
    """Whether the limit of that period, unit and kind goes."""
    by_operator: bool = False
    """Said by an operator: only an operator changes it."""
    made_with: KeyId | None = None
    """The key of whoever asks."""
    request_id: str = ""


AnyLimitEvent = LearnZone | SetLimit
