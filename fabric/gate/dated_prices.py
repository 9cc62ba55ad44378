"""Prices that begin on a date: announced in advance, and in force from their moment on, whenever somebody looks.

Prices are two sets, tariffs and catalogue. One that has no date, or one that has passed, is in force at once, and withdraws what was
announced of its kind: what is said last counts. One with a date is announced; it withdraws what was announced of its kind for that
date or a later one. Its moment comes like all that falls due by time: what is used before it has the prices of before, and
what is used from it on has these, however late either is booked.
"""

from typing import Final

from fabric import versions
from fabric.charging.catalogue import Catalogue, Mode
from fabric.charging.plans import DAY_US
from fabric.charging.tariffs import Tariffs
from fabric.gate import burning, deadlines, models, notices, prices_then, refusals, subscription_terms
from fabric.gate.core import Core
from fabric.gate.events import Configure
from fabric.gate.instructions import Refusal
from fabric.gate.price_state import Announced
from fabric.gate.state import GateState
from fabric.ledger import packages as ledgers

AHEAD_MAX_US: Final = 3_660 * DAY_US
"""How far ahead prices can be announced."""
ANNOUNCED_MAX: Final = 24
"""Dates for which prices are announced."""
_HOUR_US: Final = 3_600_000_000


def said_last(state: GateState) -> tuple[Tariffs | None, Catalogue | None]:
    """What whoever sets prices said last: what is announced for the latest date, or what is in force."""
    tariffs, catalogue = state.tariffs, state.catalogue
    for each in state.announced:
        tariffs, catalogue = each.tariffs or tariffs, each.catalogue or catalogue
    return tariffs, catalogue


def refused(core: Core, event: Configure) -> Refusal | None:
    """Why prices can't begin when they are said to, if they can't."""
    now_us = core.now_us
    for what, since_us in (
        ("tariffs", event.tariffs.effective_from_us),
        ("catalogue", event.catalogue.effective_from_us),
    ):
        if since_us <= now_us:
            continue
        if core.state.tariffs is None or core.state.catalogue is None:
            return _mistaken(f"there would be no {what} in force until then: start with prices without a date")
        if since_us > now_us + AHEAD_MAX_US:
            return _mistaken(f"prices begin at most {AHEAD_MAX_US // DAY_US} days from now, and the {what} later")
    if event.tariffs.effective_from_us > now_us and (refusal := _bad_tariffs(core, event.tariffs)):
        return refusal
    if event.catalogue.effective_from_us > now_us and (refusal := _bad_catalogue(core, event.catalogue)):
        return refusal
    if len(_after(core, event)) > ANNOUNCED_MAX:
        return _mistaken(f"prices are announced for {ANNOUNCED_MAX} dates already: withdraw some first")
    return None


def hear(core: Core, event: Configure) -> None:
    """Take prices over: at once, or announced. What is said of policy by hand says nothing of prices."""
    state, now_us = core.state, core.now_us
    if event.by_hand and state.tariffs is not None and state.rules >= versions.PRICES_OF_THEIR_TIME:
        return
    before, announced = state.catalogue, state.announced
    state.announced = _after(core, event)
    _begin(
        core,
        event.tariffs if event.tariffs.effective_from_us <= now_us else core.tariffs,
        event.catalogue if event.catalogue.effective_from_us <= now_us else core.catalogue,
    )
    subscription_terms.note(core, before, at_us=now_us)
    if [each for each in state.announced if each.tariffs] != [each for each in announced if each.tariffs]:
        burning.foresee(core)
        for lease_id in state.sessions:
            deadlines.note(core, state.leases[lease_id])


def due_us(core: Core) -> int | None:
    """When announced prices begin next."""
    return core.state.announced[0].since_us if core.state.announced else None


