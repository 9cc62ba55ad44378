"""A journal as a workload: what happened is read from it, and the same gate on the same jobs does the same again."""

import asyncio
import json

import msgspec
import pytest
from typer.testing import CliRunner

from fabric.cli.app import app
from fabric.errors import InvalidRequest
from fabric.gate import Gate
from fabric.journal.encoding import decode_entry, entries_of
from fabric.journal.postgres import PostgresJournal
from fabric.journal.sqlite import SqliteJournal
from fabric.simulation import journals
from fabric.simulation.gate_policy import GatePolicy
from fabric.simulation.journals import Reader
from fabric.simulation.measures import measure
from fabric.simulation.workload import HOUR_US, Behaviour, Cluster, Nodes, Work
from fabric.simulation.world import World
from fabric.units import UHS_PER_CT
from tests.journals.golden import releases, unpacked

MINUTE = 60_000_000
CLUSTER = Cluster(nodes=(Nodes(count=1, devices=8, pool="reserved"), Nodes(count=2, devices=8)))
CALM = Behaviour(checkpoint_us=HOUR_US, write_us=0, restore_us=(0, 0))


class Written(Gate):
    """A gate that keeps the entries of all it decides."""

    def __init__(self, **how):
        super().__init__(**how)
        self.entries = []

    def handle(self, event, now_us):
        decision = super().handle(event, now_us)
        if decision.kept:
            self.entries += entries_of(len(self.entries), at_us=now_us, event=event, decision=decision)
        return decision


def played(works):
    policy = GatePolicy()
    policy.gate = Written(silence_us=10**18)
    world = World(works, CLUSTER, policy, behaviour=CALM)
    world.run()
    return world, policy.gate.entries


def past_of(entries):
    reader = Reader()
    reader.gate = Gate(silence_us=10**18)
    for entry in entries:
        reader.take(entry)
    return reader.finish()


WORKS = [
    Work(
        work_id=f"w{at}", submit_us=at * 7 * MINUTE, duration_us=(30 + 37 * at % 200) * MINUTE,
        devices=(1, 8, 2, 4)[at % 4], user=f"u{at % 3}", tier=at % 3, service="inference" if at % 11 == 5 else "training",
    )
    for at in range(40)
]  # fmt: skip


def test_what_happened_is_read_from_a_journal_as_it_was_measured():
    world, entries = played(WORKS)
    past = past_of(entries)
    then, read = measure(world, seed=1), measure(past, seed=1)
    assert world.policy.gate.state.jobs
    assert read.waits == then.waits
    assert (read.evictions, read.restores, read.jobs) == (then.evictions, then.restores, then.jobs)
    assert read.evictions > 0, "the story has somebody sent away"
    assert read.lost_device_h == pytest.approx(then.lost_device_h)
    assert [work.duration_us for work in past.works] == [task.work.duration_us for task in world.tasks]
    burned_h = sum(task.work.duration_us * task.work.devices for task in world.tasks) / HOUR_US
    burned_ct = past.sums.money().burned_ct
    jobs = world.policy.gate.state.jobs.values()
    borne_ct = sum(moment.lost_uhs or 0 for job in jobs for moment in job.timeline) / UHS_PER_CT
    assert borne_ct > 0, "the story has somebody who saved rarely"
    assert 0.95 * burned_h <= burned_ct - borne_ct <= burned_h, (
        "what else was lost was given back, by meters read now and then"
    )


def test_the_same_gate_on_a_journals_jobs_does_what_it_did():
    _, entries = played(WORKS)
    past = past_of(entries)
    again = World(past.works, past.cluster, GatePolicy(), behaviour=CALM)
    again.run()
    was, now = measure(past, seed=1), measure(again, seed=1)
    assert now.waits == was.waits
    assert (now.evictions, now.lost_device_h) == (was.evictions, pytest.approx(was.lost_device_h))


def test_with_more_nodes_nobody_waits():
    _, entries = played(WORKS)
    past = past_of(entries)
    large = Cluster(nodes=(Nodes(count=20, devices=8, pool="reserved"), Nodes(count=40, devices=8)))
    again = World(past.works, large, GatePolicy(), behaviour=CALM)
    again.run()
    assert measure(again, seed=1).waits["all"]["all"].max_h == 0


@pytest.fixture
def journal(tmp_path):
    return unpacked(releases()[-1] / "sqlite" / "closed", tmp_path)


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_kept_journal_is_decided_as_it_was_written(journal):
    found = call("replay", journal, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["same"] is True
    assert told["entries"] > 100


def test_where_two_versions_part_is_said_with_both_decisions(journal, monkeypatch):
    entries = [entry for entry, _ in journals.entries_of(journal)]
    at = next(n for n, entry in enumerate(entries) if b'"top_up"' in entry.leaf and decode_entry(entry.leaf).transfers)
    real = Gate.handle

    def other(self, event, now_us):
        decision = real(self, event, now_us)
        if len(decision.transfers) and type(event).__name__ == "TopUp":
            return msgspec.structs.replace(decision, transfers=decision.transfers[:-1])
        return decision

    monkeypatch.setattr(Gate, "handle", other)
    found = call("replay", journal, "--json")
    assert found.exit_code == 6
    told = json.loads(found.stdout)
    assert (told["same"], told["seq"]) == (False, at)
    assert told["written"] != told["decided"]


def test_a_journal_stands_beside_what_would_have_been(journal, tmp_path):
    page = tmp_path / "report.html"
    found = call("simulate", journal, "--nodes", "4x8:H100", "--nodes", "2x8:A100", "-p", "fabric", "--html", page)
    assert found.exit_code == 0, found.output
    assert "as it was" in found.output
    assert "breakage" in found.output
    assert "<svg" in page.read_text()
    assert "as it was" in page.read_text()


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    other = tmp_path / "other.sqlite"
    other.write_text("nothing")
    with pytest.raises(InvalidRequest, match="is no journal"):
        journals.replay(other)


@pytest.mark.parametrize("command", ["replay", "simulate"])
def test_a_journal_in_postgresql_is_read_as_that_in_a_file_and_left_to_its_gate(postgres_server, journal, command):
    """Nobody takes it over by reading it: the epoch stays the gate's."""

    async def copied():
        there, here = PostgresJournal(postgres_server.dsn, schema="fabric_journal"), SqliteJournal(journal)
        await there.open()
        if not (await there.head()).size:
            head = await here.head()
            await there.append([entry async for entry in here.read(0, head.size)], head)
        return there

    async def goes_on(there):
        head = await there.head()
        await there.append([], head)
        await there.close()
        return head.size

    with asyncio.Runner() as loop:
        there = loop.run(copied())
        words = ["--json"] if command == "replay" else ["--nodes", "2x8", "--json"]
        found, same = call(command, postgres_server.dsn, *words), call(command, journal, *words)
        assert found.exit_code == same.exit_code, found.output
        told, meant = (json.loads(each.stdout) if each.exit_code == 0 else each.output for each in (found, same))
        assert command != "replay" or told == meant
        assert loop.run(goes_on(there)) > 0
