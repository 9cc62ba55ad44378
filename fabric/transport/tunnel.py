"""A socket to a door through an HTTP proxy, by CONNECT."""

import base64
import socket
from typing import Final

from fabric.transport.failure import CallFailed, Status
from fabric.transport.target import Proxy, Target

_ANSWER_BYTES_MAX: Final = 16 * 1024
_END: Final = b"\r\n\r\n"


def tunnel(proxy: Proxy, target: Target, *, timeout_s: float) -> socket.socket:
    """Connected to the door as if to itself.

    Raises:
        CallFailed: the proxy can't be reached, or does not let it through.
    """
    named = f"proxy {proxy.host}:{proxy.port}"
    try:
        way = socket.create_connection((proxy.host, proxy.port), timeout=timeout_s)
    except OSError as error:
        raise CallFailed(Status.UNAVAILABLE, f"{named}: {error}") from None
    try:
        way.sendall(_request(proxy, target))
        said = _answer(way)
    except OSError as error:
        said = str(error)
    if said.split(" ")[1:2] != ["200"]:
        way.close()
        raise CallFailed(
            Status.UNAVAILABLE, f"{named} lets nothing through: {said[:200] or 'it closed the connection'}"
        )
    way.setblocking(False)  # noqa: FBT003  # its one argument
    return way


def _answer(way: socket.socket) -> str:
    """The proxy's first line, once all of its head is read."""
    answer = bytearray()
    while _END not in answer and len(answer) < _ANSWER_BYTES_MAX:
        piece = way.recv(1)  # no more than the head: what follows is the door's
        if not piece:
            break
        answer += piece
    return bytes(answer.split(b"\r\n", 1)[0]).decode(errors="replace")


def _request(proxy: Proxy, target: Target) -> bytes:
    where = f"[{target.host}]:{target.port}" if ":" in target.host else f"{target.host}:{target.port}"
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if proxy.user:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(proxy.user.encode()).decode()}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
