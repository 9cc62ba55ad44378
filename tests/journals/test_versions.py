"""What becomes of a journal when the code changes: shown with a made-up next version of rules, words and snapshots."""

import json

import msgspec
import pytest
from structlog.testing import capture_logs

from fabric import versions
from fabric.audit.merkle import Tree, leaf_hash
from fabric.clock import VirtualClock
from fabric.errors import Conflict, JournalCorrupt
from fabric.gate import Gate, keys, refusals
from fabric.gate.account_events import CreateKey, OpenAccount
from fabric.gate.events import AdoptRules, Grant, NodeUp, Pool, Submit, Tick, TopUp
from fabric.gate.instructions import Accepted, Refusal
from fabric.journal.encoding import decode_entry, entries_of
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import TreeHead
from fabric.journal.writer import Writer
from tests.gate.world import CONFIGURE, T0, S, spec

OPENING = (
    CONFIGURE,
    OpenAccount(account_id="ada", name="Ada", plan="starter"),
    TopUp(account_id="ada", amount_uhs=S),
    NodeUp(node_id="h1", accelerator="H100", devices=4, pool=Pool.SPOT),
)
TOO_DEAR = Submit(job_id="dear", account_id="ada", spec=spec(10**6 * S))


class World:
    """A gate's writer on a journal in a file, as often as it is started again."""

    def __init__(self, path):
        self.path, self.clock, self.writer = path, VirtualClock(T0), None

    async def carry_out(self, _):
        pass

    async def starts(self, **options):
        options = {"restore": Gate.restore, "clock": self.clock, "carry_out": self.carry_out} | options
        self.writer = Writer(SqliteJournal(self.path), **options)
        await self.writer.start()
        return self.writer

    async def crashes(self):
        """Nothing of it is left but the file; no snapshot is kept."""
        await self.writer.journal.close()
        self.writer = None

    async def do(self, *events, after=1):
        for event in events:
            self.clock.advance(seconds=after)
            (outcome,) = await self.writer.submit([event])
        return outcome

    async def entries(self):
        return [entry async for entry in SqliteJournal(self.path).read()]

    async def recorded(self):
        return [decode_entry(entry.leaf) for entry in await self.entries()]


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path / "journal.db")
    yield world
    if world.writer is not None:
        await world.writer.close()


async def written(world, *, crashed=True):
    """A journal with something of everything that is decided: a refusal that is kept, and keys."""
    await world.starts()
    await world.do(*OPENING, key(1), key(2), Grant(account_id="ada", amount_uhs=S, lifetime_us=2 * S))
    assert isinstance(await world.do(TOO_DEAR, after=3), Refusal)
    if crashed:
        await world.crashes()
    else:
        await world.writer.close()
        world.writer = None


def key(number):
    return CreateKey(key_id=f"k{number}", account_id="ada", secret_sha256="0" * 64)


async def rewritten(world, path, change):
    """The journal with other leaves in it, as another version would have written them."""
    journal, tree, made = SqliteJournal(path), Tree(), []
    for entry in await world.entries():
        leaf = change(json.loads(entry.leaf))
        if leaf is not None:
            made.append(msgspec.structs.replace(entry, leaf=json.dumps(leaf, separators=(",", ":")).encode()))
    await journal.open()
    for entry in made:
        tree.append(leaf_hash(entry.leaf))
    await journal.append(made, TreeHead(size=tree.size, root=tree.root()))
    await journal.close()
    world.path = path


def next_rules(monkeypatch, **decides):
    """The version after this one; what it decides otherwise, by function of `fabric.gate.keys`."""
    monkeypatch.setattr(versions, "RULES", versions.RULES + 1)
    monkeypatch.setattr(versions, "SINCE", {**versions.SINCE, versions.RULES: "9.9.0"})
    for name, function in decides.items():
        monkeypatch.setattr(keys, name, function)


def two_keys_at_most(core, event):
    """Fewer keys than before: under the next rules, or (older) at all."""
    if core.state.rules < versions.RULES or versions.RULES == 1:
        return None
    return refusals.conflict("no more", code="too_many_keys") if len(core.keys_of[event.account_id]) >= 2 else None


def two_keys_at_most_and_no_version(core, event):
    return (
        refusals.conflict("no more", code="too_many_keys") if len(core.keys_of.get(event.account_id, ())) >= 1 else None
    )


# -- words -------------------------------------------------------------------------------------------------------------


async def test_a_journal_holds_no_sentence_of_a_refusal(world):
    await written(world)
    (refused,) = [each for each in await world.entries() if b'"refused"' in each.leaf]
    outcome = json.loads(refused.leaf)["outcome"]
    assert set(outcome) == {"outcome", "code", "facts"}
    assert outcome["facts"]["needed_uhs"] == 10**6 * S


