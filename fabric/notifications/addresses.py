"""Where customers' webhooks may lead: to public addresses, and to private networks that the operator has named.

A name is resolved, each address that it has is looked at, and only those that are allowed are handed to whoever connects, so
that another answer a moment later leads nowhere else.
"""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

from fabric.errors import PermissionDenied

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_LOW_32: Final = 2**32 - 1


def networks(named: Sequence[str]) -> tuple[Network, ...]:
    """From their names, as 10.0.0.0/8.

    Raises:
        ValueError: one isn't a network.
    """
    return tuple(ipaddress.ip_network(each) for each in named)


def is_allowed(address: str, private: Sequence[Network]) -> bool:
    """Whether a webhook may lead there."""
    try:
        found = _meant(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return False
    if any(found in network for network in private if network.version == found.version):
        return True
    return found.is_global and not found.is_multicast


def is_named(address: str, private: Sequence[Network]) -> bool:
    """Whether it is of a network that the operator has named."""
    return is_allowed(address, private) and not is_allowed(address, ())


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one leads to, if it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & _LOW_32)
        return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else address)
    return address


class CheckedResolver(AbstractResolver):
    """Gives those who connect the addresses that are allowed, and no others."""

    def __init__(self, lookup: Lookup, private: Sequence[Network], *, public_only: bool = True) -> None:
        """Name the rules.

        Args:
            lookup: the addresses of a host.
            private: networks that the operator has named.
            public_only: False = what comes over plain HTTP, which only those networks may have.
        """
        self._lookup = lookup
        self._private = private
        self._plain = not public_only

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - all are looked at
    ) -> list[ResolveResult]:
        """The addresses to connect to.

        Raises:
            PermissionDenied: it has none that is allowed: code `address_not_allowed`.
        """
        allowed = is_named if self._plain else is_allowed
        found = await self._lookup(host, port)
        good = [address for address in found if allowed(address, self._private)]
        if not good:
            raise not_allowed(host, plain=self._plain)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in good
        ]

    async def close(self) -> None:
        """Nothing is kept."""


def not_allowed(host: str, *, plain: bool) -> PermissionDenied:
    """The refusal of a host."""
    why = "has no address in a network that the operator allows without TLS" if plain else "has no public address"
    return PermissionDenied(f"{host} {why}", code="address_not_allowed", host=host)
