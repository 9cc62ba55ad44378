"""The gate's process around its gate: coming up, coming up again, and telling of what changed. Ray is a stand-in."""

import asyncio
import time

import pytest

from fabric.errors import Conflict, JournalCorrupt, Unavailable
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import (
    JobKind,
    JobSpec,
    LeaseFinished,
    LeaseOutcome,
    LeaseRemoved,
    LeaseStarted,
    NodeUp,
    Pool,
    Submit,
    TopUp,
)
from fabric.gate.instructions import Accepted, StartLease
from fabric.server import actor as actor_module
from fabric.server.start_terms import StartTerms
from fabric.units import UHS_PER_CT

JOB = [
    NodeUp(node_id="h1", accelerator="H100", devices=4, pool=Pool.SPOT),
    OpenAccount(account_id="acme", name="Acme", plan="starter", request_id="open"),
    TopUp(account_id="acme", amount_uhs=100 * UHS_PER_CT, payment_ref="p", request_id="top-up"),
    Submit(
        job_id="job-1",
        account_id="acme",
        spec=JobSpec(name="train", kind=JobKind.FUNCTION, limit_uhs=10 * UHS_PER_CT, payload="{}"),
        request_id="submit",
    ),
]


def writers():
    return [task for task in asyncio.all_tasks() if task.get_name() == "journal-writer"]


@pytest.mark.parametrize("step", ["start", "reconcile"])
async def test_a_start_that_failed_half_way_is_finished_by_the_next_call_and_writes_with_one_hand(world, cluster, step):
    cluster.away.append(step)
    gate = world()
    with pytest.raises(Unavailable):
        await gate.ready()
    assert all(isinstance(outcome, Accepted) for outcome in await gate.decide(JOB))
    assert len(writers()) == 1
    await gate.close()


async def test_time_goes_on_in_a_gate_that_comes_up_when_the_wall_was_set_back(world, monkeypatch):
    first = world()
    await first.decide(JOB)
    await first.close()
    now_ns = time.time_ns()
    monkeypatch.setattr("fabric.clock.time.time_ns", lambda: now_ns - 3_600 * 10**9)
    second = world()
    await second.ready()
    assert second._writer.at_us <= second._clock.now_us() < first._writer.at_us + 3_600 * 10**6
    at_us = [second._writer.at_us]
    for number in range(3):
        await asyncio.sleep(0.002)
        await second.decide(
            [TopUp(account_id="acme", amount_uhs=1, payment_ref=f"p-{number}", request_id=f"again-{number}")]
        )
        at_us.append(second._writer.at_us)
    await second.close()
    assert at_us == sorted(set(at_us)), "it stood still"


async def test_a_gate_that_comes_up_again_shows_the_jobs_that_are_not_over(world, cluster, monkeypatch):
    monkeypatch.setattr(actor_module, "PUBLISH_S", 0.01)
    first = world()
    await first.decide(JOB)
    await first.close()
    second = world()
    await second.ready()
    await cluster.made[-1].shown.wait()
    assert [view.job_id for view in cluster.made[-1].published] == ["job-1"]
    assert [type(said) for said in cluster.made[-1].carried_out] == [StartLease]
    await second.close()


async def test_a_gate_that_comes_up_again_knows_whose_logs_are_left_on_machines(world, cluster):
    """The lease is over, by the journal; its gate may have died before its logs were moved."""
    over = [
        LeaseStarted(lease_id="job-1.1"),
        LeaseFinished(lease_id="job-1.1", outcome=LeaseOutcome.SUCCEEDED),
        LeaseRemoved(lease_id="job-1.1"),
    ]
    first = world()
    assert all(isinstance(outcome, Accepted) for outcome in await first.decide([*JOB, *over]))
    await first.close()
    second = world()
    await second.ready()
    (view,) = await cluster.made[-1].jobs(["job-1", "nobody's"])
    assert (view.job_id, view.account_id, view.attempts, view.lease_id) == ("job-1", "acme", 1, None)
    await second.close()


@pytest.mark.parametrize("step", ["start", "reconcile"])
async def test_a_gate_whose_start_failed_comes_up_by_itself_and_says_meanwhile_what_is_wrong(world, cluster, step):
    cluster.away += [step] * 3
    gate = world()
    with pytest.raises(Unavailable):
        await gate.ready()
    assert "archive is out of reach" in await gate.ailment()
    async with asyncio.timeout(60):
        while await gate.ailment():  # noqa: ASYNC110 - nobody calls the gate: that it comes up is the claim
            await asyncio.sleep(0.01)
    assert not cluster.away
    assert all(isinstance(outcome, Accepted) for outcome in await gate.decide(JOB))
    assert len(writers()) == 1
    await gate.close()


