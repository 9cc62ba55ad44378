"""A quote says what a submission would do now: no more, no less, and without doing it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.gate import Gate
from fabric.gate.account_events import CreateKey
from fabric.gate.events import HoldMode, NodeUp, Pool, Submit, Subscribe, TopUp
from fabric.gate.instructions import Accepted, StartLease
from fabric.gate.questions import JobsOf, QuoteOf
from fabric.ledger import Service
from tests.gate.world import Clockwork, S, spec

SPECS = st.builds(
    spec,
    st.sampled_from([-1, 0, 1, 100 * S, 600 * S, 5_000 * S, 2**63 - 1, 2**63]),
    types=st.sampled_from([(), ("H100",), ("A100",), ("910B", "H100"), ("TPU",)]),
    devices=st.integers(-1, 10),
    devices_per_node=st.sampled_from([None, None, None, 0, 1, 2, 4]),
    hold=st.sampled_from(HoldMode),
    service=st.sampled_from(Service),
    preemptible=st.booleans(),
    grace_us=st.sampled_from([-1, 0, 30 * S, 900 * S]),
    name=st.sampled_from(["train", ""]),
)


@settings(max_examples=300)
@given(
    wanted=SPECS,
    seconds=st.sampled_from([0, 99, 100, 599, 600, 20_000]),
    offer=st.sampled_from([None, "weekly", "monthly", "daily"]),
    limit=st.sampled_from([None, 50 * S, 600 * S]),
    busy=st.booleans(),
    nodes=st.booleans(),
)
def test_a_quote_is_affordable_and_not_refused_exactly_where_a_submission_is_accepted(
    *, wanted, seconds, offer, limit, busy, nodes
):
    world = Clockwork("ada", "bob")
    if nodes:
        world.do(NodeUp(node_id="h1", accelerator="H100", devices=4, pool=Pool.SPOT))
        world.do(NodeUp(node_id="a1", accelerator="A100", devices=8, pool=Pool.RESERVED))
    world.do(CreateKey(key_id="k", account_id="ada", secret_sha256="", limit_uhs=limit))
    world.do(TopUp(account_id="ada", amount_uhs=seconds * S))
    world.do(TopUp(account_id="bob", amount_uhs=900 * S))
    if offer is not None:
        world.do(Subscribe(account_id="ada", subscription=offer))
    if busy:
        world.do(Submit(job_id="other", account_id="bob", spec=spec(devices=4)))
    before = world.gate.snapshot()
    quote = world.gate.ask(QuoteOf(account_id="ada", spec=wanted, key_id="k"), world.now_us)
    assert world.gate.snapshot() == before
    decision = world.do(Submit(job_id="j", account_id="ada", spec=wanted, key_id="k"))
    assert isinstance(decision.outcome, Accepted) == (quote.affordable and not quote.refusal)
    if isinstance(decision.outcome, Accepted):
        assert decision.outcome.held_uhs == quote.hold_uhs <= quote.free_uhs
        assert quote.burn_idle_uhs_per_s <= quote.burn_uhs_per_s <= quote.burn_max_uhs_per_s
        assert quote.placeable_now == any(isinstance(each, StartLease) for each in decision.instructions)
    elif quote.refusal:
        assert quote.refusal == decision.outcome.message
    else:
        assert decision.outcome.http_status == 402
        assert decision.outcome.facts["needed_uhs"] == quote.hold_uhs > quote.free_uhs


def test_a_quote_for_nobody_is_no_quote():
    world = Clockwork()
    assert world.gate.ask(QuoteOf(account_id="nobody", spec=spec()), world.now_us) is None


def test_a_list_and_a_quote_look_through_the_askers_own_jobs_alone():
    """Nobody is in the way of all by asking often, however many jobs others have had."""
    world = Clockwork("ada", "bob")
    world.do(NodeUp(node_id="h1", accelerator="H100", devices=4, pool=Pool.SPOT))
    for account in ("ada", "bob"):
        world.do(TopUp(account_id=account, amount_uhs=10_000 * S))
        for number in range(3):
            world.do(Submit(job_id=f"{account}{number}", account_id=account, spec=spec(1 * S)))
    gate = Gate.restore(world.gate.snapshot())
    for number in range(3):
        gate.state.jobs[f"bob{number}"] = None  # whoever looks at it fails
    named = [job.job_id for job in gate.ask(JobsOf(account_id="ada", limit=2), world.now_us)]
    assert named == ["ada2", "ada1"]
    assert gate.ask(JobsOf(account_id="ada", states=("failed",)), world.now_us) == []
    assert gate.ask(JobsOf(account_id="cyd"), world.now_us) == []
    assert gate.ask(QuoteOf(account_id="ada", spec=spec(1 * S)), world.now_us).affordable
