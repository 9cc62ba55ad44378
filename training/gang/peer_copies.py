"""Copies of a rank's part in a peer's memory, on another node: a lost node takes no step with it that others hold.

At a boundary that all ranks have reached each copies its part within its own memory, and a side thread sends it to one other
rank, over a group of its own, while the training goes on. Two such steps have room at each rank. The older one is written over
only when all ranks have the newer one whole, so whatever dies when, one step is whole among the ranks that are left, unless a
rank and the one that keeps its copy are lost together. Then they recover it (`training.gang.survivors`), or the newest checkpoint
counts. Idea: Gemini (SOSP'23).

It knows bytes, ranks and steps, and does not know what a part holds.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple, Protocol

import torch
import torch.distributed as dist

from fabric.checkpoints import Checkpoints
from fabric.errors import FabricError
from training.gang.copy_places import Room, alike, free_bytes, keepers, machine, megabytes, node_of_launcher
from training.gang.heartbeats import new_token
from training.gang.members import Gang, PeerLost
from training.gang.survivors import Held, Outcome, Survivors
from training.progress import say
from training.state.cadence import copy_interval, smoothed

_CHUNK_BYTES: Final = 64 * 2**20
_DIGEST_BYTES: Final = 32
_LOOK_S: Final = 0.2


class Source(Protocol):
    """What a rank's part is copied from, by the thread that trains."""

    def laid_out(self) -> Any:
        """The part at the boundary where the thread stands, as a `training.state.shards.Plan`."""

    def copied(self, plan: Any, into: memoryview) -> Callable[[], str | None]:
        """Copy it; what comes back tells what in the copy is not finite, if anything is."""


@dataclass(slots=True)
class _Slot:
    """Room for one part."""

    memory: memoryview
    size: int = 0
    held: Held | None = None
    """What is whole in it."""


class _Header(NamedTuple):
    """What each rank says before a copy."""

    step: int
    size: int
    """-1: it can't lay out its part."""
    free_bytes: int
    copy_s: float
    sent_s: float
    step_s: float


class _Round(NamedTuple):
    """A copy that is to be sent."""

    step: int
    at: int
    """Which of two slots."""
    sizes: list[int]
    not_finite: Callable[[], str | None]


