"""What a token costs that was used on credit, or under a limit in CNY: by the price of the time of its use, whenever it is booked.

A report may come late: of a call by a replica that was cut off, of a lease whose agent was silent. What it tells of was used at the
price that its customer knew then, so prices of before are kept, and debt that is booked late is marked with the one of its time.
"""

from collections.abc import Iterable
from typing import Final

from fabric import versions
from fabric.charging.catalogue import Catalogue
from fabric.charging.in_force import in_force
from fabric.charging.in_force import turns as turns_of
from fabric.charging.records import Cdr
from fabric.charging.sessions import Due
from fabric.gate.core import Core
from fabric.gate.price_state import PlanPrices
from fabric.gate.state import Job
from fabric.ledger.accounts import Priced
from fabric.units import AccountId

KEPT: Final = 1_000
"""Changes of what tokens cost that are remembered; what was used before all of them is priced by the oldest."""
Use = tuple[int, int]
"""So much, in µHs, and when it was used, in µs."""


def price_at(core: Core, account_id: AccountId, at_us: int) -> int:
    """What a token cost the account at a moment, in 10⁻⁶ CNY."""
    plan, steps = core.plan_of(account_id), core.state.plan_prices
    if not steps:
        return plan.price_microcny_per_ct
    step = in_force(steps, at_us) or steps[0]
    return step.microcny_per_ct.get(plan.name, plan.price_microcny_per_ct)


def dearest(core: Core, account_id: AccountId, until_us: int | None) -> int:
    """What a token costs the account at most from now until a moment (None = ever), by what is announced."""
    plan = core.plan_of(account_id)
    begins = [each for each in core.state.announced if until_us is None or each.since_us < until_us]
    later = [each.catalogue.plan(plan.name) for each in begins if each.catalogue is not None]
    return max(each.price_microcny_per_ct for each in (plan, *later) if each is not None)


def turns(core: Core, account_id: AccountId, *, after_us: int, until_us: int) -> tuple[int, ...]:
    """The moments between two at which a token began to cost the account something else."""
    steps = core.state.plan_prices
    if not steps or steps[-1].since_us <= after_us:
        return ()
    found = turns_of(steps, after_us=after_us, until_us=until_us)
    return tuple(us for us in found if price_at(core, account_id, us) != price_at(core, account_id, us - 1))


def by_price(core: Core, account_id: AccountId, dues: Iterable[Due], *, from_us: int) -> list[Due]:
    """Parts of metered time, those together that follow each other at one price.

    Args:
        core: for the prices.
        account_id: who pays.
        dues: the parts, in their order; no price begins within one.
        from_us: when the first begins.
    """
    if not core.state.plan_prices:
        parts = list(dues)
        return parts if len(parts) <= 1 else [Due(parts[-1].until_us, sum(part.uhs for part in parts))]
    found: list[Due] = []
    price: int | None = None
    for due in dues:
        its_own = price_at(core, account_id, from_us)
        if found and its_own == price:
            found[-1] = Due(due.until_us, found[-1].uhs + due.uhs)
        else:
            found.append(due)
        price, from_us = its_own, due.until_us
    return found


def uses_of(records: Iterable[Cdr], *, beside_uhs: int, now_us: int) -> list[Use]:
    """What a client's word tells of, in the order in which it is met: what it told as a sum, used by now, then its calls."""
    calls = [(record.charged_uhs, min(record.started_at_us, now_us)) for record in records]
    return [(beside_uhs, now_us), *calls]


def note_debt(core: Core, account_id: AccountId, uses: Iterable[Use], *, owed_uhs: int, lost_uhs: int = 0) -> None:
    """Uses were booked just now: what of them became debt at another price than the one in force is marked with that.

    Args:
        core: whose books.
        account_id: who used.
        uses: in the order in which they were met, so that the last of them is on credit.
        owed_uhs: what the account owed before.
        lost_uhs: what of the uses nothing covered: the very last of them.
    """
    debt_uhs = core.book.accounts[account_id].debt_uhs - owed_uhs
    if debt_uhs <= 0 or not core.state.plan_prices:
        return
    now, found = core.plan_of(account_id).price_microcny_per_ct, list[tuple[int, int]]()
    for amount_uhs, at_us in reversed(list(uses)):
        lost = min(lost_uhs, amount_uhs)
        part = min(amount_uhs - lost, debt_uhs)
        lost_uhs, debt_uhs = lost_uhs - lost, debt_uhs - part
        price = price_at(core, account_id, at_us)
        if part and price != now:
            found.append((part, price))
    for part, price in reversed(found):
        core.book.price_debt(account_id, amount_uhs=part, microcny_per_ct=price)


def note_on_credit(core: Core, job: Job, *, from_us: int, owed_uhs: int) -> None:
    """What of a job's use, from a moment on, became debt just now is kept with it: what is given back of it costs as much less.

    Args:
        core: whose books.
        job: which.
        from_us: when that use began.
        owed_uhs: what its account owed before.
    """
    debt_uhs = core.book.accounts[job.account_id].debt_uhs - owed_uhs
    if debt_uhs <= 0 or core.state.rules < versions.PRICES_OF_THEIR_TIME:
        return
    price = price_at(core, job.account_id, from_us)
    if job.on_credit and job.on_credit[-1].microcny_per_ct == price:
        job.on_credit[-1].amount_uhs += debt_uhs
    else:
        job.on_credit.append(Priced(debt_uhs, price))


def note_change(core: Core, before: Catalogue | None, *, since_us: int) -> None:
    """Plans cost from then on what the catalogue in force says."""
    if before is None or core.state.rules < versions.PRICES_OF_THEIR_TIME:
        return
    steps, now = core.state.plan_prices, _prices(core.catalogue)
    if now == (steps[-1].microcny_per_ct if steps else _prices(before)):
        return
    if not steps:
        steps.append(PlanPrices(since_us=0, microcny_per_ct=_prices(before)))
    steps.append(PlanPrices(since_us=since_us, microcny_per_ct=now))
    del steps[:-KEPT]


def _prices(catalogue: Catalogue) -> dict[str, int]:
    return {plan.name: plan.price_microcny_per_ct for plan in catalogue.plans}
