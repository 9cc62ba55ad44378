"""`python -m serving.gateway`: one gateway process, beside others on the same port.

It finds its fabric in a state directory, as `fabric up` leaves it: the door's address, the operator's key, the certificate,
and, below `serving/`, the secrets that all gateways and replicas of the fabric share, which the first to need them makes.
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import structlog
import uvloop

from fabric import daemon, logs
from fabric.client.profile import Profile
from fabric.errors import FabricError, InvalidConfig, Unavailable
from fabric.gate.key_scopes import KeyScope
from serving.fabric_client import FabricClient
from serving.gateway.address import certificate_of, endpoint_of
from serving.gateway.app import Gateway, Limits
from serving.gateway.fabric_directory import FabricDirectory
from serving.gateway.server import PER_ADDRESS, GatewayServer, bind

_SECRET_BYTES: Final = 32


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM; 0 after an orderly end."""
    given = _parser().parse_args(argv)
    _log_to_standard_error(given.log_level)
    try:
        uvloop.run(_serve(given))
    except FabricError as error:
        structlog.get_logger("gateway").error("ended", code=error.code, error=error.message)
        return error.exit_code
    return 0


def secret_of(state_dir: Path, name: str) -> str:
    """A secret that all processes of a fabric share, made by the first that asks: 256 bits, as hex.

    Raises:
        InvalidConfig: the file is there and holds no secret, or can't be written.
    """
    file = state_dir / "serving" / name
    fresh = file.with_name(f"{name}.{os.getpid()}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not file.exists():
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                out.write(secrets.token_hex(_SECRET_BYTES))
            try:
                os.link(fresh, file)  # of two who make it at once, one does
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        secret = file.read_text().strip()
    except OSError as error:
        raise InvalidConfig(f"can't keep a secret in {file}: {error.strerror}", code="no_secret") from None
    if len(secret) < _SECRET_BYTES:
        raise InvalidConfig(
            f"{file} holds no secret: remove it, and all gateways and replicas get a new one", code="no_secret"
        )
    return secret


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.gateway", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="of the fabric that is up")
    parser.add_argument(
        "--listen", default="127.0.0.1:8080", help="host:port for clients; several processes may share it"
    )
    parser.add_argument("--admin", help="loopback host:port for metrics; none if not given")
    parser.add_argument("--name", help="unique among the gateways that run; made up if not given")
    parser.add_argument("--gateways", type=int, default=1, help="how many share the replicas, this one included")
    parser.add_argument("--endpoint", help="the URL clients use, where it isn't the one that follows from --listen")
    parser.add_argument("--tls-cert", type=Path, help="PEM; the fabric's own certificate if not given")
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--plain", action="store_true", help="HTTP without TLS, on loopback only")
    parser.add_argument(
        "--behind-ingress", action="store_true", help="hear only the fabric's ingress, over HTTP on loopback"
    )
    parser.add_argument("--requests-per-s", type=int, default=Limits().requests_per_s, help="of one account")
    parser.add_argument("--origin", action="append", default=[], help="whose pages may ask from a browser; * = all")
    parser.add_argument("--per-address", type=int, default=PER_ADDRESS, help="connections from one address at once")
    parser.add_argument(
        "--wait-s", type=float, default=Limits().wait_s, help="how long a request may wait for a replica"
    )
    parser.add_argument("--grace-s", type=int, default=120, help="how long streams may take to finish at the end")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


async def _serve(given: argparse.Namespace) -> None:
    state_dir = given.state_dir.absolute()
    found = daemon.running(state_dir) or daemon.state_dir.last_running(state_dir)
    if found is None:
        raise InvalidConfig(f"no fabric was ever up in {state_dir}: `fabric up` first", code="no_fabric")
    files = None
    if not given.behind_ingress:
        files = certificate_of(given.listen, state_dir, cert=given.tls_cert, key=given.tls_key, is_plain=given.plain)
    public = bind(given.listen, shared=not given.behind_ingress)
    host, port = public.getsockname()[:2]
    endpoint = given.endpoint or endpoint_of(host, port, is_plain=files is None)
    name = given.name or f"gateway-{secrets.token_hex(8)}"
    ledger = FabricClient(
        Profile(address=found.address, api_key=daemon.role_key(state_dir, KeyScope.GATEWAY), ca=found.ca)
    )
    try:
        gateway = Gateway(
            FabricDirectory(ledger, name=name, endpoint=endpoint),
            trust=secret_of(state_dir, "trust"),
            repeats_file=state_dir / "serving" / "repeats.sqlite",
            limits=Limits(requests_per_s=given.requests_per_s, wait_s=given.wait_s),
            gateways=given.gateways,
            rate_shares=1 if given.behind_ingress else given.gateways,
            origins=given.origin,
            name=name,
        )
        admin = _bound_admin(given.admin) if given.admin else None
        server = GatewayServer(
            gateway,
            public,
            admin=admin,
            cert=files[0] if files else None,
            key=files[1] if files else None,
            grace_s=given.grace_s,
            ingress_secret=secret_of(state_dir, "ingress") if given.behind_ingress else "",
            per_address=given.per_address,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.stop)
        said = {
            "endpoint": endpoint,
            "address": f"{host}:{port}",
            "admin": "{}:{}".format(*admin.getsockname()[:2]) if admin else "",
            "name": name,
        }
        print(json.dumps(said), flush=True)  # noqa: T201 - whoever started us reads where we are
        await server.serve()
    finally:
        await ledger.close()


def _bound_admin(address: str) -> socket.socket | None:
    """Where metrics are read; None where somebody else listens: whoever is served doesn't wait for that."""
    try:
        return bind(address, shared=False)
    except Unavailable as error:
        structlog.get_logger("gateway").warning("no_metrics", code=error.code, error=error.message)
        return None


_LINES: Final = json.JSONEncoder(default=repr)


def _log_to_standard_error(level: str) -> None:
    """Lines of JSON, each in one write: machines read them."""
    logs.begin(level)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(lambda said, **_: _LINES.encode(said)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    sys.exit(main())