async def test_watchers_hear_of_what_landed_in_a_commit_whose_answer_was_lost(world, cluster):
    gate = world()
    await gate.ready()
    append = gate._writer.journal.append

    async def lose_the_answer(*batch):
        await append(*batch)
        gate._writer.journal.append = append
        raise Unavailable("the answer was lost")

    gate._writer.journal.append = lose_the_answer
    with pytest.raises(Unavailable):
        await gate.decide(JOB)
    async with asyncio.timeout(60):
        while not (found := await gate.changes(None, 0, 1.0)):
            pass
    assert [view.job_id for view in found] == ["job-1"]
    assert [type(said) for said in cluster.made[-1].carried_out] == [StartLease]
    await gate.close()


HOUR_US = 3_600_000_000


@pytest.fixture
def wall(monkeypatch):
    """The machine's clock, set ahead by so many hours."""
    read = time.time_ns

    def set_ahead(hours):
        monkeypatch.setattr("fabric.clock.time.time_ns", lambda: read() + hours * 3_600 * 10**9)

    return set_ahead


async def test_a_clock_a_year_ahead_at_a_start_is_a_question_and_decides_nothing(world, wall):
    first = world()
    await first.decide(JOB)
    await first.close()
    wall(365 * 24)
    second = world()
    with pytest.raises(
        Unavailable, match=r"clock right\? It says .* 365.0 days after .* fabric up --accept-time"
    ) as asked:
        await second.ready()
    assert asked.value.code == "clock_ahead"
    with pytest.raises(Unavailable):
        await second.decide(JOB)
    assert second._writer.head.size == first._writer.head.size
    await second.prepare(StartTerms(accept_time=True))
    await second.ready()
    assert second._clock.now_us() > first._writer.at_us + 364 * 24 * HOUR_US
    with pytest.raises(Conflict, match="fabric down"):
        await second.prepare(StartTerms(accept_time=True))
    await second.close()


async def test_a_gate_whose_clock_is_set_right_comes_up_by_itself(world, wall):
    first = world()
    await first.decide(JOB)
    await first.close()
    wall(30 * 24)
    second = world()
    with pytest.raises(Unavailable):
        await second.ready()
    assert "fabric up --accept-time" in await second.ailment()
    wall(0)
    async with asyncio.timeout(60):
        while await second.ailment():  # noqa: ASYNC110 - nobody calls
            await asyncio.sleep(0.01)
    await second.ready()
    assert second._clock.now_us() < first._writer.at_us + HOUR_US
    await second.close()


@pytest.mark.parametrize("hours", [0, 5, 23])
async def test_a_start_after_less_than_a_day_asks_nothing(world, wall, hours):
    first = world()
    await first.decide(JOB)
    await first.close()
    wall(hours)
    second = world()
    await second.ready()
    await second.close()


async def test_a_clock_that_jumps_while_the_gate_runs_is_told_of_and_not_followed(world, wall):
    gate = world()
    await gate.decide(JOB)
    before_us = gate._clock.now_us()
    wall(400 * 24)
    assert gate._clock.now_us() < before_us + HOUR_US
    assert "clock is 400.0 days ahead of the gate's, which goes on as if it had not jumped" in await gate.ailment()
    wall(0)
    assert not await gate.ailment()
    await gate.close()


async def test_an_idle_gate_says_now_and_then_that_it_is_there(world, monkeypatch):
    """So that a start after a long idle time finds a last entry that is not old."""
    monkeypatch.setattr(actor_module, "IDLE_TICKS", 24 * 3_600_000)  # a tick for each ms of idle time
    gate = world()
    await gate.ready()
    size = gate._writer.head.size
    async with asyncio.timeout(60):
        while gate._writer.head.size < size + 3:  # noqa: ASYNC110 - nobody calls
            await asyncio.sleep(0.01)
    await gate.close()


async def test_a_gate_that_can_not_be_replayed_says_so_at_once_and_is_not_replayed_for_every_call(world, monkeypatch):
    first = world()
    await first.decide(JOB)
    await first.close()
    second, starts = world(), []

    async def differs(*, replay_from=None):
        starts.append(replay_from)
        raise JournalCorrupt(
            "entry 3 comes out differently: start with `fabric up --replay-from 0`", code="replay_differs"
        )

    start = second._writer.start
    monkeypatch.setattr(second._writer, "start", differs)
    with pytest.raises(JournalCorrupt):
        await second.ready()
    for _ in range(3):
        with pytest.raises(JournalCorrupt, match="--replay-from 0"):
            await second.decide(JOB)
    assert starts == [None]
    assert "--replay-from 0" in await second.ailment()
    monkeypatch.setattr(second._writer, "start", start)
    await second.prepare(StartTerms(replay_from=0))
    await second.ready()
    assert not await second.ailment()
    await second.close()
