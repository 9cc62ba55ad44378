"""Never to be evicted is a right of a plan: who hasn't it can be moved for a better class."""

import msgspec
import pytest

from fabric.charging.catalogue import Plan
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Cancel, Subscribe, Tick, Unsubscribe
from fabric.gate.questions import QuoteOf
from fabric.ledger import Service
from fabric.units import PPM
from tests.gate.conftest import started, submit, top_up
from tests.gate.world import CATALOGUE, CONFIGURE, DAY, T0, S, spec

MINUTE = 60


def test_a_plan_without_the_right_is_refused_at_submit_with_the_remedy(story):
    refused = story.do(submit(preemptible=False)).outcome
    assert (refused.code, refused.http_status, refused.facts) == ("plan_is_preemptible", 403, {"plan": "starter"})
    assert "leave preemptible=False (--no-preemptible) out" in refused.message
    assert refused.message.endswith("plans that have it: post")
    assert story.gate.ask(QuoteOf(account_id="ada", spec=spec(preemptible=False)), T0).refusal == refused.message
    story.must(submit("m", service=Service.BATCH))


def test_a_starter_can_be_moved_for_an_enterprise(story):
    story.must(OpenAccount(account_id="eve", name="Eve", plan="post"))
    story.must(top_up(999_999))
    assert story.do(submit(devices=4, limit=9_999 * S, preemptible=False)).outcome.code == "plan_is_preemptible"
    story.play(
        (0, submit(devices=4, limit=99_999 * S), ["start j.1 epoch 1 on h1:4"]),
        (0, started(), []),
        (11 * MINUTE, submit("e", "eve", devices=4, limit=99 * S), ["stop j.1 evicted by 670"]),
    )


@pytest.mark.parametrize(
    ("rank", "said", "may"),
    [(0, None, True), (1, None, False), (2, None, False), (2, True, True), (0, False, False)],
)
def test_a_plan_that_says_nothing_has_the_right_in_the_first_rank_only(rank, said, may):
    plan = Plan(name="p", tier_rank=rank, price_microcny_per_ct=PPM, lifetime_days=1, non_preemptible=said)
    assert plan.may_stay is may
    older = {"name": "p", "tier_rank": rank, "price_microcny_per_ct": PPM, "lifetime_days": 1}
    assert msgspec.convert(older, Plan).may_stay is (rank == 0)


def test_who_was_let_stay_stays_when_the_right_goes(story):
    story.must(OpenAccount(account_id="eve", name="Eve", plan="post"))
    story.must(submit("e", "eve", devices=4, preemptible=False))
    story.must(submit("f", "eve", devices=4, preemptible=False))
    poorer = [msgspec.structs.replace(plan, non_preemptible=False) for plan in CATALOGUE.plans]
    story.must(msgspec.structs.replace(CONFIGURE, catalogue=msgspec.structs.replace(CATALOGUE, plans=tuple(poorer))))
    assert story.do(submit("g", "eve", devices=4, preemptible=False)).outcome.code == "plan_is_preemptible"
    assert story.job("f").spec.preemptible is False


def test_a_subscription_gives_its_plans_rank_and_rights_for_as_long_as_it_runs(story):
    """Ada is on starter; the plan of her daily subscription is an enterprise's."""
    assert story.do(submit(preemptible=False)).outcome.code == "plan_is_preemptible"
    story.must(Subscribe(account_id="ada", subscription="daily"))
    story.must(submit("k", preemptible=False, limit=50 * S))
    story.must(Cancel(job_id="k", account_id="ada"))
    story.must(OpenAccount(account_id="eve", name="Eve", plan="pro"))
    assert story.gate._core.rank_of("ada") == 0
    assert story.gate._core.rank_of("eve") == 1
    story.must(Unsubscribe(account_id="ada", subscription="daily"))
    assert story.gate._core.rank_of("ada") == 0, "until its cycle is over"
    story.gate.handle(Tick(), T0 + 3 * DAY)
    assert story.gate._core.rank_of("ada") == 2
    refused = story.gate.handle(submit("l", preemptible=False), T0 + 3 * DAY).outcome
    assert refused.code == "plan_is_preemptible"