def take_effect(core: Core) -> None:
    """The moment has come of what is announced first."""
    state, first = core.state, core.state.announced.pop(0)
    _begin(core, first.tariffs or core.tariffs, first.catalogue or core.catalogue, dated_us=first.since_us)
    begun = [] if first.tariffs is None else [f"tariffs {first.tariffs.version}"]
    begun += [] if first.catalogue is None else [f"catalogue {first.catalogue.version}"]
    text = f"{' and '.join(begun)}, as was announced; {len(state.announced)} more to come"
    notices.tell(core, notices.OPERATORS, "prices_in_force", "", text)


def _begin(core: Core, tariffs: Tariffs, catalogue: Catalogue, *, dated_us: int | None = None) -> None:
    """These are in force from now on, or (announced) since their moment."""
    state, before = core.state, core.state.catalogue
    _fix_prices(core, catalogue)
    state.tariffs, state.catalogue = tariffs, catalogue
    ledgers.settings(core.book, operator=state.operator, settlement_window_us=catalogue.settlement_hours * _HOUR_US)
    core.note_prices()
    core.note_dunning()
    prices_then.note_change(core, before, since_us=core.now_us if dated_us is None else dated_us)
    models.reprice(core, dated_us=dated_us)


def _fix_prices(core: Core, catalogue: Catalogue) -> None:
    """What was used on credit so far keeps the price of its time."""
    for account_id, account in core.state.accounts.items():
        before, after = core.plan_of(account_id), catalogue.plan(account.plan)
        if after is not None and after.price_microcny_per_ct != before.price_microcny_per_ct:
            core.book.set_price(account_id, microcny_per_ct=before.price_microcny_per_ct)


def _after(core: Core, event: Configure) -> list[Announced]:
    """What is announced once the event was heard."""
    tariffs = [(each.since_us, each.tariffs) for each in core.state.announced if each.tariffs is not None]
    catalogues = [(each.since_us, each.catalogue) for each in core.state.announced if each.catalogue is not None]
    since_us = event.tariffs.effective_from_us
    tariffs = [each for each in tariffs if core.now_us < each[0] < since_us]
    if since_us > core.now_us:
        tariffs.append((since_us, event.tariffs))
    since_us = event.catalogue.effective_from_us
    catalogues = [each for each in catalogues if core.now_us < each[0] < since_us]
    if since_us > core.now_us:
        catalogues.append((since_us, event.catalogue))
    dates = sorted({each for each, _ in (*tariffs, *catalogues)})
    return [
        Announced(since_us=date, tariffs=dict(tariffs).get(date), catalogue=dict(catalogues).get(date))
        for date in dates
    ]


def _bad_tariffs(core: Core, tariffs: Tariffs) -> Refusal | None:
    """What can't begin on a date: nobody can be asked then whether it leaves something out."""
    followed = [each.tariffs for each in core.state.announced if each.since_us < tariffs.effective_from_us]
    before = next((each for each in reversed(followed) if each is not None), core.tariffs)
    if lacking := [name for name in before.accelerators if name not in tariffs.accelerators]:
        return _lacks("a weight for each type of the tariffs before it", lacking)
    if tariffs.version == before.version:
        return _mistaken(
            f"the tariffs that begin later are of version {tariffs.version}, as those before them: give them the next one"
        )
    return None


def _bad_catalogue(core: Core, catalogue: Catalogue) -> Refusal | None:
    followed = [each.catalogue for each in core.state.announced if each.since_us < catalogue.effective_from_us]
    before = next((each for each in reversed(followed) if each is not None), core.catalogue)
    if lacking := [plan.name for plan in before.plans if catalogue.plan(plan.name) is None]:
        return _lacks("each plan of the catalogue before it", lacking)
    prepaid = [plan.name for plan in catalogue.plans if plan.mode is Mode.PREPAID]
    if turned := [plan.name for plan in before.plans if plan.mode is Mode.POSTPAID and plan.name in prepaid]:
        return _lacks("a postpaid plan for each that was", turned)
    return None


def _lacks(need: str, missing: list[str]) -> Refusal:
    names = ", ".join(missing)
    text = f"what begins later lacks {need}: add {names}"
    return refusals.invalid(text, code="invalid_config", missing=names)


def _mistaken(text: str) -> Refusal:
    return refusals.invalid(text, code="invalid_config")
