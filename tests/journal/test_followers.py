"""Followers of the journal: what they hand on, whatever crashes, restarts or is missing meanwhile."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from fabric.audit.merkle import leaf_hash
from fabric.errors import JournalCorrupt, Unavailable
from fabric.journal.followers import Batch, Follower, Gap, Handler, Position, Why
from fabric.journal.store import Entry, TreeHead
from tests.journal.test_journal import entry, tamper, write, write_from

ACCOUNTS = ("acme", "beta", "gamma")


class Crash(Exception):
    """The process is gone: what it had in memory is lost, what it had kept is not."""


class Shelf:
    """A journal in memory, from which entries can be taken, and in which they can be damaged."""

    def __init__(self):
        self.entries: dict[int, Entry] = {}
        self.size = 0
        self.damaged: set[int] = set()
        self.page = 3

    def grow(self, *owners):
        for owner in owners:
            self.entries[self.size] = Entry(
                seq=self.size, leaf=b"%d of %s" % (self.size, owner.encode()), accounts=(owner,)
            )
            self.size += 1

    async def head(self):
        return TreeHead(size=self.size, root=b"")

    async def read(self, start=0, stop=None, *, account=None):
        stop = self.size if stop is None else min(stop, self.size)
        expected, page = start, []
        for seq in sorted(seq for seq in self.entries if start <= seq < stop):
            if account is None and seq != expected:
                raise JournalCorrupt(f"entry {expected} is missing", seq=expected)
            expected = seq + 1
            if account is not None and account not in self.entries[seq].accounts:
                continue
            if seq in self.damaged:
                raise JournalCorrupt(f"entry {seq} is damaged", seq=seq)
            page.append(self.entries[seq])
            if len(page) >= self.page:
                for each in page:
                    yield each
                page = []
        for each in page:
            yield each

    async def leaf_hashes(self, start=0, stop=None):
        found = []
        for seq in sorted(seq for seq in self.entries if start <= seq < (self.size if stop is None else stop)):
            if seq != start + len(found):
                raise JournalCorrupt("missing", seq=start + len(found))
            found.append(leaf_hash(self.entries[seq].leaf))
        return found

    async def stored_from(self, seq):
        return min((each for each in self.entries if each >= seq), default=None)


class Notebook:
    """What a consumer keeps: its position, which outlives it; and all that was ever handed to it."""

    def __init__(self):
        self.kept: Position | None = None
        self.heard: list[Entry | Gap] = []
        self.crash_at: str = ""
        self.anew = 0

    async def position(self):
        return self.kept

    async def take(self, batch: Batch):
        assert batch.before.seq == (self.kept.seq if self.kept else batch.before.seq)
        for number, item in enumerate(batch.items):
            if self.crash_at == "amid" and number == len(batch.items) // 2:
                raise Crash
            self.heard.append(item)
        if self.crash_at == "before it is kept":
            raise Crash
        self.kept = batch.after
        if self.crash_at == "after it is kept":
            raise Crash

    async def begin_anew(self, why):
        self.kept, self.anew = None, self.anew + 1


CRASHES = ("", "amid", "before it is kept", "after it is kept")
owners = st.sampled_from(ACCOUNTS)
histories = st.lists(
    st.one_of(
        st.tuples(st.just("grow"), st.lists(owners, min_size=1, max_size=7)),
        st.tuples(st.just("follow"), st.sampled_from(CRASHES)),
        st.tuples(st.just("step"), st.sampled_from(CRASHES)),
        st.tuples(st.just("restart"), st.just("")),
    ),
    max_size=25,
)


def follower_of(shelf, book, **options):
    return Follower(shelf, book, name="test", **{"batch": 4, **options})


async def lived(shelf, book, history, **options):
    """A follower that is driven through a history, and then catches up in peace."""
    follower = follower_of(shelf, book, **options)
    for what, how in history:
        if what == "grow":
            shelf.grow(*how)
            continue
        if what == "restart":
            follower = follower_of(shelf, book, **options)
            continue
        book.crash_at = how
        try:
            await (follower.step() if what == "step" else follower.catch_up())
        except Crash:
            follower = follower_of(shelf, book, **options)
    book.crash_at = ""
    return await follower_of(shelf, book, **options).catch_up()


def once(heard):
    """Each in the order of its first time."""
    return list(dict.fromkeys(heard))


@given(history=histories)
async def test_whatever_crashes_every_entry_comes_at_least_once_and_in_order(history):
    shelf, book = Shelf(), Notebook()
    last = await lived(shelf, book, history)
    assert once(book.heard) == list(shelf.entries.values())
    places = [item.seq for item in book.heard]
    assert all(later <= earlier + 1 for earlier, later in pairwise(places)), "one was left out"
    assert last.seq == shelf.size


@given(history=histories, account=owners)
async def test_a_follower_of_one_account_never_hears_of_another_and_of_all_of_its_own(history, account):
    shelf, book = Shelf(), Notebook()
    last = await lived(shelf, book, history, account=account)
    assert once(book.heard) == [each for each in shelf.entries.values() if account in each.accounts]
    assert last.seq == shelf.size


@given(
    count=st.integers(1, 40),
    taken=st.integers(0, 40),
    missing=st.sets(st.integers(0, 40)),
    damaged=st.sets(st.integers(0, 40)),
    batch=st.integers(1, 9),
)
async def test_every_entry_is_either_handed_on_or_told_of_as_a_gap(count, taken, missing, damaged, batch):
    shelf, book = Shelf(), Notebook()
    shelf.grow(*("acme" for _ in range(count)))
    gone = {seq for seq in missing if seq < count} | set(range(min(taken, count)))
    for seq in gone:
        del shelf.entries[seq]
    shelf.damaged = {seq for seq in damaged if seq < count} - gone
    await follower_of(shelf, book, batch=batch).catch_up()
    at = 0
    for item in book.heard:
        start, stop = (item.start, item.stop) if isinstance(item, Gap) else (item.seq, item.seq + 1)
        assert start == at < stop
        at = stop
    assert at == count
    told = {seq for gap in book.heard if isinstance(gap, Gap) for seq in range(gap.start, gap.stop)}
    assert told == gone | shelf.damaged
    first = min(shelf.entries, default=count)
    for gap in book.heard:
        if isinstance(gap, Gap):
            assert (gap.why is Why.TAKEN_AWAY) == (gap.start < first)


@given(missing=st.sets(st.integers(0, 29)), batch=st.integers(1, 9), account=owners)
async def test_a_follower_of_one_account_is_told_of_all_that_is_missing(missing, batch, account):
    shelf, book = Shelf(), Notebook()
    shelf.grow(*(ACCOUNTS[seq % 3] for seq in range(30)))
    for seq in missing:
        del shelf.entries[seq]
    await follower_of(shelf, book, batch=batch, account=account).catch_up()
    told = {seq for gap in book.heard if isinstance(gap, Gap) for seq in range(gap.start, gap.stop)}
    assert told == missing
    heard = [item for item in book.heard if isinstance(item, Entry)]
    assert heard == [each for each in shelf.entries.values() if account in each.accounts]


async def test_a_new_follower_begins_where_it_is_told_to():
    shelf, book = Shelf(), Notebook()
    shelf.grow(*ACCOUNTS, *ACCOUNTS)
    await follower_of(shelf, book, first=4).catch_up()
    assert [item.seq for item in book.heard] == [4, 5]
    later = Notebook()
    await follower_of(shelf, later, first=100).catch_up()
    shelf.grow("acme")
    await follower_of(shelf, later, first=100).catch_up()
    assert [item.seq for item in later.heard] == []
    await follower_of(shelf, later, first=0).catch_up()
    assert later.kept.seq == 7


async def test_in_another_history_the_consumer_begins_anew():
    shelf, book = Shelf(), Notebook()
    shelf.grow("acme", "beta", "acme")
    await follower_of(shelf, book).catch_up()
    other = Shelf()
    other.grow("beta", "beta", "beta", "acme")
    book.heard.clear()
    await follower_of(other, book).catch_up()
    assert (book.anew, book.heard) == (1, list(other.entries.values()))


async def test_in_a_journal_restored_to_an_earlier_time_the_consumer_begins_anew():
    shelf, book = Shelf(), Notebook()
    shelf.grow("acme", "beta", "acme")
    await follower_of(shelf, book).catch_up()
    earlier = Shelf()
    earlier.grow("acme", "beta")
    book.heard.clear()
    await follower_of(earlier, book).catch_up()
    assert (book.anew, book.heard) == (1, list(earlier.entries.values()))


async def test_how_far_it_is_is_said_to_whoever_waits_for_it(monkeypatch):
    monkeypatch.setattr("fabric.journal.followers.TELL_S", 0)
    shelf, book = Shelf(), Notebook()
    shelf.grow(*ACCOUNTS * 3)
    with capture_logs() as said:
        await follower_of(shelf, book).catch_up()
    assert [(one["event"], one["entry"], one["of"]) for one in said] == [
        ("follower_catches_up", seq, 9) for seq in (4, 8, 9)
    ]


async def test_a_follower_that_runs_goes_on_after_what_has_failed(monkeypatch):
    monkeypatch.setattr("fabric.journal.followers.POLL_S", 0.001)
    shelf, book = Shelf(), Notebook()
    shelf.grow(*ACCOUNTS)
    book.crash_at = "amid"
    with capture_logs() as said:
        running = asyncio.create_task(follower_of(shelf, book).run())
        while not await asyncio.sleep(0.01, len(book.heard) >= 3):
            pass
        book.crash_at = ""
        while book.kept is None or book.kept.seq < 4:
            shelf.grow(*ACCOUNTS[: 4 - shelf.size])
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait([running])
    assert once(book.heard) == list(shelf.entries.values())
    assert [one["event"] for one in said] == ["follower_failed", "follower_goes_on"], "each is said once"


async def test_a_journal_that_is_away_is_no_gap():
    shelf, book = Shelf(), Notebook()
    shelf.grow(*ACCOUNTS)
    follower, real = follower_of(shelf, book), shelf.head

    async def away():
        raise Unavailable("no")

    shelf.head = away
    with pytest.raises(Unavailable):
        await follower.catch_up()
    shelf.head = real
    await follower.catch_up()
    assert [item.seq for item in book.heard] == [0, 1, 2]


class Kept:
    def __init__(self):
        self.saved: dict[str, Position] = {}

    async def load(self, name):
        return self.saved.get(name)

    async def save(self, name, position):
        self.saved[name] = position


async def test_a_handler_that_fails_is_given_the_same_batch_again():
    shelf, kept, heard = Shelf(), Kept(), []
    shelf.grow(*ACCOUNTS)

    async def handle(batch):
        heard.append([item.seq for item in batch.items])
        if len(heard) == 1:
            raise Crash

    with pytest.raises(Crash):
        await Follower(shelf, Handler(kept, "hooks", handle), name="hooks").catch_up()
    await Follower(shelf, Handler(kept, "hooks", handle), name="hooks").catch_up()
    await Follower(shelf, Handler(kept, "hooks", handle), name="hooks").catch_up()
    assert heard == [[0, 1, 2], [0, 1, 2]]
    assert kept.saved["hooks"].seq == 3


# -- on the real stores ------------------------------------------------------------------------------------------------


async def heard_from(journal, **options):
    book = Notebook()
    await follower_of(journal, book, batch=7, **options).catch_up()
    return book.heard


async def test_a_real_journal_is_followed_to_its_end_and_on(journal, make_journal, monkeypatch):
    monkeypatch.setattr("fabric.journal.integrity.ROWS_PER_READ", 4)
    monkeypatch.setattr("fabric.journal.sqlite.INDEX_EVERY", 16)
    entries = [entry(seq, "acme" if seq % 3 else "beta") for seq in range(50)]
    source, book, own = make_journal(), Notebook(), Notebook()
    follower, of_acme = follower_of(source, book), follower_of(source, own, account="acme")
    for size in (0, 1, 20, 33, 50):
        if size:
            await write_from(journal, entries[:size])
        await follower.catch_up()
        await of_acme.catch_up()
        assert book.heard == entries[:size]
        assert own.heard == [each for each in entries[:size] if "acme" in each.accounts]
    await source.close()


async def test_what_is_missing_and_what_is_damaged_in_a_real_journal_is_told(journal, monkeypatch):
    monkeypatch.setattr("fabric.journal.integrity.ROWS_PER_READ", 5)
    entries = [entry(seq, "acme" if seq % 2 else "beta") for seq in range(30)]
    await write(journal, entries)
    await tamper(journal, "DELETE FROM entries WHERE seq < 3")
    await tamper(journal, "DELETE FROM entries WHERE seq IN (9, 10, 29)")
    await tamper(journal, "UPDATE entries SET leaf = x'00' WHERE seq IN (11, 20)")
    heard = await heard_from(journal)
    gaps = {seq: gap.why for gap in heard if isinstance(gap, Gap) for seq in range(gap.start, gap.stop)}
    assert gaps == dict.fromkeys((0, 1, 2), Why.TAKEN_AWAY) | dict.fromkeys((9, 10, 11, 20, 29), Why.DAMAGED)
    assert [item for item in heard if isinstance(item, Entry)] == [each for each in entries if each.seq not in gaps]
    of_acme = await heard_from(journal, account="acme")
    assert [item for item in of_acme if isinstance(item, Entry)] == [
        each for each in entries if each.seq not in gaps and "acme" in each.accounts
    ]
    told = {seq for gap in of_acme if isinstance(gap, Gap) for seq in range(gap.start, gap.stop)}
    assert told >= {0, 1, 2, 9, 10, 29}, "what isn't there could have been anybody's"
