"""Shares through the whole gate: weights and payers of accounts, with use that is metered while jobs run."""

from collections import deque
from itertools import count

import pytest

from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import (
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    Metered,
    Sample,
    Submit,
    Tick,
    TopUp,
)
from fabric.gate.instructions import Accepted, RemoveLease, StartLease
from fabric.gate.share_events import SetCohort, SetShare
from tests.gate.conftest import node, submit, top_up
from tests.gate.world import CONFIGURE, T0, S, spec

MINUTE = 60
HOUR = 60 * MINUTE
DEVICES = 8


class Market:
    """Accounts that always want more than there is, on one node: device-seconds that each got, as it was metered."""

    def __init__(self, lengths, *, openings=None):
        self.gate, self.now_us, self.names = Gate(), T0, count()
        self.lengths, self.got = lengths, dict.fromkeys(lengths, 0)
        self.ends, self.seq = {}, {}
        self.todo = deque()
        self.do(CONFIGURE)
        for account in lengths:
            more = (openings or {}).get(account, {})
            self.do(OpenAccount(account_id=account, name=account, plan="starter", **more))
            self.do(TopUp(account_id=account, amount_uhs=10**13))
        self.do(node(devices=DEVICES))
        for account in lengths:
            for _ in range(DEVICES + 1):
                self.submit(account)

    def do(self, event):
        decision = self.gate.handle(event, self.now_us)
        assert isinstance(decision.outcome, Accepted), decision.outcome
        self.todo += decision.instructions
        while self.todo:
            match self.todo.popleft():
                case StartLease(lease=lease):
                    self.ends[lease.lease_id] = self.now_us + self.lengths[lease.account_id] * S, lease.account_id
                    self.seq[lease.lease_id] = 0
                    self.do(LeaseStarted(lease_id=lease.lease_id))
                    self.submit(lease.account_id)
                case RemoveLease(lease_id=lease_id):
                    del self.ends[lease_id]
                    self.do(LeaseRemoved(lease_id=lease_id))

    def submit(self, account):
        limit = self.lengths[account] * 2 * S
        self.do(Submit(job_id=f"j{next(self.names)}", account_id=account, spec=spec(limit, max_retries=0)))

    def until(self, seconds, *, step=10):
        while self.now_us < T0 + seconds * S:
            self.now_us += step * S
            samples = []
            for lease_id, (_, account) in self.ends.items():
                self.seq[lease_id] += 1
                self.got[account] += step
                samples.append(
                    Sample(lease_id=lease_id, seq=self.seq[lease_id], window_us=step * S, busy_us=step * S * 8 // 10)
                )
            self.do(Metered(samples=tuple(samples)))
            for lease_id, (end_us, _) in list(self.ends.items()):
                if end_us <= self.now_us and lease_id in self.ends:
                    self.do(LeaseFinished(lease_id=lease_id, outcome=LeaseOutcome.SUCCEEDED))
            self.do(Tick())
        self.gate.check()
        return self.got


def test_weights_of_three_to_one_come_through_the_gate_within_three_percent():
    market = Market({"three": 5 * MINUTE, "one": 5 * MINUTE}, openings={"three": {"weight_ppm": 3_000_000}})
    got = market.until(10 * HOUR, step=60)
    assert abs(got["three"] / sum(got.values()) - 0.75) <= 0.03, got


@pytest.mark.parametrize("lengths", [(MINUTE, HOUR), (MINUTE // 2, HOUR // 2)])
def test_equal_accounts_get_as_much_whatever_the_length_of_their_jobs(lengths):
    got = Market(dict(zip(("brief", "long"), lengths, strict=True))).until(16 * HOUR, step=30)
    assert abs(got["brief"] - got["long"]) * 10 <= max(got.values()), got


def test_ten_accounts_of_one_payer_get_the_share_of_one():
    names = [f"many{at}" for at in range(10)]
    market = Market(
        dict.fromkeys(["alone", *names], 5 * MINUTE), openings={name: {"cohort": "payer"} for name in names}
    )
    got = market.until(6 * HOUR, step=60)
    assert abs(got["alone"] / sum(got.values()) - 0.5) <= 0.03, got


def test_a_share_is_changed_while_jobs_wait(story):
    story.must(top_up(100, "bob"))
    story.play(
        (0, submit("r", devices=4), ["start r.1 epoch 1 on h1:4"]),
        (1, submit("a", devices=4), []),
        (2, submit("b", "bob", devices=4), []),
    )
    position = story.gate._core.planner.queue_position
    assert [position("a"), position("b")] == [0, 1], "who is new begins where the least of those stand that are there"
    story.must(SetShare(account_id="bob", weight_ppm=2_000_000))
    assert [position("a"), position("b")] == [1, 0]
    story.must(SetShare(account_id="ada", weight_ppm=3_000_000))
    assert [position("a"), position("b")] == [0, 1]
    story.must(SetCohort(cohort="heavy", weight_ppm=9_000_000))
    story.must(SetShare(account_id="bob", cohort="heavy", request_id="once"))
    assert [position("a"), position("b")] == [1, 0]
    story.must(SetShare(account_id="bob", cohort="heavy", request_id="once"))
    account = story.gate.state.accounts["bob"]
    assert (account.weight_ppm, account.cohort, story.gate.state.cohorts) == (2_000_000, "heavy", {"heavy": 9_000_000})
