"""Who is let in at a listening socket: bounds that hold as connections come, and turns for TLS handshakes.

An ASGI server takes whatever comes, and by the time anybody looks thousands of half handshakes are held, each of 100 kB.
Here a connection is counted as it is accepted. Whoever hasn't shown a key has little room, for a short time, and makes way
for the next: of the address with most of them the oldest goes, so that an honest client, who shows a key at once, gets in
beside a flood. Handshakes begin in turns, one of each address, so that an address with thousands waits for itself.

Idea: sshd's MaxStartups, and the kernel's own line of half-open connections. The gate's door can't be bounded so, as gRPC
accepts by itself: see `fabric.api.connections`.
"""

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from fabric.api.connections import network_of

KEY_SHOWN: Final = "fabric.key_shown"
"""In the scope of a request: says that its connection has shown a key that is known."""
HANDSHAKE_S: Final = 10.0
"""How long TLS may take, the wait for a turn not counted."""
SWEEP_S: Final = 1.0
_ACCEPTED_AT_ONCE: Final = 32
_BEGUN_AT_ONCE: Final = 4
_SHUTDOWN_S: Final = 5.0
"""How long TLS may take to end."""
_NO_FILES_S: Final = 0.2
_ROOM_PART: Final = 16
"""When there is no room, one part in so many is made free at once: to choose costs more than to close."""
_SPARE_FILES: Final = 256

