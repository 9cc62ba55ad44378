"""The turn at a model: first as properties of any history, then as stories."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.fairness import BYPASS_MAX, HALF_LIFE_US, OVERDUE_EVERY, FairQueue, QueueTicket

ACCOUNTS = ("ann", "bob", "cem", "dee")
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), st.sampled_from(ACCOUNTS), st.integers(min_value=0, max_value=2), st.integers(1, 5_000)
        ),
        st.tuples(st.just("take"), st.integers(0, HALF_LIFE_US)),
        st.tuples(st.just("drop"), st.integers(0, 50)),
        st.tuples(st.just("charge"), st.sampled_from(ACCOUNTS), st.integers(-5_000, 5_000)),
    ),
    max_size=200,
)


def played(steps):
    """Every state a history goes through: (queue, waiting tickets in order of arrival, what was taken last)."""
    queue, waiting, now_us = FairQueue(), [], 0
    for step in steps:
        taken = None
        match step:
            case ("put", account, rank, cost):
                ticket = QueueTicket(f"{account}{rank}", rank=rank, cost=cost)
                queue.put(ticket)
                waiting.append(ticket)
            case ("take", passed_us):
                now_us += passed_us
                taken = queue.take(now_us)
            case ("drop", place):
                if place < len(waiting):
                    queue.drop(waiting.pop(place))
            case ("charge", account, tokens):
                queue.charge(f"{account}0", tokens)
        yield queue, waiting, taken
        if taken in waiting:
            waiting.remove(taken)


@given(STEPS)
def test_every_ticket_comes_out_once_or_is_dropped_once(steps):
    for queue, waiting, taken in played(steps):
        assert len(queue) == len(waiting) - (taken is not None)
        assert taken is None or taken in waiting
        assert sum(queue.depths().values()) == len(queue)
        assert sum(queue.depth_of(f"{account}{rank}") for account in ACCOUNTS for rank in range(3)) == len(queue)


@given(STEPS)
def test_a_turn_is_refused_only_when_nobody_waits(steps):
    for queue, _, _ in [*played(steps)][-1:]:
        left = len(queue)
        assert [queue.take(0) is not None for _ in range(left)] == [True] * left
        assert queue.take(0) is None


@given(STEPS)
def test_of_one_account_and_tier_the_first_goes_first(steps):
    for _, waiting, taken in played(steps):
        if taken is not None:
            same = [ticket for ticket in waiting if (ticket.account, ticket.rank) == (taken.account, taken.rank)]
            assert same[0] is taken


@given(st.integers(0, 60), st.integers(1, 6), st.integers(1, 100_000))
def test_nobody_waits_longer_than_the_bound_whatever_the_others_do(ahead, flood, cost):
    """The worst there is: a starter with the largest counter, and a flood of better tiers' new accounts for ever."""
    queue = FairQueue()
    for number in range(ahead):
        queue.put(QueueTicket(f"before{number}", rank=2, cost=cost))
    queue.charge("starter", 10**9)
    victim = QueueTicket("starter", rank=2, cost=1)
    queue.put(victim)
    turns = 0
    while victim.waiting:
        for number in range(flood):
            queue.put(QueueTicket(f"new{turns}/{number}", rank=1, cost=cost))
        queue.take(0)
        turns += 1
        assert turns <= ahead + BYPASS_MAX + OVERDUE_EVERY * (ahead + 2)


@given(st.lists(st.integers(1, 4_000), min_size=1, max_size=5), st.integers(2, 5))
def test_two_who_always_wait_are_served_alike_to_within_a_request(costs, accounts):
    queue = FairQueue()
    served = Counter()
    turn = Counter()
    names = [f"account{number}" for number in range(accounts)]

    def put(name):
        turn[name] += 1
        # The first asks for one at a time, the others for more at once: it must not pay.
        queue.put(QueueTicket(name, rank=1, cost=costs[(turn[name] + len(name)) % len(costs)]))

    for name in names:
        for _ in range(1 if name == names[0] else 4):
            put(name)
    for _ in range(30):  # fewer than make anybody overdue
        ticket = queue.take(0)
        served[ticket.account] += ticket.cost
        put(ticket.account)
    assert max(served[name] for name in names) - min(served[name] for name in names) <= 2 * max(costs)


def test_professional_goes_before_starter_and_the_overdue_get_their_share():
    queue = FairQueue()
    for _ in range(200):
        queue.put(QueueTicket("starter", rank=2, cost=10))
        queue.put(QueueTicket("pro", rank=1, cost=10))
    order = [queue.take(0).account for _ in range(200)]
    assert order[:BYPASS_MAX] == ["pro"] * BYPASS_MAX
    assert order.count("starter") == 200 // (BYPASS_MAX + 3)  # one each time it is overdue, and it never waits longer


def test_a_long_line_of_ones_own_takes_no_turns_from_others():
    """Nobody is overdue for having much to ask: each gets the same, however many wait behind its first."""
    queue = FairQueue()
    for account in range(10):
        for _ in range(40 * (account + 1)):
            queue.put(QueueTicket(f"account{account}", rank=1, cost=100))
    served = Counter(queue.take(0).account for _ in range(400))
    assert set(served.values()) == {40}


def test_idleness_saves_up_no_turns():
    queue = FairQueue()
    for _ in range(20):
        queue.put(QueueTicket("busy", rank=1, cost=100))
    for _ in range(10):
        queue.take(0)
    for _ in range(10):
        queue.put(QueueTicket("back", rank=1, cost=100))
    assert Counter(queue.take(0).account for _ in range(10)) == {"busy": 5, "back": 5}


def test_what_was_served_long_ago_is_forgotten():
    queue = FairQueue()
    queue.charge("ann", 1_000)
    queue.decay(HALF_LIFE_US)
    assert queue.served("ann") == 500
    queue.decay(12 * HALF_LIFE_US)
    assert queue.served("ann") == 0
    assert queue._served == {}


def test_a_correction_downwards_gives_the_turn_back():
    queue = FairQueue()
    for name in ("ann", "bob"):
        queue.charge(name, 1_000)
        queue.put(QueueTicket(name, rank=1, cost=10))
        queue.put(QueueTicket(name, rank=1, cost=10))
    queue.charge("bob", -900)
    assert [queue.take(0).account for _ in range(3)] == ["bob", "bob", "ann"]


def test_tickets_that_leave_take_no_memory_with_them():
    queue = FairQueue()
    for number in range(10_000):
        ticket = QueueTicket(f"account{number}", rank=1, cost=1)
        queue.put(ticket)
        queue.drop(ticket)
    assert len(queue._due) < 200
    assert queue.depths() == {1: 0}
