"""Whose request goes to which replica, and when: the queue and the seats behind it, for each model.

vLLM's own priority only reorders its waiting line and never ages, so no more requests are handed to a replica than it has
room for (its *window*); the rest wait here, where the order is fair and every wait is bounded. Leaving the line costs
nothing. A model of which nothing runs is waited for: the line itself is what wakes it.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Final

from fabric.errors import RateLimited, Unavailable
from serving.gateway.affinity import Trail, Trails
from serving.gateway.directory import Replica
from serving.gateway.fairness import FairQueue, QueueTicket

WAITING_MAX: Final = 4_096
"""For each model at each gateway."""
WAITING_PER_ACCOUNT_MAX: Final = 256
_ROOM_PERCENT: Final = 112
"""A little more than a replica works on at once, so that it never waits for the next request to cross the wire."""
VISITS_MAX: Final = 8
"""Requests that only count tokens, of one gateway at one replica at once."""
SUSPECT_S: Final = 2.0
"""How long a replica that couldn't be reached is left alone, unless the board says sooner that it is ready."""


class Seat:
    """A request's place at a replica, as wide as the answers that are written for it at a time. Give it back once, by
    `leave`.
    """

    __slots__ = ("_left", "_pool", "is_lost", "lost", "replica", "ticket", "width")

    def __init__(self, pool: "Pool", ticket: QueueTicket, replica: Replica, *, width: int = 1) -> None:
        self._pool = pool
        self._left = False
        self.ticket = ticket
        self.replica = replica
        self.width = width
        self.is_lost = False
        """Whether the replica is known to be gone."""
        self.lost: Callable[[], None] | None = None
        """What to do the moment the replica is known to be gone."""

    def avoid(self) -> None:
        """The replica couldn't be reached: send nobody there for a moment."""
        self._pool.avoid(self.replica.replica_id)

    def leave(self, *, tokens: int | None = None) -> None:
        """Make room for the next. `tokens`: what was served after all, where that is known."""
        if not self._left:
            self._left = True
            self._pool.left(self, tokens)


