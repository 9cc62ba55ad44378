"""What the reconciler ends, and that one failure keeps nothing from the rest. Without Ray."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.enforcement.group_end import is_vacant
from fabric.enforcement.health import HEALTH_KEY, Health
from fabric.enforcement.reconciler import Ours, Reconciler
from fabric.enforcement.retaking import TAKES_AGAIN
from fabric.inventory.ray_tables import ActorRow, GroupRow, JobRow, WorkerRow
from tests.worker.leases import NODE

GATE, STRANGER = "01000000", "02000000"
GPU = {"GPU": 1.0}
AT = NODE.ray_id


def actor(name, /, **facts):
    row = ActorRow(name, "", "Hog", STRANGER, "", AT, 7, is_alive=True, required=GPU)
    return row._replace(**facts)


def group(name, /, **facts):
    return GroupRow(name, name, STRANGER, ((AT, GPU),), is_placed=True)._replace(**facts)


def worker(pid, **facts):
    return WorkerRow(pid, STRANGER, "", runs=True, held=GPU, group_ids=frozenset())._replace(**facts)


def driver(**facts):
    return JobRow(STRANGER, 99, "10.0.0.9", is_over=False)._replace(**facts)


class Tables:
    """Ray's tables, with rows of the test's; remembers what was ended. What is named in `broken` fails."""

    def __init__(self, *, groups=(), actors=(), workers=(), jobs=(), apart=((), ()), free=None, broken=()):
        self.rows = {"groups": list(groups), "actors": list(actors), "workers": list(workers)}
        self.drivers = {job.id: job for job in jobs}
        self.apart = apart
        self.left = {AT: {"GPU": 0.0, "H100": 4.0}} if free is None else free
        self.broken = set(broken)
        self.ended, self.told, self.dead = [], [], []
        self.kept = {}

    def answer(self, name, *, of=""):
        if not self.broken.isdisjoint((name, f"{name} {of}")):
            raise KeyError("something that nobody thought of")

    def groups(self):
        self.answer("groups")
        return self.rows["groups"]

    def actors(self):
        self.answer("actors")
        return self.rows["actors"]

    def dead_actors(self):
        return self.dead

    def free(self):
        self.answer("free")
        return self.left

    def workers(self, address, port):
        self.answer("workers")
        return self.rows["workers"]

    def workers_apart(self, node_id):
        self.answer("workers_apart")
        return self.apart

    def end_worker(self, row):
        """By the worker's own word: what is told of it here are the processes that an agent ends."""
        self.told.append(row.pid)

    def jobs(self):
        self.answer("jobs")
        return self.drivers or {STRANGER: driver()}

    def kill_actor(self, actor_id):
        self.answer("kill_actor", of=actor_id)
        self.ended.append(actor_id)

    def remove_group(self, group_id):
        self.answer("remove_group", of=group_id)
        self.ended.append(group_id)

    def end_job(self, job_id):
        self.answer("end_job")
        self.ended.append(f"job {job_id}")

    def tell_job(self, job_id, text):
        self.answer("tell_job")

    def put(self, key, value):
        self.answer("put")
        self.kept[key] = value


def ended_by(tables, *, looks=1, claimed=None, ours=None):
    """What was ended: rows by their names, processes by their numbers; and how the looks went."""
    ended = tables.ended

    def kill(address, pid):
        tables.answer("kill", of=str(pid))
        ended.append(f"{address} {pid}")

    looking = Reconciler(ours or Ours(groups=set, job_id=GATE), tables=lambda: tables)
    for _ in range(looks):
        look = looking.look([NODE], kill=kill)
        looking.end(look, kill=kill)
        looking.end_suspects(look, claimed=claimed or {})
    return ended, looking.health


