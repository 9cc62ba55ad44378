"""Configuration: prices, plans and policy from now on, and what would go wrong with them.

Whoever runs, waits or owes now was given a price, a plan and credit: none of these is taken away by a change.
"""

from fabric.charging.catalogue import COMPUTE, SETTLEMENT_HOURS_MAX, Catalogue, Cycle, Mode
from fabric.charging.packages import UNITS_MAX, weights_of
from fabric.gate import dated_prices, refusals, treasury
from fabric.gate.caps import CAP_MAX
from fabric.gate.core import Core
from fabric.gate.events import Configure
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.lifecycle import TERMINAL
from fabric.gate.payments import WAYS
from fabric.gate.prices import unpriced
from fabric.gate.questions import PolicyView
from fabric.placement.quota_terms import POLICY_COUNT_MAX
from fabric.placement.quotas import Policy
from fabric.units import AMOUNT_UHS_MAX, LLM, format_ct


def configure(core: Core, event: Configure) -> Outcome:
    """Prices and plans from now on, or from their date on; refused where that would leave somebody or something without one."""
    if refusal := dated_prices.refused(core, event) or _leaves_out(core, event):
        return refusal
    core.state.operator, core.state.payments = event.operator, event.payments
    dated_prices.hear(core, event)
    if event.caps is not None:
        core.state.caps = event.caps
    if event.policy is not None:
        _follow(core, event.policy, by_hand=event.by_hand)
    for account_id in core.subscribed_by:
        treasury.set_spending(core, account_id)
    return Accepted()


def policy(core: Core) -> PolicyView:
    """What is in force, and what the cluster file said last."""
    state = core.state
    in_force = Configure(
        tariffs=core.tariffs,
        catalogue=core.catalogue,
        operator=state.operator,
        payments=state.payments,
        policy=state.placement.policy,
        by_hand=True,
    )
    return PolicyView(configure=in_force, filed=state.filed or state.placement.policy, quotas=core.planner.quotas())


def _follow(core: Core, policy: Policy, *, by_hand: bool) -> None:
    """What an operator sets by hand holds until the file says something new: not only until the gate is started again."""
    state = core.state
    if not by_hand:
        said_before, state.filed = state.filed, policy
        if policy == said_before:
            return
    if policy != state.placement.policy:
        core.planner.follow(policy, now_us=core.now_us)
        core.replan = True


def _stay_postpaid(core: Core, catalogue: Catalogue) -> list[str]:
    """Plans that would become prepaid under accounts with credit."""
    found = []
    for plan in core.plans.values() if core.state.catalogue is not None else ():
        after = catalogue.plan(plan.name)
        if plan.mode is Mode.POSTPAID and after is not None and after.mode is Mode.PREPAID:
            mine = [each.account_id for each in core.state.accounts.values() if each.plan == plan.name]
            found += [plan.name] if any(core.book.accounts[name].credit_limit_uhs for name in mine) else []
    return found


def _leaves_out(core: Core, event: Configure) -> Outcome | None:
    types = dict.fromkeys(node.accelerator for node in core.planner.nodes())
    types |= dict.fromkeys(
        name for job in core.state.jobs.values() if job.state not in TERMINAL for name in job.spec.accelerators
    )
    plans_used = dict.fromkeys(account.plan for account in core.state.accounts.values())
    offers = event.catalogue.subscriptions
    most = format_ct(AMOUNT_UHS_MAX)
    lacks = (
        ("catalogue", f"an amount of at most {most} tokens in each offer", _too_large(event.catalogue)),
        ("catalogue", "an asset that can be counted in each offer", _unknown_assets(event.catalogue)),
        ("tariffs", "a weight without conditions", unpriced(event.tariffs)),
        ("tariffs", "a weight for what runs or waits here", [x for x in types if x not in event.tariffs.accelerators]),
        ("catalogue", "a plan that accounts are on", [x for x in plans_used if event.catalogue.plan(x) is None]),
        ("catalogue", "a postpaid plan for accounts that have credit", _stay_postpaid(core, event.catalogue)),
        (
            "catalogue",
            "a cycle of at least one day",
            [offer.name for offer in offers if offer.cycle is Cycle.DAYS and offer.cycle_days < 1],
        ),
        ("catalogue", "a subscription to go on with for each that ends so", _lead_nowhere(event.catalogue)),
    )
    for what, need, missing in lacks:
        if missing:
            return _incomplete(what, need, tuple(missing))
    return _mistaken(event)


def _mistaken(event: Configure) -> Outcome | None:
    hours = event.catalogue.settlement_hours
    if not 0 <= hours <= SETTLEMENT_HOURS_MAX:
        return refusals.invalid(
            f"a lapsed hold is set aside for 0 to {SETTLEMENT_HOURS_MAX} hours, not {hours}", code="invalid_config"
        )
    if event.policy is not None and (mistake := event.policy.mistake):
        return refusals.invalid(
            f"the policy of placement can't be meant, in {mistake}: times are of 0 to 365 days, counts of up to {POLICY_COUNT_MAX}",
            code="invalid_config",
        )
    if event.caps is not None and (mistake := event.caps.mistake):
        return refusals.invalid(f"the cap of {mistake} is 1 to {CAP_MAX}", code="invalid_config")
    if event.payments not in WAYS:
        return refusals.invalid(
            f"payments are believed as in {' or '.join(WAYS)}, not as in {event.payments!r}", code="invalid_config"
        )
    return None


def _lead_nowhere(catalogue: Catalogue) -> list[str]:
    """Subscriptions whose subscribers are to go on with one that isn't there."""
    ends = [(offer.name, offer.ends.then) for offer in catalogue.subscriptions if offer.ends is not None]
    return [then for name, then in ends if then and (then == name or catalogue.subscription(then) is None)]


def _too_large(catalogue: Catalogue) -> tuple[str, ...]:
    """Offers of more than anybody can buy."""
    found = [(plan.name, plan.credit_limit_uhs) for plan in catalogue.plans]
    for bundle in catalogue.bundles:
        found += [(bundle.name, part.amount) for part in bundle.components if part.asset == COMPUTE]
    found += [
        (offer.name, max(offer.amount_uhs, offer.rollover_max_uhs))
        for offer in catalogue.subscriptions
        if offer.asset == COMPUTE
    ]
    packages = [
        (bundle.name, part.amount)
        for bundle in catalogue.bundles
        for part in bundle.components
        if weights_of(part.asset)
    ]
    packages += [
        (offer.name, max(offer.amount_uhs, offer.rollover_max_uhs))
        for offer in catalogue.subscriptions
        if offer.asset != COMPUTE
    ]
    return tuple(name for name, amount in found if amount > AMOUNT_UHS_MAX) + tuple(
        name for name, amount in packages if amount > UNITS_MAX
    )


def _unknown_assets(catalogue: Catalogue) -> tuple[str, ...]:
    """Of subscriptions, that are neither compute tokens nor a package of LLM tokens; and of bundles that only look like one."""
    found = [(offer.name, offer.asset) for offer in catalogue.subscriptions if offer.asset != COMPUTE]
    found += [
        (bundle.name, part.asset)
        for bundle in catalogue.bundles
        for part in bundle.components
        if part.asset.startswith(LLM)
    ]
    return tuple(name for name, asset in found if weights_of(asset) is None)


def _incomplete(what: str, need: str, missing: tuple[str, ...]) -> Outcome:
    names = ", ".join(missing)
    return refusals.invalid(f"the {what} lack {need}: add {names}", code="invalid_config", missing=names)
