"""What an agent's watchdog ends while the gate is silent, and what it leaves alone. Without Ray."""

import asyncio

import msgspec
import pytest

from fabric.cluster.agents import WATCHDOGS, Agents
from fabric.cluster.settings import ClusterSettings
from fabric.enforcement.health import HEALTH_KEY
from fabric.enforcement.watchdog import BESIDE_S, LOOK_S, SILENT_S, STOPS_S, Known, Watchdog
from tests.enforcement.test_reconciler import GATE, HELD, STRANGER, Tables, actor, group, worker
from tests.worker.leases import NODE

KNOWN = Known(address="10.0.0.1", nodes=(NODE,), groups=("ours",), actors=("mine",), job_id=GATE)


UNLEASED_S = 2.0
"""For so long, at most, may somebody hold a device without a lease."""


class Silence:
    """A watchdog whose gate was heard at second 0, and its clock."""

    def __init__(self, tables, *, known=KNOWN):
        self.now_s, self.tables = 0.0, tables
        self.dog = Watchdog(
            kill=lambda pid: tables.ended.append(f"10.0.0.1 {pid}"),
            tables=lambda: tables,
            now=lambda: self.now_s,
        )
        self.dog.hear(known)

    def after(self, seconds):
        """What it has ended when the gate has been silent for so long."""
        self.now_s = seconds
        if self.dog.is_due:
            self.dog.look()
        return self.tables.ended


def silent(rows, **options):
    return Silence(Tables(**rows), **options).after(SILENT_S)


@pytest.mark.parametrize("name", HELD)
def test_a_silent_gates_agents_end_what_the_gate_would_have_ended(name):
    rows, wanted = HELD[name]
    assert silent(rows) == wanted


def test_nothing_is_ended_while_the_gate_is_heard():
    silence = Silence(Tables(actors=[actor("a")]))
    for second in range(5):
        assert silence.after(second * SILENT_S / 2) == []
        silence.dog.hear(KNOWN)


def test_half_of_the_time_is_left_for_a_look_when_a_gates_silence_is_noticed():
    """What is taken as the gate dies, which was heard a moment before, is looked for then; under load that takes its time."""
    assert SILENT_S + LOOK_S <= UNLEASED_S / 2


def test_what_the_control_store_tells_is_ended_before_raylets_are_asked():
    tables, before = Tables(groups=[group("g")], workers=[worker(5)]), []
    ask = tables.workers

    def asked(*about):
        before.extend(tables.ended)
        return ask(*about)

    tables.workers = asked
    assert Silence(tables).after(SILENT_S) == ["g", "10.0.0.1 5"]
    assert before == ["g"]


def test_what_a_gate_had_just_begun_is_spared():
    begun = group("new", name="fabric/H100/1-abc", job_id=GATE)
    inside = actor("runner", group_id="new", job_id=GATE)
    at_work = worker(5, group_ids=frozenset({"new"}), job_id=GATE)
    assert silent({"groups": [begun], "actors": [inside], "workers": [at_work]}) == []


def test_a_strangers_group_is_ended_whatever_its_name():
    assert silent({"groups": [group("g", name="fabric/H100/1-abc", job_id=STRANGER)]}) == ["g"]


def test_a_process_of_another_machine_is_left_to_the_gate():
    far = KNOWN.__class__(**{**{name: getattr(KNOWN, name) for name in KNOWN.__struct_fields__}, "address": "10.0.0.2"})
    assert silent({"workers": [worker(5)], "actors": [actor("a")]}, known=far) == ["a"]


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("groups", group("new", name="fabric/x", job_id=GATE)),
        ("actors", actor("r", group_id="new", job_id=GATE)),
        ("workers", worker(5, group_ids=frozenset({"new"}), job_id=GATE)),
    ],
)
def test_what_a_gate_begins_while_its_agents_look_is_spared(table, row):
    """It is there, and was late; or another one comes up. The group is seen first when it is in use."""
    tables = Tables()
    ask = getattr(tables, table)

    def begun_meanwhile(*about):
        tables.rows["groups"] = [group("new", name="fabric/x", job_id=GATE)]
        tables.rows[table] = [row]
        return ask(*about)

    setattr(tables, table, begun_meanwhile)
    assert Silence(tables).after(SILENT_S) == []


def test_what_stands_still_is_left_to_the_gate(monkeypatch):
    """Nobody but the gate knows which runners are on their way."""
    monkeypatch.setattr("fabric.enforcement.reconciler._SUSPECT_S", 0.0)
    silence = Silence(Tables(broken=["workers"], apart=([], [8])))
    assert silence.after(SILENT_S) == silence.after(SILENT_S + 1) == []


@pytest.mark.parametrize("what", ["told", "long silent", "never heard"])
def test_a_watchdog_stands_down(what):
    silence = Silence(Tables(actors=[actor("a")]), known=None if what == "never heard" else KNOWN)
    if what == "told":
        silence.dog.hear(None)
    assert silence.after(STOPS_S if what == "long silent" else SILENT_S * 2) == []


