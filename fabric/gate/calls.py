"""Calls of language models: rated here, by the rates their model was offered at, and recorded one by one.

The meter says what was counted, never what it costs. A call is charged once: its id is remembered for days, by account,
so that no account's calls make another's forgotten. A call that ended days ago, before what is remembered, can't be told
from one that was charged: it is recorded, and the operator bears it. Nothing here holds or captures; see `credit`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from fabric.charging.packages import flaw_of, split
from fabric.charging.rates import Rate, charge_uhs, miscounted
from fabric.charging.records import Cdr
from fabric.gate import keys, limits, models, packages, refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.serving_events import CallUsed, RecordCalls
from fabric.gate.state import SettledCalls
from fabric.units import AccountId, JobId

CALLS_MAX: Final = 1_000
"""In one report."""
ID_CHARS_MAX: Final = 128
GENERATION_US: Final = 4 * 86_400_000_000
GENERATION_CALLS: Final = 500_000
"""An id is remembered for at least four days, or until so many other calls of its account were charged. A call that ended
longer ago, and before what is remembered, is written off.
"""
_SERVICE: Final = "inference"


class Bill(NamedTuple):
    """What a report of calls comes to; those that were charged before are not in it."""

    charged_uhs: int
    records: tuple[Cdr, ...]
    too_late_uhs: int = 0
    """Of calls that ended before anybody remembers: not in `charged_uhs`, and to be written off."""
    units: Mapping[str, int] = {}
    """What packages of LLM tokens pay for beside, by asset, in thousandths."""


NOTHING: Final = Bill(0, ())


def bill(
    core: Core,
    calls: Sequence[CallUsed],
    *,
    account_id: AccountId,
    hold_id: str,
    key_id: str = "",
    kept: bool = False,
    there: Mapping[str, int] = {},
) -> Bill | Refusal:
    """Rate what was not charged before. Changes nothing: `book` does, once the tokens are captured.

    Args:
        core: for the rates, and what was charged before.
        calls: as they were reported.
        account_id: who pays.
        hold_id: what from; "" = the account's own lease.
        key_id: the hold's own key, if it has one: all its calls count against that.
        kept: they were kept as open, so none was charged, however long ago it ended.
        there: what they may take of packages, by asset: the first calls first.
    """
    if not calls:
        return NOTHING
    if len(calls) > CALLS_MAX:
        return refusals.invalid(
            f"a report has at most {CALLS_MAX} calls, not {len(calls)}: split it", code="too_many_calls"
        )
    records: dict[str, Cdr] = {}
    charged_uhs = too_late_uhs = 0
    left = dict(there)
    known_since_us = 0 if kept else _chargeable_since_us(core, account_id)
    for call in calls:
        if call.call_id in records or was_charged(core, account_id, call):
            continue
        record = _rated(core, call, account_id=account_id, hold_id=hold_id, key_id=key_id or call.key_id or "")
        if isinstance(record, Refusal):
            return record
        if call.ended_at_us < known_since_us:
            too_late_uhs += record.charged_uhs
            record = replace(record, charged_uhs=0, absorbed_uhs=record.charged_uhs)
        else:
            if call.packages and left and not call.covered:
                record = _packaged(core, call, record, left)
            charged_uhs += record.charged_uhs
        records[call.call_id] = record
    units = {asset: there[asset] - rest for asset, rest in left.items() if rest != there[asset]}
    return Bill(charged_uhs, tuple(records.values()), too_late_uhs, units)


def _packaged(core: Core, call: CallUsed, record: Cdr, left: dict[str, int]) -> Cdr:
    """What packages pay for of a call, at most what its meter had promised it of them; and charge the rest."""
    rate = models.rate_of(core, call)
    limits: list[tuple[str, int]] = []
    for asset, most in call.packages:
        limits.append((asset, min(most, left.get(asset, 0) - sum(part for name, part in limits if name == asset))))
    paid, rest = split(call, limits)
    if not paid or rate is None:
        return record
    for each in paid:
        left[each.asset] -= each.units
    charged_uhs = charge_uhs(rate, rest)
    return replace(
        record,
        charged_uhs=charged_uhs,
        packages=packages.uses(paid),
        spared_uhs=record.charged_uhs - charged_uhs,
    )


def was_charged(core: Core, account_id: AccountId, call: CallUsed) -> bool:
    """Whether a call of that name was charged, or written off, as far as is remembered."""
    before = core.state.calls
    if before.recent or before.older:
        known_as = _known_as(account_id, call)
        if known_as in before.recent or known_as in before.older:
            return True
    settled = core.state.calls_of.get(account_id)
    return settled is not None and (call.call_id in settled.recent or call.call_id in settled.older)


def _chargeable_since_us(core: Core, account_id: AccountId) -> int:
    """What ended before then comes too late: it may have been charged, and be forgotten since."""
    settled, days_ago_us = core.state.calls_of.get(account_id), core.now_us - GENERATION_US
    return days_ago_us if settled is None else min(settled.known_since_us, days_ago_us)


def _remember(core: Core, account_id: AccountId, call_ids: Iterable[str]) -> None:
    """These were charged now."""
    calls_of, now_us = core.state.calls_of, core.now_us
    settled = calls_of.get(account_id)
    if settled is None:
        settled = calls_of[account_id] = SettledCalls(since_us=now_us, known_since_us=now_us - GENERATION_US)
    for call_id in call_ids:
        settled.recent[call_id] = None
    if len(settled.recent) >= GENERATION_CALLS or now_us - settled.since_us >= GENERATION_US:
        del calls_of[account_id]
        calls_of[account_id] = SettledCalls(older=settled.recent, since_us=now_us, known_since_us=settled.since_us)
    oldest = next(iter(calls_of))
    if now_us - calls_of[oldest].since_us >= 2 * GENERATION_US:
        del calls_of[oldest]


def close_unrated(core: Core, account_id: AccountId, call: CallUsed) -> None:
    """Remember a call that has no charge and never will."""
    _remember(core, account_id, (call.call_id,))


def book(core: Core, billed: Bill, *, lost_uhs: int = 0, shares: packages.Shares | None = None) -> None:
    """Write the records, and remember that these calls were charged.

    Args:
        core: for what is remembered.
        billed: by `bill`.
        lost_uhs: what of the charge was covered by nothing, and written off: the last calls bear it.
        shares: of which lots packages have paid.
    """
    if not billed.records:
        return
    if lost_uhs:
        billed = _absorbed(billed, lost_uhs)
    if shares:
        billed = billed._replace(records=packages.named(billed.records, shares))
    account_id = AccountId(billed.records[0].account_id)
    open_usage = core.state.open_usage
    for record in billed.records:
        if open_usage:
            open_usage.pop(f"{account_id}/{record.cdr_id}", None)
        used_uhs = record.charged_uhs + record.spared_uhs
        keys.spends(core, record.key_id, account_id=account_id, amount_uhs=used_uhs)
        if core.state.limits and not record.covered:
            limits.count_call(core, account_id, record)
        if record.spared_uhs:  # what was captured for the rest is noted by its transfer
            core.planner.note_usage(account_id, uhs=record.spared_uhs, now_us=core.now_us, job_id=JobId(""))
    core.records.extend(billed.records)
    _remember(core, account_id, [record.cdr_id for record in billed.records])


def record(core: Core, event: RecordCalls) -> Outcome:
    """Calls that the account's own lease has paid for."""
    if event.account_id not in core.state.accounts:
        return refusals.not_found("account", event.account_id)
    if any(not call.covered for call in event.calls):
        return refusals.invalid(
            "a call that no lease of the account's own covers is paid from a hold: settle it there", code="not_covered"
        )
    billed = bill(core, event.calls, account_id=event.account_id, hold_id="")
    if isinstance(billed, Refusal):
        return billed
    book(core, billed)
    return Accepted()


