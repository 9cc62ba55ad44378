"""A stand-in for the gate: a core that counts holds, so that only the writer is under test; and a journal that can be held back."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from fabric import versions
from fabric.clock import VirtualClock
from fabric.gate.events import Cancel
from fabric.gate.instructions import Accepted, Decision, Refusal, RemoveLease
from fabric.gate.serving_events import Authorize, ReleaseHold
from fabric.journal.encoding import decode_entry
from fabric.journal.sqlite import SqliteJournal
from fabric.journal.writer import Writer
from fabric.ledger.scopes import Service, Use

NO = Refusal(code="insufficient_tokens", http_status=402, message="no")


class Counting:
    """So many holds of 1 µHs may be open at a time. Refuses beyond, and breaks on request."""

    rules = versions.RULES

    def __init__(self, state: bytes | None = None, *, skew: int = 0, most: int = 1_000_000) -> None:
        self.held, self.handled = msgspec.msgpack.decode(state) if state else (0, 0)
        self.skew = skew
        self.most = most

    def is_behind(self, now_us: int) -> bool:
        return False

    def handle(self, event, now_us: int) -> Decision:
        self.handled += 1
        match event:
            case Authorize() if self.held >= self.most:
                return Decision(outcome=NO)
            case Authorize():
                self.held += 1
            case ReleaseHold():
                self.held -= 1
                return Decision(outcome=Accepted(), instructions=(RemoveLease(lease_id=event.hold_id),))
            case Cancel():
                self.held += 1_000
                raise ZeroDivisionError("a mistake in the core")
        return Decision(outcome=Accepted(held_uhs=self.held + self.skew))

    def pieces(self):
        yield self.snapshot()

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode((self.held, self.handled))


class Journal(SqliteJournal):
    """A real journal whose commits can be held back, or made to fail."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.batches: list[int] = []
        self.failing: list[Exception] = []
        self.may_commit = asyncio.Event()
        self.may_commit.set()

    async def append(self, entries, head):
        self.batches.append(len(entries))
        await self.may_commit.wait()
        if self.failing:
            raise self.failing.pop()
        await super().append(entries, head)


class World:
    """A writer on a journal in a directory, as often as it is started again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = VirtualClock(1_000)
        self.said: list[str] = []
        self.open: list[Writer] = []

    async def start(self, *, restore=Counting, **options) -> Writer:
        writer = Writer(Journal(self.path), restore=restore, clock=self.clock, carry_out=self.carry_out, **options)
        await writer.start()
        self.open.append(writer)
        return writer

    async def carry_out(self, instructions):
        self.said += [one.lease_id for one in instructions]

    async def entries(self, writer):
        return [decode_entry(entry.leaf) async for entry in writer.journal.read()]


@pytest.fixture
async def world(tmp_path):
    world = World(tmp_path / "journal.sqlite")
    yield world
    for writer in world.open:
        await writer.close()


def hold(name: str = "h") -> Authorize:
    return Authorize(hold_id=name, account_id="acme", amount_uhs=1, use=Use(service=Service.INFERENCE), ttl_us=1)