@pytest.mark.parametrize("said", [None, msgspec.structs.replace(KNOWN, job_id="another")])
def test_another_gate_that_is_heard_while_agents_look_decides_itself(said):
    """And so does one that goes, or has chosen others."""
    tables = Tables(actors=[actor("a")])
    silence = Silence(tables)
    ask = tables.actors

    def heard_meanwhile():
        silence.dog.hear(said)
        return ask()

    tables.actors = heard_meanwhile
    assert silence.after(SILENT_S) == []


def test_what_a_gate_that_is_heard_meanwhile_says_is_its_own_is_spared():
    tables = Tables(groups=[group("new")], actors=[actor("a", group_id="new"), actor("b")])
    silence = Silence(tables)
    ask = tables.groups

    def heard_meanwhile():
        silence.dog.hear(msgspec.structs.replace(KNOWN, groups=("new",)))
        return ask()

    tables.groups = heard_meanwhile
    assert silence.after(SILENT_S) == ["b", "10.0.0.1 7"]


@pytest.mark.parametrize("lives_s", [0.0, SILENT_S / 2, SILENT_S, BESIDE_S - LOOK_S])
@pytest.mark.parametrize("look_s", [0.0, 0.4, 0.8])
def test_a_gate_that_comes_and_is_killed_again_leaves_nobody_longer_with_a_device(lives_s, look_s):
    """Whoever takes one just before the first death, or at any time later, however short the second gate lives, and though that
    itself never comes to look.
    """
    for taken_at in (0.0, 2.0, 2.4, 2.6, 3.0, 3.5):
        tables = Tables()
        silence = Silence(tables)
        back_at, beats_until = 2.5, 2.5 + lives_s
        clock, heard_at = 0.0, 0.0
        while clock < 10 and not tables.ended:
            if back_at <= clock <= beats_until and clock - heard_at >= SILENT_S / 2:
                silence.now_s, heard_at = clock, clock
                silence.dog.hear(KNOWN)
            tables.rows["actors"] = [actor("a")] if clock >= taken_at else []
            silence.now_s = clock
            if silence.dog.is_due:
                silence.dog.look()
                clock += look_s
            clock += LOOK_S
        assert clock - LOOK_S - taken_at <= UNLEASED_S, (taken_at, clock)


def test_a_watchdog_looks_beside_a_gate_for_a_while_only():
    silence = Silence(Tables())
    silence.after(SILENT_S)
    silence.dog.hear(KNOWN)
    beats = [SILENT_S + at * SILENT_S / 2 for at in range(20)]
    due = []
    for silence.now_s in beats:
        due.append(silence.dog.is_due)
        silence.dog.hear(KNOWN)
    assert due == [at - SILENT_S < BESIDE_S for at in beats]


def test_doctor_hears_of_the_gates_looks_alone():
    silence = Silence(Tables(actors=[actor("a")]))
    silence.after(SILENT_S)
    assert HEALTH_KEY not in silence.tables.kept


def test_a_control_store_that_is_away_is_asked_again():
    tables = Tables(actors=[actor("a")], broken=["groups"])
    silence = Silence(tables)
    with pytest.raises(KeyError):
        silence.after(SILENT_S)
    assert tables.ended == []
    tables.broken.clear()
    assert silence.after(SILENT_S + 1) == ["a", "10.0.0.1 7"]


@pytest.fixture
def tell(monkeypatch):
    """A new gate says what is its own; what its agents hear, by machine: None = not to watch."""
    agents, told, silent = Agents(archive=None, settings=ClusterSettings()), {}, set()

    async def tried(address, method, known, *, otherwise=None, **_):
        assert method == "hear"
        told[address] = known and known.address
        return otherwise if address in silent or address not in agents._actors else None

    monkeypatch.setattr(agents, "_tried", tried)

    def tell(known, *, there, deaf=""):
        told.clear()
        silent.clear()
        silent.update(deaf)
        agents._actors = dict.fromkeys(there)
        asyncio.run(agents.be_heard(known))
        return dict(told)

    return tell


def test_a_few_agents_are_told_and_all_others_stand_down_once(tell):
    """Those that a gate before this one has chosen, too: they would go by what that one said."""
    assert WATCHDOGS == 2
    assert tell(KNOWN, there="dcba") == {"a": "a", "b": "b", "c": None, "d": None}
    assert tell(KNOWN, there="dcba") == {"a": "a", "b": "b"}


def test_whoever_is_chosen_no_more_stands_down(tell):
    tell(KNOWN, there="dcb")
    assert tell(KNOWN, there="dcba") == {"a": "a", "b": "b", "c": None}
    assert tell(KNOWN, there="dcb") == {"a": None, "b": "b", "c": "c"}
    assert tell(None, there="dcb") == {"b": None, "c": None}


def test_an_agent_that_was_silent_or_is_found_later_is_told_until_it_has_heard(tell):
    assert tell(KNOWN, there="cba", deaf="c") == {"a": "a", "b": "b", "c": None}
    assert tell(KNOWN, there="dcba", deaf="d") == {"a": "a", "b": "b", "c": None, "d": None}
    assert tell(KNOWN, there="dcba") == {"a": "a", "b": "b", "d": None}
    assert tell(KNOWN, there="dcba") == {"a": "a", "b": "b"}
