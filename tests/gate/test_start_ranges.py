"""When a waiting job is likely to start, through the gate: told by `why` and by a quote, from what is in the state alone."""

import pytest

from fabric.api.why_text import sentence
from fabric.gate import Gate
from fabric.gate.questions import QuoteOf, WhyOf
from tests.gate.conftest import finished, node, removed, started, submit, top_up
from tests.gate.world import S, spec

MINUTE = 60 * S


@pytest.fixture
def busy(story):
    """Forty jobs came at once to a node that runs four of ten minutes each; the last eight still wait."""
    story.must(node(devices=4))
    story.must(top_up(90_000))
    for at in range(40):
        story.do(submit(f"j{at}", limit=700 * S))
    for first in range(0, 32, 4):
        leases = [f"j{at}.1" for at in range(first, first + 4)]
        for lease in leases:
            story.do(started(lease))
        story.at(600 * (first // 4 + 1))
        for lease in leases:
            story.do(finished("succeeded", lease))
            story.do(removed(lease))
    return story


def why(story, job_id):
    return story.gate.ask(WhyOf(job_id=job_id, account_id="ada"), story.now_us)


def test_a_job_that_waits_is_told_when_half_and_nine_of_ten_such_jobs_start(busy):
    before = busy.gate.snapshot()
    found = why(busy, "j39")
    assert busy.gate.snapshot() == before
    assert found.starts.known >= 20
    assert MINUTE <= found.starts.p50_us <= found.starts.p90_us
    assert "Half of such jobs start within" in sentence(found)
    assert found.starts.p90_us >= why(busy, "j36").starts.p90_us, "the later one isn't told less"


def test_a_restored_gate_tells_the_same(busy):
    assert Gate.restore(busy.gate.snapshot()).ask(WhyOf(job_id="j39", account_id="ada"), busy.now_us) == why(
        busy, "j39"
    )


def test_a_quote_tells_it_before_there_is_a_job(busy):
    quote = busy.gate.ask(QuoteOf(account_id="ada", spec=spec()), busy.now_us)
    assert not quote.placeable_now
    assert quote.starts_known >= 20
    assert quote.starts_p90_us >= quote.starts_p50_us > 0


def test_nothing_is_told_where_nothing_is_known_and_of_what_can_start_now(story):
    story.must(top_up(900))
    story.do(submit("r", devices=4))
    story.do(submit("w"))
    assert why(story, "w").starts is None
    assert why(story, "r").starts is None
    idle = story.gate.ask(QuoteOf(account_id="ada", spec=spec(types=("A100",))), story.now_us)
    assert (idle.starts_known, idle.starts_p90_us) == (0, 0)
