"""Jobs that ended without ever having run are no reason for the gate to grow: the oldest of them are forgotten, no others."""

import msgspec
import pytest

from fabric.gate import Gate
from fabric.gate.events import (
    AnyEvent,
    Cancel,
    ForgetJobs,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    Pause,
    Resume,
    Submit,
)
from fabric.gate.instructions import Accepted, Refusal
from fabric.gate.questions import JobOf, JobsOf
from tests.gate.test_restored import ACCOUNTS, twins
from tests.gate.world import spec


@pytest.fixture
def at():
    """One node, on which a job of another account runs; a gate that is restored before every event decides the same."""
    at = twins()
    at.node("h1", "H100")
    return at


def submit(at, job_id, account="ada"):
    assert isinstance(at.do(Submit(job_id=job_id, account_id=account, spec=spec())).outcome, Accepted)


def cancelled(at, *job_ids, account="ada"):
    for job_id in job_ids:
        submit(at, job_id, account)
        assert isinstance(at.do(Cancel(job_id=job_id, account_id=account)).outcome, Accepted)


def ran(at, job_id, account="ada"):
    submit(at, job_id, account)
    at.do(LeaseStarted(lease_id=f"{job_id}.1"))
    at.do(LeaseFinished(lease_id=f"{job_id}.1", outcome=LeaseOutcome.SUCCEEDED))
    at.do(LeaseRemoved(lease_id=f"{job_id}.1"))


def forget(at, keep, account="ada"):
    assert isinstance(at.do(ForgetJobs(account_id=account, keep=keep)).outcome, Accepted)
    at.gate.check()


def test_the_oldest_that_never_ran_go_and_what_ran_waits_or_runs_stays(at):
    ran(at, "ran")
    submit(at, "runs", "bob")
    at.do(LeaseStarted(lease_id="runs.1"))
    cancelled(at, "c1", "c2", "c3", "c4")
    submit(at, "waits")
    submit(at, "paused")
    at.do(Pause(job_id="paused", account_id="ada"))
    cancelled(at, "other", account="bob")
    forget(at, 2)
    assert list(at.gate.state.jobs) == ["ran", "runs", "c3", "c4", "waits", "paused", "other"]
    forget(at, 0)
    assert list(at.gate.state.jobs) == ["ran", "runs", "waits", "paused", "other"]
    forget(at, 0)
    assert isinstance(at.do(Resume(job_id="paused", account_id="ada")).outcome, Accepted)
    assert at.gate.ask(JobOf(job_id="c1"), at.now_us) is None
    assert {view.job_id for view in at.gate.ask(JobsOf(account_id="ada"), at.now_us)} == {"ran", "waits", "paused"}


def test_a_job_is_not_forgotten_before_nothing_of_its_lease_is_left(at):
    submit(at, "starts")
    at.do(Cancel(job_id="starts", account_id="ada"))
    assert at.job("starts").lease_id is not None
    forget(at, 0)
    assert "starts" in at.gate.state.jobs
    at.do(LeaseRemoved(lease_id="starts.1"))
    forget(at, 0)
    assert "starts" not in at.gate.state.jobs
    assert at.gate.state.book.balance("ada", now_us=at.now_us).held_uhs == 0


def test_whoever_hands_in_and_cancels_without_end_costs_no_memory_without_end(at, monkeypatch):
    monkeypatch.setattr("fabric.gate.jobs.UNRUN_MAX", 20)
    submit(at, "runs", "bob")
    sizes = []
    for number in range(60):
        cancelled(at, f"c{number}")
        for account_id in at.gate.crowded():
            assert account_id == "ada"
            forget(at, 10, account_id)
        sizes.append(len(at.gate.state.jobs))
    assert max(sizes) <= 22
    assert sum(job.account_id in ACCOUNTS for job in at.gate.state.jobs.values()) == len(at.gate.state.jobs)
    fresh = Gate.restore(at.gate.snapshot())
    assert fresh.crowded() == at.gate.crowded()


@pytest.mark.parametrize(("account", "keep"), [("nobody", 0), ("ada", -5), ("ada", 10**9)])
def test_a_word_that_makes_no_sense_forgets_nothing_else(at, account, keep):
    submit(at, "runs", "bob")
    cancelled(at, "c1")
    at.do(ForgetJobs(account_id=account, keep=keep))
    at.gate.check()
    assert "runs" in at.gate.state.jobs
    assert ("c1" in at.gate.state.jobs) == (account == "nobody" or keep > 0)


def test_its_id_is_free_again_for_whoever_hands_the_same_in_anew(at):
    submit(at, "runs", "bob")
    cancelled(at, "c1")
    forget(at, 0)
    outcome = at.do(Submit(job_id="c1", account_id="ada", spec=spec())).outcome
    assert isinstance(outcome, Accepted | Refusal)
    at.gate.check()


def test_the_event_comes_back_from_the_journal_as_it_was():
    event = ForgetJobs(account_id="ada", keep=7)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=AnyEvent) == event
