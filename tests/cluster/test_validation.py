"""What a runner says is kept for ever, so it is made fit for that; and one bad word costs nobody else theirs."""

import asyncio

import msgspec
import pytest

from fabric.cluster.reports import Reports
from fabric.cluster.validation import ERROR_CHARS_MAX, end_of, is_number, text
from fabric.gate.events import LeaseFinished, LeaseOutcome, LeaseSaved
from fabric.gate.instructions import Accepted, Decision
from fabric.journal.encoding import decode_entry, entries_of
from fabric.worker.stage import JobEnd, Save
from tests.worker.leases import lease_of

LEASE = lease_of()
DONE = JobEnd(outcome=LeaseOutcome.SUCCEEDED, result_ref="jobs/acme/job-1/result", saves=(Save(1, 2),), reusable=True)


def test_a_plain_word_is_taken_as_it_is():
    assert end_of(DONE, lease=LEASE) == DONE
    inline = msgspec.structs.replace(DONE, result_ref="inline:aGVsbG8=")
    assert end_of(inline, lease=LEASE) == inline


@pytest.mark.parametrize(
    "result_ref",
    ["jobs/globex/job-1/result", "blobs/globex/ab", "../x", "inline:a", "inline:" + "aaaa" * 2_000],
)
def test_a_result_is_where_this_jobs_result_may_be_or_nowhere(result_ref):
    assert end_of(msgspec.structs.replace(DONE, result_ref=result_ref), lease=LEASE).result_ref == ""


@pytest.mark.parametrize(
    "said",
    [
        None,
        "succeeded",
        object(),
        {"outcome": "succeeded", "result_ref": None},
        JobEnd(outcome="won"),
        JobEnd(outcome=LeaseOutcome.SUCCEEDED, error=b"x"),
        JobEnd(outcome=LeaseOutcome.SUCCEEDED, saves=((1.5, 2),)),
        JobEnd(outcome=LeaseOutcome.SUCCEEDED, saves=((object(), 2),)),
    ],
)
def test_what_makes_no_sense_is_a_failure_of_that_job(said):
    end = end_of(said, lease=LEASE)
    assert (end.outcome, end.error) == (LeaseOutcome.FAILED, "worker_died: what it said of its end makes no sense")


@pytest.mark.parametrize("error", ["caf\udce9.txt is not there", "\0", "\U0001f600" * 9_000, "x" * 10**6])
def test_whatever_an_error_says_the_journal_can_read_it_again(error):
    end = end_of(JobEnd(outcome=LeaseOutcome.FAILED, error=error), lease=LEASE)
    assert len(end.error) <= ERROR_CHARS_MAX
    assert end.error == text(error)
    event = LeaseFinished(lease_id="job-1.1", outcome=end.outcome, error=end.error)
    [entry] = entries_of(0, at_us=0, event=event, decision=Decision(outcome=Accepted()))
    assert decode_entry(entry.leaf).event == event


@pytest.mark.parametrize(
    ("said", "fit"),
    [(0, True), (2**63 - 1, True), (2**63, False), (-1, False), (1.0, False), (True, False), ("1", False)],
)
def test_a_number_is_a_count_of_64_bits(said, fit):
    assert is_number(said) is fit


async def test_a_word_the_gate_cannot_take_costs_nobody_else_theirs():
    heard = []

    async def report(events):
        if any(event.lease_id == "bad" for event in events):
            raise TypeError("what is this?")
        heard.extend(event.lease_id for event in events)

    outbox = Reports(report)
    for lease_id in ("a", "bad", "b"):
        outbox.put(LeaseSaved(lease_id=lease_id, step=1, write_us=1))
    outbox.start()
    await asyncio.wait_for(outbox.deliver(LeaseSaved(lease_id="c", step=1, write_us=1)), 5)
    await outbox.close()
    assert heard == ["a", "b", "c"]
