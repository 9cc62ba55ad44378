"""What can happen only between a gate and a database server."""

import asyncio
import os

import asyncpg
import pytest

from fabric.audit.merkle import Tree, leaf_hash
from fabric.errors import Conflict, InvalidConfig, Unavailable
from fabric.journal.postgres import PostgresJournal
from fabric.journal.store import Entry, TreeHead

pytestmark = pytest.mark.postgres


def batches(count: int, size: int = 3) -> list[tuple[list[Entry], TreeHead]]:
    tree, made = Tree(), []
    for number in range(count):
        entries = [
            Entry(seq=number * size + at, leaf=b"%d" % (number * size + at), accounts=("a",)) for at in range(size)
        ]
        tree.extend(leaf_hash(entry.leaf) for entry in entries)
        made.append((entries, TreeHead(size=tree.size, root=tree.root())))
    return made


@pytest.fixture
async def journal(postgres_server, request):
    journal = PostgresJournal(postgres_server.dsn, schema=f"own_{os.getpid()}_{abs(hash(request.node.name))}")
    await journal.open()
    yield journal
    await journal.close()


async def test_a_commit_whose_answer_was_lost_is_found_to_have_landed(journal, monkeypatch):
    (entries, head), *_ = batches(1)
    real, calls = asyncpg.Connection.fetchval, []

    async def lose_the_answer(line, query, *arguments, **options):
        answer = await real(line, query, *arguments, **options)
        calls.append(answer)
        if len(calls) == 1:
            line.terminate()
            raise ConnectionResetError("the answer was lost")
        return answer

    monkeypatch.setattr(asyncpg.Connection, "fetchval", lose_the_answer)
    await journal.append(entries, head)
    assert calls == [1, 0], "sent again, and moved nothing the second time"
    assert await journal.head() == head
    assert [entry async for entry in journal.read()] == entries


async def test_a_commit_that_never_arrived_is_sent_again(journal, monkeypatch):
    (entries, head), *_ = batches(1)
    real, lost = asyncpg.Connection.fetchval, []

    async def break_before(line, query, *arguments, **options):
        if not lost:
            lost.append(query)
            raise ConnectionResetError("the line broke")
        return await real(line, query, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "fetchval", break_before)
    await journal.append(entries, head)
    assert await journal.head() == head


async def test_a_writer_that_was_replaced_while_its_line_was_broken_is_fenced(journal):
    (first, head), (second, later) = batches(2)
    await journal.append(first, head)
    newer = PostgresJournal(journal._dsn, schema=journal._schema)
    await newer.open()
    journal._writer._connection.terminate()
    with pytest.raises(Conflict):
        await journal.append(second, later)
    await newer.close()


async def test_what_was_acknowledged_before_the_server_was_killed_is_there_afterwards(journal, postgres_server):
    acknowledged: list[TreeHead] = []
    made = batches(400)

    async def load() -> None:
        for entries, head in made:
            await journal.append(entries, head)
            acknowledged.append(head)

    loading = asyncio.create_task(load())
    while len(acknowledged) < 40:  # noqa: ASYNC110 - the load is what is waited for
        await asyncio.sleep(0.005)
    postgres_server.kill()
    await asyncio.to_thread(postgres_server.start)
    try:
        await loading
    except Unavailable:
        await journal.open()
    found = await journal.head()
    assert found.size >= acknowledged[-1].size
    assert [entry.seq async for entry in journal.read()] == list(range(found.size))
    print(f"{len(acknowledged)} batches acknowledged, {found.size} entries found")


async def test_a_server_that_is_not_there_is_unavailable_and_says_so():
    journal = PostgresJournal("postgresql://fabric@127.0.0.1:1/postgres")
    with pytest.raises(Unavailable) as refused:
        await journal.open()
    assert refused.value.code == "journal_unavailable"


def test_a_schema_name_that_could_be_sql_is_refused():
    with pytest.raises(InvalidConfig):
        PostgresJournal("postgresql://x", schema="a; drop table b")