async def test_a_refusal_may_be_worded_otherwise(world, monkeypatch):
    await written(world)
    real = refusals.insufficient_tokens
    monkeypatch.setattr(
        refusals, "insufficient_tokens", lambda **facts: msgspec.structs.replace(real(**facts), message="zu teuer")
    )
    await world.starts()
    assert (await world.do(TOO_DEAR)).message == "zu teuer"


async def test_what_an_older_version_said_in_a_refusal_is_not_read(world, tmp_path):
    await written(world)

    def with_words(leaf):
        if (leaf["outcome"] or {}).get("outcome") == "refused":
            leaf["outcome"] |= {"message": "as it was said then", "http_status": 499}
        return leaf

    await rewritten(world, tmp_path / "older.db", with_words)
    await world.starts()


@pytest.mark.parametrize("what", ["code", "facts"])
async def test_another_code_or_other_facts_are_another_decision(world, tmp_path, what):
    await written(world)

    def changed(leaf):
        if (leaf["outcome"] or {}).get("outcome") == "refused":
            leaf["outcome"] |= {"code": "other"} if what == "code" else {"facts": {"needed_uhs": 1}}
        return leaf

    await rewritten(world, tmp_path / "changed.db", changed)
    with pytest.raises(JournalCorrupt, match="comes out differently"):
        await world.starts()


# -- rules -------------------------------------------------------------------------------------------------------------


async def test_a_new_journal_says_first_by_which_rules_it_is_decided(world):
    await written(world)
    first = (await world.recorded())[0]
    assert first.event == AdoptRules(rules=versions.RULES, release=versions.SINCE[versions.RULES])
    assert (await world.entries())[0].accounts == ("*",), "everybody's export has it"
    await world.starts()
    assert world.writer.core.rules == versions.RULES
    assert sum(isinstance(each.event, AdoptRules) for each in await world.recorded()) == 1


@pytest.mark.parametrize("crashed", [True, False])
async def test_newer_rules_decide_from_the_entry_on_that_adopts_them(world, monkeypatch, crashed):
    await written(world, crashed=crashed)
    next_rules(monkeypatch, too_many=two_keys_at_most)
    await world.starts()
    adopted = (await world.recorded())[-1]
    assert adopted.event == AdoptRules(rules=versions.RULES, release="9.9.0")
    assert (await world.do(key(3))).code == "too_many_keys"
    await world.do(Tick(), TopUp(account_id="ada", amount_uhs=S))
    await world.crashes()
    await world.starts(), "what was decided before is decided by the old rules, what came after by the new"
    assert set(world.writer.core.state.keys) == {"k1", "k2"}
    assert (await world.do(key(3))).code == "too_many_keys"


async def test_a_change_without_a_version_is_refused(world, monkeypatch):
    await written(world)
    monkeypatch.setattr(keys, "too_many", two_keys_at_most_and_no_version)
    with pytest.raises(JournalCorrupt, match="comes out differently") as found:
        await world.starts()
    assert found.value.code == "replay_differs"


async def test_no_time_passes_as_rules_are_adopted(world, monkeypatch):
    """A clock that is wrong is found only later, and must not have sold the future by then."""
    await written(world)
    next_rules(monkeypatch)
    last_us = (await world.recorded())[-1].at_us
    world.clock.advance(seconds=10**9)
    await world.starts()
    assert (await world.recorded())[-1].at_us == last_us == world.writer.at_us


async def test_older_code_refuses_what_newer_rules_have_taken_over(world, monkeypatch):
    await written(world)
    with monkeypatch.context() as later:
        next_rules(later)
        await world.starts()
        newer = world.writer
        older = World(world.path)
        later.undo()
        with pytest.raises(Conflict) as refused:
            await older.starts()
        assert refused.value.code == "journal_newer"
        assert refused.value.facts == {"rules": versions.RULES + 1, "release": "9.9.0", "known": versions.RULES}
        assert "start 9.9.0 or a later one" in refused.value.message
        assert refused.value.message.count(". ") == 1
    world.clock.advance(seconds=1)
    assert isinstance((await newer.submit([TopUp(account_id="ada", amount_uhs=S)]))[0], Accepted), "it writes on"


@pytest.mark.parametrize("crashed", [True, False])
async def test_older_code_is_refused_even_where_it_finds_no_index(world, monkeypatch, crashed):
    """The entry itself is refused, and a snapshot, too, whatever a store says of whose it is."""
    await written(world)
    with monkeypatch.context() as later:
        next_rules(later)
        await world.starts()
        await (world.crashes() if crashed else world.writer.close())
    entries = await world.entries()
    real = SqliteJournal.read

    def unindexed(journal, *bounds, account=None):
        return real(journal, *bounds, account=account and "nobody")

    monkeypatch.setattr(SqliteJournal, "read", unindexed)
    with pytest.raises(Conflict, match="taken over by rules"):
        await world.starts()
    world.writer = None
    monkeypatch.undo()
    assert await world.entries() == entries


