"""The auditor: answers from the journal what the journal alone can prove.

Statements, receipts, charging records, checkpoints and exports are read from committed entries, never from the gate's
memory: page by page, from what a follower has made of them for reading (`fabric.journal.history`), with proofs from its tree
(`fabric.journal.tree`), which is checked against the sealed root. It writes nothing.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from fabric.audit import export
from fabric.audit.checkpoint import Signer
from fabric.audit.merkle import leaf_hash
from fabric.audit.records import Balances, Booked, Line, Receipt, Sealed, Statement
from fabric.audit.statements import assert_explained
from fabric.audit.usage import own
from fabric.charging.records import Cdr
from fabric.charging.served import Served
from fabric.errors import Conflict, Unavailable
from fabric.gate.questions import (
    BookedOf,
    BookedPage,
    CheckpointOf,
    FromJournal,
    Paged,
    ReceiptsOf,
    ReceiptsPage,
    RecordsOf,
    RecordsPage,
    StatementOf,
    StatementPage,
)
from fabric.journal.cosigning import Cosigning, WitnessAt
from fabric.journal.encoding import EVERYBODY
from fabric.journal.history import Bounds, Found, History
from fabric.journal.projection import told_by
from fabric.journal.store import Entry, Journal, TreeHead
from fabric.journal.tables import Tables
from fabric.journal.tree import JournalTree
from fabric.system.client_threads import aside

EXPORT_FORGOTTEN_S: Final = 120.0
"""An export whose reader has gone is kept this long."""

T = TypeVar("T")
Asked = TypeVar("Asked", bound=Paged)
_line: Final = msgspec.json.Decoder(Line)
_record: Final = msgspec.json.Decoder(Cdr)


@dataclass(slots=True)
class _Export:
    """An export in progress: every page of it lies under the same checkpoint, however the journal grows."""

    head: TreeHead
    used_at: float
    readers: int = 0
    at: dict[int, tuple[int, "hashlib._Hash"]] = field(default_factory=lambda: {0: (0, hashlib.sha256())})
    """For the line with that number: which entry to go on with, and the hash of all lines before."""


class Auditor:
    """Reads a journal and signs for it."""

    def __init__(
        self,
        journal: Journal,
        *,
        origin: str,
        signing_key: bytes,
        tables: Tables | None = None,
        witnesses: Sequence[WitnessAt] = (),
    ) -> None:
        """Name the log and hand over its key.

        Args:
            journal: read only; somebody else opens, writes and closes it.
            origin: the log's name, unique in the world: it is in every checkpoint.
            signing_key: 32 bytes, Ed25519.
            tables: what a follower makes of it for reading; None = nobody does.
            witnesses: who is asked to cosign the checkpoints that it gives out.
        """
        self._journal = journal
        self._signer = Signer(origin, signing_key)
        self._tree = JournalTree(journal, tables)
        self.cosigning = Cosigning(self._tree, self._signer, witnesses)
        self._history = History(journal, tables)
        self._beginning = asyncio.Lock()
        self._exports: dict[tuple[str | None, int | None], _Export] = {}

    @property
    def verifier_key(self) -> str:
        """The public key in its published form: what a verifier is told to trust."""
        return str(self._signer.verifier)

    async def checkpoint(self) -> str:
        """The signed note of the newest tree head, with what its witnesses have cosigned."""
        return self.cosigning.note((await self.cosigning.newest()).head)

    async def sealed(self) -> Sealed:
        """The same, with the key."""
        return Sealed(note=await self.checkpoint(), key=self.verifier_key)

    async def answer(self, question: FromJournal) -> StatementPage | Sealed | ReceiptsPage | RecordsPage | BookedPage:
        """What is asked of the journal."""
        match question:
            case StatementOf():
                return await self.statement(question)
            case CheckpointOf():
                return await self.sealed()
            case ReceiptsOf():
                return await self.receipts(question)
            case RecordsOf():
                return await self.records(question)
            case BookedOf():
                return await self.booked(question)

    async def served(self) -> dict[tuple[str, str], Served]:
        """What calls by model and plan have come to, for those who count."""
        return await self._history.served()

    async def statement(self, asked: StatementOf) -> StatementPage:
        """A page of the account's statement between two tree heads."""
        size = await self._size(asked)
        bounds = await self._history.bounds(asked.account_id, from_us=asked.from_us, until_us=asked.until_us, size=size)
        lines, records, following = await self._items(asked, bounds, size)
        opening, closing = [await self._balances(asked, (seq, 0), size) for seq in bounds]
        from_root, until_root = [(await self._tree.root(seq)).hex() for seq in bounds]
        statement = Statement(
            account_id=asked.account_id,
            from_us=asked.from_us,
            until_us=asked.until_us,
            opening=opening,
            closing=closing,
            lines=lines,
            from_size=bounds.start,
            from_root=from_root,
            until_size=bounds.stop,
            until_root=until_root,
            records=records,
        )
        return StatementPage(statement=statement, following=following)

    async def _items(
        self, asked: StatementOf, bounds: Bounds, size: int
    ) -> tuple[tuple[Line, ...], tuple[Cdr, ...], StatementOf | None]:
        """What is on the page, and the question for the next one."""
        read = self._history.records_of_entries if asked.records_now else self._history.lines
        after = asked.after or (bounds.start, -1)
        page = await read(asked.account_id, after=after, stop=bounds.stop, size=size, limit=asked.limit)
        rows = [row for _, row in page.rows]
        following = _next(asked, page, size)
        if asked.records_now:
            return (), tuple(await aside(_decoded, rows, _record)), following
        lines = await aside(_decoded, rows, _line)
        if lines:
            seq, n = page.rows[-1][0]
            first = await self._balances(asked, (after[0], after[1] + 1), size)
            assert_explained(first, await self._balances(asked, (seq, n + 1), size), lines)
        return tuple(lines), (), following or replace(asked, size=size, after=(), records_now=True)

    async def records(self, asked: RecordsOf) -> RecordsPage:
        """A page of charging records by the time they were closed, oldest first."""
        size = asked.size if asked.size is not None else (await self._journal.head()).size
        page = await self._history.records(
            asked.account_id,
            asked.job_id,
            after=asked.after or (asked.from_us, -1, -1),
            until_us=asked.until_us,
            size=size,
            limit=asked.limit,
        )
        records = await aside(_decoded, [row for _, row in page.rows], _record)
        return RecordsPage(records=tuple(records), following=_next(asked, page, size))

    async def booked(self, asked: BookedOf) -> BookedPage:
        """A page of what entries booked for the account."""
        size = await self._size(asked)
        bounds = await self._history.bounds(asked.account_id, from_us=asked.from_us, until_us=asked.until_us, size=size)
        start = asked.after[0] + 1 if asked.after else bounds.start
        entries = await self._history.first_entries(
            asked.account_id, start=start, stop=min(bounds.stop, size), limit=asked.limit
        )
        booked = await aside(_booked, asked.account_id, entries)
        more = len(entries) >= asked.limit
        return BookedPage(
            entries=booked, size=size, following=replace(asked, size=size, after=(entries[-1].seq,)) if more else None
        )

    async def receipts(self, asked: ReceiptsOf) -> ReceiptsPage:
        """A page of inclusion proofs of the account's entries, of one job if asked, all pages under one checkpoint."""
        if asked.size is None:
            asked = replace(asked, size=(await self.cosigning.newest()).head.size)
        size = await self._size(asked)
        note = self.cosigning.note(TreeHead(size=size, root=await self._tree.root(size)))
        (after,) = asked.after or (-1,)
        entries = await self._history.entries(asked.account_id, asked.job_id, after=after, size=size, limit=asked.limit)
        proofs = await self._tree.inclusion([entry.seq for entry in entries], size=size)
        bare = Receipt(seq=0, leaf="", leaf_hash="", proof=(), tree_size=size, checkpoint=note, key=self.verifier_key)
        receipts = await aside(_receipts, bare, asked.account_id, entries, proofs)
        more = len(entries) >= asked.limit
        following = replace(asked, size=size, after=(entries[-1].seq,)) if more else None
        return ReceiptsPage(receipts=receipts, following=following)

    async def _size(self, asked: Paged) -> int:
        """Of the journal that is asked about, with the tree grown to it at least."""
        head = await self._tree.grow()
        return head.size if asked.size is None else min(asked.size, head.size)

    async def _balances(self, asked: StatementOf, before: tuple[int, int], size: int) -> Balances:
        return await self._history.balances(asked.account_id, before=before, size=size)

    async def export(self, account_id: str | None = None, *, since: int | None = None) -> AsyncIterator[bytes]:
        """The audit export, line by line; with `since`, shows that the tree only grew since that size."""
        head = (await self.cosigning.newest()).head
        digest = hashlib.sha256()
        async for line in self._lines(account_id, head, since):
            digest.update(line)
            yield line
        yield self._last_line(account_id, head, digest.hexdigest())

    async def export_page(
        self, account_id: str | None, *, start: int, count: int, since: int | None = None
    ) -> list[bytes]:
        """Lines start..start+count of the export; [] after the last. Begin at 0 and ask for each page in turn.

        Raises:
            Conflict: `since` is more than the log has: code `checkpoint_ahead`.
            Unavailable: with code `export_interrupted`: the gate was restarted meanwhile, or `start` was never reached.
        """
        current = await self._current_export(account_id, since, begin=start == 0)
        if start not in current.at:
            raise Unavailable("the export was interrupted: begin it again", code="export_interrupted", start=start)
        seq, digest = current.at[start]
        if seq > current.head.size:
            current.readers -= 1
            return []
        lines = [self._header(account_id)] if start == 0 else []
        async for entry in self._exported(account_id, current.head, start=seq):
            if len(lines) >= count:
                break
            lines.append(await self._entry_line(entry, account_id, current.head))
            seq = entry.seq + 1
        else:
            seq = current.head.size
        is_last = len(lines) < count
        lines += await self._grown(account_id, since, current.head) if is_last else []
        digest = digest.copy()
        digest.update(b"".join(lines))
        if is_last:
            lines.append(self._last_line(account_id, current.head, digest.hexdigest()))
            seq = current.head.size + 1
        current.at[start + len(lines)] = seq, digest
        return lines

    async def _lines(self, account_id: str | None, head: TreeHead, since: int | None) -> AsyncIterator[bytes]:
        yield self._header(account_id)
        async for entry in self._exported(account_id, head):
            yield await self._entry_line(entry, account_id, head)
        for line in await self._grown(account_id, since, head):
            yield line

    async def _grown(self, account_id: str | None, since: int | None, head: TreeHead) -> list[bytes]:
        """What shows that the log only grew; whoever has all entries needs no such line."""
        if since is None or account_id is None:
            return []
        return [export.consistency_line(since, proof=await self._tree.consistency(since, size=head.size))]

    def _last_line(self, account_id: str | None, head: TreeHead, digest: str) -> bytes:
        note = self.cosigning.note(head)
        return export.checkpoint_line(
            note, self._signer.sign(export.seal_text(digest, account_id=account_id, checkpoint=note))
        )

    async def _current_export(self, account_id: str | None, since: int | None, *, begin: bool) -> _Export:
        newest = (await self.cosigning.newest()).head if begin else None
        async with self._beginning:
            now = time.monotonic()
            current = self._exports.get((account_id, since))
            unread = current is None or current.readers <= 0 or now - current.used_at > EXPORT_FORGOTTEN_S
            if current is None or (begin and unread):
                head = newest or await self._tree.grow()
                if since is not None and since > head.size:
                    raise Conflict(
                        f"the checkpoint seals {since} entries and this log has {head.size}: it is of another log, or this one"
                        " was cut. Keep both",
                        code="checkpoint_ahead",
                        sealed=since,
                        entries=head.size,
                    )
                self._forget_exports(now)
                current = self._exports[account_id, since] = _Export(head=head, used_at=now)
            current.readers += begin
            current.used_at = now
            return current

    def _forget_exports(self, now: float) -> None:
        """What nobody reads any more: a caller may name as many sizes as it likes."""
        for name, one in list(self._exports.items()):
            if one.readers <= 0 or now - one.used_at > EXPORT_FORGOTTEN_S:
                del self._exports[name]

    def _header(self, account_id: str | None) -> bytes:
        return export.header_line(origin=self._signer.verifier.name, key=self.verifier_key, account_id=account_id)

    async def _entry_line(self, entry: Entry, account_id: str | None, head: TreeHead) -> bytes:
        if account_id is None:
            return export.entry_line(entry.seq, entry.leaf)
        (proof,) = await self._tree.inclusion([entry.seq], size=head.size)
        if _withheld(entry, account_id):
            return export.withheld_line(entry.seq, leaf_hash(entry.leaf), proof=proof)
        return export.entry_line(entry.seq, entry.leaf, proof=proof)

    def _entries(self, account_id: str | None, head: TreeHead, *, start: int = 0) -> AsyncIterator[Entry]:
        return self._journal.read(start, head.size, account=account_id)

    async def _exported(self, account_id: str | None, head: TreeHead, *, start: int = 0) -> AsyncIterator[Entry]:
        """The account's entries and, where they lie between, those that tell everybody the prices."""
        if account_id is None:
            async for entry in self._entries(None, head, start=start):
                yield entry
            return
        prices = self._entries(EVERYBODY, head, start=start)
        price = await anext(prices, None)
        async for entry in self._entries(account_id, head, start=start):
            while price is not None and price.seq < entry.seq:
                yield price
                price = await anext(prices, None)
            yield entry
        while price is not None:
            yield price
            price = await anext(prices, None)