class _Berth:
    """A replica as its pool sees it."""

    __slots__ = ("replica", "seats", "suspect_until", "visits", "window")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.window = 1
        self.seats: set[Seat] = set()
        self.suspect_until = 0.0
        self.visits = 0

    @property
    def taken(self) -> int:
        """How much of the window is."""
        return sum(seat.width for seat in self.seats)

    def width(self, ticket: QueueTicket) -> int:
        """How much of the window a request gets: what it asks for, but no more than half, so that a long list of prompts
        leaves room for others; the answers to one prompt begin together, and take what there is.
        """
        half = -(-self.window // 2)
        return min(self.window, max(ticket.apart, min(ticket.sequences, half)))


class Pool:
    """The replicas of one model that a group of callers shares, and the line in front of them."""

    def __init__(self, *, gateways: int = 1, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._gateways = max(1, gateways)
        self._monotonic = monotonic
        self._berths: dict[str, _Berth] = {}
        self._queue = FairQueue(now_us=self._now_us())
        self._calls: dict[QueueTicket, tuple[asyncio.Future[Seat], Trail, int]] = {}
        self._trails = Trails()
        self._held: dict[str, deque[QueueTicket]] = {}
        """By adapter, those whose turn it was while there wasn't room enough for them where that is loaded: nobody is let past
        them there.
        """

    @property
    def waiting(self) -> int:
        return len(self._calls)

    @property
    def seated(self) -> int:
        return sum(len(berth.seats) for berth in self._berths.values())

    @property
    def replicas(self) -> tuple[Replica, ...]:
        return tuple(berth.replica for berth in self._berths.values())

    def waiting_by_rank(self) -> dict[int, int]:
        """How many wait, by the tier's rank."""
        return self._queue.depths()

    def seat_now(self, ticket: QueueTicket, trail: Trail) -> Seat | None:
        """A seat, where nobody waits and there is one; else None."""
        self._queue.decay(self._now_us())
        replica_id = None if self._calls else self._choose(ticket, trail)
        if replica_id is None:
            return None
        self._queue.charge(ticket.account, ticket.cost)
        berth = self._berths[replica_id]
        return self._sit(ticket, berth, trail, width=berth.width(ticket))

    async def wait(self, ticket: QueueTicket, trail: Trail) -> Seat:
        """Wait for a seat. Cancelling the wait leaves the line, and costs nothing.

        Raises:
            RateLimited: `queue_full_for_you`: the account has too many in line already.
            Unavailable: `queue_full`.
        """
        self._check_room(ticket.account)
        future: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        self._queue.put(ticket)
        self._calls[ticket] = (future, trail, self._now_us())
        self.pump()
        try:
            return await future
        except asyncio.CancelledError:
            self._calls.pop(ticket, None)
            self._queue.drop(ticket)
            if self._let_go(ticket):
                self._queue.charge(ticket.account, -ticket.cost)
                self.pump()
            if future.done() and not future.cancelled():
                future.result().leave(tokens=0)
            raise

    def visit(self, ticket: QueueTicket) -> Seat | None:
        """A seat at the least busy replica, beyond its window: for what takes the engine little time. Only some may be
        there at once; whoever comes later waits in line.
        """
        ready = [berth for berth in self._suited(ticket) if self._open(berth) and berth.visits < VISITS_MAX]
        if not ready:
            return None
        berth = min(ready, key=lambda berth: (berth.visits, berth.taken))
        berth.visits += 1
        return self._sit(ticket, berth, (), width=0)

    @property
    def widest(self) -> int:
        """The most answers to one prompt that a replica here begins together; 0 = none is known."""
        return max((berth.replica.capacity for berth in self._berths.values()), default=0)

    def oldest_us(self) -> int:
        """How long the first in line has waited."""
        return self._now_us() - next(iter(self._calls.values()))[2] if self._calls else 0

    def avoid(self, replica_id: str) -> None:
        """Send nobody there for a moment."""
        berth = self._berths.get(replica_id)
        if berth is not None:
            berth.suspect_until = self._monotonic() + SUSPECT_S
            asyncio.get_running_loop().call_later(SUSPECT_S + 0.01, self.pump)

    def update(self, replicas: Iterable[Replica]) -> None:
        """The board changed. Whoever sits at a replica that is gone is told at once."""
        fresh = {replica.replica_id: replica for replica in replicas}
        for replica_id in [known for known in self._berths if known not in fresh or fresh[known].state == "gone"]:
            for seat in tuple(self._berths.pop(replica_id).seats):
                seat.is_lost = True
                if seat.lost is not None:
                    seat.lost()
        for replica_id, replica in fresh.items():
            if replica.state == "gone":
                continue
            berth = self._berths.setdefault(replica_id, _Berth(replica))
            if berth.replica.address != replica.address:
                berth.suspect_until = 0.0
            berth.replica = replica
            berth.window = self._window(berth)
        self.pump()

    def pump(self) -> None:
        """Seat whom there is room for. Who waits for replicas that have an adapter holds up nobody who goes to others."""
        while self._calls:
            kept: set[str] = set()
            for held in list(self._held.values()):
                if self._seated(held[0], kept):
                    break
                kept |= {berth.replica.replica_id for berth in self._suited(held[0])}
            else:
                if not any(self._has_room(berth) for name, berth in self._berths.items() if name not in kept):
                    return
                ticket = self._queue.take(self._now_us())
                if ticket is None:
                    return
                self._held.setdefault(ticket.adapter, deque()).append(ticket)

    def _seated(self, ticket: QueueTicket, kept: Collection[str]) -> bool:
        """Give a ticket whose turn it is its seat, if there is one but at those that are `kept`."""
        replica_id = self._choose(ticket, self._calls[ticket][1], kept)
        if replica_id is None:
            return False
        self._let_go(ticket)
        future, trail, _ = self._calls.pop(ticket)
        if future.done():  # left in this very moment
            self._queue.charge(ticket.account, -ticket.cost)
        else:
            berth = self._berths[replica_id]
            future.set_result(self._sit(ticket, berth, trail, width=berth.width(ticket)))
        return True

    def _let_go(self, ticket: QueueTicket) -> bool:
        """It is no longer held; whether it was."""
        held = self._held.get(ticket.adapter, ())
        if ticket not in held:
            return False
        self._held[ticket.adapter].remove(ticket)
        if not self._held[ticket.adapter]:
            del self._held[ticket.adapter]
        return True

    def left(self, seat: Seat, tokens: int | None) -> None:
        """A seat was given back."""
        berth = self._berths.get(seat.replica.replica_id)
        if berth is not None and seat in berth.seats:
            berth.seats.discard(seat)
            berth.visits -= seat.width == 0
        if tokens is not None:
            self._queue.charge(seat.ticket.account, tokens - seat.ticket.cost)
        self.pump()

    def _window(self, berth: _Berth) -> int:
        """How many of ours a replica may have: our share, and what the other gateways leave."""
        room = -(-berth.replica.capacity * _ROOM_PERCENT // 100)
        if self._gateways == 1:
            return room
        others = max(0, berth.replica.running + berth.replica.waiting - berth.taken)
        return max(1, -(-room // self._gateways), room - others)

    def _check_room(self, account: str) -> None:
        if self._queue.depth_of(account) >= WAITING_PER_ACCOUNT_MAX:
            raise RateLimited(
                f"{WAITING_PER_ACCOUNT_MAX} of your requests wait for this model already, which is all that may: try"
                " again when some are answered",
                code="queue_full_for_you",
                limit=WAITING_PER_ACCOUNT_MAX,
                retry_after_s=1,
            )
        if len(self._queue) >= WAITING_MAX:
            raise Unavailable(
                f"{WAITING_MAX} requests wait for this model already: try again in 5 s",
                code="queue_full",
                limit=WAITING_MAX,
                retry_after_s=5,
            )

    def _choose(self, ticket: QueueTicket, trail: Trail, kept: Collection[str] = ()) -> str | None:
        loads = {
            berth.replica.replica_id: max(berth.taken, berth.replica.running + berth.replica.waiting)
            for berth in self._suited(ticket)
            if berth.replica.replica_id not in kept and self._has_room(berth, width=berth.width(ticket))
        }
        return self._trails.choose(trail, loads) if loads else None

    def _suited(self, ticket: QueueTicket) -> Iterable[_Berth]:
        """Those that have what is asked for."""
        if not ticket.adapter:
            return self._berths.values()
        return [berth for berth in self._berths.values() if ticket.adapter in berth.replica.adapters]

    def _sit(self, ticket: QueueTicket, berth: _Berth, trail: Trail, *, width: int) -> Seat:
        seat = Seat(self, ticket, berth.replica, width=width)
        berth.seats.add(seat)
        self._trails.remember(trail, berth.replica.replica_id)
        return seat

    def _has_room(self, berth: _Berth, *, width: int = 1) -> bool:
        return berth.taken + width <= berth.window and self._open(berth)

    def _open(self, berth: _Berth) -> bool:
        return berth.replica.state == "ready" and berth.suspect_until <= self._monotonic()

    def _now_us(self) -> int:
        return round(self._monotonic() * 1_000_000)


class Pools:
    """A pool for each model, and one for each account that has replicas of it of its own."""

    def __init__(self, *, gateways: int = 1, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._gateways = gateways
        self._monotonic = monotonic
        self._pools: dict[tuple[str, str], Pool] = {}

    def of(self, model: str, account_id: str) -> tuple[Pool, bool]:
        """Where an account's requests for a model go, and whether its own lease covers them."""
        own = self._pools.get((model, account_id))
        if own is not None and own.replicas:
            return own, True
        return self._pool(model, ""), False

    def items(self) -> Iterable[tuple[str, str, Pool]]:
        """Every pool, with its model and the account whose own it is ("" = shared)."""
        return ((model, account_id, pool) for (model, account_id), pool in self._pools.items())

    def update(self, replicas: Iterable[Replica]) -> None:
        """The board changed."""
        groups: dict[tuple[str, str], list[Replica]] = {key: [] for key in self._pools}
        for replica in replicas:
            groups.setdefault((replica.model, replica.dedicated_to), []).append(replica)
        for (model, account_id), group in groups.items():
            self._pool(model, account_id).update(group)
        for key in [key for key, pool in self._pools.items() if not (groups.get(key) or pool.waiting or pool.seated)]:
            del self._pools[key]

    def _pool(self, model: str, account_id: str) -> Pool:
        key = (model, account_id)
        if key not in self._pools:
            self._pools[key] = Pool(gateways=self._gateways, monotonic=self._monotonic)
        return self._pools[key]
