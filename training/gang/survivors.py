"""Ranks that outlive a peer, and make durable what is in their memory of one step: the parts of all ranks, or nothing.

Each rank answers at an address of its own, from a thread of its own: collectives are of no use any more, and its training
thread may be stuck in one. The lowest rank that still answers asks all for what they hold, finds the newest step of which
every part is there, has each part written by whoever holds it, and commits the record last. Whoever asks later, or takes its
place because it died too, finds the checkpoint and leaves it. What is written must have the digest that its owner made of it.

It knows parts by owner, step and digest, and of what is in them only the layout that they make together.
"""

import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Literal, Protocol

import msgspec

from fabric.checkpoints import Checkpoints, Shard
from fabric.checkpoints.directory import Buffer
from fabric.errors import FabricError
from training.gang.heartbeats import TOKEN_BYTES, Address
from training.state import layout
from training.state.sharded_state import Kept, Part, kept_in, merged, part_name
from training.state.vault import FORMAT

_LENGTH: Final = struct.Struct("!Q")
_WORD_BYTES_MAX: Final = 1 << 30
_ANSWER_S: Final = 2.0
"""How long a rank that lives may take to say so."""
_DYING_S: Final = 1.5
"""How long after a collective failed its cause is looked for: a system takes its time to close what a dead process had."""
_PARALLEL: Final = 32


class Held(msgspec.Struct, frozen=True):
    """A part of a step, whole in some rank's memory."""

    owner: int
    step: int
    digest: str
    """Its sha256, as its owner made it."""


class Outcome(msgspec.Struct, frozen=True):
    """What came of the parts in memory."""

    step: int | None
    """What is durable now; None = nothing newer than what was before."""
    lost: tuple[int, ...] = ()
    why: str = ""
    """Where nothing could be made durable."""
    size: int = 0


class Memory(Protocol):
    """What a rank holds."""

    def freeze(self) -> None:
        """What is whole stays as it is from now on."""

    def held(self) -> list[Held]:
        """All parts that are whole here."""

    def data(self, held: Held) -> Buffer:
        """One of them."""


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """A `Kept`, as it is sent."""

    name: str
    dtype: str
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    span: tuple[str, int, int] | None


class _Ask(msgspec.Struct, frozen=True):
    what: Literal["live", "leave", "offer", "write", "recover", "tell"]
    rank: int
    token: str = ""
    held: tuple[Held, ...] = ()
    outcome: Outcome | None = None


class _Answer(msgspec.Struct, frozen=True):
    held: tuple[Held, ...] = ()
    shards: tuple[Shard, ...] = ()
    entries: tuple[_Entry, ...] = ()
    outcome: Outcome | None = None
    error: str = ""
    damaged: Held | None = None


