"""Whatever the process of a job says of it, everybody can still list jobs: one word that fits no message would spoil the list
of its account, and the operator's, for good.
"""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.api.messages import message_of
from fabric.charging.tariffs import Weight
from fabric.cluster.progress import Newest
from fabric.cluster.validation import end_of, is_number
from fabric.gate.events import Configure, LeaseFinished, LeaseOutcome, LeaseSaved, TopUp
from fabric.gate.questions import BalanceOf, JobOf, QuoteOf
from fabric.placement.locality import Dataset
from fabric.progress import TIMERS, WARNING_CHARS_MAX, Progress
from fabric.units import AMOUNT_UHS_MAX, INT64_MAX
from fabric.wire import fabric_pb2 as pb
from fabric.worker.stage import JobEnd
from tests.gate.conftest import node, removed, started, submit
from tests.gate.world import CATALOGUE, TARIFFS, Clockwork, S, spec
from tests.worker.leases import lease_of

ANY = st.sampled_from([0, 1, -1, 2**31 - 1, 2**31, 2**53, INT64_MAX, 2**63, 2**64, 10**30, -(10**30)]) | st.integers()
OPTIONAL = st.none() | ANY


def running():
    world = Clockwork("ada")
    world.do(TopUp(account_id="ada", amount_uhs=1_000 * S))
    world.do(node())
    world.do(submit())
    world.do(started())
    return world


def shown(world, newest=None):
    """As a list shows it, of the gate as it is and after a start."""
    for gate in (world.gate, type(world.gate).restore(world.gate.snapshot())):
        view = gate.ask(JobOf(job_id="j"), world.now_us)
        message = message_of(view if newest is None else newest.shown(view), pb.Job)
    return message


@given(numbers=st.tuples(*[ANY.filter(is_number)] * 4), end=st.sampled_from(["saved", "interrupted", "succeeded"]))
def test_a_job_can_be_shown_whatever_its_saves_say(numbers, end):
    world = running()
    step, write_us, size, restore_us = numbers
    world.do(LeaseSaved(lease_id="j.1", step=step, write_us=write_us, bytes=size, restore_us=restore_us))
    shown(world)
    world.do(LeaseFinished(lease_id="j.1", outcome=LeaseOutcome(end), step=step))
    world.do(removed())
    shown(world)


@given(code=OPTIONAL, step=ANY)
def test_a_job_can_be_shown_whatever_its_end_says(code, step):
    world = running()
    said = end_of(JobEnd(outcome=LeaseOutcome.FAILED, exit_code=code, step=step), lease=lease_of())
    world.do(LeaseFinished(lease_id="j.1", outcome=said.outcome, exit_code=said.exit_code, step=said.step))
    assert shown(world).HasField("exit_code") == (code is not None and 0 <= code < 2**31)


def test_an_end_that_a_journal_has_of_old_can_be_shown():
    world = running()
    world.do(LeaseFinished(lease_id="j.1", outcome=LeaseOutcome.FAILED, exit_code=INT64_MAX))
    assert not shown(world).HasField("exit_code")


@given(
    said=st.builds(
        Progress,
        step=ANY,
        steps_total=ANY,
        loss_micro=OPTIONAL,
        throughput_milli=ANY,
        eta_us=OPTIONAL,
        timers=st.dictionaries(st.sampled_from(TIMERS) | st.text(), ANY, max_size=8),
        warning=st.text(st.characters(), max_size=5),
    )
)
def test_a_job_can_be_shown_whatever_it_tells_of_its_progress(said):
    newest = Newest()
    newest.note("j", said)
    message = shown(running(), newest)
    assert set(message.timers) <= set(TIMERS)
    assert newest.step_of("j") in range(INT64_MAX + 1)


def test_what_is_remembered_of_a_jobs_progress_has_a_bound():
    newest = Newest()
    timers = {f"timer {number}": 1 for number in range(100_000)}
    newest.note("j", Progress(step=3, warning="x" * 10**6, timers={**timers, "idle": 5}))
    assert len(msgspec.json.encode(newest._by_job["j"])) < WARNING_CHARS_MAX + 1_000
    assert newest.shown(running().gate.ask(JobOf(job_id="j"), 0)).timers == {"idle": 5}


@pytest.mark.parametrize("ppm", [1, 10, 1_000])
def test_what_burns_next_to_nothing_lasts_long_and_can_be_shown(ppm):
    """A small accelerator, and as many tokens as an account may own."""
    world = Clockwork("ada")
    cheap = msgspec.structs.replace(TARIFFS, weights=(*TARIFFS.weights, Weight(accelerator="tiny", ppm=ppm)))
    world.do(Configure(tariffs=cheap, catalogue=CATALOGUE))
    world.do(TopUp(account_id="ada", amount_uhs=AMOUNT_UHS_MAX))
    world.do(node(kind="tiny"))
    wanted = spec(AMOUNT_UHS_MAX, types=("tiny",), data=(Dataset(prefix="d", bytes=1, region=""),))
    message_of(world.gate.ask(QuoteOf(account_id="ada", spec=wanted), world.now_us), pb.QuoteReply)
    world.do(submit(limit=AMOUNT_UHS_MAX, types=("tiny",)))
    world.do(started())
    shown(world)
    message_of(world.gate.ask(BalanceOf(account_id="ada"), world.now_us), pb.BalanceReply)
