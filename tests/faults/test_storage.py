"""A disk that fills up, breaks or lies: nothing half-written, nothing acknowledged that isn't there, and a clear word."""

import asyncio
import random
import sys
from collections.abc import Callable

import apsw
import pytest

from fabric import outage, versions
from fabric.audit.merkle import Tree, leaf_hash
from fabric.clock import VirtualClock
from fabric.errors import JournalCorrupt, Unavailable
from fabric.gate.events import Tick
from fabric.gate.instructions import Accepted, Decision
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Entry, TreeHead
from fabric.journal.writer import Writer

BATCHES = 4


class Count:
    """A stand-in for the gate: counts, and keeps the count large enough to fill a disk."""

    rules = versions.RULES

    def __init__(self, state: bytes | None = None) -> None:
        self.count = int(state or 0)

    def is_behind(self, now_us: int) -> bool:
        return False

    def handle(self, event, now_us: int) -> Decision:
        self.count += 1
        return Decision(outcome=Accepted(held_uhs=self.count, facts={"padding": "x" * 2_000}))

    def pieces(self):
        yield self.snapshot()

    def snapshot(self) -> bytes:
        return str(self.count).encode()


class Faults:
    """Fails the nth write or sync from when it is armed, once or from then on."""

    def __init__(self) -> None:
        self.seen = 0
        self.fail_at = -1
        self.lasting = False
        self.error: type[apsw.Error] = apsw.FullError
        self.kinds: tuple[str, ...] = ()
        self.vfs = ""

    def arm(self, at: int, *, error: type[apsw.Error], kinds: tuple[str, ...], lasting: bool = False) -> None:
        self.seen, self.fail_at, self.error, self.kinds, self.lasting = 0, at, error, kinds, lasting

    def pass_through(self, kind: str) -> None:
        if kind not in self.kinds:
            return
        self.seen += 1
        if self.seen - 1 == self.fail_at or (self.lasting and self.seen - 1 > self.fail_at >= 0):
            raise self.error("injected")


class FaultyFile(apsw.VFSFile):
    def __init__(self, faults: Faults, name, flags) -> None:
        self.faults = faults
        super().__init__("", name, flags)

    def xWrite(self, data, offset):  # noqa: N802 - SQLite's name
        self.faults.pass_through("write")
        super().xWrite(data, offset)

    def xSync(self, flags):  # noqa: N802 - SQLite's name
        self.faults.pass_through("sync")
        super().xSync(flags)


class FaultyDisk(apsw.VFS):
    def __init__(self, name: str, faults: Faults) -> None:
        self.faults = faults
        super().__init__(name, "", maxpathname=0)

    def xOpen(self, name, flags):  # noqa: N802 - SQLite's name
        return FaultyFile(self.faults, name, flags)


@pytest.fixture
def faults():
    faults = Faults()
    disk = FaultyDisk(f"faulty-{id(faults)}", faults)
    faults.vfs = f"faulty-{id(faults)}"
    yield faults
    disk.unregister()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(outage, "PAUSE_S", 0.001)


def writer_on(journal: SqliteJournal) -> Writer[Count]:
    async def carry_out(instructions):
        pass

    return Writer(journal, restore=Count, clock=VirtualClock(1), carry_out=carry_out, snapshot_every=10**9)


async def acknowledged_by(writer: Writer[Count], *, calls: int = BATCHES) -> list[int]:
    """The counts that were acknowledged; a refusal to write is not one."""
    counts: list[int] = []
    for _ in range(calls):
        try:
            (outcome,) = await writer.submit([Tick()])
        except Unavailable as error:
            assert error.code == "journal_unavailable"  # noqa: PT017 - not every call fails
        else:
            counts.append(outcome.held_uhs)
    return counts


async def comes_back(writer: Writer[Count]) -> None:
    """By itself: nobody calls meanwhile."""
    while writer.outage is not None:  # noqa: ASYNC110 - that it ends by itself is the claim
        await asyncio.sleep(0.001)


async def stands_as_acknowledged(path, counts: list[int]) -> None:
    """A gate that is started afresh has all that was acknowledged, whole, and can go on."""
    writer = writer_on(SqliteJournal(path))
    await writer.start()
    assert writer.core.count >= len(counts)
    assert writer.head.size == writer.core.count
    assert counts == sorted(set(counts)), "an acknowledged number was given twice: the memory ran ahead of the journal"
    assert counts == [] or counts[-1] <= writer.core.count
    assert await writer.submit([Tick()])
    await writer.close()


@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError])
@pytest.mark.parametrize("kinds", [("write",), ("sync",), ("write", "sync")])
@pytest.mark.parametrize("lasting", [False, True])
async def test_whichever_write_or_sync_fails_what_was_acknowledged_is_there(tmp_path, faults, error, kinds, lasting):
    points = 0
    for at in range(60):
        path = tmp_path / f"{at}.sqlite"
        writer = writer_on(SqliteJournal(path, vfs=faults.vfs))
        await writer.start()
        faults.arm(at, error=error, kinds=kinds, lasting=lasting)
        counts = await acknowledged_by(writer)
        reached = faults.seen > at
        faults.arm(-1, error=error, kinds=())
        await comes_back(writer)
        counts += await acknowledged_by(writer, calls=2)
        assert len(counts) >= 2, "it goes on once the disk is well"
        writer._ended = Unavailable("killed")
        writer._wake.set()
        await writer.journal.close()
        await stands_as_acknowledged(path, counts)
        points += reached
        if not reached:
            break
    assert points >= BATCHES
    sys.stdout.write(f"{points} points of failure, 0 acknowledged entries lost\n")


