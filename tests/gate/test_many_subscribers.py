"""However many subscriptions fall due at once, no decision sees to more than a portion of them, and nobody's cycle is lost or spent twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.gate import Gate, consequences
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import HoldMode, JobKind, JobSpec, NodeUp, Pool, Submit, Subscribe, Tick, Unsubscribe
from fabric.gate.serving_events import Authorize
from fabric.ledger.scopes import Service, Use
from tests.gate.world import CONFIGURE, DAY, T0, S

COUNT = 12
USE = Use(service=Service.TRAINING, accelerators=("H100",))


class Counted(list):
    """A list that counts how often somebody goes through it."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()


def subscribed(count=COUNT, *, apart=60 * S):
    """A gate with as many subscribers, so long after each other."""
    gate = Gate()
    gate.handle(CONFIGURE, T0)
    for number in range(count):
        gate.handle(OpenAccount(account_id=f"a{number}", name="", plan="starter"), T0)
    gate.state.subscriptions = Counted()
    for number in range(count):
        gate.handle(Subscribe(account_id=f"a{number}", subscription="daily"), T0 + number * apart)
    return gate


def test_a_subscription_looks_through_nobody_elses():
    gate = subscribed()
    gate.handle(Unsubscribe(account_id="a3", subscription="daily"), T0 + 3_600 * S)
    assert gate.state.subscriptions.walks == 0


def test_cycles_that_are_caught_up_with_are_looked_for_nowhere():
    gate = subscribed()
    gate.handle(Tick(), T0 + 4 * DAY - S)
    assert gate.state.subscriptions.walks == 0, "those that are due lie on top of a heap"
    assert [record.index for record in gate.state.subscriptions] == [3] * COUNT
    gate.check()


def test_those_that_end_are_gone_and_the_others_go_on_in_their_order():
    gate = subscribed()
    for number in (0, 5, 6):
        gate.handle(Unsubscribe(account_id=f"a{number}", subscription="daily"), T0 + 3_600 * S)
    gate.handle(Tick(), T0 + 2 * DAY)
    left = [number for number in range(COUNT) if number not in (0, 5, 6)]
    assert [record.account_id for record in gate.state.subscriptions] == [f"a{number}" for number in left]
    gate.check()
    assert Gate.restore(gate.snapshot()).snapshot() == gate.snapshot()


def catch_up(gate, now):
    """As the writer does: ticks until it isn't behind. What each has renewed."""
    renewed = []
    while gate.is_behind(now):
        transfers = gate.handle(Tick(), now).transfers
        renewed.append(sum(transfer.kind == "subscription" for transfer in transfers))
    return renewed


@pytest.mark.parametrize("apart", [0, 1, 60 * S])
def test_no_tick_sees_to_more_than_a_portion(monkeypatch, apart):
    monkeypatch.setattr(consequences, "PORTION", 4)
    gate = subscribed(apart=apart)
    now = T0 + DAY + COUNT * apart
    renewed = catch_up(gate, now)
    assert len(renewed) > 1
    assert max(renewed) <= 2 * 4, "a grant, and what is rolled over"
    gate.handle(Tick(), now)
    assert [record.index for record in gate.state.subscriptions] == [1] * COUNT
    gate.check()


HISTORY = st.lists(
    st.tuples(
        st.sampled_from(["daily", "weekly", "monthly", "end", "hold", "job"]),
        st.integers(0, 5),
        st.integers(0, 2 * DAY),
    ),
    min_size=1,
    max_size=10,
)


def lived(history):
    """A gate in which some subscribe, leave and use what they have."""
    gate, now = Gate(), T0
    gate.handle(CONFIGURE, T0)
    gate.handle(NodeUp(node_id="h1", accelerator="H100", devices=2, pool=Pool.SPOT), T0)
    for number in range(6):
        gate.handle(OpenAccount(account_id=f"a{number}", name="", plan="starter"), T0)
    for at, (what, number, wait) in enumerate(history):
        account, now = f"a{number}", now + wait
        match what:
            case "end":
                event = Unsubscribe(account_id=account, subscription="daily")
            case "hold":
                event = Authorize(hold_id=f"c{at}", account_id=account, amount_uhs=40 * S, use=USE, ttl_us=DAY // 2)
            case "job":
                spec = JobSpec(
                    name="j", kind=JobKind.FUNCTION, limit_uhs=30 * S, accelerators=("H100",), hold=HoldMode.ROLLING
                )
                event = Submit(job_id=f"j{at}", account_id=account, spec=spec)
            case offer:
                event = Subscribe(account_id=account, subscription=offer)
        gate.handle(event, now)
    return gate, now


@settings(max_examples=40)
@given(history=HISTORY, days=st.integers(1, 40), portion=st.integers(1, 5))
def test_in_portions_everybody_has_what_all_at_once_gives(history, days, portion):
    gate, now = lived(history)
    at_once, now = Gate.restore(gate.snapshot()), now + days * DAY
    before, consequences.PORTION = consequences.PORTION, portion
    try:
        catch_up(gate, now)
        restored = Gate.restore(gate.snapshot())
        for each in (gate, restored):
            while (due := each.next_due_us()) is not None and due <= now:
                each.handle(Tick(), now)
    finally:
        consequences.PORTION = before
    assert restored.snapshot() == gate.snapshot()
    at_once.handle(OpenAccount(account_id="new", name="", plan="starter"), now)
    at_once.handle(Tick(), now)
    gate.check()
    for number in range(6):
        one, other = (each.state.book for each in (gate, at_once))
        assert one.free(f"a{number}", now_us=now) == other.free(f"a{number}", now_us=now)
        assert one.accounts[f"a{number}"].held_uhs == other.accounts[f"a{number}"].held_uhs
    assert gate.state.subscriptions == at_once.state.subscriptions
    totals = [
        sorted(
            (lot.lot_id, lot.granted_uhs, lot.free_uhs, lot.held_uhs, lot.expired_uhs)
            for lot in each.state.book.lots.values()
        )
        for each in (gate, at_once)
    ]
    assert totals[0] == totals[1]
