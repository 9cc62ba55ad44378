"""The rules: from a gate, as it stands after an entry of the journal, to what its accounts are to hear of. Pure.

What crosses a threshold is told once. A runway is told of again only after it was a quarter longer than the threshold; a
limit in its next period, or when it is another amount; a package when something was added to it; a lot never. Of several
thresholds that are crossed at once the narrowest is told. What was told is plain data (`Told`), which whoever follows the
journal keeps with its position: then the same journal gives the same notices with the same ids, wherever it is cut.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from fabric.gate import Gate
from fabric.gate.limit_views import LimitView
from fabric.gate.package_views import PackageView
from fabric.gate.payment_state import Notice as Heard
from fabric.gate.questions import BalanceOf, KeysOf, LimitsOf
from fabric.gate.state import Job
from fabric.gate.timeline import Moment
from fabric.gate.views import BalanceView
from fabric.notifications.notice import Kind, Notice, notice_id
from fabric.units import LLM, AccountId, format_ct

_H_US: Final = 3_600_000_000
_DAY_US: Final = 24 * _H_US
RUNWAYS_H: Final = (72, 24, 3)
"""Narrowest last."""
USED_PERCENT: Final = (75, 90)
EXPIRES_DAYS: Final = (30, 7, 1)
"""A lot that lives no longer than so many days isn't told of so many days before its end."""
LONGER: Final = (5, 4)
"""A runway that is so many times as long as a threshold has left it."""
_FAILED: Final = frozenset({"payment_declined", "payment_expired", "auto_top_up_failed", "renewal_failed"})
_TAKEN: Final = frozenset({"evicted", "drained"})
_LOST: Final = {"lost": "node_lost", "interrupted": "interrupted"}
_EVER: Final = "life"


class Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an account was told, as far as that keeps it from being told again."""

    runway_h: int = 0
    """The narrowest threshold below which its runway is; 0 = it is above all."""
    used: dict[str, tuple[int, int, int]] = {}
    """Of limits (period's beginning, amount) and packages (granted, lost), by name: the percent that was told."""
    expires: dict[str, int] = {}
    """Of lots: within how many days."""


NOTHING: Final = Told()


class Found(NamedTuple):
    """What an account has crossed, and what it was told then."""

    notices: list[Notice]
    told: Told
    look_at_us: int | None
    """When time alone next brings one of its lots nearer to its end than a threshold; None = never."""


def of_account(gate: Gate, account_id: str, told: Told, *, now_us: int) -> Found:
    """What an account has crossed.

    Args:
        gate: as it stands.
        account_id: one that may or may not be there.
        told: what it was told before.
        now_us: what time it is.
    """
    balance: Any = gate.ask(BalanceOf(account_id=AccountId(account_id)), now_us)
    if balance is None:
        return Found([], told, None)
    notices: list[Notice] = []
    runway_h = _runway(balance, told.runway_h, now_us, notices)
    used = {name: level for name, level in told.used.items() if name.startswith(LLM)}
    for limit in _limits(gate, account_id, now_us):
        name = f"{limit.whose}/{limit.name}/{limit.period}/{limit.unit}/{'hard' if limit.hard else 'soft'}"
        used[name] = _used(account_id, limit, told.used.get(name), now_us, notices)
    for package in balance.packages:
        used[package.asset] = _package(account_id, package, told.used.get(package.asset), now_us, notices)
    expires = _expiries(balance, told.expires, now_us, notices)
    now = Told(
        runway_h=runway_h,
        used={name: level for name, level in used.items() if level[2] or name.startswith(LLM)},
        expires=expires,
    )
    return Found(notices, now, _look_at_us(balance, expires, now_us))


def of_job(job: Job, *, now_us: int) -> Iterator[Notice]:
    """What has become of a job just now."""
    for moment in job.timeline:
        if moment.at_us == now_us and (kind := _kind_of(moment)) is not None:
            yield _of_job(job, moment, kind)


def of_payments(gate: Gate, account_id: str, *, now_us: int) -> list[Notice]:
    """Payments that came to nothing just now, each once, whoever tells of it."""
    heard = gate.state.till.notices.get(AccountId(account_id))
    if not heard or heard[-1].at_us != now_us:
        return []
    failed: dict[str, Heard] = {}
    for each in heard:
        if each.at_us == now_us and each.what in _FAILED:
            failed.setdefault(each.about, each)
    return [_of_payment(account_id, each) for each in failed.values()]


# -- levels -----------------------------------------------------------------------------------------------------------


def _runway(balance: BalanceView, told_h: int, now_us: int, notices: list[Notice]) -> int:
    """The narrowest threshold that the runway is below. While nothing burns there is none, and what was told stays."""
    if balance.runway_us is None:
        return told_h
    below = [hours for hours in RUNWAYS_H if balance.runway_us < hours * _H_US]
    if below and (not told_h or below[-1] < told_h):
        hours = below[-1]
        left = f"{balance.runway_us // _H_US} h {balance.runway_us % _H_US // 60_000_000} min"
        notices.append(
            Notice(
                notice_id=notice_id(balance.account_id, Kind.RUNWAY, hours, now_us),
                account_id=balance.account_id,
                kind=Kind.RUNWAY,
                subject=f"account/{balance.account_id}",
                at_us=now_us,
                text=f"what account {balance.account_id} can spend lasts {left} at the burn of now: top up, or stop something",
                facts={
                    "below_h": hours,
                    "runway_us": balance.runway_us,
                    "burn_uhs_per_s": balance.burn_uhs_per_s,
                    "free_uhs": balance.free_uhs,
                    "held_uhs": balance.held_uhs,
                },
            )
        )
        return hours
    times, of = LONGER
    within = [hours for hours in RUNWAYS_H if balance.runway_us * of < hours * _H_US * times]
    return max(told_h, within[-1]) if within and told_h else 0


def _limits(gate: Gate, account_id: str, now_us: int) -> Iterator[LimitView]:
    """Those that reset, and those of keys for life, as if they were such."""
    found: Any = gate.ask(LimitsOf(account_id=AccountId(account_id)), now_us)
    yield from found or ()
    keys: Any = gate.ask(KeysOf(account_id=AccountId(account_id)), now_us)
    for key in keys or ():
        if key.limit_uhs is not None and not key.dead:
            yield LimitView(
                whose="key",
                name=key.key_id,
                period=f"{_EVER}-own",
                unit="ct",
                amount=key.limit_uhs,
                hard=True,
                zone="",
                starts_on=1,
                by_operator=False,
                used=key.spent_uhs,
                held=key.held_uhs,
                left=max(0, key.limit_uhs - key.spent_uhs - key.held_uhs),
                used_before=0,
                from_us=0,
                resets_at_us=None,
            )


def _used(
    account_id: str, limit: LimitView, told: tuple[int, int, int] | None, now_us: int, notices: list[Notice]
) -> tuple[int, int, int]:
    before = told[2] if told is not None and told[:2] == (limit.from_us, limit.amount) else 0
    percent = _crossed(limit.used, limit.amount)
    if percent <= before:
        return limit.from_us, limit.amount, before
    whose = f"{limit.whose} {limit.name}"
    per = "" if limit.period.startswith(_EVER) else f" of this {limit.period}"
    notices.append(
        Notice(
            notice_id=notice_id(
                account_id,
                Kind.LIMIT,
                limit.whose,
                limit.name,
                limit.period,
                limit.unit,
                int(limit.hard),
                limit.amount,
                limit.from_us,
                percent,
            ),
            account_id=account_id,
            kind=Kind.LIMIT,
            subject=f"{limit.whose}/{limit.name}",
            at_us=now_us,
            text=f"{percent} % of the limit{per} of {whose} are used",
            facts={
                "percent": percent,
                "period": limit.period.removesuffix("-own"),
                "unit": limit.unit,
                "amount": limit.amount,
                "used": limit.used,
                "held": limit.held,
                "hard": limit.hard,
                "resets_at_us": limit.resets_at_us,
            },
        )
    )
    return limit.from_us, limit.amount, percent


def _package(
    account_id: str, package: PackageView, told: tuple[int, int, int] | None, now_us: int, notices: list[Notice]
) -> tuple[int, int, int]:
    """Of the lots that aren't used up, or of all if there is none left and none was lost otherwise meanwhile."""
    lost = package.expired + package.voided
    before = told[2] if told is not None and told[0] == package.granted else 0
    granted = sum(lot.granted for lot in package.lots)
    percent = _crossed(sum(lot.used for lot in package.lots), granted) if granted else 0
    if not granted and told is not None and told[1] == lost and package.used:
        percent = USED_PERCENT[-1]
    if percent <= before:
        return package.granted, lost, before
    notices.append(
        Notice(
            notice_id=notice_id(account_id, Kind.PACKAGE, package.asset, package.granted, percent),
            account_id=account_id,
            kind=Kind.PACKAGE,
            subject=f"package/{package.asset}",
            at_us=now_us,
            text=f"{percent} % of the package {package.family or package.asset} are used",
            facts={"percent": percent, "asset": package.asset, "free": package.free, "held": package.held},
        )
    )
    return package.granted, lost, percent


def _crossed(used: int, amount: int) -> int:
    """The most percent of the thresholds that are used; 0 = less than the least."""
    return max((percent for percent in USED_PERCENT if used * 100 >= amount * percent and used > 0), default=0)


def _lots(balance: BalanceView) -> Iterator[tuple[str, int, int, int]]:
    """(id, from when, until when, what is left of it) of all lots that expire."""
    for lot in balance.lots:
        if lot.expires_at_us is not None:
            yield lot.lot_id, lot.effective_at_us, lot.expires_at_us, lot.free_uhs + lot.held_uhs
    for package in balance.packages:
        for each in package.lots:
            if each.expires_at_us is not None:
                yield each.lot_id, each.effective_at_us, each.expires_at_us, each.free + each.held


def _expiries(balance: BalanceView, told: dict[str, int], now_us: int, notices: list[Notice]) -> dict[str, int]:
    packages = {lot.lot_id: package.asset for package in balance.packages for lot in package.lots}
    now: dict[str, int] = {}
    for lot_id, effective_us, expires_us, left in _lots(balance):
        if lot_id in told:
            now[lot_id] = told[lot_id]
        days = min(
            (
                days
                for days in EXPIRES_DAYS
                if now_us < expires_us <= now_us + days * _DAY_US and days * _DAY_US < expires_us - effective_us
            ),
            default=0,
        )
        if not days or not left or days >= now.get(lot_id, days + 1):
            continue
        now[lot_id] = days
        asset = packages.get(lot_id, "")
        amount = "what is left of a package of LLM tokens" if asset else f"{format_ct(left)} tokens"
        within = "a day" if days == 1 else f"{days} days"
        notices.append(
            Notice(
                notice_id=notice_id(balance.account_id, Kind.EXPIRY, lot_id, days),
                account_id=balance.account_id,
                kind=Kind.EXPIRY,
                subject=f"lot/{lot_id}",
                at_us=now_us,
                text=f"{amount} expire within {within}",
                facts={
                    "days": days,
                    "lot_id": lot_id,
                    "left": left,
                    "asset": asset or "CT",
                    "expires_at_us": expires_us,
                },
            )
        )
    return now


def _look_at_us(balance: BalanceView, told: dict[str, int], now_us: int) -> int | None:
    found = [
        at_us
        for lot_id, effective_us, expires_us, left in _lots(balance)
        for days in EXPIRES_DAYS
        if left
        and days < told.get(lot_id, EXPIRES_DAYS[0] + 1)
        and days * _DAY_US < expires_us - effective_us
        and (at_us := expires_us - days * _DAY_US) > now_us
    ]
    return min(found, default=None)


# -- what has happened ------------------------------------------------------------------------------------------------


def _kind_of(moment: Moment) -> Kind | None:
    match moment.what:
        case "parked":
            return Kind.JOB_PARKED
        case "resumed":
            return Kind.JOB_RESUMED
        case "ended":
            return Kind.JOB_ENDED
        case "stopping" if moment.why in _TAKEN:
            return Kind.JOB_EVICTED
        case "lost" if moment.why in _LOST:
            return Kind.JOB_EVICTED
    return None


def _of_job(job: Job, moment: Moment, kind: Kind) -> Notice:
    why = _LOST.get(moment.why, moment.why) if moment.what == "lost" else moment.why
    called = f"job {job.spec.name} ({job.job_id})"
    said = {
        Kind.JOB_PARKED: f"{called} is parked: {why.replace('_', ' ')}",
        Kind.JOB_EVICTED: f"{called} loses its devices: {why.replace('_', ' ')}",
        Kind.JOB_RESUMED: f"{called} goes on, on {moment.on}",
        Kind.JOB_ENDED: f"{called} has ended: {why}",
    }
    facts: dict[str, str | int | bool | None] = {"job_id": job.job_id, "name": job.spec.name, "attempt": job.attempts}
    if kind is Kind.JOB_RESUMED:
        facts["on"] = moment.on
    else:
        facts |= {"reason": why, "burned_uhs": job.burned_uhs}
    return Notice(
        notice_id=notice_id(job.account_id, kind, job.job_id, moment.what, moment.at_us),
        account_id=job.account_id,
        kind=kind,
        subject=f"job/{job.job_id}",
        at_us=moment.at_us,
        text=said[kind],
        facts=facts,
    )


def _of_payment(account_id: str, heard: Heard) -> Notice:
    return Notice(
        notice_id=notice_id(account_id, Kind.PAYMENT_FAILED, heard.what, heard.about, heard.at_us),
        account_id=account_id,
        kind=Kind.PAYMENT_FAILED,
        subject=f"payment/{heard.about}" if heard.about else f"account/{account_id}",
        at_us=heard.at_us,
        text=heard.text,
        facts={"what": heard.what, "payment_id": heard.about},
    )
