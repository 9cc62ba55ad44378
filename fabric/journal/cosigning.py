"""The log's side of witnesses (C2SP tlog-witness): its newest tree head, with what those have cosigned who answer in time.

Whoever wants a checkpoint waits for a round: all witnesses are asked at once about the head as it is then, and all who wait get
the same one. A round is short, whatever witnesses do, and a witness that fails is left alone for longer and longer. The
writer knows nothing of it.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import aiohttp
import structlog

from fabric.audit.checkpoint import Signer
from fabric.audit.verify import Wrong
from fabric.audit.verify.cosignatures import cosigned_at
from fabric.audit.witness.requests import BODY_BYTES, written
from fabric.journal.store import TreeHead
from fabric.journal.tree import JournalTree

ROUND_S: Final = 2.0
"""What a caller waits for witnesses, at most."""
APART_S: Final = 1.0
"""Between the beginnings of two rounds: who asks again and again doesn't ask all witnesses as often."""
PAUSE_MIN_S: Final = 1.0
PAUSE_MAX_S: Final = 300.0
EVERY_S: Final = 30.0
"""A log that has grown is shown to its witnesses this often, whether or not a customer asks."""
HEADS_HELD: Final = 256

log = structlog.get_logger()


class WitnessAt(Protocol):
    """A witness as the cluster file names it."""

    @property
    def url(self) -> str: ...
    @property
    def key(self) -> str: ...


class Cosigned(NamedTuple):
    """A tree head, and the lines of its witnesses."""

    head: TreeHead
    lines: str = ""


class Cosigning:
    """Has heads cosigned, and remembers what was."""

    def __init__(
        self,
        tree: JournalTree,
        signer: Signer,
        witnesses: Sequence[WitnessAt],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tree, self._signer, self._clock = tree, signer, clock
        self._witnesses = [_Witness(each, clock) for each in witnesses]
        self._lines: OrderedDict[TreeHead, str] = OrderedDict()
        self._last: Cosigned | None = None
        self._began_at = -APART_S
        self._coming: asyncio.Future[Cosigned] | None = None
        self._rounds: asyncio.Task[None] | None = None

    async def newest(self) -> Cosigned:
        """The head as it is now or newer, with the lines of those who cosigned it within a moment."""
        head = await self._tree.grow()
        if not self._witnesses:
            return Cosigned(head)
        if self._last is not None and self._last.head == head and not self._asks_again(self._last):
            return self._last
        if self._coming is None:
            self._coming = asyncio.get_running_loop().create_future()
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._go_round())
        return await asyncio.shield(self._coming)

    async def show(self) -> None:
        """Show witnesses what has grown: a chore. Where there are none, nothing is read of the journal for it."""
        if self._witnesses:
            await self.newest()

    def note(self, head: TreeHead) -> str:
        """The signed checkpoint of a head, with the lines that are known of it."""
        return self._signer.checkpoint(size=head.size, root=head.root) + self._lines.get(head, "")

    def _asks_again(self, last: Cosigned) -> bool:
        """Whether a witness that has not cosigned it is to be tried again by now."""
        return any(each.name not in _names(last.lines) and each.is_due() for each in self._witnesses)

    async def _go_round(self) -> None:
        while (coming := self._coming) is not None:
            await asyncio.sleep(max(0.0, self._began_at + APART_S - self._clock()))
            self._coming, self._began_at = None, self._clock()
            try:
                found = await self._ask_all()
            except Exception as error:  # noqa: BLE001 - whoever waits for it hears of it
                coming.set_exception(error)
                coming.exception()  # nobody may wait any more
            else:
                coming.set_result(found)

    async def _ask_all(self) -> Cosigned:
        head = await self._tree.grow()
        known, note = self._lines.get(head, ""), self._signer.checkpoint(size=head.size, root=head.root)
        due = [each for each in self._witnesses if each.name not in _names(known) and each.is_due()]
        answers = await asyncio.gather(*(each.cosign(note, head, self._tree) for each in due))
        self._lines[head] = known + "".join(answers)
        while len(self._lines) > HEADS_HELD:
            self._lines.popitem(last=False)
        self._last = Cosigned(head, self._lines[head])
        return self._last


class _Witness:
    """One of them: what it has cosigned last, and how long it is left alone after a failure."""

    def __init__(self, at: WitnessAt, clock: Callable[[], float]) -> None:
        self.name, self._key, self._url = at.key.partition("+")[0], at.key, f"{at.url.rstrip('/')}/add-checkpoint"
        self._clock = clock
        self._size = 0
        self._pause_s, self._again_at, self._failed = PAUSE_MIN_S, 0.0, ""

    def is_due(self) -> bool:
        return self._clock() >= self._again_at

    async def cosign(self, note: str, head: TreeHead, tree: JournalTree) -> str:
        """Its line; "" where it gives none in time, whatever the reason."""
        try:
            async with asyncio.timeout(ROUND_S), aiohttp.ClientSession() as session:
                line = await self._asked(session, note, head, tree)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, Wrong) as error:
            self._note_failure(str(error) or type(error).__name__)
            return ""
        if self._failed:
            log.info("witness_works_again", witness=self.name)
        self._size, self._pause_s, self._failed = head.size, PAUSE_MIN_S, ""
        return line

    async def _asked(self, session: aiohttp.ClientSession, note: str, head: TreeHead, tree: JournalTree) -> str:
        for _ in range(2):  # the first answer may be from where it goes on
            if self._size > head.size:
                said = f"it has cosigned {self._size} entries, and this log has {head.size}"
                self._size = 0  # asked anew the next time
                raise ValueError(f"{said}: the journal was cut or put back, or another one has this log's name and key")
            proof = await tree.consistency(self._size, size=head.size) if self._size else ()
            body = written(self._size, proof, note)
            async with session.post(self._url, data=body, allow_redirects=False) as answer:
                said = (await answer.content.read(BODY_BYTES)).decode()
                status = answer.status
            if status == 200:  # noqa: PLR2004
                return self._line(note, said)
            conflict = status == 409 and said.strip().isdecimal() and len(said) < 32  # noqa: PLR2004
            if not conflict or int(said) == self._size:
                raise ValueError(f"{status}: {said.strip()[:200]}")
            self._size = int(said)
        raise ValueError(f"it has cosigned another size each time, {self._size}")

    def _line(self, note: str, said: str) -> str:
        """Its own line among those that it answers; nobody else's is believed."""
        for line in said.splitlines():
            if line.startswith(f"\u2014 {self.name} ") and cosigned_at(f"{note}{line}\n", self._key) is not None:
                return f"{line}\n"
        raise ValueError("its answer has no cosignature by its key")

    def _note_failure(self, why: str) -> None:
        if why != self._failed:
            log.warning("witness_failed", witness=self.name, why=why, next_in_s=self._pause_s)
        self._failed, self._again_at = why, self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, PAUSE_MAX_S)


def _names(lines: str) -> set[str]:
    return {line.split(" ")[1] for line in lines.splitlines()}
