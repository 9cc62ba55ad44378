"""What a lent job asks for never decides how long reserved inference waits."""

import msgspec

from fabric.gate.events import Pause, Pool, Tick
from fabric.gate.questions import QuoteOf
from fabric.ledger import Service
from fabric.placement.quotas import DAY_US, Policy
from tests.gate.conftest import node, started, submit, top_up
from tests.gate.world import CONFIGURE, S, spec

RESERVED = node("r1", "A100", 4, Pool.RESERVED)
POLICY = Policy(graces_us=(20 * S, DAY_US, 600 * S))


def lender(story, policy=POLICY):
    story.must(msgspec.structs.replace(CONFIGURE, policy=policy))
    story.must(RESERVED)
    story.must(top_up(9_000, "bob"))
    return story


def inference(job_id="m", **more):
    return submit(job_id, "bob", types=("A100",), devices=4, service=Service.INFERENCE, preemptible=False, **more)


def test_a_job_over_the_lenders_grace_is_told_at_submit_and_not_lent_to(story):
    lender(story)
    story.must(node("s1", "A100", 4))
    story.play(
        (0, submit("k", types=("A100",), devices=4), ["start k.1 epoch 1 on s1:4"]),
        (
            1,
            submit(types=("A100",), devices=4, grace_us=60 * S),
            [],
            "queued waiting_for_capacity, but not on lent devices: they give 20 s of grace, and it asks for 60 s",
        ),
        (2, inference(), ["start m.1 epoch 1 on r1:4"]),
    )


def test_the_answer_to_the_submission_says_so_too(story):
    lender(story)
    story.must(node("s1", "A100", 4))
    told = story.must(submit(types=("A100",), devices=4, grace_us=60 * S))
    assert told.facts == {"barred_pools": "reserved", "grace_max_us": 20 * S}
    assert story.must(submit("k", types=("A100",), devices=4, grace_us=20 * S)).facts == {}


def test_one_that_only_a_lender_has_room_for_is_refused_with_the_remedy(story):
    lender(story)
    refused = story.do(submit(types=("A100",), devices=4, grace_us=60 * S)).outcome
    assert (refused.code, refused.facts["longest_us"]) == ("grace_too_long", 20 * S)
    assert "at most 20 s" in refused.message
    quote = story.gate.ask(QuoteOf(account_id="ada", spec=spec(types=("A100",), devices=4, grace_us=60 * S)), 1)
    assert quote.refusal == refused.message
    story.must(submit(types=("A100",), devices=4, grace_us=20 * S))


def test_what_was_found_to_fit_is_asked_anew_under_another_policy(story):
    lender(story)
    story.must(submit("j", types=("A100",), devices=4, grace_us=20 * S))
    story.must(msgspec.structs.replace(CONFIGURE, policy=Policy(graces_us=(5 * S, DAY_US, 600 * S))))
    assert story.do(submit("k", types=("A100",), devices=4, grace_us=20 * S)).outcome.code == "grace_too_long"
    story.must(msgspec.structs.replace(CONFIGURE, policy=Policy(headroom_devices=1)))
    assert story.do(submit("l", types=("A100",), devices=4)).outcome.code == "gang_too_large", "the headroom is kept"


def test_a_reclaim_waits_no_longer_than_the_pool_whatever_was_allowed_before(story):
    lender(story, Policy(graces_us=(DAY_US, DAY_US, DAY_US)))
    story.play(
        (0, submit(types=("A100",), devices=4, grace_us=200 * S, limit=900 * S), ["start j.1 epoch 1 on r1:4"]),
        (0, started(), []),
        (1, msgspec.structs.replace(CONFIGURE, policy=POLICY), []),
        (5, inference(), ["stop j.1 evicted by 25"]),
        (25, Tick(), ["remove j.1"]),
    )


def test_who_waits_is_looked_at_again_at_once_under_another_policy(story):
    lender(story, Policy(headroom_devices=1))
    story.must(node("s1", "A100", 4))
    story.play(
        (0, submit("k", types=("A100",), devices=4), ["start k.1 epoch 1 on s1:4"]),
        (1, submit(types=("A100",), devices=4), []),
        (2, msgspec.structs.replace(CONFIGURE, policy=Policy()), ["start j.1 epoch 1 on r1:4"]),
    )


def test_pausing_on_a_lent_device_is_no_way_to_keep_it_longer(story):
    lender(story, Policy(graces_us=(DAY_US, DAY_US, DAY_US)))
    story.play(
        (0, submit(types=("A100",), devices=4, grace_us=200 * S, limit=900 * S), ["start j.1 epoch 1 on r1:4"]),
        (0, started(), []),
        (1, msgspec.structs.replace(CONFIGURE, policy=POLICY), []),
        (5, Pause(job_id="j", account_id="ada"), ["stop j.1 paused by 25"]),
    )
