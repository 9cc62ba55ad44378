"""Limits that reset: how much of a key's, or an account's, is left in this period, and what is counted against it.

What is held counts in full, so a limit is not exceeded however many gateways spend at once: the most that can go beyond it
is what one slice turns out to have used of LLM tokens. What burns is counted in the period in which it burned, also where that
is over when it is told. A period ends by the clock: no event is needed for it, and whoever looks counts from the new one.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from fabric.charging.packages import weights_of
from fabric.charging.rates import MTOK
from fabric.charging.records import Cdr
from fabric.gate import keys, limit_texts, notices, organisations, prices_then, refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Refusal
from fabric.gate.lifecycle import StopReason
from fabric.gate.limit_events import LimitTerms, Unit, Whose
from fabric.gate.limit_state import Limit
from fabric.gate.periods import IN_UTC, Zone, around
from fabric.gate.state import Job, Key
from fabric.ledger.state import Ledger
from fabric.units import INT64_MAX, UHS_PER_CT, AccountId, KeyId

_ACCOUNT: Final = "account/"
CAUTION: Final = 4
"""A slice under a limit of LLM tokens is of at most one part in this many of those that are left, if those are its cheapest."""


class Room(NamedTuple):
    """What limits leave."""

    left_uhs: int
    limit: Limit | None
    """The one that leaves least; None = the key's own for life."""
    whose: str = ""
    """As limits are kept by (`named`)."""


class Standing(NamedTuple):
    """What is used of a limit, in its unit; times in µs."""

    used: int
    used_before: int
    """In the period before."""
    from_us: int
    until_us: int | None
    """When the next period begins; None = never."""


class InPackages(NamedTuple):
    """What is held in packages of LLM tokens, at most."""

    uhs: int
    """What it would be in compute tokens."""
    tokens: int


# -- what is left -----------------------------------------------------------------------------------------------------


def room(
    core: Core,
    account_id: AccountId,
    key_id: str,
    *,
    now_us: int | None = None,
    least_uhs: int = 1,
    models: tuple[str, ...] | None = None,
) -> Room | None:
    """What the limits of the key and the account leave to be held, by the one that leaves least; None if there are none.

    Args:
        core: for the limits.
        account_id: who pays.
        key_id: with which key; "" = none.
        now_us: when; None = now.
        least_uhs: the least that is of use: of LLM tokens so much is left as long as any are.
        models: what for, of calls; None = a job, which uses no LLM tokens.
    """
    nearest, key = None, core.state.keys.get(KeyId(key_id)) if key_id else None
    if key is not None and (own := keys.left_uhs(key)) is not None:
        nearest = Room(own, None)
    if not core.state.limits:
        return nearest
    at_us = core.now_us if now_us is None else now_us
    for whose, limit in _of(core, account_id, key_id):
        if not limit.terms.hard or (limit.terms.unit is Unit.LLM and models is None):
            continue
        left_uhs = _left_uhs(core, account_id, whose, limit, at_us, least_uhs=least_uhs, models=models)
        if left_uhs is not None and (nearest is None or left_uhs < nearest.left_uhs):
            nearest = Room(left_uhs, limit, whose)
    return nearest


def refused(core: Core, found: Room, *, needed_uhs: int, key_id: str) -> Refusal:
    """The limit does not cover a hold."""
    limit = found.limit
    if limit is None:
        own = core.state.keys[KeyId(key_id)].limit_uhs
        return refusals.key_limit_reached(needed_uhs=needed_uhs, left_uhs=found.left_uhs, limit_uhs=own or 0)
    now = standing(core, limit, core.now_us)
    return limit_texts.reached(
        limit.terms,
        whose=found.whose,
        needed_uhs=needed_uhs,
        left_uhs=found.left_uhs,
        used=now.used,
        until_us=now.until_us,
        zone=zone_of(core, limit.terms),
    )


def within(core: Core, account_id: AccountId, key_id: str, amount_uhs: int) -> Refusal | None:
    """Why a job can't hold so much; None if no limit forbids it."""
    found = room(core, account_id, key_id)
    if found is None or amount_uhs <= found.left_uhs:
        return None
    return refused(core, found, needed_uhs=amount_uhs, key_id=key_id)


def lacking(core: Core, job: Job) -> StopReason:
    """What a job lacks that gets nothing more to hold: what a limit that resets leaves, or tokens."""
    found = room(core, job.account_id, job.key_id or "") if core.state.limits else None
    is_used_up = found is not None and found.limit is not None and not found.left_uhs
    return StopReason.SPENDING_LIMIT if is_used_up else StopReason.OUT_OF_TOKENS


def opens_us(core: Core, job: Job, wanted_uhs: int) -> int | None:
    """When no limit that resets keeps the job from holding so much any more, if nobody else uses of it: None = nobody knows."""
    found_us = 0
    for whose, limit in _of(core, job.account_id, job.key_id or ""):
        if limit.terms.hard and limit.terms.unit is not Unit.LLM:
            left_uhs = _left_uhs(core, job.account_id, whose, limit, core.now_us)
            if left_uhs is not None and left_uhs < wanted_uhs:
                until_us = standing(core, limit, core.now_us).until_us
                if until_us is None:
                    return None
                found_us = max(found_us, until_us)
    return found_us or None


