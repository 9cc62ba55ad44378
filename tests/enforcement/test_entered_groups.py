"""Nobody is in a group of nobody's by name when the reconciler removes it: its node would die of that. Without Ray."""

from fabric.enforcement.reconciler import Ours, Reconciler
from tests.enforcement.test_reconciler import AT, GATE, Tables, actor, group
from tests.worker.leases import NODE

NAMED = {"GPU_group_0_g1": 1.0, "bundle_group_g1": 0.001}
WHOLE = {"GPU_group_0_g1": 1.0, "GPU_group_g1": 1.0, "bundle_group_0_g1": 1_000.0, "bundle_group_g1": 1_000.0}


def looked_each_second(tables, monkeypatch, *, looks):
    """What was ended, look by look."""
    now, told = [0.0], []
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: now[0])
    looking = Reconciler(Ours(groups=set, job_id=GATE), tables=lambda: tables)
    for _ in range(looks):
        looking.end(looking.look([NODE], kill=lambda *_: None), kill=lambda *_: None)
        told.append(list(tables.ended))
        tables.ended.clear()
        now[0] += 1.0
    return told


def test_who_is_in_a_group_of_nobodys_by_name_is_ended_before_it(monkeypatch):
    """As Serve's replicas are: the node of the group would die of its removal. It is removed when they have been gone a while."""
    serves = actor("serves", required=NAMED)
    tables = Tables(groups=[group("g1")], actors=[serves])
    tables.kill_actor = lambda actor_id: (tables.ended.append(actor_id), tables.rows["actors"].clear())
    told = looked_each_second(tables, monkeypatch, looks=4)
    assert told == [["serves"], [], ["g1"], ["g1"]]


def test_a_group_of_nobodys_stays_while_a_process_is_being_started_for_who_is_dead(monkeypatch):
    tables = Tables(groups=[group("g1")], free={AT: {**WHOLE, "GPU_group_0_g1": 0.0}})
    tables.dead = [actor("serves", required=NAMED, is_alive=False)]
    assert looked_each_second(tables, monkeypatch, looks=3) == [[], [], []]
    tables.left = {AT: WHOLE}
    assert looked_each_second(tables, monkeypatch, looks=1) == [["g1"]]