async def test_a_full_disk_is_unavailable_and_goes_on_when_there_is_room(tmp_path):
    path = tmp_path / "journal.sqlite"
    writer = writer_on(SqliteJournal(path, max_pages=40))
    await writer.start()
    counts = await acknowledged_by(writer, calls=200)
    assert 0 < len(counts) < 200
    assert writer.head.size == len(counts)
    with pytest.raises(Unavailable, match="free space") as refused:
        await writer.submit([Tick()])
    assert refused.value.code == "journal_unavailable"
    writer.journal._max_pages = 4_000
    await comes_back(writer)
    assert len(await acknowledged_by(writer, calls=5)) == 5
    await writer.close()
    await stands_as_acknowledged(path, counts)


def entries_of(count: int) -> tuple[list[Entry], TreeHead]:
    entries = [
        Entry(seq=seq, leaf=b'{"seq":%d,"text":"something to damage"}' % seq, accounts=("acme",))
        for seq in range(count)
    ]
    tree = Tree()
    tree.extend(leaf_hash(entry.leaf) for entry in entries)
    return entries, TreeHead(size=count, root=tree.root())


async def written(path, count: int = 40) -> list[Entry]:
    entries, head = entries_of(count)
    journal = SqliteJournal(path)
    await journal.open()
    await journal.append(entries, head)
    await journal.close()
    return entries


async def read_all(path) -> list[Entry]:
    journal = SqliteJournal(path)
    try:
        await journal.open()
        return [entry async for entry in journal.read()]
    finally:
        await journal.close()


async def test_a_bit_flipped_in_the_file_is_found_wherever_a_leaf_is(tmp_path):
    """Flips bits of the file itself, within the leaves' bytes and their hashes."""
    path = tmp_path / "journal.sqlite"
    entries = await written(path)
    whole = path.read_bytes()
    seed = random.SystemRandom().getrandbits(32)
    dice = random.Random(seed)
    for _ in range(60):
        victim = dice.choice(entries)
        target = dice.choice((victim.leaf, leaf_hash(victim.leaf)))
        at = whole.index(target) + dice.randrange(len(target))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(JournalCorrupt) as found:
            await read_all(path)
        assert found.value.facts["seq"] == victim.seq, f"seed {seed}"
    path.write_bytes(whole)
    assert await read_all(path) == entries


async def test_a_bit_flipped_anywhere_is_found_or_changes_no_entry(tmp_path):
    """Anywhere in the file: SQLite's own structures too. It may be harmless or unreadable, but never another history."""
    path = tmp_path / "journal.sqlite"
    entries = await written(path)
    whole = path.read_bytes()
    seed = random.SystemRandom().getrandbits(32)
    dice = random.Random(seed)
    found = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        for leftover in path.parent.glob("journal.sqlite-*"):
            leftover.unlink()
        path.write_bytes(damaged)
        try:
            assert [(one.seq, one.leaf) for one in await read_all(path)] == [(one.seq, one.leaf) for one in entries], (
                seed
            )
        except (JournalCorrupt, Unavailable):
            found += 1
    sys.stdout.write(f"seed {seed}: {found} of 150 flips were found, the others changed no entry\n")


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.9, 0.999])
async def test_a_torn_write_ahead_log_ends_at_a_whole_batch(tmp_path, keep: float):
    path = tmp_path / "journal.sqlite"
    entries, _ = entries_of(60)
    journal = SqliteJournal(path)
    await journal.open()
    tree = Tree()
    heads = []
    for entry in entries:
        tree.append(leaf_hash(entry.leaf))
        heads.append(TreeHead(size=tree.size, root=tree.root()))
        await journal.append([entry], heads[-1])
    log = path.with_name("journal.sqlite-wal").read_bytes()
    database = path.read_bytes()
    await journal.close()
    copy = tmp_path / "torn.sqlite"
    copy.write_bytes(database)
    copy.with_name("torn.sqlite-wal").write_bytes(log[: int(len(log) * keep)])
    found = await read_all(copy)
    assert found == entries[: len(found)]


async def test_a_second_writer_fences_the_first_without_waiting_for_it(tmp_path):
    path = tmp_path / "journal.sqlite"
    first, second = writer_on(SqliteJournal(path)), writer_on(SqliteJournal(path))
    await first.start()
    counts = await acknowledged_by(first)
    await second.start()
    answers = await asyncio.gather(first.submit([Tick()]), second.submit([Tick()]), return_exceptions=True)
    assert isinstance(answers[0], Unavailable)
    assert answers[0].code == "writer_fenced"
    assert answers[1][0].held_uhs == len(counts) + 1
    await first.close()
    await second.close()


def test_a_fault_is_injected_where_it_is_asked_for():
    faults = Faults()
    faults.arm(1, error=apsw.FullError, kinds=("write",))
    passing: list[Callable[[], None]] = [lambda: faults.pass_through("write"), lambda: faults.pass_through("sync")]
    for one in passing:
        one()
    with pytest.raises(apsw.FullError):
        faults.pass_through("write")