def narrows(core: Core, key: Key) -> bool:
    """Whether the key, its project or its member has limits, so that what is held for it isn't held for others."""
    limits = core.state.limits
    return bool(limits) and any(whose in limits for whose in _whose(core, key))


# -- what is counted --------------------------------------------------------------------------------------------------


def count(
    core: Core, account_id: AccountId, key_id: str, amount_uhs: int, *, from_us: int, until_us: int, llm: int = 0
) -> None:
    """So much was used between these moments; less than 0 was given back."""
    if not core.state.limits:
        return
    key = core.state.keys.get(KeyId(key_id)) if key_id else None
    own = key_id if key is not None and key.account_id == account_id else ""
    for whose, limit in _of(core, account_id, own):
        roll(core, limit, core.now_us)
        amount = llm
        if limit.terms.unit is Unit.CT:
            amount = amount_uhs
        elif limit.terms.unit is Unit.CNY:
            price = prices_then.price_at(core, account_id, from_us)
            amount, limit.rest = divmod(limit.rest + amount_uhs * price, UHS_PER_CT)
        now, before = _divided(limit, amount, from_us, until_us)
        limit.used_before = min(max(limit.used_before + before + min(limit.used + now, 0), 0), INT64_MAX)
        limit.used = min(max(limit.used + now, 0), INT64_MAX)
        limit.used_ever += amount
        if not limit.terms.hard and limit.used >= limit.terms.amount and not limit.is_told:
            limit.is_told = True
            text = limit_texts.crossed(limit, whose=whose, zone=zone_of(core, limit.terms))
            notices.tell(core, account_id, "limit_reached", whose, text)


def count_call(core: Core, account_id: AccountId, record: Cdr) -> None:
    """A call was used, whoever paid for it: compute tokens, or a package in their place."""
    count(
        core,
        account_id,
        record.key_id,
        record.charged_uhs + record.spared_uhs,
        from_us=record.started_at_us,
        until_us=record.ended_at_us,
        llm=record.prompt_tokens + record.completion_tokens,
    )


def _divided(limit: Limit, amount: int, from_us: int, until_us: int) -> tuple[int, int]:
    """Of an amount that was used between two moments: what is of this period, and what of those before."""
    if from_us >= limit.from_us:
        return amount, 0
    if until_us <= limit.from_us:
        return 0, amount
    before = amount * (limit.from_us - from_us) // (until_us - from_us)
    return amount - before, before


# -- which there are --------------------------------------------------------------------------------------------------


def named(core: Core, whose: Whose, name: str, account_id: AccountId) -> str:
    """As limits are kept by: `key/ID`, `account/ID`, `project/ORGANISATION/NAME`, `member/ORGANISATION/NAME`."""
    if whose in (Whose.KEY, Whose.ACCOUNT):
        return f"{whose.value}/{name}"
    return f"{whose.value}/{organisations.of(core, account_id).organisation}/{name}"


def of_key(core: Core, key: Key) -> tuple[str, ...]:
    """By whose limits what is used with a key is counted."""
    return (*_whose(core, key), f"account/{key.account_id}")


def standing(core: Core, limit: Limit, now_us: int) -> Standing:
    """How it stands, in the period that now is in. Changes nothing."""
    if limit.until_us is None or now_us < limit.until_us:
        return Standing(limit.used, limit.used_before, limit.from_us, limit.until_us)
    from_us, until_us = period_at(core, limit.terms, now_us)
    return Standing(0, limit.used if from_us == limit.until_us else 0, from_us, until_us)


