"""The public address: what clients call it, and which certificate they see there."""

import fcntl
import socket
from pathlib import Path

from fabric.api.tls import ensure_certificate
from fabric.errors import InvalidConfig
from serving.gateway.server import is_loopback, split

Files = tuple[Path, Path]


def endpoint_of(host: str, port: int, *, is_plain: bool) -> str:
    """The base URL for clients of what listens at an address."""
    reached = "localhost" if is_loopback(host) else names_of(host)[-1]
    return f"{'http' if is_plain else 'https'}://{f'[{reached}]' if ':' in reached else reached}:{port}/v1"


def certificate_of(
    listen: str, state_dir: Path, *, cert: Path | None, key: Path | None, is_plain: bool
) -> Files | None:
    """The files of the certificate for an address and of its key: those that are given, else the fabric's own, made
    where it is wanted first. None = HTTP without one.

    Raises:
        InvalidConfig: `no_tls`: one file without the other.
    """
    if cert or key:
        if not (cert and key):
            raise InvalidConfig("give --tls-cert and --tls-key together", code="no_tls")
        return cert, key
    if is_plain:
        return None
    host, _ = split(listen)
    lock = state_dir / "serving" / "tls.lock"
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock.open("w") as held:  # several gateways start at once, and one makes it
        fcntl.flock(held, fcntl.LOCK_EX)
        files = ensure_certificate(state_dir, hosts=() if is_loopback(host) else names_of(host), name="gateway")
    return files.cert, files.key


def names_of(host: str) -> tuple[str, ...]:
    """What clients may call a host that is listened on; an address that means all of the machine's has its names."""
    return (socket.gethostname(), socket.getfqdn()) if host in {"0.0.0.0", "::"} else (host,)  # noqa: S104
