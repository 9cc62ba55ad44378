"""The processes of one attempt of a job, as each of them sees the others.

Three process groups, because collectives of one group must not cross: `data` reduces gradients (NCCL, HCCL or gloo),
`control` agrees on when to stop, `saving` belongs to sharded checkpoints, which may run beside the training (on a shared
group that is a deadlock). All ranks stop after the same step: each starts the reduction of a few integers when its step
begins and looks at the result when the step is over, so agreeing costs nobody any waiting.

A peer that dies makes collectives fail in those that talk to it, one that hangs makes them wait: every rank tells the
others by a heartbeat that it is alive, and who is silent for too long is given up; who finds a peer lost tells the
rest, which may wait for ranks that are well. All of it ends as `PeerLost` in a rank whose state is whole, since
parameters change only after a reduction. Then the survivors keep it (`Gang.keep`): the last step is never lost while
one replica lives. It does not know what is saved, nor where. (Ideas: Just-In-Time Checkpointing, EuroSys'24; Ray
Train's replica relaxation.)

On gloo this is tested; NCCL and HCCL follow torch's documented behaviour (`abort` ends a hung collective) and were not
run here.
"""

import json
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist

from fabric.errors import InvalidRequest, Unavailable
from training.gang.heartbeats import BEAT_S, Watch, new_token

_POLL: Final = timedelta(seconds=BEAT_S / 5)
_SAVE, _STOP = 1, 2
"""What a rank wants after a step: of all wishes the highest counts."""
_FAREWELL_S: Final = 1.0
"""How long who keeps the meeting place stays after a meeting that failed, so that all learn who did not come."""


class PeerLost(Unavailable):
    """Another rank died or is silent; this one's state is that of its last step. Save it, then end the attempt."""

    code = "peer_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Which place in the gang this process has, and where the gang meets."""

    rank: int = 0
    world: int = 1
    master: tuple[str, int] = ("127.0.0.1", 0)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise InvalidRequest(f"rank {self.rank} of {self.world}: ranks count from 0", code="seat_invalid")

    @classmethod
    def from_environment(cls) -> "Seat":
        """What the runner, or torchrun, says in RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; alone if it says nothing."""
        said = os.environ
        return cls(
            rank=int(said.get("RANK", "0")),
            world=int(said.get("WORLD_SIZE", "1")),
            master=(said.get("MASTER_ADDR", "127.0.0.1"), int(said.get("MASTER_PORT", "0"))),
        )


class Verdict(NamedTuple):
    """What all ranks know after a step, and all the same."""

    stop: bool
    laps_us: tuple[int, ...]
    """How long each rank computed, as it said when the step began (so of the step before)."""
    save: bool = False
    """Whether all save the boundary after this step, and go on."""


class Agreement:
    """One that is under way: started with the step, read at its end."""

    __slots__ = ("_gang", "_told", "_work")

    def __init__(self, gang: "Gang", told: Any, work: Any) -> None:
        self._gang, self._told, self._work = gang, told, work

    def wait(self) -> Verdict:
        """What was agreed. `PeerLost` if a rank is gone."""
        if self._work is not None:
            self._gang.finish(self._work, "agreeing whether to stop", group=self._gang.control)
        stop, *laps = self._told.tolist()
        return Verdict(stop == _STOP, tuple(laps), save=stop == _SAVE)