_log = structlog.get_logger("acceptor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many connections there may be at once.

    Args:
        most: of all; each may need another to what is behind, so the process' limit of open files bounds it too.
        per_address: from one address; of IPv6 a /64 counts as one.
        keyless: of all that haven't shown a key.
        keyless_per_address: of these from one address.
        keyless_s: how long one may stay without having shown a key.
        address_part: of all, one address may have one part in this many, where that is less.
        account_part: of all, those that have shown keys of one account may be one part in this many.
    """

    most: int
    per_address: int
    keyless: int
    keyless_per_address: int
    keyless_s: float = 20.0
    address_part: int = 1
    account_part: int = 1

    @property
    def per_account(self) -> int:
        """That have shown keys of one account."""
        return max(1, self.most // self.account_part)

    def within(self, most: int) -> "Bounds":
        """The same where there can't be more than `most`: nobody's part is more than there is."""
        most = min(self.most, most)
        per_address = min(self.per_address, max(1, most // self.address_part))
        keyless = min(self.keyless, most)
        return replace(
            self,
            most=most,
            per_address=per_address,
            keyless=keyless,
            keyless_per_address=min(self.keyless_per_address, per_address, keyless),
        )


class Served(asyncio.Protocol):
    """A protocol that says when its connection is open, and when it is closed."""

    guest: "Guest | None" = None


class Guest:
    """One connection."""

    __slots__ = ("_acceptor", "network", "opening", "since", "socket", "transport")

    def __init__(self, acceptor: "Acceptor", opened: socket.socket, network: str, since: float) -> None:
        self._acceptor = acceptor
        self.socket = opened
        self.network = network
        self.since = since
        self.opening: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        """Once it is open, TLS included."""

    def showed_key(self, whose: str = "") -> bool:
        """It may stay for as long as it likes, unless the account whose key it is has as many as it may: whether it may."""
        return self._acceptor.keep(self, whose)

    def gone(self) -> None:
        """It is closed."""
        self._acceptor.forget(self)

    def opened(self, opening: asyncio.Task[None]) -> None:
        """Its handshake is over, one way or the other."""
        self.opening = None
        if opening.cancelled():
            self.socket.close()

    def cut(self) -> None:
        """Close it at once, whatever it is at."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()
        else:
            self.socket.close()


class Guests:
    """Who is there: decides who goes, and closes nothing itself."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._of: dict[str, int] = {}
        """How many each address has."""
        self._keyless: OrderedDict[Guest, None] = OrderedDict()
        self._keyless_of: dict[str, OrderedDict[Guest, None]] = {}
        self._with_key: dict[Guest, str] = {}
        """And whose key; "" = several accounts', so a proxy's, or one that isn't known."""
        self._of_account: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._keyless) + len(self._with_key)

    def come(self, guest: Guest) -> list[Guest]:
        """Count one more. Who has to go for it: itself, if all others from there, or all others, have shown keys."""
        bounds, going = self._bounds, []
        own = self._keyless_of.get(guest.network, OrderedDict())
        if self._of.get(guest.network, 0) >= bounds.per_address or len(own) >= bounds.keyless_per_address:
            if not own:
                return [guest]
            going.append(next(iter(own)))
        elif len(self._keyless) >= bounds.keyless:
            going += self._too_many(bounds.keyless)
        elif len(self) >= bounds.most:
            if not self._keyless:
                return [guest]
            going += self._too_many(len(self._keyless))
        for each in going:
            self.go(each)
        self._of[guest.network] = self._of.get(guest.network, 0) + 1
        self._keyless[guest] = None
        self._keyless_of.setdefault(guest.network, OrderedDict())[guest] = None
        return going

    def showed_key(self, guest: Guest, whose: str = "") -> bool:
        """Whether it may stay for it: an account may have so many."""
        if guest in self._keyless:
            if whose and self._of_account[whose] >= self._bounds.per_account:
                return False
            self._drop_keyless(guest)
            self._with_key[guest] = whose
            self._of_account[whose] += 1
        elif self._with_key.get(guest, whose) != whose:
            self._drop_with_key(guest)
            self._with_key[guest] = ""
            self._of_account[""] += 1
        return True

    def go(self, guest: Guest) -> None:
        """Count it no more; a second time does nothing."""
        if guest in self._keyless:
            self._drop_keyless(guest)
        elif guest in self._with_key:
            self._drop_with_key(guest)
        else:
            return
        self._of[guest.network] -= 1
        if not self._of[guest.network]:
            del self._of[guest.network]

    def without_key(self) -> list[Guest]:
        return list(self._keyless)

    def late(self, now: float) -> list[Guest]:
        """Who has shown no key for too long."""
        found = []
        for guest in self._keyless:  # in the order they came
            if now - guest.since < self._bounds.keyless_s:
                break
            found.append(guest)
        return found

    def _too_many(self, count: int) -> list[Guest]:
        """Some without a key: of the addresses with most of them the oldest first."""
        newer: dict[Guest, int] = {}
        for own in self._keyless_of.values():
            newer.update((guest, len(own) - 1 - place) for place, guest in enumerate(own))
        going = sorted(newer, key=lambda guest: (-newer[guest], guest.since))
        return going[: max(1, count // _ROOM_PART)]

    def _drop_with_key(self, guest: Guest) -> None:
        whose = self._with_key.pop(guest)
        self._of_account[whose] -= 1
        if not self._of_account[whose]:
            del self._of_account[whose]

    def _drop_keyless(self, guest: Guest) -> None:
        del self._keyless[guest]
        own = self._keyless_of[guest.network]
        del own[guest]
        if not own:
            del self._keyless_of[guest.network]


class Acceptor:
    """Takes what comes at one listening socket, from `open` to `close`. Its connections live on after that.

    Args:
        listening: the socket; it stays the caller's to close.
        make: a protocol for a connection.
        tls: the certificate and how it is shown; None = plain.
        bounds: how many there may be.
        monotonic: seconds.
    """

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[], Served],
        *,
        tls: ssl.SSLContext | None,
        bounds: Bounds,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listening = listening
        self._make = make
        self._tls = tls
        self._monotonic = monotonic
        self._guests = Guests(bounds)
        self._waiting: OrderedDict[str, deque[Guest]] = OrderedDict()
        """Whose turn it is next comes first; by address."""
        self._turns: asyncio.Handle | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._cut = 0
        """Since it was last told of."""

    def open(self) -> None:
        """Begin, in the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._listening.setblocking(False)  # noqa: FBT003 - its name
        self._accept_again()
        self._sweep()

    def close(self) -> None:
        """Take no more. Who waits for a turn, or is in a handshake, is cut: nobody would hear of it any more."""
        self._loop.remove_reader(self._listening.fileno())
        for timer in self._timers.values():
            timer.cancel()
        if self._turns is not None:
            self._turns.cancel()
        for guest in self._guests.without_key():
            if guest.transport is None:
                self._guests.go(guest)
                guest.cut()
        self._waiting.clear()

    def keep(self, guest: Guest, whose: str) -> bool:
        """It has shown a key; whether it may stay for that."""
        return self._guests.showed_key(guest, whose)

    def forget(self, guest: Guest) -> None:
        """It is closed."""
        self._guests.go(guest)

    def _accept_again(self) -> None:
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                opened, peer = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError as error:  # no more files, or memory: some will be free again
                _log.warning("accepts_nothing", error=str(error))
                self._loop.remove_reader(self._listening.fileno())
                self._timers["accept"] = self._loop.call_later(_NO_FILES_S, self._accept_again)
                break
            self._come(opened, peer[0])
        if self._waiting and self._turns is None:
            self._turns = self._loop.call_soon(self._begin_some)

    def _come(self, opened: socket.socket, host: str) -> None:
        opened.setblocking(False)  # noqa: FBT003 - its name
        guest = Guest(self, opened, network_of(host), self._monotonic())
        for each in (going := self._guests.come(guest)):
            each.cut()
        self._cut += len(going)
        if guest not in going:
            self._waiting.setdefault(guest.network, deque()).append(guest)

    def _begin_some(self) -> None:
        """One of each address, and then one more of each."""
        self._turns = None
        begun = 0
        while self._waiting and begun < _BEGUN_AT_ONCE:
            network, line = self._waiting.popitem(last=False)
            while line and (guest := line.popleft()):
                if guest.socket.fileno() >= 0:  # it didn't have to make way meanwhile
                    guest.opening = self._loop.create_task(self._begin(guest))
                    guest.opening.add_done_callback(guest.opened)
                    begun += 1
                    break
            if line:
                self._waiting[network] = line
        if self._waiting:
            self._turns = self._loop.call_soon(self._begin_some)

    async def _begin(self, guest: Guest) -> None:
        guest.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limits = {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": _SHUTDOWN_S} if self._tls else {}
        made = self._make()
        made.guest = guest
        try:
            await self._loop.connect_accepted_socket(lambda: made, guest.socket, ssl=self._tls, **limits)
        except OSError:  # no TLS, or no more: nobody wants to know
            self._guests.go(guest)

    def _sweep(self) -> None:
        for guest in (late := self._guests.late(self._monotonic())):
            self._guests.go(guest)
            guest.cut()
        self._cut += len(late)
        if self._cut:
            _log.warning("connections_cut", count=self._cut, left=len(self._guests))
            self._cut = 0
        self._timers["sweep"] = self._loop.call_later(SWEEP_S, self._sweep)


def files_for(most: int) -> int:
    """How many connections the process' limit of open files allows, where each may be two; `most` at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, (soft - _SPARE_FILES) // 2))


def raise_limit_of_files() -> None:
    """To what the system lets the process have: each stream is two sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
