"""A tick looks only at leases of which something is due, however many there are, and never too late."""

from hypothesis import given
from hypothesis import strategies as st

from fabric.gate import deadlines
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


leases = st.sampled_from("abc")
times = st.integers(0, 20)


@given(st.lists(st.tuples(leases, times | st.none()), max_size=20), st.lists(times, max_size=6))
def test_whoever_is_due_comes_up_in_order_and_nobody_is_forgotten(changes, ticks):
    """Times only count from where they were made earlier: a later one is found when the lease comes up."""
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
        found = watch.take_due(now)
        assert [lease_id for lease_id in found if lease_id in expected] == expected
        assert found == sorted(found)
        for lease_id in found:
            due[lease_id] = None if lease_id in expected else due[lease_id]
            watch.note(lease_id, due[lease_id])
        watch.check(due.get)
        assert watch.first_us(due.get) == min((at for at in due.values() if at is not None), default=None)
