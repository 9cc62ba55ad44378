"""What one account's subscription costs doesn't grow with everybody's, and those that are caught up with are looked through once."""

from fabric.gate import Gate
from fabric.gate.account_events import OpenAccount
from fabric.gate.events import Subscribe, Tick, Unsubscribe
from tests.gate.world import CONFIGURE, DAY, T0, S

COUNT = 12


class Counted(list):
    """A list that counts how often somebody goes through it."""

    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()


def subscribed():
    """A gate with as many subscribers, a minute after each other."""
    gate = Gate()
    gate.handle(CONFIGURE, T0)
    for number in range(COUNT):
        gate.handle(OpenAccount(account_id=f"a{number}", name="", plan="starter"), T0)
    gate.state.subscriptions = Counted()
    for number in range(COUNT):
        gate.handle(Subscribe(account_id=f"a{number}", subscription="daily"), T0 + number * 60 * S)
    return gate


def test_a_subscription_looks_through_nobody_elses():
    gate = subscribed()
    gate.handle(Unsubscribe(account_id="a3", subscription="daily"), T0 + 3_600 * S)
    assert gate.state.subscriptions.walks == 0


def test_cycles_that_are_caught_up_with_are_looked_for_once():
    gate = subscribed()
    gate.handle(Tick(), T0 + 4 * DAY - S)
    assert gate.state.subscriptions.walks == 2, "to find those that are due, and when the next one is"
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