HELD = {
    "an actor": ({"actors": [actor("a")]}, ["a", "10.0.0.1 7"]),
    "an actor that isn't there yet": ({"actors": [actor("a", is_alive=False)]}, []),
    "an actor in a group of ours": ({"actors": [actor("a", group_id="ours")]}, []),
    "an actor of ours": ({"actors": [actor("mine")]}, []),
    "an actor of ours that has no id yet": ({"actors": [actor("b", name="mine")]}, []),
    "an actor without a device": ({"actors": [actor("a", required={"CPU": 1.0})]}, []),
    "a type's resource": ({"actors": [actor("a", required={"H100": 0.5})]}, ["a", "10.0.0.1 7"]),
    "a placement group": ({"groups": [group("g")]}, ["g"]),
    "one that waits": ({"groups": [group("g", is_placed=False, bundles=(("", GPU),))]}, ["g"]),
    "one of ours": ({"groups": [group("ours")]}, []),
    "one of ours that is being made": ({"groups": [group("x", name="ours")]}, []),
    "one without a device": ({"groups": [group("g", bundles=((AT, {"CPU": 1.0}),))]}, []),
    "a task": ({"workers": [worker(5)]}, ["10.0.0.1 5"]),
    "a task in a group of ours": ({"workers": [worker(5, group_ids=frozenset({"ours"}))]}, []),
    "a task in a stranger's group": ({"workers": [worker(5, group_ids=frozenset({"x"}))]}, ["10.0.0.1 5"]),
    "a task without a device": ({"workers": [worker(5, held={"CPU": 1.0})]}, []),
    "a task of a raylet that is silent": ({"broken": ["workers"], "apart": ([worker(6)], [])}, ["10.0.0.1 6"]),
}


@pytest.mark.parametrize("name", HELD)
def test_what_holds_a_device_without_a_lease_is_ended_and_nothing_else(name):
    rows, wanted = HELD[name]
    ours = Ours(groups=lambda: {"ours"}, actors=lambda: {"mine"}, job_id=GATE)
    ended, _ = ended_by(Tables(**rows), ours=ours)
    assert ended == wanted


@pytest.mark.parametrize("kind", ["task", "actor"])
def test_a_worker_is_told_to_end_itself_too_as_the_agent_of_its_machine_may_be_gone(kind):
    tables = Tables(workers=[worker(5, actor_id="a" if kind == "actor" else "")])
    ended_by(tables)
    assert tables.told == [5]


PARTS = (
    "groups", "actors", "free", "workers", "workers_apart", "jobs", "tell_job", "put", "end_job",
    "kill_actor a1", "kill_actor a2", "remove_group g1", "remove_group g2", "kill 11", "kill 12",
)  # fmt: skip


@given(st.sets(st.sampled_from(PARTS)))
def test_whatever_fails_the_rest_is_ended_and_the_failures_are_counted(broken):
    tables = Tables(
        groups=[group("g1"), group("g2")],
        actors=[actor("a1", pid=21), actor("a2", pid=22)],
        workers=[worker(11), worker(12)],
        broken=broken,
    )
    ended, health = ended_by(tables)
    wanted = {name for name in ("a1", "a2") if not broken & {"actors", f"kill_actor {name}"}}
    wanted |= {name for name in ("g1", "g2") if not broken & {"groups", f"remove_group {name}"}}
    wanted |= {f"10.0.0.1 {pid}" for pid in (11, 12) if not broken & {"workers", f"kill {pid}"}}
    assert wanted <= set(ended)
    always = {"groups", "actors", "free", "workers", "tell_job", "put"}
    assert (health.failures > 0) >= bool(broken & always)
    assert (health.failures > 0) <= bool(broken)


def test_a_failure_is_told_where_doctor_finds_it_and_forgotten_when_it_is_over():
    tables = Tables(actors=[actor("a")], broken=["kill_actor"])
    _, health = ended_by(tables)
    told = msgspec.json.decode(tables.kept[HEALTH_KEY], type=Health)
    assert (told.failures, told.failing) == (1, 1)
    assert "nobody thought of" in told.last_failure
    assert health == told


class Taking(Tables):
    """Tables of a Ray job that starts its task again, in another process, each time they are looked at."""

    def __init__(self, **facts):
        super().__init__()
        self.facts, self.pid = facts, 4

    def workers(self, address, port):
        self.pid += 1
        return [worker(self.pid, **self.facts)]


@pytest.fixture
def _a_second_a_look(monkeypatch):
    now = iter(range(1_000))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: next(now))


@pytest.mark.usefixtures("_a_second_a_look")
def test_a_ray_job_that_takes_devices_again_and_again_is_ended_with_its_driver():
    ended, _ = ended_by(Taking(), looks=TAKES_AGAIN)
    assert ended == ["10.0.0.1 5", "10.0.0.1 6", "10.0.0.1 7", f"job {STRANGER}", "10.0.0.9 99"]


