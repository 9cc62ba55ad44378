"""Where a door is, and what stands between: its host and port, and the proxy that the environment names.

A proxy never stands between a client and its own machine. Otherwise it is the first that is set of `grpc_proxy`, `https_proxy`
and `http_proxy`, in small or capital letters, unless `no_grpc_proxy` or `no_proxy` names the host: as itself, as the end of its
name, as a network (10.0.0.0/8), or as `*`.
"""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from fabric.errors import InvalidConfig

_NAMED: Final = re.compile(r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})):(?P<port>\d{1,5})", re.ASCII)
_NUMBERED: Final = re.compile(
    r"\[(?P<host>[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,32})?)\]:(?P<port>\d{1,5})", re.ASCII
)
_PORT_MAX: Final = 65_535
_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_PASSED: Final = ("no_grpc_proxy", "no_proxy")


class Target(NamedTuple):
    """A door."""

    host: str
    port: int

    @property
    def is_here(self) -> bool:
        """Whether it is this very machine."""
        if self.host.lower().rstrip(".") == "localhost" or self.host.lower().endswith(".localhost"):
            return True
        address = _address(self.host)
        return address is not None and (address.is_loopback or address.is_unspecified)


class Proxy(NamedTuple):
    """An HTTP proxy."""

    host: str
    port: int
    user: str = ""
    """`name:password`, or nothing."""

    def __repr__(self) -> str:
        return f"Proxy(host={self.host!r}, port={self.port})"


def parse_target(address: str) -> Target:
    """`host:port`, `10.0.0.5:50051` or `[::1]:50051`.

    Raises:
        InvalidConfig: it is none of these (`invalid_address`).
    """
    plain = address.strip()
    found = _NAMED.fullmatch(plain) or _NUMBERED.fullmatch(plain)
    if found is None:
        raise _no_address(address, _why_not(plain))
    port = int(found["port"])
    if not 0 < port <= _PORT_MAX:
        raise _no_address(address, f"a port is from 1 to {_PORT_MAX}, not {port}")
    return Target(found["host"], port)


def proxy_for(target: Target, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """What its connection goes through; None = nothing.

    Raises:
        InvalidConfig: the environment names a proxy that is none, or one of another kind (`invalid_proxy`).
    """
    if target.is_here or _is_passed(target, environ):
        return None
    name, given = next(((name, value) for name in _PROXIES if (value := _set(environ, name))), ("", ""))
    return _proxy(name, given) if given else None


def _proxy(name: str, given: str) -> Proxy:
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port, parts = None, 0, urlsplit("")
    if host is None or parts.scheme != "http":
        raise InvalidConfig(
            f"{name} in the environment is no proxy that can be used: write http://host:port, or unset it",
            code="invalid_proxy",
            variable=name,
        )
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else ""
    return Proxy(host, port, user)


def _is_passed(target: Target, environ: Mapping[str, str]) -> bool:
    host, address = target.host.lower().rstrip("."), _address(target.host)
    for entry in _entries(environ):
        if entry in {"*", host, f"{host}:{target.port}", f"[{host}]"}:
            return True
        if host.endswith(f".{entry.lstrip('*').lstrip('.')}"):
            return True
        network = _network(entry)
        if address is not None and network is not None and address.version == network.version and address in network:
            return True
    return False


def _entries(environ: Mapping[str, str]) -> Iterator[str]:
    given = next((value for name in _PASSED if (value := _set(environ, name))), "")
    yield from (entry.strip().lower() for entry in given.split(",") if entry.strip())


def _set(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip() or environ.get(name.upper(), "").strip()


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


def _why_not(plain: str) -> str:
    if "://" in plain:
        return (
            f"it is a URL; the door speaks gRPC at {urlsplit(plain).netloc or 'host:port'}, without http:// or https://"
        )
    if not re.search(r":\d+$", plain):
        return "it has no port"
    return "it is no name and no number of a host"


def _no_address(address: str, why: str) -> InvalidConfig:
    return InvalidConfig(
        f"{address!r:.200} is no address of a fabric: {why}. Write host:port, such as 10.0.0.5:50051 or [::1]:50051, into"
        " FABRIC_ADDRESS or the profile",
        code="invalid_address",
        address=address[:200],
    )