def test_the_gate_itself_goes_over_to_no_rules_that_it_does_not_know():
    gate = Gate()
    before = gate.snapshot()
    for version in (versions.RULES + 1, versions.RULES - 1, -1):
        decision = gate.handle(AdoptRules(rules=version, release="x"), T0)
        assert (decision.outcome.code, decision.kept) == ("unknown_rules", False)
    assert gate.snapshot() == before


def test_a_gate_of_its_own_decides_by_the_newest_rules():
    """So that what is tested is what will be; the beginning of a journal says itself by which."""
    assert Gate().rules == versions.RULES
    assert Gate.restore(None).rules == versions.BEFORE


# -- journals of before there were versions ----------------------------------------------------------------------------


async def of_before(world, path):
    await written(world)
    entries = [entry for entry in await world.entries() if b"adopt_rules" not in entry.leaf]
    gate, made = Gate.restore(None), []
    for entry in entries:
        recorded = decode_entry(entry.leaf)
        decision = gate.handle(recorded.event, recorded.at_us)
        made += entries_of(len(made), at_us=recorded.at_us, event=recorded.event, decision=decision)
    journal, tree = SqliteJournal(path), Tree()
    await journal.open()
    tree.extend(leaf_hash(entry.leaf) for entry in made)
    await journal.append(made, TreeHead(size=tree.size, root=tree.root()))
    await journal.close()
    world.path = path


async def test_a_journal_of_before_versions_is_taken_over_where_it_decides_the_same(world, tmp_path):
    await of_before(world, tmp_path / "before.db")
    await world.starts()
    recorded = await world.recorded()
    assert recorded[0].event == CONFIGURE
    assert recorded[-1].event == AdoptRules(rules=versions.RULES, release=versions.SINCE[versions.RULES])


async def test_one_that_decides_otherwise_is_refused_in_one_sentence(world, tmp_path, monkeypatch):
    await of_before(world, tmp_path / "before.db")
    monkeypatch.setattr(keys, "too_many", two_keys_at_most_and_no_version)
    with pytest.raises(JournalCorrupt, match=r"begun before 0\.2\.0") as refused:
        await world.starts()
    assert "with the version that wrote it" in refused.value.message
    assert "--replay-from" not in refused.value.message, "nothing there would help"


# -- snapshots ---------------------------------------------------------------------------------------------------------


async def test_a_snapshot_says_its_format_and_its_rules(world):
    await written(world, crashed=False)
    snapshot = await SqliteJournal(world.path).load_snapshot()
    line = snapshot.state.partition(b"\n")[0].decode()
    assert line == f'fabric-snapshot {{"format":{versions.FORMAT},"rules":{versions.RULES},"release":"0.2.0"}}'


def unlabelled(held):
    return held.partition(b"\n")[2]


CHANGES = {
    "is of format": lambda held: held.replace(b'"format":1', b'"format":2'),
    "has no format": unlabelled,
    "has a label that can't be read": lambda held: held.replace(b'"format":1', b'"format":x'),
    "can't be read by this version": lambda held: held[:200],
}


@pytest.mark.parametrize("why", CHANGES)
async def test_a_snapshot_that_can_not_be_used_is_passed_over_with_one_warning(world, why):
    await written(world, crashed=False)
    journal = SqliteJournal(world.path)
    await journal.open()
    snapshot = await journal.load_snapshot()
    assert snapshot.size == len(await world.entries())
    await journal.save_snapshot(msgspec.structs.replace(snapshot, state=CHANGES[why](snapshot.state)))
    await journal.close()
    with capture_logs() as lines:
        await world.starts()
    (told,) = [line for line in lines if line["log_level"] == "warning"]
    assert told["event"] == "snapshots_passed_over"
    assert why in told["why"]
    assert (told["entries"], told["about_s"]) == (snapshot.size, 1)
    assert "entries are decided again, which takes about 1 s" in told["why"]
    assert world.writer.head.size == snapshot.size


async def test_the_snapshot_before_is_used_where_the_newest_is_of_another_format(world, monkeypatch):
    await written(world, crashed=False)
    size = (await SqliteJournal(world.path).load_snapshot()).size
    with monkeypatch.context() as later:
        later.setattr(versions, "FORMAT", versions.FORMAT + 1)
        with capture_logs() as lines:
            await world.starts()
        assert [line["entries"] for line in lines if line["event"] == "snapshots_passed_over"] == [size]
        await world.do(TopUp(account_id="ada", amount_uhs=S))
        await world.writer.close()
    with capture_logs() as lines:
        await world.starts()
    assert [line["entries"] for line in lines if line["event"] == "snapshots_passed_over"] == [1], "back from the newer"
    assert world.writer.core.state.book.accounts["ada"]


async def test_a_good_snapshot_is_used_without_a_word(world):
    await written(world, crashed=False)
    with capture_logs() as lines:
        await world.starts()
    assert lines == []


async def test_how_far_a_replay_has_come_can_be_looked_at(world):
    await written(world)
    await world.starts()
    entries = len(await world.entries())
    assert (world.writer.progress.decided, world.writer.progress.entries) == (entries, entries)
