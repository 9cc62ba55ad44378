"""Rules about limits that reset: set, changed and taken away at any time, over any calendar, beside limits for life."""

from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from fabric.gate.instructions import Accepted
from fabric.gate.limit_events import LearnZone, LimitTerms, SetLimit, Whose
from fabric.gate.periods import IN_UTC, Period, Zone, around
from fabric.gate.questions import LimitsOf
from tests.gate.driver import Driver, accounts, picks
from tests.gate.world import T0, S

ZONES = (
    Zone(name="East", offsets_s=(8 * 3_600,)),
    Zone(name="Here", offsets_s=(0, 3_600, 0), changes_us=(T0 + 5_000 * S, T0 + 9 * 86_400 * S)),
    Zone(name="Here", offsets_s=(0, 1_800), changes_us=(T0 + 2_000 * S,)),
)
"""The last one is what later data say of the second."""


@dataclass
class Bound:
    terms: LimitTerms
    first: int
    """Of what is counted, what comes from there on counts."""
    used: int = 0
    """What counts beside, in the period that began at `of`."""
    of: int = 0
    stood: int = 0
    """What was used and held when it was set: as much may stand beyond it."""


class LimitRules(Driver):
    """Limits in compute tokens: what is used of them is counted from charging records, by a list."""

    hard_on_accounts = True

    def __init__(self):
        super().__init__()
        self.bounds, self.counted, self.zones = {}, [], {}

    def do(self, event):
        decision = super().do(event)
        self.counted += [record for record in decision.records if record.model and not record.covered]
        return decision

    @rule(zone=st.sampled_from(ZONES))
    def learn(self, zone):
        """Other clocks: what is counted of periods that began by the old ones is forgotten here."""
        assert self.ask(LearnZone(zone=zone)) == Accepted()
        if zone.name in self.zones and self.zones[zone.name] != zone:
            for of in self.bounds.values():
                for bound in [each for each in of.values() if each.terms is not None and each.terms.zone == zone.name]:
                    bound.terms = None
        self.zones[zone.name] = zone

    @rule(
        account=accounts,
        pick=st.one_of(st.none(), picks),
        period=st.sampled_from(Period),
        seconds=st.sampled_from([1, 60, 900, 3_000]),
        hard=st.booleans(),
        zone=st.sampled_from(["UTC", "UTC", "East", "Here", "Mars"]),
        remove=st.sampled_from([False, False, True]),
    )
    def set_limit(self, account, pick, period, seconds, hard, zone, remove):
        mine = [key for key in self.keys if self.state.keys[key].account_id == account]
        if pick is not None and not mine:
            return
        key = None if pick is None else mine[pick % len(mine)]
        hard = hard and (key is not None or self.hard_on_accounts)
        starts_on = {Period.WEEK: 3, Period.MONTH: 31}.get(period, 1)
        terms = LimitTerms(period=period, amount=seconds * S, hard=hard, zone=zone, starts_on=starts_on)
        whose = f"key/{key}" if key else f"account/{account}"
        bounds, kind = self.bounds.setdefault(whose, {}), (period, hard)
        event = SetLimit(
            account_id=account,
            whose=Whose.KEY if key else Whose.ACCOUNT,
            name=key or "",
            terms=terms,
            remove=remove,
        )
        self.do_set(event, bounds, kind, account, key)

    def do_set(self, event, bounds, kind, account, key):
        before, outcome = bounds.get(kind), self.ask(event)
        if event.remove:
            assert isinstance(outcome, Accepted) == (before is not None)
            bounds.pop(kind, None)
        elif event.terms.zone not in ("UTC", *self.zones):
            assert outcome.code == "unknown_zone"
        else:
            assert outcome == Accepted()
            bound = Bound(terms=event.terms, first=len(self.counted))
            (view,) = [each for each in self.limits_of(account, key) if (each.period, each.hard) == kind]
            bound.used, bound.of, bound.stood = view.used, view.from_us, view.used + view.held
            assert view.used == 0 or before is not None
            bounds[kind] = bound

    def limits_of(self, account, key):
        found = self.gate.ask(LimitsOf(account_id=account, key_id=key), self.latest)
        return [each for each in found if each.whose == ("key" if key else "account")]

    def left_by_limits(self, account, key):
        """What the hard ones leave: of the key, and of the account."""
        hard = [
            each for each in self.gate.ask(LimitsOf(account_id=account, key_id=key or ""), self.latest) if each.hard
        ]
        held = [self.held_of(account, key if each.whose == "key" else None) for each in hard]
        left = [max(0, each.amount - each.used - there) for each, there in zip(hard, held, strict=True)]
        return min(left, default=10**30)

    def held_of(self, account, key):
        if key:
            return self.state.keys[key].held_uhs
        return sum(hold.held for hold in self.money.holds.values() if hold.account == account)

    def exceeds(self, whose):
        """Whether more was used than was held: that is booked all the same."""
        return False

    @invariant()
    def a_limit_counts_what_was_used_in_its_period_and_lets_no_more_be_held(self):
        for whose, bounds in self.bounds.items():
            kind, _, name = whose.partition("/")
            account = self.state.keys[name].account_id if kind == "key" else name
            key = name if kind == "key" else None
            views = {(each.period, each.hard): each for each in self.limits_of(account, key)} if bounds else {}
            assert set(views) == set(bounds)
            for which, bound in bounds.items():
                view = views[which]
                assert view.held == self.held_of(account, key)
                within = view.used + view.held <= max(view.amount, bound.stood)
                assert within or not view.hard or self.exceeds(whose)
                if bound.terms is None:
                    continue
                zone = self.zones.get(bound.terms.zone, IN_UTC)
                from_us, until_us = around(self.latest, bound.terms.period, zone=zone, starts_on=bound.terms.starts_on)
                assert (view.from_us, view.resets_at_us) == (from_us, until_us)
                self.check_used(view, bound, account, key)

    def check_used(self, view, bound, account, key):
        """To the last µHs, where all that is used is calls."""
        used = bound.used if bound.of == view.from_us else 0
        for record in self.counted[bound.first :]:
            if record.account_id == account and key in (None, record.key_id):
                used += within(record.charged_uhs, record.started_at_us, record.ended_at_us, view.from_us)
        assert view.used == used


def within(amount, began, ended, from_us):
    """What of an amount is of a period."""
    if began >= from_us:
        return amount
    return 0 if ended <= from_us else amount - amount * (from_us - began) // (ended - began)
