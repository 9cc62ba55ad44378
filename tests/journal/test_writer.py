"""The writer, with a stand-in for the gate: a core that counts holds, so that only the writer is under test."""

import asyncio

import msgspec
import pytest

from fabric import versions
from fabric.audit.merkle import Tree, leaf_hash
from fabric.errors import Internal, JournalCorrupt, Unavailable
from fabric.gate.events import Cancel, Tick
from fabric.gate.instructions import Accepted, Decision, Refusal, StartLease
from fabric.gate.serving_events import Authorize, ReleaseHold
from fabric.journal.encoding import Refused
from fabric.journal.store import Snapshot
from fabric.journal.versions import label
from fabric.journal.writer import Writer
from tests.journal.counting import NO, Counting, Journal, World, hold, world
from tests.worker.leases import lease_of

__all__ = ["world"]


async def test_an_answer_comes_only_when_it_is_durable(world):
    writer = await world.start()
    writer.journal.may_commit.clear()
    asking = asyncio.create_task(writer.submit([hold()]))
    await asyncio.sleep(0.05)
    assert not asking.done()
    assert (await writer.journal.head()).size == 0
    writer.journal.may_commit.set()
    assert await asking == [Accepted(held_uhs=1)]
    assert (await writer.journal.head()).size == 1


async def test_all_that_waits_is_one_commit_up_to_the_limit_and_no_call_is_split(world):
    writer = await world.start(batch_max=10)
    calls = [writer.submit([hold()] * size) for size in (1, 6, 3, 4, 25, 2)]
    answers = await asyncio.gather(*calls)
    assert [len(answer) for answer in answers] == [1, 6, 3, 4, 25, 2]
    assert [outcome.held_uhs for answer in answers for outcome in answer] == list(range(1, 42))
    assert writer.journal.batches == [10, 4, 25, 2]


async def test_refusals_are_journaled_too_and_every_account_is_indexed(world):
    writer = await world.start(restore=lambda state: Counting(state, most=1))
    assert [type(answer) for answer in await writer.submit([hold("a"), hold("b")])] == [Accepted, Refusal]
    decided = [Accepted(held_uhs=1), Refused(code=NO.code)]
    assert [entry.outcome for entry in await world.entries(writer)] == decided
    assert [entry.accounts async for entry in writer.journal.read(account="acme")] == [("acme",), ("acme",)]


async def test_after_a_restart_the_core_is_what_it_was(world):
    writer = await world.start()
    for _ in range(5):
        await writer.submit([hold(), hold(), ReleaseHold(hold_id="h", account_id="acme", seq=1)])
    before = writer.core.snapshot(), writer.head, writer.tree.root()
    killed = world.open.pop()  # not closed: no snapshot is kept
    again = await world.start()
    assert (again.core.snapshot(), again.head, again.tree.root()) == before
    assert len(world.said) == 5, "a replay carries nothing out"
    killed._ended = Unavailable("replaced")
    killed._wake.set()


async def test_a_restart_begins_with_the_newest_snapshot(world):
    writer = await world.start(snapshot_every=4)
    for _ in range(11):
        await writer.submit([hold()])
    assert (await writer.journal.load_snapshot()).size == 8
    restored = []

    def restore(state):
        core = Counting(state)
        restored.append(core.handled)
        return core

    again = await world.start(restore=restore)
    assert restored == [8]
    assert again.core.handled == 11


async def test_closing_keeps_a_snapshot_of_everything(world):
    writer = await world.start()
    await writer.submit([hold()])
    await writer.close()
    again = await world.start(restore=lambda state: Counting(state, skew=7))
    assert again.core.held == 1, "nothing was replayed, or the skew would have been found"


async def test_a_core_that_decides_otherwise_than_it_did_is_found_out_and_named(world):
    writer = await world.start()
    for _ in range(3):
        await writer.submit([Tick()])
    world.open.pop()
    with pytest.raises(JournalCorrupt) as found:
        await world.start(restore=lambda state: Counting(state, skew=1))
    assert (found.value.code, found.value.facts["seq"]) == ("replay_differs", 0)


async def keep_wrong_snapshot(journal, *, size: int, held: int) -> None:
    """One that is whole, and says something that the journal doesn't lead to."""
    tree = Tree()
    tree.extend(await journal.leaf_hashes(0, size))
    state = label(versions.RULES) + msgspec.msgpack.encode((held, size))
    await journal.save_snapshot(Snapshot(size=size, root=tree.root(), edge=tree.edge, state=state))


async def snapshots_of(journal) -> list[int]:
    sizes: list[int] = []
    while (found := await journal.load_snapshot(at_most=sizes[-1] - 1 if sizes else None)) is not None:
        sizes.append(found.size)
    return sizes


