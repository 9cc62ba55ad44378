"""Answers about limits that reset. Changes nothing."""

from fabric.gate import limits, organisations
from fabric.gate.core import Core
from fabric.gate.limit_events import Whose
from fabric.gate.limit_views import LimitView
from fabric.gate.questions import LimitsOf
from fabric.units import AccountId


def asked(core: Core, question: LimitsOf, now_us: int) -> list[LimitView]:
    """The account's own, then those of its projects, its organisation's members and its keys; or those that count for one key."""
    account_id = question.account_id
    if not core.state.limits or account_id not in core.state.accounts:
        return []
    if question.key_id is not None:
        key = core.state.keys.get(question.key_id)
        mine = limits.of_key(core, key)[::-1] if key is not None and key.account_id == account_id else ()
        names: tuple[str, ...] = mine or (f"account/{account_id}",)
    else:
        organisation = organisations.of(core, account_id)
        projects = [each.project for each in organisation.projects.values() if each.wallet == account_id]
        names = (
            f"account/{account_id}",
            *(limits.named(core, Whose.PROJECT, name, account_id) for name in projects),
            *(limits.named(core, Whose.MEMBER, name, account_id) for name in organisation.members),
            *(f"key/{key.key_id}" for key in core.keys_of.get(account_id, ())),
        )
    return [each for whose in names for each in of(core, account_id, whose, now_us)]


def of(core: Core, account_id: AccountId, whose: str, now_us: int) -> tuple[LimitView, ...]:
    """Those of one key or account."""
    if whose not in core.state.limits:
        return ()
    kind, name = whose.partition("/")[0], whose.rpartition("/")[2]
    found = []
    for limit in core.state.limits[whose]:
        now, terms, held = (
            limits.standing(core, limit, now_us),
            limit.terms,
            limits.held(core, account_id, whose, limit),
        )
        found.append(
            LimitView(
                whose=kind,
                name=name,
                period=terms.period.value,
                unit=terms.unit.value,
                amount=terms.amount,
                hard=terms.hard,
                zone=terms.zone,
                starts_on=terms.starts_on,
                by_operator=limit.by_operator,
                used=now.used,
                held=held,
                left=max(0, terms.amount - now.used - held),
                used_before=now.used_before,
                from_us=now.from_us,
                resets_at_us=now.until_us,
            )
        )
    return tuple(found)