def _receipts(
    bare: Receipt, account_id: str, entries: list[Entry], proofs: list[tuple[bytes, ...]]
) -> tuple[Receipt, ...]:
    """Of each entry, from what is the same in all of them."""
    return tuple(
        replace(
            bare,
            seq=entry.seq,
            leaf="" if _withheld(entry, account_id) else base64.b64encode(entry.leaf).decode(),
            leaf_hash=leaf_hash(entry.leaf).hex(),
            proof=tuple(node.hex() for node in proof),
        )
        for entry, proof in zip(entries, proofs, strict=True)
    )


def _booked(account_id: str, entries: list[Entry]) -> tuple[Booked, ...]:
    return tuple(own(account_id, told.seq, told.at_us, told.transfers, told.records) for told in map(told_by, entries))


def _decoded(rows: list[bytes], decoder: "msgspec.json.Decoder[T]") -> list[T]:
    return [decoder.decode(row) for row in rows]


def _next(asked: Asked, page: Found, size: int) -> Asked | None:
    """The question for what comes after a page."""
    if not page.more:
        return None
    return replace(asked, size=size, after=page.rows[-1][0] if page.rows else asked.after)


def _withheld(entry: Entry, account_id: str | None) -> bool:
    """Whether the entry's content would tell this account about another."""
    return account_id is not None and any(other not in (account_id, EVERYBODY) for other in entry.accounts)
