"""Why a job is where it is, through the gate: what was evicted for whom and why that one, and what a customer may know of it."""

from fabric.api.why_text import sentence
from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import NodeDown, Pause, Pool, Tick
from fabric.gate.questions import WhyOf
from fabric.gate.why import EVICTIONS_KEPT, note
from fabric.ledger import Service
from fabric.placement import Evict
from tests.gate.conftest import finished, metered, node, removed, started, submit, top_up
from tests.gate.world import S


def why(story, job_id="j", account="ada"):
    before = story.gate.snapshot()
    found = story.gate.ask(WhyOf(job_id=job_id, account_id=account), story.now_us)
    assert story.gate.snapshot() == before
    assert len(sentence(found).splitlines()) == 1
    return found


def said(story, job_id="j", account="ada"):
    return sentence(why(story, job_id, account))


def reclaimed(story):
    """Two borrowers, of which one has saved; inference needs what one of them has."""
    story.must(node("r1", "A100", 4, Pool.RESERVED))
    story.must(top_up(9_000))
    story.must(top_up(9_000, "bob"))
    story.play(
        (0, submit("a", types=("A100",), devices=2, limit=900 * S), ["start a.1 epoch 1 on r1:2"]),
        (0, submit("b", types=("A100",), devices=2, limit=900 * S), ["start b.1 epoch 1 on r1:2"]),
        (0, started("a.1"), []),
        (5, started("b.1"), []),
        (
            60,
            submit("m", "bob", types=("A100",), devices=2, service=Service.INFERENCE, preemptible=False),
            ["stop b.1 evicted by 70"],
        ),
        job="m",
    )


def test_both_jobs_tell_of_an_eviction_and_a_customer_learns_of_others_no_more_than_their_class(story):
    reclaimed(story)
    mine, others = why(story, "b"), why(story, "m", "bob")
    assert (mine.state, mine.until_us, mine.waits) == ("stopping", story.now_us + 10 * S, None)
    (eviction,) = mine.evictions
    assert (eviction.job_id, eviction.for_job_id, eviction.why, eviction.rank) == ("b", "", "reclaimed", 0)
    assert (eviction.among, 0 < eviction.loss_us <= 2 * 60 * S) == (2, True)
    assert others.waits.leaving == ("",)
    assert (others.waits.code, others.leaving_until_us) == ("leaving", story.now_us + 10 * S)
    assert [each.job_id for each in others.evictions] == [""]
    assert [each.job_id for each in why(story, "m", None).evictions] == ["b"], "an operator sees all"
    assert story.gate.ask(WhyOf(job_id="m", account_id="ada"), story.now_us) is None
    told = said(story, "b")
    assert "It was asked to save and leave (evicted), for which it has 10 s." in told
    assert (
        "made room for a job of the class inference: its devices were lent and are wanted back, and of 2 that" in told
    )
    assert "for it are left, in 10 s at most. For it, 1 job of a lower class was evicted" in said(story, "m", "bob")
    again = Gate.restore(story.gate.snapshot())
    assert again.ask(WhyOf(job_id="b", account_id="ada"), story.now_us) == mine


def test_one_that_waits_for_room_is_told_what_would_let_it_start(story):
    story.must(node("a1", "A100", 4))
    story.must(OpenAccount(account_id="eve", name="Eve", plan="pro"))
    story.must(top_up(500, "eve"))
    story.play((0, submit("r", devices=3), ["start r.1 epoch 1 on h1:3"]), (0, submit(devices=2), []))
    assert said(story) == (
        "It waits for 2 × H100: 1 of 4 spot H100 are free, so 1 more must come free, and nobody is ahead of it."
        " Devices are reserved for it in 1 h at the latest. It could start now with A100 (--accelerator) or 1 device."
    )
    story.do(submit("e", "eve", devices=4))
    assert "1 job goes before it (1 of a better class)" in said(story)


def test_every_state_has_a_sentence(story):
    story.play((0, submit(), ["start j.1 epoch 1 on h1:1"]))
    assert said(story) == "It has its devices, and is started on them."
    story.do(started())
    assert said(story) == "It runs."
    story.at(3).do(Pause(job_id="j", account_id="ada"))
    assert said(story) == "It was asked to save and leave (paused), for which it has 10 s."
    story.do(finished("saved"))
    assert said(story).startswith("It is parked (paused): `fabric resume`")
    story.do(removed())
    story.do(submit("k", limit=10 * S))
    story.do(started("k.1"))
    story.at(13).do(metered(9.9, "k.1"))
    story.do(finished("saved", "k.1"))
    assert "a higher limit (`fabric raise-limit`) lets it go on" in said(story, "k")
    story.do(removed("k.1"))
    story.do(NodeDown(node_id="h1"))
    story.do(submit("l"))
    assert said(story, "l") == "It waits for a node: none that may take 1 × H100 is up."
    story.do(node())
    story.do(started("l.1"))
    story.do(finished("failed", "l.1", error="ValueError: no"))
    assert said(story, "l") == "It has ended: failed (ValueError: no)."


def test_only_the_newest_evictions_are_kept(story):
    reclaimed(story)
    for loss_us in range(EVICTIONS_KEPT + 3):
        note(story.gate._core, Evict("b", "m", "reclaimed", 0, loss_us))
    assert [each.loss_us for each in story.job("b").evictions] == list(range(3, EVICTIONS_KEPT + 3))


def test_one_whose_attempts_came_to_nothing_is_told_when_it_is_tried_again(story):
    story.do(submit())
    for lease in ("j.1", "j.2"):
        story.do(started(lease))
        story.do(finished("lost", lease))
        story.do(removed(lease))
    assert (why(story).again_us, why(story).setbacks) == (story.now_us + 2 * S, 2)
    assert said(story) == (
        "Its last 2 attempts came to nothing (node lost): it is tried again in 2 s, or at once with `fabric resume`."
    )
    story.at(2).do(Tick())
    assert why(story).again_us is None
