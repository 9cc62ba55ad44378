"""The journals of every release: this version opens them, and decides what is in them as it was decided."""

import copy
import json
from typing import get_args

import msgspec
import pytest

from fabric import versions
from fabric.audit.verify import verify_export
from fabric.clock import VirtualClock
from fabric.errors import JournalCorrupt
from fabric.gate import Gate
from fabric.gate.events import AdoptRules, AnyEvent, Tick
from fabric.gate.instructions import AnyInstruction, Refusal
from fabric.gate.state import GateState
from fabric.journal.auditor import Auditor
from fabric.journal.encoding import decode_entry
from fabric.journal.postgres import PostgresJournal
from fabric.journal.replay import Replay
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.writer import Writer
from tests.journals.golden import HOWS, SCHEMA, in_the_making, kept, releases, schema_of, unpacked

RELEASES = releases()
NEWEST = RELEASES[-1]
every_release = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
either_end = pytest.mark.parametrize("how", HOWS)
REMEDY = (
    "give what has changed the next number, in fabric/versions.py (RULES for what is decided or an event,"
    " FORMAT for the state), with the old way behind it; only while that release isn't out, write it anew with `make golden`"
)


def about(release):
    return json.loads((release / "about.json").read_text())


def facts_of(gate):
    """The state, without what is only for people to read."""
    found = msgspec.msgpack.decode(gate.snapshot())
    for job in found["jobs"].values():
        job["error"] = job["reason"] = job["timeline"] = None
    return found


async def started(journal, **options):
    async def carry_out(_):
        pass

    writer = Writer(journal, restore=Gate.restore, clock=VirtualClock(), carry_out=carry_out)
    await writer.start(**options)
    return writer


async def entries_of(release, folder, how="closed"):
    journal = SqliteJournal(unpacked(release / "sqlite" / how, folder))
    entries = [entry async for entry in journal.read()]
    await journal.close()
    return entries


def replayed(entries):
    """A gate that has decided them again, and what it told the cluster to do at each event."""
    gate, told = Gate.restore(None), []
    replay = Replay(gate)
    for entry in entries:
        decision = replay.feed(entry)
        if decision is not None:
            told.append(list(decision.instructions))
    replay.finish()
    return gate, told


async def opens_and_goes_on(journal, again, entries):
    """Open it, from its snapshot and from its beginning; write one more entry, and open that."""
    whole = await started(again(), replay_from=0)
    whole.core.check()
    before = whole.head.size
    await whole.journal.close()
    writer = await started(journal)
    assert facts_of(writer.core) == facts_of(whole.core), f"its snapshot says something else: {REMEDY}"
    assert (writer.head.size, before >= len(entries)) == (before, True)
    writer.core.check()
    await writer.submit([Tick()])
    auditor = Auditor(writer.journal, origin="golden.example", signing_key=bytes(32))
    report = verify_export([line.decode() async for line in auditor.export()], trusted_key=auditor.verifier_key)
    assert report.ok, report
    await writer.close()
    later = await started(again(), replay_from=0)
    assert later.head.size == before + 1
    assert later.core.rules == versions.RULES
    await later.close()


# -- what is there -----------------------------------------------------------------------------------------------------


def test_the_release_in_the_making_has_a_golden_journal():
    assert in_the_making() in [release.name for release in RELEASES], "run `make golden`"


async def test_the_newest_golden_journal_has_every_kind_of_event(tmp_path):
    recorded = [decode_entry(entry.leaf) for entry in await entries_of(NEWEST, tmp_path)]
    kinds = {type(each.event) for each in recorded} - {type(None)}
    assert kinds == set(get_args(AnyEvent)), "run `make golden`"
    assert isinstance(recorded[0].event, AdoptRules)
    assert any(each.outcome is not None and hasattr(each.outcome, "code") for each in recorded)


def test_golden_journals_are_small():
    sizes = {
        release.name: sum(file.stat().st_size for file in release.rglob("*") if file.is_file()) for release in RELEASES
    }
    assert {name: size for name, size in sizes.items() if size > 500_000} == {}


# -- what this version makes of it -------------------------------------------------------------------------------------


@either_end
@every_release
async def test_this_version_opens_it_decides_the_same_and_goes_on(release, how, tmp_path):
    path = unpacked(release / "sqlite" / how, tmp_path)
    entries = [entry async for entry in SqliteJournal(path).read()]
    await opens_and_goes_on(SqliteJournal(path), lambda: SqliteJournal(path), entries)


@pytest.mark.postgres
@either_end
@every_release
async def test_this_version_opens_it_in_postgres_too(release, how, tmp_path, postgres_server):
    import asyncpg

    schema = SCHEMA.format(how=how)
    line = await asyncpg.connect(postgres_server.dsn)
    await line.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    await line.execute(kept(release / "postgres" / how).decode())
    await line.close()
    entries = await entries_of(release, tmp_path, how)
    journal = PostgresJournal(postgres_server.dsn, schema=schema)
    assert [entry async for entry in journal.read()] == entries, "it is the same history"
    await journal.close()
    await opens_and_goes_on(
        PostgresJournal(postgres_server.dsn, schema=schema),
        lambda: PostgresJournal(postgres_server.dsn, schema=schema),
        entries,
    )


@every_release
async def test_every_event_still_tells_the_cluster_to_do_the_same(release, tmp_path):
    _, told = replayed(await entries_of(release, tmp_path))
    then = [
        msgspec.json.decode(line, type=list[AnyInstruction]) for line in kept(release / "instructions").splitlines()
    ]
    assert len(told) == len(then) + 1, "the first entry adopts the rules"
    for number, (now, before) in enumerate(zip(told[1:], then, strict=True), 1):
        assert now == before, f"event {number}: {REMEDY}"


