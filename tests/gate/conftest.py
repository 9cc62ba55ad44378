"""Stories as tables: at this second, this happens, these are the instructions, and this is what becomes of the job."""

import msgspec
import pytest

from fabric.gate.events import (
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseSaved,
    LeaseStarted,
    Metered,
    NodeUp,
    Pool,
    Sample,
    Submit,
    Tick,
    TopUp,
)
from fabric.gate.instructions import Accepted, RemoveLease, StartLease, StopLease
from tests.gate.tills import Books
from tests.gate.world import CONFIGURE, T0, Clockwork, S, spec


def submit(job_id="j", account="ada", **wanted):
    return Submit(job_id=job_id, account_id=account, spec=spec(**wanted))


def top_up(seconds, account="ada"):
    return TopUp(account_id=account, amount_uhs=round(seconds * S))


def node(node_id="h1", kind="H100", devices=4, pool=Pool.SPOT):
    return NodeUp(node_id=node_id, accelerator=kind, devices=devices, pool=pool)


def started(lease="j.1"):
    return LeaseStarted(lease_id=lease)


def sample(seconds, lease="j.1", *, seq=1, busy=None):
    """One device in full use unless said otherwise."""
    busy = seconds if busy is None else busy
    return Sample(lease_id=lease, seq=seq, window_us=round(seconds * S), busy_us=round(busy * S))


def metered(seconds, lease="j.1", *, seq=1, busy=None):
    return Metered(samples=(sample(seconds, lease, seq=seq, busy=busy),))


def saved(lease="j.1"):
    return LeaseSaved(lease_id=lease)


def finished(outcome, lease="j.1", **more):
    return LeaseFinished(lease_id=lease, outcome=LeaseOutcome(outcome), **more)


def removed(lease="j.1", final=None):
    return LeaseRemoved(lease_id=lease, final=final)


def told(instruction):
    """An instruction as a line of a story."""
    match instruction:
        case StartLease(lease=lease):
            where = " ".join(f"{share.node_id}:{share.devices}" for share in lease.shares)
            return f"start {lease.lease_id} epoch {lease.epoch} on {where}"
        case StopLease():
            by = (instruction.deadline_us - T0) / S
            return f"stop {instruction.lease_id} {instruction.reason} by {by:g}"
        case RemoveLease():
            return f"remove {instruction.lease_id}"


class Story(Clockwork):
    """Plays rows of (second, event, instructions, what the job is after it, why)."""

    def play(self, *rows, job="j"):
        for second, event, *expected in rows:
            decision = self.at(second).do(event)
            instructions, state = (*expected, None)[:2]
            assert [told(each) for each in decision.instructions] == instructions, f"at {second}: {event}"
            if state is not None:
                words = [self.job(job).state.value, self.job(job).reason]
                assert " ".join(word for word in words if word) == state, f"at {second}: {event}"
            yield_to_owner = decision.outcome
        return yield_to_owner

    def free(self, account="ada"):
        return self.gate.state.book.free(account, now_us=self.now_us)

    def must(self, event):
        outcome = self.do(event).outcome
        assert isinstance(outcome, Accepted), outcome
        return outcome


@pytest.fixture
def story():
    """Ada has 1000 device-seconds and one node of four H100."""
    story = Story("ada", "bob")
    story.must(top_up(1_000))
    story.must(node())
    yield story
    story.at(10_000_000).do(Tick())


@pytest.fixture
def till(story):
    """Payments are taken by Stripe; Bob has nothing yet."""
    story.must(msgspec.structs.replace(CONFIGURE, payments="stripe"))
    return story


@pytest.fixture
def books(till):
    return Books(till)
