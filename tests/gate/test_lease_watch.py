"""A tick looks only at leases of which something is due, however many there are, and never too late."""

from hypothesis import given
from hypothesis import strategies as st

from fabric.gate import Gate, deadlines
from fabric.gate.events import LeaseStarted, NodeUp, Pool, Submit, Tick, TopUp
from fabric.gate.instructions import StartLease
from fabric.gate.lease_watch import LeaseWatch
from tests.gate.world import CT, Clockwork, spec


def running(count):
    at = Clockwork("ada")
    at.do(TopUp(account_id="ada", amount_uhs=1000 * CT))
    at.do(NodeUp(node_id="n1", accelerator="H100", devices=count, pool=Pool.SPOT))
    for index in range(count):
        decision = at.do(Submit(job_id=f"j{index}", account_id="ada", spec=spec()))
        (start,) = [each for each in decision.instructions if isinstance(each, StartLease)]
        at.do(LeaseStarted(lease_id=start.lease.lease_id))
    return at


def test_a_tick_with_nothing_to_do_looks_at_no_lease(monkeypatch):
    at, looked = running(20), []
    real = deadlines.due_us
    monkeypatch.setattr(deadlines, "due_us", lambda core, record: looked.append(record) or real(core, record))
    at.gate.handle(Tick(), at.now_us)
    assert looked == []
    assert at.gate.next_due_us() is not None
    assert len(looked) == 1


def test_a_tick_stops_no_more_than_so_many_and_the_next_ones_the_rest(monkeypatch):
    monkeypatch.setattr("fabric.gate.leases.OVERDUE_MAX", 3)
    at = Clockwork("ada")
    at.do(TopUp(account_id="ada", amount_uhs=1000 * CT))
    at.do(NodeUp(node_id="n1", accelerator="H100", devices=8, pool=Pool.SPOT))
    for index in range(8):
        job = spec(10 * CT, time_limit_us=1_000_000, grace_us=1_000_000)
        decision = at.do(Submit(job_id=f"j{index}", account_id="ada", spec=job))
        (start,) = [each for each in decision.instructions if isinstance(each, StartLease)]
        at.do(LeaseStarted(lease_id=start.lease.lease_id))
    at.now_us += 1_000_000
    stopped = []
    for _ in range(3):
        assert at.gate.next_due_us() <= at.now_us
        restored = Gate.restore(at.gate.snapshot())
        decision = at.do(Tick())
        assert restored.handle(Tick(), at.now_us) == decision
        stopped.append([each.lease_id for each in decision.instructions])
    assert stopped == [["j0.1", "j1.1", "j2.1"], ["j3.1", "j4.1", "j5.1"], ["j6.1", "j7.1"]]
    assert at.gate.next_due_us() > at.now_us


leases = st.sampled_from("abc")
times = st.integers(0, 20)


@given(st.lists(st.tuples(leases, times | st.none()), max_size=20), st.lists(times, max_size=6), st.integers(1, 3))
def test_whoever_is_due_comes_up_in_order_and_nobody_is_forgotten(changes, ticks, most):
    """So many at a time, those first that are due first. Times only count from where they were made earlier: a later one is found when the lease comes up."""
    watch, due = LeaseWatch(), {}
    for lease_id in "abc":
        watch.add(lease_id)
        due[lease_id] = None
    for lease_id, at in changes:
        due[lease_id] = at
        watch.note(lease_id, at)
    watch.check(due.get)
    for now in sorted(ticks):
        expected = [lease_id for lease_id in "abc" if due[lease_id] is not None and due[lease_id] <= now]
        first = sorted(expected, key=lambda lease_id: (due[lease_id], lease_id))[:most]
        found = watch.take_due(now, due.get, most=most)
        assert found == sorted(first)
        for lease_id in found:
            due[lease_id] = None
            watch.note(lease_id, None)
        watch.check(due.get)
        assert watch.first_us(due.get) == min((at for at in due.values() if at is not None), default=None)
