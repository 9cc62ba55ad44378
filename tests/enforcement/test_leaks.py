"""Devices that a raylet holds for nobody are asked for, and what stays is told of and not sold. Without Ray."""

import msgspec
import pytest

from fabric.enforcement.leaks import RESTART_S, RETURN_S, STUCK_S, Leaks, excess
from fabric.enforcement.reconciler import Ours, Reconciler
from fabric.inventory.ray_tables import GoneGroup
from tests.enforcement.test_reconciler import AT, GATE, Tables, actor, group, worker
from tests.worker.leases import NODE

OLD, FORGOTTEN, LIVING = "ab" * 18, "cd" * 18, "ef" * 18
ALL = {"GPU": 4.0, "H100": 4.0}
ONE = {"GPU": 1.0, "H100": 1.0}


def formatted(group_id, index=0, devices=1.0):
    """What a raylet calls the resources of a bundle."""
    held = {"GPU": devices, "H100": devices, "bundle": 1000.0}
    return {f"{name}_group_{at}{group_id}": held[name] for name in held for at in ("", f"{index}_")}


class Node(Tables):
    """A node whose raylet holds a device for what is gone; it gives it back when it is asked for the right group."""

    def __init__(self, *, gone=(), holds=OLD, entered=(), formats=(), **facts):
        super().__init__(free={AT: {**ALL, "GPU": 3.0, "H100": 3.0}}, **facts)
        self.gone, self.holds, self.asked = list(gone), holds, []
        self.names = {name: amount for each in formats for name, amount in formatted(each).items()}
        self.entered = entered

    def free(self):
        left = {name: amount for name, amount in self.names.items() if not name.endswith(tuple(self.entered) or "-")}
        return {AT: {**super().free()[AT], **left}}

    def whole(self):
        self.answer("whole")
        return {AT: {**ALL, **self.names}}

    def gone_groups(self):
        self.answer("gone_groups")
        return self.gone

    def return_bundles(self, address, port, group):
        self.answer("return_bundles", of=group.id)
        assert (address, port) == (NODE.address, NODE.port)
        self.asked.append((group.id, [(index, held) for index, _, held in group.bundles]))
        if group.id == self.holds:
            self.left = {AT: ALL}

    def shut_down(self, address, port):
        self.ended.append(f"raylet {port}")


def gone(group_id=OLD, *, at=AT):
    return GoneGroup(group_id, ((0, at, ONE),))


def looked(tables, *, seconds, every=1.0, restarts=False):
    """Looks for so long; what is stuck then."""
    leaks, at = Leaks(restarts=restarts), 0.0
    while at <= seconds:
        held = excess([NODE], tables.groups(), tables.free())
        leaks.see(held, unknown=(), at=at)
        leaks.mend(tables, [NODE], at=at)
        at += every
    return leaks.stuck


@pytest.mark.parametrize(
    "tables",
    [
        Node(gone=[gone()]),
        Node(gone=[gone(at="")]),
        Node(gone=[gone("99" * 18), gone()]),
        Node(formats=[FORGOTTEN], holds=FORGOTTEN),
    ],
    ids=["of a group that was there", "that was only being prepared", "of one of several", "that Ray has forgotten"],
)
def test_a_device_that_is_held_for_a_group_that_is_gone_comes_back(tables):
    assert looked(tables, seconds=RETURN_S + 1) == {}
    assert tables.left == {AT: ALL}


def test_nothing_is_asked_before_ray_has_had_its_time():
    tables = Node(gone=[gone()])
    looked(tables, seconds=RETURN_S - 1)
    assert tables.asked == []


def test_bundles_are_given_back_with_what_they_held():
    tables = Node(formats=[FORGOTTEN], holds=FORGOTTEN)
    looked(tables, seconds=RETURN_S)
    assert tables.asked == [(FORGOTTEN, [(0, ONE)])]


@pytest.mark.parametrize("formats", [[LIVING], []])
def test_what_a_group_has_that_lives_is_never_given_back(formats):
    """Whatever the removed ones' table says."""
    tables = Node(gone=[gone(LIVING)], formats=formats, groups=[group(LIVING, bundles=((AT, {"CPU": 1.0}),))])
    looked(tables, seconds=RETURN_S * 3)
    assert tables.asked == []


def test_what_another_node_had_is_not_asked_for_here():
    tables = Node(gone=[gone(at="ff" * 28)])
    looked(tables, seconds=RETURN_S * 3)
    assert tables.asked == []


def test_nothing_is_given_back_that_somebody_is_in_by_name():
    """The raylet would die of that."""
    tables = Node(gone=[gone()], formats=[OLD], entered=[OLD])
    assert looked(tables, seconds=STUCK_S) == {"h1": 1}
    assert tables.asked == []


def test_what_stays_is_stuck_and_no_longer_when_it_is_back():
    tables, leaks = Node(gone=[gone()], holds="nobody knows"), Leaks(restarts=False)
    for at in range(int(STUCK_S) + 1):
        leaks.see({AT: 1.0}, unknown=(), at=at)
        leaks.mend(tables, [NODE], at=at)
    assert leaks.stuck == {"h1": 1}
    leaks.see({}, unknown=(), at=STUCK_S + 1)
    leaks.mend(tables, [NODE], at=STUCK_S + 1)
    assert leaks.stuck == {}


def test_a_node_of_the_fabrics_own_takes_nothing_new_and_is_started_anew_when_it_is_empty():
    tables = Node(holds="nobody knows")
    assert looked(tables, seconds=RESTART_S - 1, restarts=True) == {"h1": 4}
    assert tables.ended == []
    looked(tables, seconds=RESTART_S, restarts=True)
    assert tables.ended == [f"raylet {NODE.port}"]


@pytest.mark.parametrize("restarts", [False, True])
def test_no_node_is_ended_on_which_something_runs_or_that_is_others(restarts):
    runs = [group(LIVING, bundles=((AT, {"CPU": 1.0}),))] if restarts else []
    tables = Node(holds="nobody knows", groups=runs)
    looked(tables, seconds=RESTART_S * 2, restarts=restarts)
    assert tables.ended == []


@pytest.mark.parametrize(
    "rows",
    [{"actors": [actor("a")]}, {"workers": [worker(5)]}, {"broken": ["workers"]}],
    ids=["an actor", "a task", "nobody knows who"],
)
def test_what_somebody_holds_is_no_leak(rows, monkeypatch):
    """It is ended, or looked at again."""
    tables = Node(gone=[gone()], **rows)
    tables.left = {AT: {**ALL, "GPU": 3.0}}
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: float(next(now)))
    looking = Reconciler(Ours(groups=set, job_id=GATE), tables=lambda: tables)
    for _ in range(5):
        looking.end(looking.look([NODE], kill=lambda *_: None), kill=lambda *_: None)
    assert (tables.asked, looking.stuck) == ([], {})


def test_the_gates_looks_ask_for_a_leak_and_tell_of_it(monkeypatch):
    tables = Node(gone=[gone()], holds="nobody knows")
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: float(next(now)))
    looking = Reconciler(Ours(groups=set, job_id=GATE), tables=lambda: tables)
    for _ in range(9):
        looking.end(looking.look([NODE], kill=lambda *_: None), kill=lambda *_: None)
    assert tables.asked
    assert looking.stuck == {"h1": 1}
    assert msgspec.json.decode(tables.kept["reconciler"])["stuck"] == {"h1": 1}
