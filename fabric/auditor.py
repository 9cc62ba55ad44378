"""The auditor: answers from the journal what the journal alone can prove.

Statements, receipts, charging records, checkpoints and exports are read from committed entries, never from the gate's
memory, and every one is checked against the sealed root on the way. It keeps the tree's inner nodes (64 bytes an entry),
so that a proof costs a handful of look-ups; it writes nothing.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from fabric.adapters import sealed
from fabric.adapters.clerks import aside
from fabric.adapters.entries import EVERYBODY, Recorded, decode_entry
from fabric.adapters.journal import Entry, Journal, TreeHead
from fabric.audit import export
from fabric.audit.checkpoint import Signer
from fabric.audit.merkle import ProofTree, leaf_hash
from fabric.audit.records import Receipt, Sealed, Statement
from fabric.audit.statements import Booked, Enclosed, Period, summarise
from fabric.charging.records import Cdr
from fabric.errors import Conflict, Unavailable
from fabric.gate.questions import CheckpointOf, ReceiptsOf, RecordsOf, StatementOf

EXPORT_FORGOTTEN_S: Final = 120.0
"""An export whose reader has gone is kept this long."""

_booked: Final = msgspec.json.Decoder(Booked)


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

    def __init__(self, journal: Journal, *, origin: str, signing_key: bytes) -> None:
        """Name the log and hand over its key.

        Args:
            journal: read only; somebody else opens, writes and closes it.
            origin: the log's name, unique in the world: it is in every checkpoint.
            signing_key: 32 bytes, Ed25519.
        """
        self._journal = journal
        self._signer = Signer(origin, signing_key)
        self._tree = ProofTree()
        self._growing = asyncio.Lock()
        self._beginning = asyncio.Lock()
        self._exports: dict[tuple[str | None, int | None], _Export] = {}

    @property
    def verifier_key(self) -> str:
        """The public key in its published form: what a verifier is told to trust."""
        return str(self._signer.verifier)

    async def checkpoint(self) -> str:
        """The signed note of the newest tree head."""
        head = await self._grow()
        return self._signer.checkpoint(size=head.size, root=head.root)

    async def sealed(self) -> Sealed:
        """The same, with the key."""
        return Sealed(note=await self.checkpoint(), key=self.verifier_key)

    async def answer(
        self, question: StatementOf | CheckpointOf | ReceiptsOf | RecordsOf
    ) -> Statement | Sealed | list[Receipt] | list[Cdr]:
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

    async def statement(self, question: StatementOf) -> Statement:
        """The account's statement between two tree heads."""
        head = await self._grow()
        leaves = [entry.leaf async for entry in self._entries(question.account_id, head)]
        period = await aside(_period, leaves, question)
        until_size = head.size if period.next_seq is None else period.next_seq
        from_size = until_size if period.first_seq is None else period.first_seq
        return period.enclosed(
            Enclosed(size=from_size, root=self._tree.root(from_size)),
            Enclosed(size=until_size, root=self._tree.root(until_size)),
        )

    async def records(self, question: RecordsOf) -> list[Cdr]:
        """Charging records by the time they were closed, oldest first."""
        head = await self._grow()
        found: list[Cdr] = []
        async for entry in self._entries(question.account_id, head):
            found += [record for record in _booked.decode(entry.leaf).records if _asked_for(record, question)]
        return found

    async def receipts(self, question: ReceiptsOf) -> list[Receipt]:
        """The inclusion proofs of the account's entries, of one job if asked, under one new checkpoint."""
        head = await self._grow()
        note = self._signer.checkpoint(size=head.size, root=head.root)
        return [
            Receipt(
                seq=entry.seq,
                leaf="" if _withheld(entry, question.account_id) else base64.b64encode(entry.leaf).decode(),
                leaf_hash=leaf_hash(entry.leaf).hex(),
                proof=tuple(node.hex() for node in self._tree.inclusion(entry.seq, size=head.size)),
                tree_size=head.size,
                checkpoint=note,
                key=self.verifier_key,
            )
            async for entry in self._entries(question.account_id, head)
            if question.job_id is None or _is_about(decode_entry(entry.leaf), question.job_id)
        ]

    async def export(self, account_id: str | None = None, *, since: int | None = None) -> AsyncIterator[bytes]:
        """The audit export, line by line; with `since`, shows that the tree only grew since that size."""
        head = await self._grow()
        digest = hashlib.sha256()
        async for line in self._lines(account_id, head, since):
            digest.update(line)
            yield line
        yield self._last_line(head, digest.hexdigest())

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
            lines.append(self._entry_line(entry, account_id, current.head))
            seq = entry.seq + 1
        else:
            seq = current.head.size
        is_last = len(lines) < count
        lines += self._grown(account_id, since, current.head) if is_last else []
        digest = digest.copy()
        digest.update(b"".join(lines))
        if is_last:
            lines.append(self._last_line(current.head, digest.hexdigest()))
            seq = current.head.size + 1
        current.at[start + len(lines)] = seq, digest
        return lines

    async def _lines(self, account_id: str | None, head: TreeHead, since: int | None) -> AsyncIterator[bytes]:
        yield self._header(account_id)
        async for entry in self._exported(account_id, head):
            yield self._entry_line(entry, account_id, head)
        for line in self._grown(account_id, since, head):
            yield line

    def _grown(self, account_id: str | None, since: int | None, head: TreeHead) -> list[bytes]:
        """What shows that the log only grew; whoever has all entries needs no such line."""
        if since is None or account_id is None:
            return []
        return [export.consistency_line(since, proof=self._tree.consistency(since, size=head.size))]

    def _last_line(self, head: TreeHead, digest: str) -> bytes:
        return export.checkpoint_line(
            self._signer.checkpoint(size=head.size, root=head.root, more=(export.seal(digest),))
        )

    async def _current_export(self, account_id: str | None, since: int | None, *, begin: bool) -> _Export:
        async with self._beginning:
            now = time.monotonic()
            current = self._exports.get((account_id, since))
            unread = current is None or current.readers <= 0 or now - current.used_at > EXPORT_FORGOTTEN_S
            if current is None or (begin and unread):
                head = await self._grow()
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

    def _entry_line(self, entry: Entry, account_id: str | None, head: TreeHead) -> bytes:
        if account_id is None:
            return export.entry_line(entry.seq, entry.leaf)
        proof = self._tree.inclusion(entry.seq, size=head.size)
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

    async def _grow(self) -> TreeHead:
        """The newest head, with the tree grown to it.

        Raises:
            JournalCorrupt: the stored leaf hashes don't lead to the sealed root.
        """
        async with self._growing:
            head = await self._journal.head()
            new = await self._journal.leaf_hashes(self._tree.size, head.size)
            await asyncio.to_thread(self._tree.extend, new)
            if self._tree.size < head.size or self._tree.root(head.size) != head.root:
                self._tree = ProofTree()
                raise sealed.corrupt(f"{head.size} leaf hashes do not lead to the sealed root", seq=None)
            return head


def _period(leaves: list[bytes], question: StatementOf) -> Period:
    """All of an account's history, which takes as long as that is: not on the event loop, which is the gate's."""
    booked = map(_booked.decode, leaves)
    return summarise(booked, account_id=question.account_id, from_us=question.from_us, until_us=question.until_us)


def _withheld(entry: Entry, account_id: str | None) -> bool:
    """Whether the entry's content would tell this account about another."""
    return account_id is not None and any(other not in (account_id, EVERYBODY) for other in entry.accounts)


def _asked_for(record: Cdr, question: RecordsOf) -> bool:
    return (
        question.account_id in (None, record.account_id)
        and question.job_id in (None, record.job_id)
        and question.from_us <= record.ended_at_us
        and (question.until_us is None or record.ended_at_us < question.until_us)
    )


def _is_about(recorded: Recorded, job_id: str) -> bool:
    """Whether an entry is about a job: it names it, moves tokens for it, or closes a record of it."""
    refs = {transfer.ref.rpartition("#")[0] or transfer.ref for transfer in recorded.transfers}
    return (
        getattr(recorded.event, "job_id", None) == job_id
        or job_id in refs
        or any(record.job_id == job_id for record in recorded.records)
    )