# -- what may change only with a number --------------------------------------------------------------------------------


def test_the_release_in_the_making_has_a_journal_of_what_this_version_decides_and_writes():
    """An older one would leave what is new untried, and say nothing of it."""
    made = RELEASES[-1]
    assert about(made) == {"release": made.name, "rules": versions.RULES, "format": versions.FORMAT}, (
        "run `make golden`"
    )
    assert schema_of(AnyEvent) == (made / "events.json").read_bytes(), REMEDY
    assert schema_of(GateState) == (made / "state.json").read_bytes(), REMEDY


@every_release
def test_events_that_a_release_wrote_say_what_they_said_then(release):
    then, now = json.loads((release / "events.json").read_bytes()), json.loads(schema_of(AnyEvent))
    assert unread(then, now) == []


def unread(then, now, path=""):
    """Where something that was written then isn't read now as it was then."""
    if "anyOf" in now and "anyOf" not in then:
        return min((unread(then, each, path) for each in now["anyOf"]), key=len)
    found = []
    for word, was in then.items():
        at, will = f"{path}/{word}", now.get(word)
        match word:
            case "$defs" | "properties":
                found += [f"{at}/{name}" for name in was if name not in (will or {})]
                found += [
                    each
                    for name in was
                    if name in (will or {})
                    for each in unread(was[name], will[name], f"{at}/{name}")
                ]
            case "anyOf":
                found += [
                    each for one in was for each in min((unread(one, other, at) for other in will or [now]), key=len)
                ]
            case "prefixItems":
                found += [each for one, other in zip(was, will or (), strict=False) for each in unread(one, other, at)]
                found += [at] if len(will or ()) < len(was) else []
            case "items" | "additionalProperties" if isinstance(was, dict) and isinstance(will, dict):
                found += unread(was, will, at)
            case "enum":
                found += [at] if set(was) - set(will or ()) else []
            case "maxItems":
                found += [at] if will is not None and will < was else []
            case "required" | "minItems":
                pass  # what is asked for now is looked at below
            case _:
                found += [at] if will != was else []
    found += [f"{path}/required/{name}" for name in now.get("required", ()) if name not in then.get("required", ())]
    return found + ([f"{path}/minItems"] if now.get("minItems", 0) > then.get("minItems", 0) else [])


def test_a_field_that_goes_turns_or_is_suddenly_asked_for_is_found():
    now = json.loads(schema_of(AnyEvent))
    for change, where in (
        (lambda top_up: top_up["properties"].pop("amount_uhs"), "properties/amount_uhs"),
        (lambda top_up: top_up["required"].append("channel"), "required/channel"),
        (lambda top_up: top_up["properties"]["amount_uhs"].update(type="string"), "properties/amount_uhs/type"),
        (lambda top_up: top_up["properties"]["channel"].update(default="other"), "properties/channel/default"),
    ):
        other = copy.deepcopy(now)
        change(other["$defs"]["TopUp"])
        assert unread(now, other) == [f"/$defs/TopUp/{where}"]
    more = copy.deepcopy(now)
    more["$defs"]["TopUp"]["properties"]["new"] = {"type": "integer", "default": 0}
    more["$defs"]["Overflow"]["enum"].append("new")
    assert unread(now, more) == []


def test_numbers_only_grow_and_each_says_since_when():
    for release in RELEASES:
        assert versions.SINCE[about(release)["rules"]] is not None
        assert about(release)["rules"] <= versions.RULES
        assert about(release)["format"] <= versions.FORMAT
    assert sorted(versions.SINCE) == list(range(1, versions.RULES + 1))


CHANGES = {
    "fabric.gate.holds.QUANTUM_US": 1_000_000,
    "fabric.gate.holds.MARGIN_PART": 1,
    "fabric.gate.grace.SLACK_US": 500_000_000,
    "fabric.gate.attempts.LOSSES_IN_A_ROW": 1,
    "fabric.gate.leases.IDLE_BELOW_PPM": 1_000_000,
    "fabric.gate.hazards._FIRST_US": 7_200_000_000,
    "fabric.charging.plans.DAY_US": 86_399_000_000,
    "fabric.placement.locality.RATE_BYTES_PER_S": 200_000_000,
    "fabric.placement.locality.PATIENCE_PART": 10_000,
}
"""One number of one rule each, as somebody could change it by mistake."""


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_of_what_is_decided_is_found(name, tmp_path, monkeypatch):
    monkeypatch.setattr(name, CHANGES[name])
    entries = await entries_of(NEWEST, tmp_path)
    then = [msgspec.json.decode(line, type=list[AnyInstruction]) for line in kept(NEWEST / "instructions").splitlines()]
    with pytest.raises((JournalCorrupt, AssertionError)):
        assert replayed(entries)[1][1:] == then


async def test_a_reworded_refusal_is_no_change(tmp_path, monkeypatch):
    handle = Gate.handle

    def reworded(gate, event, now_us):
        decision = handle(gate, event, now_us)
        if isinstance(decision.outcome, Refusal):
            decision = msgspec.structs.replace(
                decision, outcome=msgspec.structs.replace(decision.outcome, message="nein", http_status=418)
            )
        return decision

    monkeypatch.setattr(Gate, "handle", reworded)
    path = unpacked(NEWEST / "sqlite" / "crashed", tmp_path)
    await opens_and_goes_on(SqliteJournal(path), lambda: SqliteJournal(path), [])
