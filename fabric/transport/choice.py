"""Which of the two transports there is, with the options that both are made with."""

import importlib.util
from typing import Any, Final, NamedTuple

from fabric.transport.target import Proxy, Target, parse_target, proxy_for
from fabric.wire import keepalive

MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    *keepalive.CLIENT,
    ("grpc.enable_http_proxy", 0),  # which one, if any, is said below
)


class Trust(NamedTuple):
    """Whose certificates are believed."""

    pem: bytes | None
    """Authorities; None = the system's own."""


def has_grpcio() -> bool:
    """Whether gRPC's own library is installed."""
    return importlib.util.find_spec("grpc") is not None


def channel_to(address: str, trust: Trust) -> Any:
    """A channel, lazily connected, as `grpc.secure_channel` makes it.

    Raises:
        InvalidConfig: the address, or the proxy that the environment names, is none.
    """
    target = parse_target(address)
    proxy = proxy_for(target)
    if not has_grpcio():
        from fabric.transport import http2  # noqa: PLC0415  # the one or the other is imported, and not before it is used

        return http2.Channel(target, pem=trust.pem, proxy=proxy)
    import grpc  # noqa: PLC0415

    credentials = grpc.ssl_channel_credentials(root_certificates=trust.pem)
    return grpc.secure_channel(written(target), credentials, options=options_for(OPTIONS, proxy))


def options_for(options: tuple[tuple[str, Any], ...], proxy: Proxy | None) -> tuple[tuple[str, Any], ...]:
    """Options of a gRPC channel that goes through this proxy, or through none whatever the environment says."""
    plain = tuple(each for each in options if each[0] != "grpc.enable_http_proxy")
    if proxy is None:
        return (*plain, ("grpc.enable_http_proxy", 0))
    user = f"{proxy.user}@" if proxy.user else ""
    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
    return (*plain, ("grpc.enable_http_proxy", 1), ("grpc.http_proxy", f"http://{user}{host}:{proxy.port}"))


def written(target: Target) -> str:
    """As gRPC and HTTP write it."""
    return f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"


def failures() -> tuple[type[Exception], ...]:
    """What a call raises that fails, whichever transport there is."""
    from fabric.transport.failure import CallFailed  # noqa: PLC0415

    if not has_grpcio():
        return (CallFailed,)
    import grpc  # noqa: PLC0415

    return (CallFailed, grpc.RpcError)


def status_of(error: Any) -> str:
    """GRPC's name of how a call failed."""
    name: str = error.code().name
    return name