def held(core: Core, account_id: AccountId, whose: str, limit: Limit) -> int:
    """What runs may use of it, at most, in its unit."""
    held_uhs = _held_uhs(core, whose) + _in_packages(core, whose).uhs
    if limit.terms.unit is Unit.CT:
        return held_uhs
    if limit.terms.unit is Unit.CNY:
        price = prices_then.dearest(core, account_id, standing(core, limit, core.now_us).until_us)
        return -(-held_uhs * price // UHS_PER_CT)
    return _held_llm(core, whose)


def _of(core: Core, account_id: AccountId, key_id: str) -> Iterator[tuple[str, Limit]]:
    """Those that count what is used with a key of an account."""
    limits, key = core.state.limits, core.state.keys.get(KeyId(key_id)) if key_id else None
    for whose in (*(() if key is None else _whose(core, key)), f"account/{account_id}"):
        for limit in limits.get(whose, ()):
            yield whose, limit


def _whose(core: Core, key: Key) -> tuple[str, ...]:
    """The key's own, its project's and its member's."""
    if not key.project and not key.member:
        return (f"key/{key.key_id}",)
    organisation = keys.organisation_of(core, key)
    project = (f"project/{organisation}/{key.project}",) if key.project else ()
    member = (f"member/{organisation}/{key.member}",) if key.member else ()
    return (f"key/{key.key_id}", *project, *member)


def _keys_of(core: Core, whose: str) -> list[Key]:
    """Those whose use is counted together."""
    kind, _, name = whose.partition("/")
    if kind == Whose.KEY:
        key = core.state.keys.get(KeyId(name))
        return [] if key is None else [key]
    organisation, _, name = name.partition("/")
    wallets = organisations.of(core, AccountId(organisation)).wallets
    own = [key for wallet in wallets for key in core.keys_of.get(wallet, ())]
    return [key for key in own if name == (key.project if kind == Whose.PROJECT else key.member)]


def zone_of(core: Core, terms: LimitTerms) -> Zone:
    return core.state.zones.get(terms.zone, IN_UTC)


def period_at(core: Core, terms: LimitTerms, at_us: int) -> tuple[int, int | None]:
    return around(at_us, terms.period, zone=zone_of(core, terms), starts_on=terms.starts_on)


def roll(core: Core, limit: Limit, now_us: int) -> None:
    """Begin the period that now is in, if it has not begun."""
    if limit.until_us is not None and now_us >= limit.until_us:
        limit.used, limit.used_before, limit.from_us, limit.until_us = standing(core, limit, now_us)
        limit.is_told = False


# -- what is held -----------------------------------------------------------------------------------------------------


def _left_uhs(
    core: Core,
    account_id: AccountId,
    whose: str,
    limit: Limit,
    at_us: int,
    *,
    least_uhs: int = 1,
    models: tuple[str, ...] | None = None,
) -> int | None:
    """What one limit leaves, in µHs; None if what it counts costs nothing."""
    now, amount = standing(core, limit, at_us), limit.terms.amount
    used = now.used
    held_uhs = _held_uhs(core, whose) + _in_packages(core, whose).uhs
    if limit.terms.unit is Unit.CT:
        return max(0, amount - used - held_uhs)
    if limit.terms.unit is Unit.CNY:
        price = prices_then.dearest(core, account_id, now.until_us)
        left = (amount - used) * UHS_PER_CT - limit.rest
        return None if not price else max(0, left // price - held_uhs)
    left = amount - used - _held_llm(core, whose)
    if left <= 0:
        return 0
    cheapest, dearest = _rates(core, models)
    return min(max(left * cheapest // MTOK // CAUTION, least_uhs), left * dearest // MTOK) if dearest else None


def _held_llm(core: Core, whose: str) -> int:
    """The most LLM tokens that what is held for calls can turn out to be."""
    cheapest, _ = _rates(core, None)
    names = [whose] if whose.startswith(_ACCOUNT) else [f"key/{key.key_id}" for key in _keys_of(core, whose)]
    of_calls_uhs = _held_uhs(core, whose) - sum(core.held_by_jobs.get(name, 0) for name in names)
    of_calls = -(-of_calls_uhs * MTOK // cheapest) if cheapest else 0
    return of_calls + _in_packages(core, whose).tokens


def _in_packages(core: Core, whose: str) -> InPackages:
    """What is held in packages, as the most that it can turn out to be: it counts as what it spares."""
    found = [0, 0]
    for package in core.book.packages.values():
        units = _held_units(core, package, whose)
        weights = weights_of(package.asset) if units else None
        if weights is not None:
            kinds = zip(weights, _dearest(core), strict=True)
            found[0] += max(-(-units * rate // (weight * MTOK)) for weight, rate in kinds if weight)
            found[1] += -(-units // min(weight for weight in weights if weight))
    return InPackages(*found)


def _held_units(core: Core, package: Ledger, whose: str) -> int:
    if whose.startswith(_ACCOUNT):
        account = package.accounts.get(whose.removeprefix(_ACCOUNT))
        return 0 if account is None else account.held_uhs
    names = {key.key_id for key in _keys_of(core, whose)}
    standing = (*package.holds.values(), *package.lapsed.values())
    return sum(hold.held_uhs for hold in standing if hold.key_id in names)


def _dearest(core: Core) -> tuple[int, int, int, int]:
    """What 10⁶ LLM tokens of each kind cost at most, in µHs, by the prices in force: as weights are ordered."""
    numbers = [rate.numbers for model in core.state.models.values() for rate in model.prices[-1].rates]
    most = [max(column) for column in zip(*numbers, strict=True)] or [0, 0, 0, 0]
    return most[0], most[1], most[2], most[3]


def _held_uhs(core: Core, whose: str) -> int:
    if whose.startswith(_ACCOUNT):
        return core.book.accounts[whose.removeprefix(_ACCOUNT)].held_uhs
    return sum(key.held_uhs for key in _keys_of(core, whose))


def _rates(core: Core, models: tuple[str, ...] | None) -> tuple[int, int]:
    """The cheapest and the dearest that 10⁶ LLM tokens of these models (None or () = of any) are, in µHs, of those that cost."""
    offered = core.state.models
    known = [offered[name] for name in models or offered if name in offered]
    numbers = [number for each in known for rate in each.prices[-1].rates for number in rate.numbers if number]
    return (min(numbers), max(numbers)) if numbers else (0, 0)
