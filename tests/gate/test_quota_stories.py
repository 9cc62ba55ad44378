"""Quotas through the gate: set at run time by an event, and what is said to whoever waits, leaves or asks for too much."""

from fabric.api.why_text import sentence
from fabric.gate import Gate
from fabric.gate.instructions import Refusal
from fabric.gate.questions import PolicyOf, WhyOf
from fabric.gate.share_events import SetQuota, SetShare
from tests.gate.conftest import node, removed, started, submit, top_up
from tests.gate.world import S


def said(story, job_id, account):
    return sentence(story.gate.ask(WhyOf(job_id=job_id, account_id=account), story.now_us))


def house(story):
    story.must(node("s1", "A100", 8))
    for account in ("ada", "bob"):
        story.must(top_up(90_000, account))


def test_what_is_borrowed_is_reclaimed_within_its_grace_and_loses_nothing(story):
    house(story)
    story.must(SetQuota(account="ada", accelerator="A100", nominal=4, borrow_max=2))
    story.play(
        (0, submit("b", "bob", types=("A100",), devices=8, limit=9_000 * S), ["start b.1 epoch 1 on s1:8"]),
        (0, started("b.1"), []),
        (60, submit("a", types=("A100",), devices=4, limit=9_000 * S), ["stop b.1 evicted by 70"]),
        job="a",
    )
    assert "borrowed, and their owner's quota wants them back" in said(story, "b", "bob")
    (used,) = story.gate.ask(PolicyOf(), story.now_us).quotas
    assert (used.nominal, used.shared, used.borrowed) == (4, 4, 0)


def test_who_has_as_much_as_he_may_is_told_so(story):
    house(story)
    story.must(SetQuota(account="ada", accelerator="A100", nominal=4, borrow_max=2))
    story.must(submit("a", types=("A100",), devices=6, limit=9_000 * S))
    story.must(submit("c", types=("A100",), devices=1, limit=9_000 * S))
    told = said(story, "c", "ada")
    waits = "It waits for quota: 4 of 4 A100 of its account are used, and 2 of 2 borrowed."
    assert told == f"{waits} It could start now with H100 (--accelerator)."
    story.must(SetQuota(account="ada", accelerator="A100", nominal=4, borrow_max=3))
    assert story.gate.state.jobs["c"].lease_id == "c.1", "another quota holds at once"


def test_a_gang_that_no_quota_ever_lets_in_is_refused_with_what_there_is(story):
    house(story)
    story.must(SetQuota(account="ada", accelerator="A100", nominal=4, borrow_max=2))
    refused = story.do(submit("a", types=("A100",), devices=7, limit=9_000 * S)).outcome
    assert isinstance(refused, Refusal)
    assert (refused.code, "6 × A100" in refused.message) == ("over_quota", True)
    story.must(submit("b", "bob", types=("A100",), devices=7, limit=9_000 * S))
    story.must(SetQuota(account="ada", accelerator="A100", nominal=None))
    story.must(submit("a", types=("A100",), devices=7, limit=9_000 * S))


def test_a_quota_outlives_the_gate(story):
    house(story)
    story.must(SetQuota(account="ada", accelerator="A100", nominal=4, borrow_max=0))
    story.must(SetShare(account_id="ada", cohort="one"))
    story.must(SetQuota(cohort="one", accelerator="A100", nominal=1))
    story.must(submit("a", types=("A100",), devices=4, limit=9_000 * S))
    story.must(submit("c", types=("A100",), devices=1, limit=9_000 * S))
    again = Gate.restore(story.gate.snapshot())
    again.check()
    for gate in (story.gate, again):
        gate.handle(started("a.1"), story.now_us)
        gate.handle(removed("a.1"), story.now_us + 5 * S)
    assert again.snapshot() == story.gate.snapshot()
    assert again.state.jobs["c"].lease_id == "c.1"