@pytest.mark.usefixtures("_a_second_a_look")
def test_the_gates_own_ray_job_is_never_ended_as_a_whole():
    ended, _ = ended_by(Taking(job_id=GATE), looks=TAKES_AGAIN)
    assert ended == ["10.0.0.1 5", "10.0.0.1 6", "10.0.0.1 7"]


@pytest.mark.usefixtures("_a_second_a_look")
@pytest.mark.parametrize(
    "rows",
    [{"workers": [worker(5)]}, {"actors": [actor("a")]}, {"groups": [group("g")]}],
    ids=", ".join,
)
def test_what_takes_its_time_to_end_is_no_driver_that_takes_devices_again(rows):
    """On a machine under load a process that was killed is seen for seconds."""
    looks = 3 * TAKES_AGAIN
    ended, _ = ended_by(Tables(**rows), looks=looks)
    assert len(ended) >= looks
    assert f"job {STRANGER}" not in ended


@pytest.mark.usefixtures("_a_second_a_look")
def test_what_leases_that_are_over_have_left_was_not_taken_by_their_client():
    """The tokens of one lease after the other end, and each leaves a task that takes a moment to go."""
    leased = {"g1", "g2", "g3", "g4"}
    looking = Reconciler(Ours(groups=lambda: set(leased), job_id=GATE), tables=lambda: tables)
    tables, ended = Tables(), []

    def kill(address, pid):
        ended.append(f"{address} {pid}")

    for pid, name in enumerate(sorted(leased)):
        looking.look([NODE], kill=kill)
        leased.remove(name)
        tables.rows["workers"] = [worker(pid, group_ids=frozenset({name}))]
        looking.end(looking.look([NODE], kill=kill), kill=kill)
    assert ended == [f"10.0.0.1 {pid}" for pid in range(4)]
    assert tables.ended == []


def test_what_a_job_has_started_without_a_device_is_ended_unless_a_lease_is_charged_for_it(monkeypatch):
    now = iter(range(1_000))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: next(now))
    rows = {
        "actors": [actor("a", job_id=GATE, required={}, pid=31), actor("b", job_id=GATE, required={}, pid=32)],
        "workers": [worker(33, job_id=GATE, held={}), worker(34, job_id=GATE, held={})],
    }
    ended, _ = ended_by(Tables(**rows), looks=2, claimed={"10.0.0.1": {32, 34}})
    assert ended == ["a", "10.0.0.1 31", "10.0.0.1 33"]
    once, _ = ended_by(Tables(**rows), looks=1)
    assert once == []


def test_what_may_be_a_leases_is_left_alone_where_nobody_says_what_leases_have(monkeypatch):
    """An agent that doesn't answer has not said that it counts nothing to a lease."""
    now = iter(range(1_000))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: next(now))
    rows = {"actors": [actor("a", job_id=GATE, required={}, pid=31)], "workers": [worker(33, job_id=GATE, held={})]}
    assert ended_by(Tables(**rows), looks=3, claimed={"10.0.0.2": set()})[0] == []
    assert ended_by(Tables(**rows), looks=3, claimed={"10.0.0.1": set()})[0][:3] == ["a", "10.0.0.1 31", "10.0.0.1 33"]
    nowhere = {"actors": [actor("a", job_id=GATE, required={}, pid=0, node_id="")]}
    assert ended_by(Tables(**nowhere), looks=2, claimed={})[0] == ["a"]


FOREIGN = {
    "a driver within a lease": ([driver()], {99}, {}, True),
    "a driver that belongs to nobody": ([driver()], set(), {}, False),
    "a driver that has ended, on somebody's cluster": ([driver(is_over=True)], set(), {}, False),
    "a driver that has ended, on a cluster of ours": ([driver(is_over=True)], set(), {"cluster": True}, True),
    "a driver of ours that nobody knows": ([driver(id="03000000")], set(), {"cluster": True}, True),
    "a driver beside the leases, on a cluster of ours": ([driver()], set(), {"cluster": True}, False),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_driver_of_a_jobs_own_has_started_without_a_device_is_ended(monkeypatch, name):
    now = iter(range(1_000))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: next(now))
    monkeypatch.setattr("fabric.inventory.drivers.is_there", lambda pid: True)
    drivers, claimed, more, is_ended = FOREIGN[name]
    rows = {"actors": [actor("a", required={}, pid=31)], "workers": [worker(33, held={})], "jobs": drivers}
    ours = Ours(groups=set, job_id=GATE, **more)
    ended, _ = ended_by(Tables(**rows), looks=3, claimed={"10.0.0.1": set(), "10.0.0.9": claimed}, ours=ours)
    assert set(ended) == ({"a", "10.0.0.1 31", "10.0.0.1 33"} if is_ended else set())