class Gang:
    """A process among its peers. `Gang.open` for all; a gang of one needs no network."""

    def __init__(
        self,
        seat: Seat,
        *,
        timeout_s: float,
        groups: Sequence[Any] = (),
        watch: Watch | None = None,
        opened: bool = False,
    ) -> None:
        """`opened`: torch.distributed was opened by the gang, and not by the script, which goes on to use it."""
        self.seat, self._opened = seat, opened
        self.timeout_s = timeout_s
        self.data: Any
        self.control: Any
        self.saving: Any
        self.data, self.control, self.saving = groups or (None, None, None)
        self._watch = watch
        self._said = torch.zeros(1 + seat.world, dtype=torch.int64)
        self._numbers = self._said.numpy()
        self._most = dist.AllreduceOptions()
        self._most.reduceOp = dist.ReduceOp.MAX

    @classmethod
    def open(
        cls, seat: Seat | None = None, *, backend: str | None = None, timeout_s: float = 120.0, silent_s: float = 20.0
    ) -> "Gang":
        """Meet the other ranks.

        Args:
            seat: None = from the environment.
            backend: of the gradients; None = nccl, hccl or gloo, by what this process can see.
            timeout_s: the longest that a rank may keep the others waiting in a collective: more than any step takes.
            silent_s: a rank whose heartbeat stops for so long is given up.

        Raises:
            Unavailable: code `gang_incomplete`, naming the ranks that did not come within `timeout_s`.
        """
        seat = seat or Seat.from_environment()
        if seat.world == 1:
            return cls(seat, timeout_s=timeout_s)
        patience = timedelta(seconds=timeout_s)
        with _meeting(seat, patience) as store:
            opened = not dist.is_initialized()
            if opened:
                dist.init_process_group(
                    backend or backend_of_devices(), store=dist.PrefixStore("data", store), rank=seat.rank,
                    world_size=seat.world, timeout=patience,
                )  # fmt: skip
            groups = dist.group.WORLD, *(dist.new_group(backend="gloo", timeout=patience) for _ in range(2))
            watch = _watched(seat, store, silent_s=silent_s)
        return cls(seat, timeout_s=timeout_s, groups=groups, watch=watch, opened=opened)

    @property
    def rank(self) -> int:
        return self.seat.rank

    @property
    def world(self) -> int:
        return self.seat.world

    @property
    def silent(self) -> tuple[int, ...]:
        """Ranks that were given up."""
        return self._watch.silent if self._watch else ()

    @property
    def silent_s(self) -> float:
        """After how long without a heartbeat a rank is given up."""
        return self._watch.silent_s if self._watch else self.timeout_s

    @property
    def host(self) -> str:
        """The address of the machine, on the network where the ranks meet."""
        return self._watch.address[0] if self._watch else self.seat.master[0]

    @property
    def is_alarmed(self) -> bool:
        """Whether another rank has found a peer lost."""
        return self._watch is not None and self._watch.alarmed

    def agree(self, *, stop: bool, lap_us: int = 0, save: bool = False) -> Agreement:
        """Begin to agree on whether this step is the last; call it as the step begins.

        If any rank says `stop`, all stop after this step or, when it came too late for that, after the next. Else, if any
        says `save`, all save the boundary after it.
        """
        said = self._numbers
        said.fill(0)
        said[0], said[1 + self.rank] = _STOP if stop else _SAVE * save, lap_us
        if self.world == 1:
            return Agreement(self, said, None)
        try:  # straight to the group: torch's own wrapper takes longer than the rest
            work = self.control.allreduce([self._said], self._most)
        except RuntimeError as error:
            raise self.lost("agreeing whether to stop") from error
        return Agreement(self, said, work)

    def among(self, seat: Seat, data: Any) -> "Gang":
        """Some of the ranks, or all of them, as a gang that reduces over another group: `seat` is this rank's among them.

        Only for gradients and the like: to agree, to save and to close are the whole gang's.
        """
        return Gang(seat, timeout_s=self.timeout_s, groups=(data, None, None), watch=self._watch)

    def keep(self, step: int, *, save: Callable[[], None], newest: Callable[[], int | None], patience_s: float) -> int:
        """Make the state of this step durable once, by whichever rank lives: call it in all that stopped, or survived.

        Replicas hold the same state, so one save is enough. Rank 0 saves and tells the others; when it can't, the next
        one does, each waiting `patience_s` longer than the one before it (more than a save takes).

        Args:
            step: the last one this rank completed.
            save: makes this rank's state durable.
            newest: the step of the newest durable state that anybody can read, None if there is none.
            patience_s: how long one rank may take.

        Returns:
            The step that is durable now: at least `step`.
        """
        if self.rank == 0 and (newest() or -1) < step:
            save()
        if not self.silent and self._hear(step) >= step:
            return step
        stop_at = time.monotonic() + self.rank * patience_s
        while (kept := newest()) is None or kept < step:
            if time.monotonic() >= stop_at:
                save()
                return step
            time.sleep(min(0.02, patience_s))
        return kept

    def _hear(self, step: int) -> int:
        """What rank 0 says it has kept; -1 if it says nothing."""
        if self.world == 1:
            return step
        told = torch.tensor([step])
        try:
            work = dist.broadcast(told, 0, group=self.saving, async_op=True)
            self.finish(work, "hearing what is kept", group=self.saving, parting=True)
        except (PeerLost, RuntimeError):
            return -1
        return int(told)

    def gather(self, own: Any, doing: str, *, group: Any = None) -> list[Any]:
        """What every rank says, by rank; all ranks call, one thread of each at a time. `PeerLost` if one is gone.

        `group`: None = the one of saves.
        """
        if self.world == 1:
            return [own]
        said = torch.frombuffer(bytearray(pickle.dumps(own)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        self._all_gather(sizes, torch.tensor([len(said)]), doing, group)
        longest = max(int(size) for size in sizes)
        heard = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        self._all_gather(heard, torch.cat([said, said.new_zeros(longest - len(said))]), doing, group)
        # the gang's own ranks said it, over the group that gathers their gradients
        return [
            pickle.loads(whole[: int(size)].numpy().tobytes())  # noqa: S301
            for whole, size in zip(heard, sizes, strict=True)
        ]

    def _all_gather(self, heard: list[Any], said: Any, doing: str, group: Any) -> None:
        try:
            work = dist.all_gather(heard, said, group=group or self.saving, async_op=True)
        except RuntimeError as error:
            raise self.lost(doing) from error
        self.finish(work, doing, group=group or self.saving)

    def finish(self, work: Any, doing: str, *, group: Any = None, parting: bool = False) -> None:
        """Wait for a collective, but not for a peer that is silent, nor when another rank has found one lost, unless this
        gang is `parting` already. `PeerLost` if it fails, or never will end. `group`: None = the one of gradients.

        A collective over gloo can't be ended from outside: it is left alone then, so end the process with `os._exit`.
        """
        group = group or self.data
        if group is None or dist.get_backend(group) != "gloo":
            with self.guarded(doing):
                work.wait()
            return
        while True:
            try:
                work.wait(_POLL)
            except RuntimeError as error:
                if self.silent or (self.is_alarmed and not parting):
                    raise self.lost(doing) from error
                if work.is_completed():  # with an error; or just now, when the waiting was over
                    with self.guarded(doing):
                        work.wait()
                    return
            else:
                return

    @contextmanager
    def guarded(self, doing: str) -> Iterator[None]:
        """Collectives inside: their failing means that a peer is lost."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost(doing) from error

    def lost(self, doing: str) -> PeerLost:
        """The error to raise when a collective failed; the other ranks hear of it."""
        if self._watch is not None:
            self._watch.alarm()
        who = self.silent
        named = (
            f"rank {', '.join(map(str, who))} of {self.world} is silent" if who else f"a peer of {self.world} is gone"
        )
        return PeerLost(
            f"{named}, noticed by rank {self.rank} while {doing}: keep the last step and end this attempt",
            rank=self.rank,
            silent=",".join(map(str, who)),
        )

    def close(self) -> None:
        """Leave. Peers that still wait for this rank will find it lost."""
        if self._watch is not None:
            if not self.silent and not self.is_alarmed:
                for group in (None,) if self._opened else (self.control, self.saving):
                    with suppress(RuntimeError, ValueError):
                        dist.destroy_process_group(group)
            self._watch.close()


class Stop(NamedTuple):
    """How to stop: `together` after a common step, or with what the last boundary left, `at_once`."""

    at_once: bool
    why: str


def choose(*, left_s: float | None, step_s: float, save_s: float) -> Stop:
    """Between the agreement, which needs up to two more steps, and saving the last common boundary from the side.

    Args:
        left_s: until the attempt is ended anyway; None = no hurry.
        step_s: what a step takes, as measured.
        save_s: what a save takes, as measured; half as much again is allowed for.
    """
    needed_s = 2 * step_s + 1.5 * save_s
    if left_s is None or left_s >= needed_s:
        return Stop(at_once=False, why=f"stopping together needs {needed_s:.1f} s")
    return Stop(at_once=True, why=f"{left_s:.1f} s are left and stopping together may need {needed_s:.1f} s")


def backend_of_devices() -> str:
    """What this process's devices speak: nccl, hccl or, for host memory, gloo."""
    if torch.cuda.is_available():
        return "nccl"
    npu = getattr(torch, "npu", None)
    return "hccl" if npu is not None and npu.is_available() else "gloo"


@contextmanager
def _meeting(seat: Seat, patience: timedelta) -> Iterator[Any]:
    """The store that all ranks meet at, kept by rank 0; says who did not come if the meeting fails."""
    store: Any = None
    try:
        store = dist.TCPStore(
            *seat.master, is_master=seat.rank == 0, timeout=patience, wait_for_workers=False, multi_tenant=True
        )  # multi_tenant: the script may have opened torch.distributed there before
        store = dist.PrefixStore("fabric", store)
        store.set(f"seat/{seat.rank}", "taken")
        yield store
    except (RuntimeError, ValueError) as error:
        absent = _absent(seat, store)
        named = f"rank {', '.join(map(str, absent))} did not come" if absent else "all came, but some left again"
        raise Unavailable(
            f"the gang of {seat.world} is not complete after {patience.total_seconds():g} s, {named}: end this attempt and "
            "start another with the ranks that there are",
            code="gang_incomplete",
            world=seat.world,
            absent=",".join(map(str, absent)),
        ) from error


def _absent(seat: Seat, store: Any) -> list[int]:
    try:
        found = [rank for rank in range(seat.world) if store is None or not store.check([f"seat/{rank}"])]
    except RuntimeError:
        return [0]
    if seat.rank == 0:
        time.sleep(_FAREWELL_S)
    return found if store is not None else [0]


def _watched(seat: Seat, store: Any, *, silent_s: float) -> Watch:
    watch = Watch(seat.rank, towards=seat.master, silent_s=silent_s)
    store.set(f"watch/{seat.rank}", json.dumps(watch.address))
    if seat.rank == 0:
        store.set("watch/token", new_token().hex())
    addresses = {rank: tuple(json.loads(store.get(f"watch/{rank}"))) for rank in range(seat.world) if rank != seat.rank}
    watch.meet(addresses, token=bytes.fromhex(store.get("watch/token").decode()))
    return watch
