"""Who is connected to a door, and who has to go: so many connections from an address and of an account, and not for long
without a key.

Neither gRPC nor an ASGI server bounds either, and a proxy before them would cost every call a hop. But the sockets are this
process' own: they are looked through now and then, and the ones that are too many are shut down, the newest first and those
that have shown no key before those that have. Whoever has shown one stays for as long as it likes. A connection over which
several accounts have asked is a proxy's, and counts to none of them. Where there is no `/proc`, nothing is looked through.
"""

import asyncio
import ipaddress
import os
import socket
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import structlog

LOOK_S: Final = 0.5
KEYLESS_S: Final = 20.0
"""How long a connection may stay without having shown a key."""
KEYLESS_MAX: Final = 512
"""Such connections at once, of all addresses together: each takes up to half a MB."""
KEYLESS_PART: Final = 4
"""Of those from one address, one part in this many may be without a key."""
_SHARED: Final = ""
"""In the place of an account: several, or one that isn't known."""
_SOCKETS: Final = Path("/proc/self/fd")
_PREFIX_V6: Final = 64
_LOOKED_AT_HERE: Final = 256
_NETWORKS_KEPT: Final = 16_384

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Connection:
    """One that is open."""

    inode: int
    """Of its socket: no other has it."""
    host: str
    port: int
    descriptor: int

    @property
    def peer(self) -> tuple[str, int]:
        return self.host, self.port


class Connections:
    """Those to one port of this process."""

    def __init__(
        self,
        port: int,
        *,
        per_address: int,
        per_account: int,
        keyless_s: float = KEYLESS_S,
        keyless_max: int = KEYLESS_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`watch` begins.

        Args:
            port: where they come in.
            per_address: from one address at once; of IPv6 a /64 counts as one.
            per_account: of one account at once, from whatever addresses.
            keyless_s: how long one may stay without having shown a key.
            keyless_max: so many without one, of all addresses together.
            monotonic: seconds.
        """
        self._port = port
        self._per_address = per_address
        self._per_account = per_account
        self._keyless_s = keyless_s
        self._keyless_max = keyless_max
        self._monotonic = monotonic
        self._shown: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._since: dict[int, float] = {}
        self._good: dict[int, str] = {}
        """By inode: whose key it has shown."""

    def showed_key(self, host: str, port: int, *, whose: str = _SHARED) -> None:
        """Whoever is connected from there has a key that is known: of that account."""
        self._shown[host, port].add(whose)

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        if not _SOCKETS.exists():
            return
        look = Sockets(self._port).look
        while True:
            await asyncio.sleep(LOOK_S)
            # A thread costs more than a short look, and a long look would hold up all that this process does.
            found = look() if len(self._since) < _LOOKED_AT_HERE else await asyncio.to_thread(look)
            going = self.too_many(found)
            if going:
                await asyncio.to_thread(shut_down, going, self._port)
                log.warning("connections_shut_down", count=len(going), addresses=len({each.host for each in going}))

    def too_many(self, found: Iterable[Connection]) -> list[Connection]:
        """Which of those that are open have to go."""
        now, there = self._monotonic(), {each.inode: each for each in found}
        self._since = {inode: self._since.get(inode, now) for inode in there}
        self._good = {inode: whose for inode, each in there.items() if (whose := self._whose(each)) is not None}
        self._shown.clear()
        going: dict[int, Connection] = {}
        by_address: dict[str, list[Connection]] = defaultdict(list)
        by_account: dict[str, list[Connection]] = defaultdict(list)
        # Those stay longest that have shown a key, then those that came first.
        for each in sorted(there.values(), key=lambda each: (each.inode not in self._good, self._since[each.inode])):
            by_address[network_of(each.host)].append(each)
            by_account[self._good.get(each.inode, _SHARED)].append(each)
            if each.inode not in self._good and now - self._since[each.inode] >= self._keyless_s:
                going[each.inode] = each
        by_account.pop(_SHARED, None)
        going |= {each.inode: each for several in by_account.values() for each in several[self._per_account :]}
        keyless_max = max(1, self._per_address // KEYLESS_PART)
        lines = []
        for several in by_address.values():
            keyless = [each for each in several if each.inode not in self._good]
            going |= {each.inode: each for each in several[self._per_address :] + keyless[keyless_max:]}
            lines.append([each for each in keyless if each.inode not in going])
        going |= {each.inode: each for each in _fairly(lines)[self._keyless_max :]}
        return list(going.values())

    def _whose(self, connection: Connection) -> str | None:
        """Whose key it has shown; None = nobody's."""
        names = set(self._shown.get(connection.peer, ()))
        if connection.inode in self._good:
            names.add(self._good[connection.inode])
        return None if not names else names.pop() if len(names) == 1 else _SHARED


class Sockets:
    """The connections to a port of this process. Each socket is asked once who is at its other end; only its inode later."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._known: dict[int, tuple[str, int] | None] = {}
        """By inode: the peer; None = it is no connection to the port."""

    def look(self) -> list[Connection]:
        """Those that are open now."""
        known, found = {}, []
        for name in os.listdir(_SOCKETS):  # noqa: PTH208 - twice a second: numbers, not paths
            with suppress(OSError, ValueError):
                descriptor = int(name)
                status = os.fstat(descriptor)
                if not stat.S_ISSOCK(status.st_mode):
                    continue
                inode = status.st_ino
                known[inode] = peer = self._known[inode] if inode in self._known else self._ask(descriptor)
                if peer is not None:
                    found.append(Connection(inode, *peer, descriptor))
        self._known = known
        return found

    def _ask(self, descriptor: int) -> tuple[str, int] | None:
        """Raises OSError of a socket that isn't connected, or not yet: it is asked again."""
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.getsockname()[1] != self._port:
                return None
            host, peer_port = copy.getpeername()[:2]
            return _plain(host), peer_port


def shut_down(going: Iterable[Connection], port: int) -> None:
    """End them: whoever reads them finds their end."""
    for each in going:
        with suppress(OSError), socket.socket(fileno=os.dup(each.descriptor)) as copy:
            # The descriptor may be another socket's by now; the inode tells.
            if os.fstat(copy.fileno()).st_ino == each.inode and copy.getsockname()[1] == port:
                copy.shutdown(socket.SHUT_RDWR)


@lru_cache(maxsize=_NETWORKS_KEPT)
def address_of(peer: str) -> tuple[str, int]:
    """The address in what gRPC calls a peer, `ipv4:127.0.0.1:50` or `ipv6:%5B::1%5D:50`; ("", 0) of any other."""
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return "", 0
    return _plain(host.strip("[]")), int(port)


def _plain(host: str) -> str:
    """An address as it is written shortest: IPv4 also where it comes in through a socket of IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@lru_cache(_NETWORKS_KEPT)
def network_of(host: str) -> str:
    """What counts as one address wherever addresses are counted: of IPv6 a /64, which is one customer's; what is no address
    is itself.
    """
    try:
        plain = _plain(host)
    except ValueError:
        return host
    address = ipaddress.ip_address(plain)
    return plain if address.version == 4 else str(ipaddress.ip_network((address, _PREFIX_V6), strict=False))  # noqa: PLR2004


def _fairly(several: Iterable[list[Connection]]) -> list[Connection]:
    """One of each, then the second of each, and so on: an address with many has most of the last."""
    lines = [list(each) for each in several]
    longest = max(map(len, lines), default=0)
    return [line[turn] for turn in range(longest) for line in lines if turn < len(line)]