def _absorbed(billed: Bill, lost_uhs: int) -> Bill:
    records = []
    for record in reversed(billed.records):
        part = min(lost_uhs, record.charged_uhs)
        lost_uhs -= part
        kept_uhs, absorbed_uhs = record.charged_uhs - part, record.absorbed_uhs + part
        records.append(replace(record, charged_uhs=kept_uhs, absorbed_uhs=absorbed_uhs) if part else record)
    return billed._replace(records=tuple(reversed(records)))


def _known_as(account_id: AccountId, call: CallUsed) -> str:
    return f"{account_id}/{call.call_id}"


def _rated(core: Core, call: CallUsed, *, account_id: AccountId, hold_id: str, key_id: str) -> Cdr | Refusal:
    if not 0 < len(call.call_id) <= ID_CHARS_MAX:
        return refusals.invalid(
            f"a call's id has 1 to {ID_CHARS_MAX} characters, not {len(call.call_id)}", code="invalid_call_id"
        )
    if flaw := miscounted(call) or flaw_of(call.packages):
        return refusals.invalid(f"call {call.call_id!r} can't be right: {flaw}", code="invalid_call")
    rate = models.rate_of(core, call)
    if rate is None:
        return refusals.invalid(
            f"there is no rate for {call.model!r} on {call.accelerator!r}: offer the model with one",
            code="unknown_rate",
            model=call.model,
            accelerator=call.accelerator,
            rate_version=call.rate_version,
        )
    record = _record(call, rate, account_id=account_id, hold_id=hold_id, key_id=key_id)
    return replace(record, **keys.worked_for(core, key_id, account_id=account_id))


def _record(call: CallUsed, rate: Rate, *, account_id: AccountId, hold_id: str, key_id: str) -> Cdr:
    return Cdr(
        cdr_id=call.call_id,
        account_id=account_id,
        job_id="",
        lease_id=hold_id,
        name=call.model,
        service=_SERVICE,
        accelerator=call.accelerator,
        devices=0,
        started_at_us=call.started_at_us,
        ended_at_us=call.ended_at_us,
        metered_us=max(call.ended_at_us - call.started_at_us, 0),
        busy_us=0,
        estimated_us=0,
        tariff_version=0,
        weight_ppm=0,
        charged_uhs=0 if call.covered else charge_uhs(rate, call),
        ended=call.ended,
        model=call.model,
        key_id=key_id,
        rate_version=rate.version,
        rate_uhs_per_mtok=rate.numbers,
        prompt_tokens=call.prompt_tokens,
        cached_tokens=call.cached_tokens,
        completion_tokens=call.completion_tokens,
        reasoning_tokens=call.reasoning_tokens,
        covered=call.covered,
        tags=call.tags,
    )