async def test_a_snapshot_that_does_not_lead_to_the_end_is_passed_over_for_an_older_one(world):
    writer = await world.start(snapshot_every=4)
    for _ in range(10):
        await writer.submit([hold()])
    await keep_wrong_snapshot(writer.journal, size=9, held=3)
    again = await world.start()
    assert (again.core.held, again.core.handled) == (10, 10)
    assert await snapshots_of(again.journal) == [9, 8, 4], "nothing was deleted"


async def test_a_start_that_fails_on_replay_names_a_command_that_starts(world):
    """All snapshots are wrong; deciding the whole journal again is right, and deletes none of them."""
    writer = await world.start()
    for _ in range(10):
        await writer.submit([hold()])
    for size in (5, 8):
        await keep_wrong_snapshot(writer.journal, size=size, held=77)
    stuck = Writer(Journal(world.path), restore=Counting, clock=world.clock, carry_out=world.carry_out)
    with pytest.raises(JournalCorrupt, match=r"`fabric up --replay-from 0` \(the whole journal\)") as failed:
        await stuck.start()
    assert failed.value.code == "replay_differs"
    assert "entry 8, entry 5; 10 entries are there, and nothing was changed or deleted" in failed.value.message
    await stuck.start(replay_from=0)
    world.open.append(stuck)
    assert (stuck.core.held, stuck.head.size) == (10, 10)
    assert await snapshots_of(stuck.journal) == [8, 5]
    assert await stuck.submit([hold()]) == [Accepted(held_uhs=11)]


async def test_a_journal_of_a_version_that_decided_otherwise_names_a_way_that_works(world):
    await (await world.start()).submit([hold()])
    other = {"restore": lambda state: Counting(state, skew=1), "clock": world.clock, "carry_out": world.carry_out}
    stuck = Writer(Journal(world.path), **other)
    for replay_from in (None, 0):
        with pytest.raises(JournalCorrupt, match="another version wrote it, start that one, end it with `fabric down`"):
            await stuck.start(replay_from=replay_from)
    await (await world.start()).close()
    upgraded = await world.start(restore=other["restore"])
    assert (upgraded.core.held, upgraded.head.size) == (1, 1)


async def test_a_start_from_a_chosen_snapshot_that_fails_names_the_others(world):
    writer = await world.start(snapshot_every=4)
    for _ in range(10):
        await writer.submit([hold()])
    await keep_wrong_snapshot(writer.journal, size=9, held=3)
    stuck = Writer(Journal(world.path), restore=Counting, clock=world.clock, carry_out=world.carry_out)
    with pytest.raises(JournalCorrupt, match=r"--replay-from 8` .* or `fabric up --replay-from 4` .* --replay-from 0`"):
        await stuck.start(replay_from=9)
    await stuck.start(replay_from=5)
    world.open.append(stuck)
    assert stuck.core.handled == 10


async def test_when_a_commit_fails_nobody_is_answered_and_memory_does_not_run_ahead(world):
    writer = await world.start()
    await writer.submit([hold()])
    writer.journal.failing.append(Unavailable("disk full", code="journal_unavailable"))
    for answer in await asyncio.gather(*(writer.submit([hold()]) for _ in range(3)), return_exceptions=True):
        assert isinstance(answer, Unavailable)
        assert answer.code == "journal_unavailable"
    assert await writer.submit([hold()]) == [Accepted(held_uhs=2)], "the three that failed are not remembered"
    assert writer.head.size == 2
    assert world.said == []


async def test_while_the_store_is_away_every_caller_is_told_and_then_it_goes_on(world, monkeypatch):
    writer = await world.start()
    writer.journal.failing.append(Unavailable("gone"))

    async def away():
        raise Unavailable("still gone", code="journal_unavailable")

    monkeypatch.setattr(writer.journal, "open", away)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await writer.submit([hold()])
        with pytest.raises(Unavailable):
            await writer.look(lambda core: core.held)
    monkeypatch.undo()
    while writer.outage is not None:  # noqa: ASYNC110 - that it ends by itself is the claim
        await asyncio.sleep(0.01)
    assert await writer.submit([hold()]) == [Accepted(held_uhs=1)]


async def test_a_writer_that_was_replaced_stops_for_good(world):
    writer = await world.start()
    newer = await world.start()
    with pytest.raises(Unavailable) as refused:
        await writer.submit([hold()])
    assert refused.value.code == "writer_fenced"
    with pytest.raises(Unavailable):
        await writer.submit([hold()])
    assert await newer.submit([hold()]) == [Accepted(held_uhs=1)], "the old one has not taken it back"