def test_what_a_driver_has_left_is_judged_by_whose_it_was_while_it_ran(monkeypatch):
    now = iter(range(1_000))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: next(now))
    monkeypatch.setattr("fabric.inventory.drivers.is_there", lambda pid: True)

    def left_by(claimed, **more):
        tables = Tables(actors=[actor("a", required={}, pid=31)], jobs=[driver()])
        looking = Reconciler(Ours(groups=set, job_id=GATE, **more), tables=lambda: tables)

        def look(told):
            found = looking.look([NODE], kill=lambda *_: None)
            return looking.end_suspects(found, claimed={"10.0.0.1": set(), **told})

        for _ in range(1 if any(claimed.values()) else 2):
            look(claimed)
        before = list(tables.ended)
        tables.drivers = {STRANGER: driver(is_over=True)}
        for _ in range(3):
            look({})
        return before, tables.ended

    assert left_by({"10.0.0.9": {99}}) == ([], ["a"] * 3)
    assert left_by({"10.0.0.9": set()}, cluster=True) == ([], [])
    assert left_by({}, cluster=True) == ([], ["a"] * 2)
    assert left_by({"10.0.0.9": set()}) == ([], [])


def test_what_a_driver_that_nobody_saw_run_has_left_is_judged_by_what_its_machine_remembers(monkeypatch):
    """On somebody else's cluster: an agent is asked once of each, and again only where it doesn't say."""
    now = iter(range(1_000))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: next(now))
    asked = []

    def ended(had, **more):
        over = driver(is_over=True, started_at_s=1_000.0)
        tables = Tables(actors=[actor("a", required={}, pid=31)], jobs=[over])
        looking = Reconciler(Ours(groups=set, job_id=GATE, **more), tables=lambda: tables)
        asked.clear()
        for _ in range(3):
            found = looking.look([NODE], kill=lambda *_: None)
            looking.end_suspects(found, claimed={"10.0.0.1": set()}, had=had)
        return tables.ended

    def says(answer):
        def had(address, pids):
            asked.append((address, dict(pids)))
            return answer

        return had

    assert ended(says([99])) == ["a"] * 2
    assert asked == [("10.0.0.9", {99: 1_000.0})]
    assert ended(says([])) == []
    assert len(asked) == 1
    assert ended(says(None)) == []
    assert len(asked) == 3
    assert ended(says([99]), cluster=True) == ["a"] * 2
    assert asked == []


def test_a_process_that_stands_still_on_a_node_where_too_much_is_held_is_ended(monkeypatch):
    now = iter(range(1_000))
    monkeypatch.setattr("fabric.enforcement.reconciler.time.monotonic", lambda: next(now))
    silent = {"broken": ["workers"], "apart": ([], [41, 42])}
    ended, _ = ended_by(Tables(**silent), looks=2, claimed={"10.0.0.1": {42}})
    assert ended == ["10.0.0.1 41"]
    nothing_is_missing = {AT: {"GPU": 4.0, "H100": 4.0}}
    spared, _ = ended_by(Tables(**silent, free=nothing_is_missing), looks=2)
    assert spared == []


@pytest.mark.parametrize(
    ("rows", "is_left"),
    [
        ({"groups": [group("g"), group("h")]}, True),
        ({"groups": [group("g")], "actors": [actor("a", group_id="g")]}, False),
        ({"groups": [group("g")], "actors": [actor("a", group_id="h")]}, True),
        ({"groups": [group("h")]}, False),
        ({"groups": [group("g", is_placed=False)]}, False),
        ({"groups": [group("g")], "broken": ["groups"]}, False),
        ({"groups": [group("g")], "broken": ["actors"]}, False),
    ],
    ids=["empty", "somebody in it", "somebody elsewhere", "removed", "not placed", "no groups told", "no actors told"],
)
def test_a_group_is_used_again_only_while_it_is_there_and_nobody_in_it(monkeypatch, rows, is_left):
    """A job can remove any group over Ray: the next job to be put there would wait for it in vain."""
    monkeypatch.setattr("fabric.enforcement.group_end.RayTables.here", lambda: Tables(**rows))
    assert is_vacant("g") is is_left
