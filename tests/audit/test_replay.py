"""Deciding a journal again: the same bytes, or the entry that is not."""

import json

import msgspec
import pytest

from fabric.errors import JournalCorrupt
from fabric.gate.gate import Gate
from fabric.journal.replay import Replay


async def entries_of(log):
    await log.run_job("acme", job_id="job-1")
    return [entry async for entry in log.writer.journal.read()]


def replayed(entries) -> Gate:
    gate = Gate()
    replay = Replay(gate)
    for entry in entries:
        replay.feed(entry)
    replay.finish()
    return gate


async def test_a_journal_of_the_gate_replays_to_the_gate(log):
    entries = await entries_of(log)
    assert any(b'"continues"' in entry.leaf for entry in entries), "some decisions are about two accounts"
    assert replayed(entries).snapshot() == log.writer.core.snapshot()


async def test_whichever_part_of_a_decision_is_missing_or_changed_is_named(log):
    entries = await entries_of(log)
    for at, entry in enumerate(entries):
        if b'"continues"' not in entry.leaf:
            continue
        with pytest.raises(JournalCorrupt) as missing:
            replayed([*entries[:at], *entries[at + 1 :]])
        changed = msgspec.structs.replace(entry, leaf=entry.leaf.replace(b'"CT"', b'"XX"'))
        with pytest.raises(JournalCorrupt) as different:
            replayed([*entries[:at], changed, *entries[at + 1 :]])
        assert (missing.value.facts["seq"], different.value.facts["seq"]) == (at, at)
        assert missing.value.code == different.value.code == "replay_differs"


async def test_a_decision_that_is_cut_at_the_end_is_found(log):
    entries = await entries_of(log)
    last = max(at for at, entry in enumerate(entries) if b'"continues"' in entry.leaf)
    with pytest.raises(JournalCorrupt):
        replayed(entries[:last])


async def test_a_leaf_that_this_version_cannot_read_is_named(log):
    entries = await entries_of(log)
    unreadable = msgspec.structs.replace(entries[2], leaf=b'{"seq":2,"event":{"event":"unheard_of"}}')
    with pytest.raises(JournalCorrupt, match="entry 2 can't be read by this version"):
        replayed([*entries[:2], unreadable])


BEFORE_CALLS = {"authorize": ("key_id",), "update_hold": ("minimum_uhs", "calls"), "settle_hold": ("calls",)}
"""What these events said before calls were reported with them: without these fields."""


def as_it_was_written(leaf: bytes) -> bytes:
    entry = json.loads(leaf)
    for name in BEFORE_CALLS.get((entry.get("event") or {}).get("event"), ()):
        del entry["event"][name]
    for record in entry["records"]:
        record |= {"refunded_uhs": record.get("refunded_uhs", 0), "absorbed_uhs": record.get("absorbed_uhs", 0)}
    if (entry.get("event") or {}).get("event") == "configure":
        del entry["event"]["tariffs"]["rates"]
    return json.dumps(entry, separators=(",", ":")).encode()


async def test_a_journal_from_before_there_were_calls_replays_to_the_same_gate(log):
    entries = await entries_of(log)
    old = [msgspec.structs.replace(entry, leaf=as_it_was_written(entry.leaf)) for entry in entries]
    changed = sum(one.leaf != other.leaf for one, other in zip(entries, old, strict=True))
    assert changed > 10, "there is something older about it"
    assert replayed(old).snapshot() == log.writer.core.snapshot()


def with_facts(entry, change):
    """The entry with other facts in its answer."""
    said = json.loads(entry.leaf)
    change(said["outcome"]["facts"])
    return msgspec.structs.replace(entry, leaf=json.dumps(said, separators=(",", ":")).encode())


async def test_a_decision_that_is_told_with_more_facts_is_the_same(log):
    """A gate that was killed before an upgrade has decided so, though its version stated less of it."""
    entries = await entries_of(log)
    told = [
        at for at, entry in enumerate(entries) if b'"price_microcny":' in entry.leaf and b'"facts":{"' in entry.leaf
    ]
    assert told
    older = [with_facts(entry, dict.clear) if at in told else entry for at, entry in enumerate(entries)]
    assert replayed(older).snapshot() == log.writer.core.snapshot()
    at = told[0]
    entries[at] = with_facts(entries[at], lambda facts: facts.update(price_microcny=facts["price_microcny"] + 1))
    with pytest.raises(JournalCorrupt, match=f"entry {at} "):
        replayed(entries)


async def test_a_snapshot_from_before_there_were_models_is_read(log):
    state = msgspec.msgpack.decode(log.writer.core.snapshot())
    del state["models"], state["calls"], state["calls_of"]
    for kind in ("holds", "ended", "lapsed", "expired"):
        for hold in state["book"][kind].values():
            del hold["key_id"]
    assert Gate.restore(msgspec.msgpack.encode(state)).snapshot() == log.writer.core.snapshot()
