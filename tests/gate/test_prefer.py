"""`prefer`: the type a job gets is chosen by what its earlier runs were measured at, and `why` says what it was chosen by."""

import pytest

from fabric.api.why_text import sentence
from fabric.gate import Gate
from fabric.gate.questions import WhyOf
from fabric.gate.rates import measured
from tests.gate.conftest import finished, node, removed, started, submit, top_up
from tests.gate.world import T0, S


@pytest.fixture
def measured_runs(story):
    """Two runs of "train", of 100 steps each: 50 s on an A100, 100 s on an H100."""
    story.must(node("a1", "A100", 4))
    story.must(top_up(9_000))
    for job_id, kind, took_s in (("one", "A100", 50), ("two", "H100", 100)):
        story.do(submit(job_id, types=(kind,), limit=900 * S))
        story.do(started(f"{job_id}.1"))
        story.at((story.now_us - T0) // S + took_s)
        story.do(finished("succeeded", f"{job_id}.1", step=100))
        story.do(removed(f"{job_id}.1"))
    return story


def placed_on(story, job_id, **wanted):
    story.do(submit(job_id, types=(), limit=900 * S, **wanted))
    return story.job(job_id).accelerator


@pytest.mark.parametrize("prefer", ["tokens", "soonest"])
def test_a_type_that_was_measured_to_be_faster_is_taken(measured_runs, prefer):
    assert placed_on(measured_runs, "other", name="other") == "H100", "nothing is known of it, and nothing preferred"
    assert placed_on(measured_runs, "j", prefer=prefer) == "A100"
    found = measured_runs.gate.ask(WhyOf(job_id="j", account_id="ada"), measured_runs.now_us)
    assert found.because.group == "spot/A100"
    assert found.because.other == "spot/H100"
    assert found.because.score.total < found.because.other_score.total
    assert "It was placed on spot/A100 because it comes to" in sentence(found)
    again = Gate.restore(measured_runs.gate.snapshot())
    assert again.ask(WhyOf(job_id="j", account_id="ada"), measured_runs.now_us) == found


def test_only_the_accounts_own_runs_of_the_name_count(measured_runs):
    core = measured_runs.gate._core
    assert [(run.accelerator, run.steps) for run in measured(core, measured_runs.job("one"))] == [
        ("H100", 100),
        ("A100", 100),
    ]
    measured_runs.do(submit("b", "bob", limit=1 * S))
    assert placed_on(measured_runs, "k", name="another", prefer="tokens") in ("A100", "H100")
    assert measured(core, measured_runs.job("k")) == []


def test_an_unknown_preference_is_refused(story):
    refused = story.do(submit(prefer="cheapest")).outcome
    assert refused.code == "invalid_prefer"
    assert "tokens" in refused.message