class Survivors:
    """A rank among those that may have to recover. `meet` the others; `recover` when one is lost."""

    def __init__(
        self,
        rank: int,
        *,
        host: str,
        memory: Memory,
        checkpoints: Checkpoints,
        committing: threading.Lock,
        silent_s: float,
        write_s: float,
    ) -> None:
        """Bind a port on the interface of `host`, which the others reach.

        Args:
            rank: this process's.
            host: an address of this machine.
            memory: what this rank holds.
            checkpoints: where it is made durable, of one epoch and attempt on all ranks.
            committing: held by whichever thread of this process commits there.
            silent_s: how long a rank may take to say what it holds.
            write_s: how long it may take to write that.
        """
        self._rank, self._memory, self._checkpoints, self._committing = rank, memory, checkpoints, committing
        self._silent_s, self._write_s = silent_s, write_s
        self._socket = socket.create_server((host, 0), backlog=128)
        self._token, self._peers = b"", dict[int, Address]()
        self._left: set[int] = set()
        self._recovering = threading.Lock()
        self._outcome: Outcome | None = None
        self.noticed: Callable[[str], None] = lambda _why: None
        """Told that another rank has found one lost."""
        self.silent: Callable[[], Iterable[int]] = tuple
        """Ranks that are given up."""

    @property
    def address(self) -> Address:
        """Where this rank answers: to be told to the others."""
        name: Address = self._socket.getsockname()
        return name

    def meet(self, peers: Mapping[int, Address], *, token: bytes) -> None:
        """Begin to answer; `peers` are the other ranks'."""
        self._peers, self._token = dict(peers), token
        threading.Thread(target=self._listen, name="fabric-survivors", daemon=True).start()

    def lost(self) -> list[int]:
        """After a collective failed: who is gone without a word. If nobody is, the others hear that this rank leaves."""
        until = time.monotonic() + _DYING_S
        while True:
            answers = self._asked(_Ask("live", self._rank), self._peers, timeout_s=_ANSWER_S)
            lost = {rank for rank, answer in answers.items() if answer is None} | set(self.silent())
            if (found := sorted(lost - self._left)) or time.monotonic() >= until:
                break
            time.sleep(0.1)
        if not found:
            self._asked(_Ask("leave", self._rank), self._peers, timeout_s=_ANSWER_S)
        return found

    def recover(self) -> Outcome:
        """What the ranks that are left make durable, once: all of them get the same answer."""
        with self._recovering:
            if self._outcome is None:
                self._outcome = self._asked_lower() or self._coordinated()
            return self._outcome

    def close(self) -> None:
        """Answer no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _asked_lower(self) -> Outcome | None:
        """What the lowest rank that lives has done; None = this is the lowest."""
        for rank in sorted(rank for rank in self._peers if rank < self._rank):
            if rank in self.silent() or self._ask(_Ask("live", self._rank), rank, timeout_s=_ANSWER_S) is None:
                continue
            patience_s = self._silent_s + 2 * self._write_s
            answer = self._ask(_Ask("recover", self._rank), rank, timeout_s=patience_s)
            if answer is not None and answer.outcome is not None:
                return answer.outcome
        return None

    def _coordinated(self) -> Outcome:
        """Ask all, have them write, commit. Each turn leaves out a rank that died meanwhile, or a part that is damaged."""
        dead, damaged = set(self.silent()), set[tuple[int, Held]]()
        while True:
            asked = self._asked(_Ask("offer", self._rank), self._peers.keys() - dead, timeout_s=self._silent_s)
            dead |= {rank for rank, answer in asked.items() if answer is None}
            offers = {rank: answer.held for rank, answer in asked.items() if answer is not None}
            offers[self._rank] = self._offer().held
            outcome = self._kept(offers, lost=tuple(sorted(dead)), damaged=damaged, dead=dead)
            if outcome is not None:
                self._asked(
                    _Ask("tell", self._rank, outcome=outcome), offers.keys() - {self._rank}, timeout_s=_ANSWER_S
                )
                return outcome

    def _kept(
        self,
        offers: Mapping[int, tuple[Held, ...]],
        *,
        lost: tuple[int, ...],
        damaged: set[tuple[int, Held]],
        dead: set[int],
    ) -> Outcome | None:
        """What is durable of what they offer; None = one of them can't do its part, which is noted."""
        try:
            writers = _writers(offers, len(self._peers) + 1, damaged=damaged)
            before = self._durable_step()
            if writers is None:
                return Outcome(None, lost, "nobody that is left has all parts of a step in memory")
            step = next(iter(writers.values()))[0].step
            if before is not None and before >= step:
                return Outcome(before, lost)
            token = secrets.token_hex(6)
            asks = {rank: _Ask("write", self._rank, token=token, held=tuple(held)) for rank, held in writers.items()}
            answers = self._all(asks, timeout_s=self._write_s)
            dead |= {rank for rank, answer in answers.items() if answer is None}
            written = [answer for answer in answers.values() if answer is not None]
            damaged |= {
                (rank, answer.damaged)
                for rank, answer in answers.items()
                if answer is not None and answer.damaged is not None
            }
            if (error := next((answer.error for answer in written if answer.error), "")) != "":
                return Outcome(None, lost, error)
            if len(written) < len(answers) or any(answer.damaged is not None for answer in written):
                return None
            return self._committed(step, token, written, lost=lost)
        except FabricError as failed:
            return Outcome(None, lost, failed.message)

    def _committed(self, step: int, token: str, written: list[_Answer], *, lost: tuple[int, ...]) -> Outcome:
        entries = merged(_taken(entry) for answer in written for entry in answer.entries)
        shards = [shard for answer in written for shard in answer.shards]
        draft = self._checkpoints.begin(step, token=token)
        draft.put(layout.SHARD, msgspec.json.encode(layout.Layout(entries=entries)))
        draft.upload()
        with self._committing:
            before = self._durable_step()  # a save that was under way may have come to its end
            if before is not None and before >= step:
                return Outcome(before, lost)
            self._checkpoints.commit(draft, shards=shards, meta={"made_by": FORMAT}, world=len(self._peers) + 1)
        return Outcome(step, lost, size=sum(shard.size for shard in shards))

    def _durable_step(self) -> int | None:
        found = self._checkpoints.newest(verify=False)
        return None if found is None else found.step

    def _answer(self, ask: _Ask) -> _Answer:
        match ask.what:
            case "leave":
                self._left.add(ask.rank)
            case "tell":
                self._outcome = ask.outcome
            case "offer":
                self.noticed(f"rank {ask.rank} has found a peer lost")
                return self._offer()
            case "write":
                return self._written(ask)
            case "recover":
                self.noticed(f"rank {ask.rank} has found a peer lost")
                return _Answer(outcome=self.recover())
            case "live":
                pass
        return _Answer()

    def _offer(self) -> _Answer:
        self._memory.freeze()
        return _Answer(held=tuple(self._memory.held()))

    def _written(self, ask: _Ask) -> _Answer:
        """Put parts that are held here into the draft that the token names."""
        entries = list[_Entry]()
        try:
            draft = self._checkpoints.begin(ask.held[0].step, token=ask.token)
            for held in ask.held:
                name, data = part_name(held.owner), self._memory.data(held)
                if draft.put(name, data).sha256 != held.digest:
                    draft.drop(name)
                    return _Answer(damaged=held)
                entries += [_Entry(*kept.part[:-1], kept.span) for kept in kept_in(data, name)]
            draft.upload()
        except FabricError as failed:
            return _Answer(error=failed.message)
        return _Answer(shards=draft.shards, entries=tuple(entries))

    def _asked(self, ask: _Ask, ranks: Iterable[int], *, timeout_s: float) -> dict[int, _Answer | None]:
        return self._all(dict.fromkeys(ranks, ask), timeout_s=timeout_s)

    def _all(self, asks: Mapping[int, _Ask], *, timeout_s: float) -> dict[int, _Answer | None]:
        """What each rank answers, at the same time; None = it is gone, or too slow."""
        if not asks:
            return {}
        with ThreadPoolExecutor(min(_PARALLEL, len(asks)), thread_name_prefix="fabric-survivors") as pool:
            answers = pool.map(lambda rank: self._ask(asks[rank], rank, timeout_s=timeout_s), asks)
            return dict(zip(asks, answers, strict=True))

    def _ask(self, ask: _Ask, rank: int, *, timeout_s: float) -> _Answer | None:
        if rank == self._rank:
            return self._answer(ask)
        try:
            with socket.create_connection(self._peers[rank], timeout=_ANSWER_S) as line:
                line.settimeout(timeout_s)
                self._send(line, msgspec.msgpack.encode(ask))
                return msgspec.msgpack.decode(self._heard(line), type=_Answer)
        except (OSError, msgspec.MsgspecError):
            return None

    def _listen(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(line,), name="fabric-survivors", daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with suppress(OSError, msgspec.MsgspecError), line:
            line.settimeout(_ANSWER_S)
            ask = msgspec.msgpack.decode(self._heard(line), type=_Ask)
            answer = self._answer(ask)
            line.settimeout(self._silent_s)
            self._send(line, msgspec.msgpack.encode(answer))

    def _send(self, line: socket.socket, word: bytes) -> None:
        line.sendall(self._token + _LENGTH.pack(len(word)) + word)

    def _heard(self, line: socket.socket) -> bytes:
        """One word of the gang's own."""
        with line.makefile("rb") as said:
            opening = said.read(TOKEN_BYTES + _LENGTH.size)
            if not secrets.compare_digest(opening[:TOKEN_BYTES], self._token):
                raise ConnectionRefusedError("not of this gang")
            (length,) = _LENGTH.unpack(opening[TOKEN_BYTES:].ljust(_LENGTH.size, b"\xff"))
            if length > _WORD_BYTES_MAX:
                raise ConnectionRefusedError("too long")
            return said.read(length)


def _writers(
    offers: Mapping[int, tuple[Held, ...]], world: int, *, damaged: set[tuple[int, Held]]
) -> dict[int, list[Held]] | None:
    """Who writes which part of the newest step of which all parts are held; None = there is no such step."""
    for step in sorted({held.step for theirs in offers.values() for held in theirs}, reverse=True):
        chosen: dict[int, tuple[int, Held]] = {}
        for rank, theirs in sorted(offers.items()):
            for held in theirs:
                if (
                    held.step == step
                    and (rank, held) not in damaged
                    and (held.owner not in chosen or rank == held.owner)
                ):
                    chosen[held.owner] = (rank, held)
        if len(chosen) == world:
            writers: dict[int, list[Held]] = {}
            for rank, held in chosen.values():
                writers.setdefault(rank, []).append(held)
            return writers
    return None


def _taken(entry: _Entry) -> Kept:
    return Kept(Part(entry.name, entry.dtype, entry.sizes, entry.offsets, entry.lengths, None), entry.span)
