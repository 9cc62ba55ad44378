"""What every journal promises, on SQLite and on PostgreSQL alike."""

import asyncio
from collections.abc import Sequence

import apsw
import asyncpg
import pytest

from fabric.audit.merkle import EMPTY_ROOT, Tree, leaf_hash
from fabric.errors import Conflict, JournalCorrupt, Unavailable
from fabric.journal.postgres import PostgresJournal
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.store import Entry, Journal, Snapshot, TreeHead


def entry(seq: int, *accounts: str) -> Entry:
    return Entry(seq=seq, leaf=f'{{"seq":{seq},"said":"µ{seq}"}}'.encode(), accounts=accounts or ("acme",))


def tree_of(entries: Sequence[Entry]) -> Tree:
    tree = Tree()
    tree.extend(leaf_hash(one.leaf) for one in entries)
    return tree


def head_of(entries: Sequence[Entry]) -> TreeHead:
    tree = tree_of(entries)
    return TreeHead(size=tree.size, root=tree.root())


def snapshot_of(entries: Sequence[Entry], state: bytes = b"state") -> Snapshot:
    tree = tree_of(entries)
    return Snapshot(size=tree.size, root=tree.root(), edge=tree.edge, state=state)


async def everything(journal: Journal, **bounds) -> list[Entry]:
    return [one async for one in journal.read(**bounds)]


async def write(journal: Journal, entries: Sequence[Entry], *, batch: int = 7) -> None:
    for end in range(batch, len(entries) + batch, batch):
        await journal.append(entries[end - batch : end], head_of(entries[:end]))


async def write_from(journal: Journal, entries: Sequence[Entry]) -> None:
    """Append what the journal does not have yet."""
    await journal.append(entries[(await journal.head()).size :], head_of(entries))


async def tamper(journal: Journal, sql: str) -> None:
    """Change the store behind the journal's back."""
    if isinstance(journal, SqliteJournal):
        connection = apsw.Connection(str(journal.path))
        connection.execute(sql)
        connection.close()
        return
    assert isinstance(journal, PostgresJournal)
    line = await asyncpg.connect(journal._dsn)
    await line.execute(f"SET search_path = {journal._schema}")
    await line.execute(sql.replace("x'", "'\\x"))
    await line.close()


async def test_a_new_journal_is_empty(journal):
    assert await journal.head() == TreeHead(size=0, root=EMPTY_ROOT)
    assert await everything(journal) == []
    assert await journal.leaf_hashes() == []
    assert await journal.load_snapshot() is None


async def test_what_was_appended_is_read_back_in_order_after_opening_again(journal, make_journal):
    entries = [entry(seq) for seq in range(30)]
    await write(journal, entries)
    await journal.close()
    again = make_journal()
    await again.open()
    assert await again.head() == head_of(entries)
    assert await everything(again) == entries
    assert await everything(again, start=5, stop=9) == entries[5:9]
    assert await again.leaf_hashes(28) == [leaf_hash(one.leaf) for one in entries[28:]]
    await again.close()


async def test_reading_goes_on_beyond_one_page(journal, monkeypatch):
    monkeypatch.setattr("fabric.journal.integrity.ROWS_PER_READ", 4)
    entries = [entry(seq, "acme" if seq % 3 else "beta") for seq in range(21)]
    await write(journal, entries)
    assert await everything(journal) == entries
    assert await everything(journal, account="acme", start=2) == [one for one in entries[2:] if one.seq % 3]


async def test_an_account_is_found_whether_its_entries_are_indexed_yet_or_not(journal, monkeypatch):
    monkeypatch.setattr("fabric.journal.integrity.ROWS_PER_READ", 5)
    monkeypatch.setattr("fabric.journal.sqlite.INDEX_EVERY", 16)
    entries = [entry(seq, "acme" if seq % 4 else "beta", "gamma") for seq in range(70)]
    for size in range(6, 70, 4):
        await write_from(journal, entries[:size])
        for account in ("acme", "beta", "gamma", "nobody"):
            for bounds in ({}, {"start": 9}, {"start": 3, "stop": 30}):
                inside = entries[bounds.get("start", 0) : min(bounds.get("stop", size), size)]
                found = await everything(journal, account=account, **bounds)
                assert found == [one for one in inside if account in one.accounts]


async def test_an_entry_belongs_to_every_account_it_names(journal):
    entries = [entry(0, "acme"), entry(1, "beta", "acme"), entry(2, "beta"), entry(3, "acme", "acme")]
    await write(journal, entries)
    assert [one.seq for one in await everything(journal, account="acme")] == [0, 1, 3]
    assert [one.seq for one in await everything(journal, account="beta")] == [1, 2]
    assert await everything(journal, account="nobody") == []


async def test_each_opening_takes_a_greater_epoch(make_journal):
    epochs = []
    for _ in range(3):
        journal = make_journal()
        epochs.append(await journal.open())
        await journal.close()
    assert epochs == sorted(set(epochs))


async def test_the_newest_to_open_is_the_writer_and_the_former_one_is_fenced_out(journal, make_journal):
    entries = [entry(seq) for seq in range(4)]
    await write(journal, entries[:2])
    newer = make_journal()
    await newer.open()
    with pytest.raises(Conflict) as refused:
        await journal.append(entries[2:], head_of(entries))
    assert refused.value.code == "writer_fenced"
    with pytest.raises(Conflict):
        await journal.save_snapshot(snapshot_of(entries[:2]))
    await newer.append(entries[2:], head_of(entries))
    assert await everything(newer) == entries
    await newer.close()