class PeerCopies:
    """One rank's copies, and those that it keeps for another."""

    def __init__(
        self,
        gang: Gang,
        *,
        each_step: bool,
        checkpoints: Checkpoints,
        committing: threading.Lock,
        ended: Callable[[str], None],
    ) -> None:
        """All ranks call.

        Args:
            gang: at least two ranks.
            each_step: a step is over when its copy is whole; else copies are made beside the training, and as often as is cheap.
            checkpoints: where what is left is made durable, of one epoch and attempt on all ranks.
            committing: held by whichever thread of this process commits there.
            ended: called when a peer was lost and what can be durable is, with who it was.
        """
        self._gang, self.each_step, self._ended = gang, each_step, ended
        self._survivors = Survivors(
            gang.rank, host=gang.host, memory=self, checkpoints=checkpoints, committing=committing,
            silent_s=gang.silent_s, write_s=gang.timeout_s,
        )  # fmt: skip
        self._survivors.noticed = self.note_loss
        self._survivors.silent = lambda: gang.silent
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=gang.timeout_s))
        token = new_token() if gang.rank == 0 else b""
        told = gang.gather((self._survivors.address, token, machine(), node_of_launcher()), "meeting for copies")
        addresses, tokens, machines, nodes = zip(*told, strict=True)
        peers = {rank: address for rank, address in enumerate(addresses) if rank != gang.rank}
        self._survivors.meet(peers, token=tokens[0])
        ids = [found.id for found in machines]
        places = ids if len(set(ids)) > 1 else nodes  # on one machine, those that the launcher tells apart
        self._keeper = keepers(places)
        self._owner = self._keeper.index(gang.rank)
        """Whose part this rank keeps."""
        self._own, self._kept = ([_Slot(memoryview(b"")) for _ in range(2)] for _ in range(2))
        self._places = alike(places, self._keeper)
        self._room = Room(machines, self._keeper)
        self._lock = threading.Lock()
        self._newest = 1
        """Which slots hold what all ranks have."""
        self._next, self._every, self._told_every = 0, 1, 0
        self._copy_s, self._sent_s = 0.0, 0.0
        self._is_off = self._is_frozen = self._is_over = self._is_refused = False
        self._due, self._idle = threading.Event(), threading.Event()
        self._round: _Round | None = None
        self._idle.set()
        self._loss = threading.Event()
        self._recovered = threading.Event()
        self._outcome: Outcome | None = None
        self.lost_named = f"a peer of {gang.world} is gone"
        self.recover_s = 0.0
        """How long it took to make durable what is left."""
        self._thread = threading.Thread(target=self._work, name="fabric-copies", daemon=True)
        self._thread.start()

    @property
    def has_lost(self) -> bool:
        """Whether a peer was found lost."""
        return self._loss.is_set()

    def at_boundary(self, step: int, source: Source, *, step_s: float, is_stop: bool) -> None:
        """For the training threads, all at this step: begin a copy if it is time for one.

        Raises:
            PeerLost: a rank is gone.
        """
        if self._is_off or step < self._next or (is_stop and not self.each_step):
            return
        self.settle()
        if not self.has_lost:
            self._begin(step, source, step_s=step_s)
        if self.each_step:
            self.settle()
        if self.has_lost:
            raise self._gang.lost("copying parts")

    def settle(self) -> None:
        """Wait until what is being sent is whole with all ranks, or never will be."""
        self._idle.wait()

    def note_loss(self, why: str) -> None:
        """A peer is gone: what is left is made durable, by a thread of its own."""
        with self._lock:
            if self.has_lost or self._is_over:
                return
            self._loss.set()
        self._gang.lost(why)  # the others hear of it
        threading.Thread(target=self._recover, name="fabric-recovery", daemon=True).start()

    def find_lost(self) -> bool:
        """After an error in the script: whether it comes of a peer's loss."""
        if not self.has_lost and (lost := self._survivors.lost()):
            self.note_loss(f"looking for who is gone: {_named(lost, self._gang.world)}")
        return self.has_lost

    def recovered(self) -> Outcome:
        """What became durable after a loss."""
        if not self.has_lost:
            return Outcome(None, why="no copies are kept any more")
        self._recovered.wait()
        assert self._outcome is not None
        return self._outcome

    def freeze(self) -> None:
        with self._lock:
            self._is_frozen = True

    def held(self) -> list[Held]:
        with self._lock:
            return [slot.held for slot in (*self._own, *self._kept) if slot.held is not None]

    def data(self, held: Held) -> memoryview:
        slot = next(slot for slot in (*self._own, *self._kept) if slot.held == held)
        return slot.memory[: slot.size]

    def close(self) -> None:
        """The run is over."""
        if self.has_lost:
            self._recovered.wait()  # the others need what is held here
        self._is_over = True
        self._due.set()
        self._thread.join()
        if not self.has_lost and not self._gang.silent and dist.is_initialized():
            with suppress(RuntimeError, ValueError):
                dist.destroy_process_group(self._group)
        self._survivors.close()

    def _begin(self, step: int, source: Source, *, step_s: float) -> None:
        began = time.monotonic()
        plan: Any = None
        try:
            plan = source.laid_out()
        except FabricError as failed:
            say(f"no copy in a peer's memory: {failed.message}")
        own = _Header(step, -1 if plan is None else plan.size, free_bytes(), self._copy_s, self._sent_s, step_s)
        laid_s = time.monotonic() - began
        headers: list[_Header] = self._gang.gather(own, "agreeing on a copy", group=self._group)
        self._plan_next(headers)
        if plan is None or any(header.size < 0 or header.step != step for header in headers):
            return
        if not self._has_room(headers):
            return
        self._tell_often(max(header.size for header in headers))
        at = 1 - self._newest
        with self._lock:
            if self._is_frozen:
                return
            self._own[at].held = self._kept[at].held = None
        began = time.monotonic()
        not_finite = source.copied(plan, self._own[at].memory)
        self._own[at].size = plan.size
        self._copy_s = smoothed(self._copy_s or None, laid_s + time.monotonic() - began)
        self._idle.clear()
        self._round = _Round(step, at, [header.size for header in headers], not_finite)
        self._due.set()

    def _plan_next(self, headers: Sequence[_Header]) -> None:
        """All ranks come to the same, from what all have said."""
        step = headers[0].step
        if not self.each_step:
            copy_s, sent_s, step_s = (max(said) for said in list(zip(*headers, strict=True))[3:])
            self._every = copy_interval(copy_s=copy_s, sent_s=sent_s, step_s=step_s)
        self._next = step + self._every

    def _tell_often(self, size: int) -> None:
        is_news = not self._told_every or not self._told_every / 3 < self._every < self._told_every * 3
        if self._gang.rank == 0 and is_news:
            often = "after each step" if self._every == 1 else f"after every {self._every} steps"
            say(
                f"the part of each rank ({megabytes(size)} at most) is copied into a peer's memory {often}, which takes 4 times "
                f"as much host memory: {self._places}"
            )
            self._told_every = self._every

    def _has_room(self, headers: Sequence[_Header]) -> bool:
        """Whether there is memory, for parts that are larger than before: all ranks come to the same."""
        refusal = self._room.widen([header.size for header in headers], [header.free_bytes for header in headers])
        if refusal:
            self._is_off = True
            if self._gang.rank == 0:
                say(refusal)
            return False
        self._grow(self._own, self._room.bytes[self._gang.rank])
        self._grow(self._kept, self._room.bytes[self._owner])
        return True

    def _grow(self, slots: list[_Slot], room: int) -> None:
        """What is whole stays, in larger memory."""
        for slot in slots:
            if len(slot.memory) < room:
                memory = memoryview(torch.empty(room, dtype=torch.uint8).numpy())
                with self._lock:
                    if slot.held is not None:
                        memory[: slot.size] = slot.memory[: slot.size]
                    slot.memory = memory

    def _work(self) -> None:
        while not self._is_over:
            if self._due.wait(_LOOK_S):
                self._due.clear()
            if self._round is not None:
                self._send(self._round)
                self._round = None
                self._idle.set()
            if not self._is_over and not self.has_lost and (self._gang.silent or self._gang.is_alarmed):
                self.note_loss("keeping copies")

    def _send(self, copy: _Round) -> None:
        began = time.monotonic()
        try:
            bad = copy.not_finite()
            if bad is not None and not self._is_refused:
                self._is_refused = True
                say(f"no copy in a peer's memory: at step {copy.step} {bad} is not finite")
            if self._exchanged(copy, is_good=bad is None):
                self._newest = copy.at
                self._sent_s = smoothed(self._sent_s or None, time.monotonic() - began)
        except PeerLost:
            self.note_loss("copying parts")
        except Exception as error:  # noqa: BLE001  # a thread that dies unheard would leave the others waiting
            say(f"no copies in peers' memory any more: {type(error).__name__}: {error}")
            self.note_loss("copying parts")

    def _exchanged(self, copy: _Round, *, is_good: bool) -> bool:
        """Send the own part and take the other's; whether all ranks have."""
        own, kept = self._own[copy.at], self._kept[copy.at]
        kept.size = copy.sizes[self._owner]
        digest = hashlib.sha256()
        for start in range(0, max(copy.sizes), _CHUNK_BYTES):
            sent, room = (slot.memory[start : min(start + _CHUNK_BYTES, slot.size)] for slot in (own, kept))
            work = self._passed(sent, room)
            digest.update(sent)
            self._gang.finish(work, "copying parts", group=self._group)
        seal, theirs = bytearray(digest.digest() if is_good else bytes(_DIGEST_BYTES)), bytearray(_DIGEST_BYTES)
        work = self._passed(memoryview(seal), memoryview(theirs))
        self._gang.finish(work, "copying parts", group=self._group)
        with self._lock:
            if is_good:
                own.held = Held(self._gang.rank, copy.step, seal.hex())
            if any(theirs):
                kept.held = Held(self._owner, copy.step, theirs.hex())
        everyones = torch.tensor([int(is_good)])
        with self._gang.guarded("copying parts"):
            work = dist.all_reduce(everyones, op=dist.ReduceOp.MIN, group=self._group, async_op=True)
        self._gang.finish(work, "copying parts", group=self._group)
        return bool(everyones.item())

    def _passed(self, sent: memoryview, room: memoryview) -> Any:
        """A collective, as one can be looked at without being ended; what is passed to others than the keeper is nothing."""
        gang, to, of = self._gang, [0] * self._gang.world, [0] * self._gang.world
        to[self._keeper[gang.rank]], of[self._owner] = len(sent), len(room)
        with gang.guarded("copying parts"):
            return dist.all_to_all_single(
                _tensor(room),
                _tensor(sent),
                output_split_sizes=of,
                input_split_sizes=to,
                group=self._group,
                async_op=True,
            )

    def _recover(self) -> None:
        began = time.monotonic()
        try:
            self.freeze()
            self._outcome = self._survivors.recover()
        except Exception as error:  # noqa: BLE001  # whoever waits for it must hear of it
            self._outcome = Outcome(None, why=f"{type(error).__name__}: {error}")
        self.recover_s = time.monotonic() - began
        if lost := self._outcome.lost or self._gang.silent:
            self.lost_named = f"{_named(lost, self._gang.world)} gone"
        try:
            self._ended(self.lost_named)
        finally:
            self._recovered.set()


def _tensor(memory: memoryview) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=torch.uint8) if len(memory) else torch.empty(0, dtype=torch.uint8)


def _named(ranks: Sequence[int], world: int) -> str:
    plural = len(ranks) > 1
    return f"rank{'s' if plural else ''} {', '.join(map(str, ranks))} of {world} {'are' if plural else 'is'}"