async def test_a_mistake_in_the_core_costs_its_caller_and_nobody_else(world):
    writer = await world.start()
    mistake = Cancel(job_id="j", account_id="acme")
    answers = await asyncio.gather(
        writer.submit([hold()]), writer.submit([hold(), mistake]), writer.submit([hold()]), return_exceptions=True
    )
    assert answers[0] == [Accepted(held_uhs=1)]
    assert isinstance(answers[1], Internal)
    assert answers[2] == [Accepted(held_uhs=2)]
    assert writer.head.size == 2


async def test_more_than_may_wait_is_told_to_come_back(world):
    writer = await world.start(queue_max=5)
    writer.journal.may_commit.clear()
    first = asyncio.create_task(writer.submit([hold()]))
    await asyncio.sleep(0.01)
    waiting = [asyncio.create_task(writer.submit([hold()] * 2)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable) as refused:
        await writer.submit([hold()] * 2)
    assert (refused.value.code, refused.value.facts["limit"]) == ("overloaded", 5)
    writer.journal.may_commit.set()
    await asyncio.gather(first, *waiting)
    assert writer.head.size == 5


async def test_a_caller_that_goes_away_takes_nothing_with_it(world):
    writer = await world.start()
    writer.journal.may_commit.clear()
    asking = asyncio.create_task(writer.submit([hold()]))
    await asyncio.sleep(0.01)
    asking.cancel()
    writer.journal.may_commit.set()
    assert await writer.submit([hold()]) == [Accepted(held_uhs=2)]


async def test_what_is_idle_leaves_no_entry_and_never_touches_the_core(world):
    writer = await world.start(idle=lambda core, event, now_us: isinstance(event, Tick) and core.held == 0)
    assert await writer.submit([Tick()]) == [Accepted()]
    assert (writer.head.size, writer.core.handled) == (0, 0)
    await writer.submit([hold(), Tick()])
    assert [type(entry.event) for entry in await world.entries(writer)] == [Authorize, Tick]


async def test_time_never_runs_backwards_in_the_journal(world):
    writer = await world.start()
    for now_us in (1_000, 5_000, 3_000):
        world.clock._now_us = now_us
        await writer.submit([Tick()])
    await writer.close()
    world.clock._now_us = 10
    writer = await world.start()
    await writer.submit([Tick()])
    assert [entry.at_us for entry in await world.entries(writer)] == [1_000, 5_000, 5_000, 5_000]


async def test_instructions_are_carried_out_after_their_commit_in_order_and_may_report_back(world):
    writer = await world.start()
    release = [ReleaseHold(hold_id=name, account_id="acme", seq=1) for name in "abc"]
    writer.journal.may_commit.clear()
    asking = asyncio.create_task(writer.submit(release))
    await asyncio.sleep(0.02)
    assert world.said == []

    async def carry_out(instructions):
        await World.carry_out(world, instructions)
        if len(world.said) < 5:
            await writer.submit(release[:1])

    writer._carry_out = carry_out
    writer.journal.may_commit.set()
    await asking
    for _ in range(200):
        await asyncio.sleep(0.005)
        if len(world.said) == 5:
            break
    assert world.said == ["a", "b", "c", "a", "a"]


async def test_a_lease_is_begun_before_the_answer_of_who_has_it_is_written(world, monkeypatch):
    writer = await world.start()
    lease = lease_of("job-1")
    decided = Decision(outcome=Accepted(), instructions=(StartLease(lease=lease),))
    monkeypatch.setattr(writer.core, "handle", lambda *_: decided)
    done = []

    async def begin():
        done.append("begun")

    async def carry_out(_instructions):
        world.said.append(asyncio.create_task(begin()))

    writer._carry_out = carry_out
    for _ in range(2):
        await writer.submit([hold()])
        done.append("answered")
    assert done == ["begun", "answered"] * 2


async def test_the_head_is_the_root_of_what_was_written(world):
    writer = await world.start()
    await asyncio.gather(*(writer.submit([hold()]) for _ in range(9)))
    tree = Tree()
    tree.extend([leaf_hash(entry.leaf) async for entry in writer.journal.read()])
    assert (writer.head.size, writer.head.root) == (tree.size, tree.root())
    assert writer.tree.edge == tree.edge


async def test_the_order_of_arrival_and_the_size_of_batches_do_not_change_the_root(tmp_path):
    roots = []
    for batch_max in (1, 7, 1_000):
        world = World(tmp_path / f"{batch_max}.sqlite")
        writer = await world.start(batch_max=batch_max)
        await asyncio.gather(*(writer.submit([hold(str(number))]) for number in range(25)))
        roots.append(writer.head.root)
        await writer.close()
    assert len(set(roots)) == 1