async def test_a_batch_that_does_not_follow_the_sealed_size_is_refused_whole(journal):
    entries = [entry(seq) for seq in range(9)]
    await write(journal, entries[:3], batch=3)
    with pytest.raises(JournalCorrupt) as refused:
        await journal.append(entries[5:], head_of(entries))
    assert refused.value.facts["seq"] == 5
    assert await everything(journal) == entries[:3]
    assert await journal.head() == head_of(entries[:3])


async def test_a_batch_that_fails_half_way_leaves_nothing_of_it(journal):
    entries = [entry(seq) for seq in range(9)]
    await write(journal, entries[:3], batch=3)
    await tamper(journal, "INSERT INTO entries (seq, leaf, leaf_hash, accounts) VALUES (5, x'00', x'00', '[]')")
    with pytest.raises(Unavailable):
        await journal.append(entries[3:7], head_of(entries[:7]))
    await tamper(journal, "DELETE FROM entries WHERE seq = 5")
    assert await journal.head() == head_of(entries[:3])
    assert await everything(journal) == entries[:3]
    await journal.append(entries[3:7], head_of(entries[:7]))
    assert await everything(journal) == entries[:7]


async def test_the_newest_three_snapshots_are_kept_and_the_newest_is_loaded(journal):
    entries = [entry(seq) for seq in range(10)]
    await write(journal, entries)
    for size in (2, 4, 6, 8):
        await journal.save_snapshot(snapshot_of(entries[:size], state=f"at {size}".encode()))
    assert await journal.load_snapshot() == snapshot_of(entries[:8], state=b"at 8")
    for size, left in ((8, 6), (6, 4), (4, None)):
        await tamper(journal, f"DELETE FROM snapshots WHERE size = {size}")
        found = await journal.load_snapshot()
        assert (found.size if found else None) == left


@pytest.mark.parametrize("column", ["state", "root", "edge"])
async def test_a_snapshot_that_was_changed_is_ignored_for_an_older_whole_one(journal, column):
    entries = [entry(seq) for seq in range(10)]
    await write(journal, entries)
    for size in (4, 7):
        await journal.save_snapshot(snapshot_of(entries[:size]))
    await tamper(journal, f"UPDATE snapshots SET {column} = x'00' WHERE size = 7")
    assert await journal.load_snapshot() == snapshot_of(entries[:4])


async def test_a_whole_snapshot_of_another_history_is_ignored(journal):
    entries = [entry(seq) for seq in range(6)]
    await write(journal, entries)
    await journal.save_snapshot(snapshot_of([entry(seq + 100) for seq in range(5)]))
    assert await journal.load_snapshot() is None


TAMPERING = [
    ("UPDATE entries SET leaf = x'7b7d' WHERE seq = 3", 3),
    ("UPDATE entries SET leaf_hash = x'{zeros}' WHERE seq = 4", 4),
    ("UPDATE entries SET leaf_hash = x'00' WHERE seq = 2", 2),
    ("DELETE FROM entries WHERE seq = 5", 5),
    ("DELETE FROM entries WHERE seq >= 8", 8),
    ("UPDATE entries SET seq = 99 WHERE seq = 9", 9),
    ("UPDATE entries SET seq = -1 WHERE seq = 0", 0),
    ("UPDATE head SET size = 9", 9),
    ("UPDATE head SET root = x'{zeros}'", None),
    ("DELETE FROM head", 0),
]


@pytest.mark.parametrize(("sql", "first_bad"), TAMPERING)
async def test_a_journal_that_was_changed_says_where_and_what_to_do(journal, make_journal, sql, first_bad):
    entries = [entry(seq) for seq in range(10)]
    await write(journal, entries)
    await tamper(journal, sql.replace("{zeros}", "00" * 32))
    again = make_journal()

    async def open_and_read() -> None:
        await again.open()
        await everything(again)

    with pytest.raises(JournalCorrupt) as found:
        await open_and_read()
    await again.close()
    assert found.value.facts["seq"] == first_bad
    assert "restore the journal from a backup" in found.value.message


async def test_reading_and_writing_at_once_sees_only_whole_batches(journal):
    entries = [entry(seq) for seq in range(60)]

    async def watch() -> int:
        size = 0
        while size < len(entries):
            head = await journal.head()
            assert head == head_of(entries[: head.size])
            assert await everything(journal, stop=head.size) == entries[: head.size]
            size = head.size
        return size

    watching = asyncio.create_task(watch())
    await write(journal, entries, batch=6)
    assert await watching == 60


@pytest.mark.parametrize("before", [None, 0o644])
async def test_only_its_owner_reads_a_journal_in_a_file_nor_what_lies_beside_it(tmp_path, before):
    journal = SqliteJournal(tmp_path / "journal.sqlite")
    if before is not None:
        await journal.open()
        for file in tmp_path.iterdir():
            file.chmod(before)
    again = SqliteJournal(journal.path)
    await again.open()
    await write(again, [entry(seq) for seq in range(9)])
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == dict.fromkeys(
        ("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"), 0o600
    )
    await again.close()
    await journal.close()
