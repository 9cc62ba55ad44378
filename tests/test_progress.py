"""What a job tells of itself: only numbers, the newest last, and a pace that comes from its steps."""

import math

from hypothesis import given
from hypothesis import strategies as st

from fabric.cluster.progress import Newest
from fabric.context import REPORT_S, Context, Place, current
from fabric.gate.views import JobView
from fabric.progress import Progress, Reports

anything = st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=3), st.booleans(), st.lists(st.integers(), max_size=2)
)
INT64 = 2**63 - 1


@given(st.dictionaries(st.sampled_from(["step", "steps_total", "loss", "throughput", "idle", "x"]), anything))
def test_whatever_a_job_says_what_is_passed_on_is_whole_numbers_of_64_bits(said):
    reports = Reports()
    reports.take(said, now_s=1.0)
    told = reports.latest
    numbers = [told.step, told.steps_total, told.throughput_milli, *told.timers.values()]
    assert all(type(number) is int and 0 <= number <= INT64 for number in numbers)
    assert told.loss_micro is None or abs(told.loss_micro) <= INT64


def test_the_time_left_is_reckoned_from_the_pace_of_the_last_minute():
    reports = Reports()
    for step in range(100):
        reports.take({"step": step, "steps_total": 1_000}, now_s=float(step))
    for step in range(100, 200):
        reports.take({"step": step, "steps_total": 1_000}, now_s=100 + (step - 100) * 2.0)
    assert reports.latest.eta_us == 801 * 2_000_000


def test_a_thousand_reports_a_second_cost_no_more_memory_than_one():
    reports = Reports()
    for at in range(100_000):
        reports.take({"step": at, "steps_total": 200_000}, now_s=at / 1_000)
    assert len(reports._marks) <= 64
    assert math.isclose(reports.latest.eta_us, 100_001_000, rel_tol=0.01)


def test_a_loss_that_is_no_number_any_more_is_not_shown_as_the_one_before():
    reports = Reports()
    reports.take({"step": 1, "loss": 0.5})
    assert reports.latest.loss_micro == 500_000
    reports.take({"step": 2, "loss": math.nan})
    assert reports.latest.loss_micro is None


def test_news_are_passed_on_at_a_bounded_rate(monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr("fabric.context.job.time.monotonic", lambda: now[0])
    calls = []
    job = Context(Place(job_id="j"), on_report=lambda: calls.append(job.progress.step))
    for step in range(1, 1_001):
        job.report(step=step)
        now[0] += REPORT_S / 100
    assert 9 <= len(calls) <= 11
    assert job.progress.step == 1_000


def test_outside_the_fabric_and_on_other_ranks_nobody_is_told():
    current().report(step=1)
    Context(Place(job_id="j", rank=1), on_report=lambda: 1 / 0).report({"step": 3}, loss=1)


def view(state="running"):
    return JobView(
        job_id="j", account_id="a", name="n", kind="script", state=state, reason="", accelerator="H100", devices=1,
        nodes=(), limit_uhs=1, held_uhs=0, burned_uhs=0, burn_uhs_per_s=0, utilisation_ppm=0, runway_us=None, attempts=1,
        submitted_at_us=0, started_at_us=0, ended_at_us=None, settled=False, error="", result_ref="", lease_id=None,
        revision=1, step=5,
    )  # fmt: skip


def test_a_view_shows_the_newest_word_and_of_a_job_that_rests_nothing_that_lies_ahead():
    newest = Newest()
    assert newest.shown(view()) == view()
    newest.note("j", Progress(step=9, steps_total=10, eta_us=7, throughput_milli=3, timers={"idle": 1}))
    assert (newest.shown(view()).step, newest.shown(view()).eta_us) == (9, 7)
    parked = newest.shown(view("parked"))
    assert (parked.step, parked.eta_us, parked.throughput_milli, parked.timers) == (9, None, 0, {"idle": 1})


def test_nonsense_from_a_runner_is_left_out():
    newest = Newest()
    for nonsense in (None, "x", 3, {"step": "many"}, object()):
        newest.note("j", nonsense)
    assert newest.shown(view()) == view()
