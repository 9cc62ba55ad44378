"""The rules of notices: what is told of a story, once, whatever restarts meanwhile."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fabric.gate.account_events import CreateKey
from fabric.gate.events import Cancel, Grant, HoldMode, NodeDown, NodeDrain, Pause, RaiseLimit, Resume, Tick
from fabric.gate.instructions import RemoveLease, StartLease, StopLease
from fabric.gate.limit_events import LimitTerms, SetLimit, Whose
from fabric.gate.periods import Period
from fabric.gate.questions import LimitsOf
from fabric.journal.encoding import EVERYBODY
from fabric.notifications.notice import Kind
from tests.gate.conftest import finished, metered, node, removed, sample, saved, started, submit, top_up
from tests.gate.tills import asks, says
from tests.gate.world import CONFIGURE, DAY, T0, S
from tests.journal.story import newest_story
from tests.notifications.house import House, Log, heard

H = 3_600


@pytest.fixture
def house():
    """Ada has a thousand device-seconds and one node of four H100."""
    house = House("ada", "bob")
    house.must(top_up(1_000))
    house.must(node())
    return house


@pytest.fixture
def told(house, tmp_path):
    """What Ada was told, as (kind, one of its facts)."""

    def told(fact="reason", **more):
        notices = heard(house, tmp_path / f"{house.log.size}.notices", **more)["ada"]
        return [(str(notice.kind), notice.facts.get(fact)) for notice in notices]

    return told


def test_a_job_that_is_parked_resumed_and_ends_is_told_of_at_each_turn(house, told):
    house.must(submit(limit=100 * S))
    house.do(started())
    house.at(89).do(metered(89))
    house.at(91).do(metered(2, seq=2))
    house.at(95).do(saved())
    house.do(finished("saved"))
    house.at(96).do(removed(final=sample(4, seq=3)))
    house.at(98).do(RaiseLimit(job_id="j", account_id="ada", limit_uhs=300 * S))
    house.do(started("j.2"))
    house.at(99).do(finished("succeeded", "j.2"))
    house.do(removed("j.2"))
    assert [each for each in told() if each[0].startswith("job.")] == [
        ("job.parked", "limit_reached"),
        ("job.resumed", None),
        ("job.ended", "succeeded"),
    ]


def test_a_job_that_is_drained_and_one_that_loses_its_node_are_told_of(house, told):
    house.must(submit(limit=100 * S))
    house.do(started())
    house.at(5).do(NodeDrain(node_id="h1", grace_us=10 * S, undo=False))
    house.at(6).do(finished("saved"))
    house.do(removed())
    house.must(node("h2"))
    house.do(started("j.2"))
    house.at(9).do(NodeDown(node_id="h2"))
    assert [each for each in told() if each[0] == "job.evicted"] == [
        ("job.evicted", "drained"),
        ("job.evicted", "node_lost"),
    ]


def test_a_runway_is_told_of_at_its_narrowest_threshold_and_again_only_after_it_was_longer(house, told):
    house.must(top_up(73 * H))
    house.must(submit(limit=900 * H * S, hold=HoldMode.ROLLING))
    house.do(started())
    seqs = Counter()

    def burn(*leases, times=1):
        for _ in range(times):
            house.at((house.now_us - T0) / S + 600)
            for lease in leases:
                seqs[lease] += 1
                house.do(metered(600 * (1 if lease == "j.1" else 3), lease, seq=seqs[lease]))

    def crossed():
        return [hours for kind, hours in told("below_h") if kind == "balance.runway"]

    burn("j.1", times=14)
    assert crossed() == [72]
    burn("j.1", times=3)
    assert crossed() == [72], "still below, which is nothing new"
    house.must(submit("k", limit=900 * H * S, hold=HoldMode.ROLLING, devices=3))
    house.do(started("k.1"))
    burn("j.1", "k.1", times=2)
    assert crossed() == [72, 24], "it burns four times as fast"
    house.do(finished("succeeded", "k.1"))
    house.do(removed("k.1"))
    house.must(top_up(100 * H))
    burn("j.1")
    assert crossed() == [72, 24]
    house.must(submit("m", limit=900 * H * S, hold=HoldMode.ROLLING, devices=3))
    house.do(started("m.1"))
    burn("j.1", "m.1")
    assert crossed() == [72, 24, 72], "it was longer meanwhile"


def test_a_limit_is_told_of_at_75_and_90_percent_once_a_period(house, told):
    house.must(top_up(10_000))
    house.do(CreateKey(key_id="k", account_id="ada", secret_sha256=""))
    terms = LimitTerms(period=Period.DAY, amount=400 * S, hard=False)
    house.do(SetLimit(account_id="ada", whose=Whose.ACCOUNT, terms=terms))
    house.must(submit(limit=5_000 * S))
    house.do(started())
    for seq in range(1, 9):
        house.at(50 * seq).do(metered(50, seq=seq))
    assert [each for each in told("percent") if each[0] == "limit.used"] == [("limit.used", 75), ("limit.used", 90)]
    house.at(2 * 86_400).do(Tick())
    house.do(metered(350, seq=9))
    assert [each for each in told("percent") if each[0] == "limit.used"][:2] == [("limit.used", 75), ("limit.used", 90)]


def test_a_key_for_life_is_told_of_too(house, told):
    house.do(CreateKey(key_id="k", account_id="ada", secret_sha256="", limit_uhs=100 * S))
    house.must(replace(submit(limit=99 * S), key_id="k"))
    house.do(started())
    house.at(80).do(metered(80))
    assert ("limit.used", 75) in told("percent")


def test_tokens_that_expire_are_told_of_30_7_and_1_days_before(house, tmp_path):
    house.must(Grant(account_id="ada", amount_uhs=50 * S, lifetime_us=60 * DAY))
    for day in (10, 25, 29.5, 31, 40, 52.9, 53.2, 58.5, 59.5, 61):
        house.at(day * 86_400).must(Grant(account_id="bob", amount_uhs=S, lifetime_us=DAY))
        house.must(Grant(account_id="ada", amount_uhs=S, lifetime_us=DAY))
    expiries = [each for each in heard(house, tmp_path / "n")["ada"] if each.kind is Kind.EXPIRY]
    by_lot = {each.facts["lot_id"]: [] for each in expiries}
    for each in expiries:
        by_lot[each.facts["lot_id"]].append(each.facts["days"])
    assert sorted(by_lot.values()) == [[7, 1], [30, 7, 1]], "of 30 days and of 60; and nothing of what lives for a day"


def test_a_payment_that_fails_is_told_of_once(house, tmp_path):
    house.must(replace(CONFIGURE, payments="stripe"))
    house.must(asks())
    house.do(says("pending"))
    house.do(says("declined", why="no funds"))
    house.do(says("declined", why="no funds"))
    (notice,) = [each for each in heard(house, tmp_path / "n")["bob"] if each.kind is Kind.PAYMENT_FAILED]
    assert (notice.facts["payment_id"], notice.subject) == ("p1", "payment/p1")


def test_nobody_is_told_of_what_was_before_its_first_endpoint(house, tmp_path):
    house.must(submit())
    house.do(started())
    house.at(5).do(finished("succeeded"))
    house.do(removed())
    assert heard(house, tmp_path / "n", begin_at=house.log.size)["ada"] == []


def test_where_entries_are_missing_nothing_is_told_until_a_snapshot_after_them(house, tmp_path):
    house.must(submit())
    house.do(started())
    missing = house.log.size
    house.at(5).do(finished("succeeded"))
    house.do(removed())
    house.log.snapshots[house.log.size] = house.gate.snapshot()
    house.must(submit("k"))
    house.do(started("k.1"))
    house.at(9).do(finished("succeeded", "k.1"))
    del house.log.entries[missing]
    notices = heard(house, tmp_path / "n", batch=1)["ada"]
    assert [each.subject for each in notices if each.kind is Kind.JOB_ENDED] == ["job/k"]


# -- any history, cut and crashed anywhere ------------------------------------------------------------------------------


class Wild(House):
    """A history by chance, and what a plain look after each event has seen."""

    def __init__(self, chance):
        super().__init__("ada", "bob")
        self.chance, self.snapshot_every = chance, 25
        self.states, self.seen, self.running, self.seqs = {}, Counter(), {}, Counter()
        self.percent = {}
        self.after.append(self.look)
        self.must(top_up(3_000))
        self.must(top_up(2_000, "bob"))
        self.must(node())
        for account in ("ada", "bob"):
            terms = LimitTerms(period=Period.DAY, amount=400 * S, hard=chance.random() < 0.5)
            self.must(SetLimit(account_id=account, whose=Whose.ACCOUNT, terms=terms))

    def look(self):
        for job in self.gate.state.jobs.values():
            before, self.states[job.job_id] = self.states.get(job.job_id), job.state
            if before == job.state:
                continue
            if job.state == "parked":
                self.seen["job.parked", job.account_id] += 1
            if job.state in ("succeeded", "failed", "cancelled"):
                self.seen["job.ended", job.account_id] += 1
        for account in ("ada", "bob"):
            for limit in self.gate.ask(LimitsOf(account_id=account), self.now_us):
                name = account, limit.from_us
                reached = max((each for each in (75, 90) if limit.used * 100 >= limit.amount * each), default=0)
                if reached > self.percent.get(name, 0):
                    self.percent[name] = reached
                    self.seen["limit.used", account] += 1

    def do(self, event):
        decision = super().do(event)
        for each in decision.instructions if decision is not None else ():
            match each:
                case StartLease():
                    self.running[each.lease.lease_id] = "starting"
                case StopLease():
                    self.running[each.lease_id] = "stopping"
                case RemoveLease():
                    self.running[each.lease_id] = "removing"
        return decision

    def happen(self):
        draw = self.chance
        self.now_us += draw.choice((S, 20 * S, 60 * S, H * S, DAY // 3))
        jobs = list(self.gate.state.jobs)
        match draw.randrange(12):
            case 0 | 1:
                self.do(
                    submit(
                        f"j{len(jobs)}",
                        draw.choice(("ada", "bob")),
                        limit=draw.choice((50, 300)) * S,
                        hold=draw.choice(list(HoldMode)),
                    )
                )
            case 2 | 3 | 4 | 5 if self.running:
                lease = draw.choice(list(self.running))
                match self.running[lease]:
                    case "removing":
                        del self.running[lease]
                        self.do(removed(lease))
                    case "starting":
                        self.running[lease] = "running"
                        self.do(started(lease))
                    case _:
                        self.seqs[lease] += 1
                        burn = draw.choice((5, 40, 120))
                        self.do(metered(burn, lease, seq=self.seqs[lease]))
                        if draw.random() < 0.4:
                            self.do(finished(draw.choice(("succeeded", "saved", "failed", "lost")), lease))
            case 6 if jobs:
                job = self.gate.state.jobs[draw.choice(jobs)]
                verb = draw.choice((Pause, Resume, Cancel))
                self.do(verb(job_id=job.job_id, account_id=job.account_id))
            case 7:
                self.do(top_up(draw.choice((10, 500)), draw.choice(("ada", "bob"))))
            case 8:
                self.do(NodeDown(node_id="h1"))
                self.do(node())
            case 9:
                self.do(Grant(account_id=draw.choice(("ada", "bob")), amount_uhs=9 * S, lifetime_us=9 * DAY))
            case _:
                self.do(Tick())


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_any_history_is_told_once_and_the_same_wherever_it_is_cut_and_whatever_dies(seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("notices")
    wild = Wild(random.Random(seed))
    for _ in range(90):
        wild.happen()
    whole = heard(wild, folder / "whole")
    cut = heard(wild, folder / "cut", chance=random.Random(seed + 1))
    assert cut == whole
    ids = [notice.notice_id for notices in whole.values() for notice in notices]
    assert len(ids) == len(set(ids)), "each has an id of its own, and is told once"
    found = Counter((str(notice.kind), account) for account, notices in whole.items() for notice in notices)
    assert {each: found[each] for each in wild.seen} == dict(wild.seen)
    for kind in ("job.parked", "job.ended", "limit.used"):
        assert all((kind, account) in wild.seen for account in wild.gate.state.accounts if (kind, account) in found)


def test_a_journal_with_every_kind_of_event_is_followed_to_its_end_and_the_same_from_anywhere(tmp_path):
    """The newest release's: nothing of what a gate can decide stops whoever follows it."""

    entries = newest_story(tmp_path)
    log = Log()
    log.entries, log.size = {entry.seq: entry for entry in entries}, len(entries)
    played = SimpleNamespace(log=log, now_us=2**60)
    accounts = sorted({account for entry in entries for account in entry.accounts if account != EVERYBODY})[:8]
    whole = heard(played, tmp_path / "whole", accounts=accounts)
    assert {each.kind for notices in whole.values() for each in notices} >= {Kind.JOB_ENDED, Kind.JOB_PARKED}
    assert heard(played, tmp_path / "cut", accounts=accounts, batch=37) == whole
