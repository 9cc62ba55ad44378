"""A gateway behind an ingress: only the ingress is heard, and its word on who the client is counts.

The ingress takes these headers out of what clients send and puts its own in (`serving.host.haproxy`). Whoever else reaches the
gateway's address on loopback lacks the secret and gets nowhere, so nobody can claim another's address.
"""

from collections.abc import Awaitable, Callable
from hmac import compare_digest
from typing import Final

from fabric.errors import PermissionDenied
from serving.acceptor import KEY_SHOWN
from serving.gateway import refusals
from serving.gateway.exchange import Receive, Send
from serving.gateway.refusals import JSON
from serving.http_server import Scope

SECRET: Final = "x-fabric-ingress"  # noqa: S105 - the header's name
CLIENT: Final = "x-fabric-client"
"""The client's address, by the ingress' word."""
ALIVE: Final = "/-/alive"
"""Where the ingress looks whether the process still answers."""
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
_OURS: Final = frozenset({SECRET.encode(), CLIENT.encode()})


class Behind:
    """An ASGI application around a gateway's.

    Args:
        app: the gateway.
        secret: what the ingress must show.
    """

    def __init__(self, app: Application, *, secret: str) -> None:
        assert secret, "an ingress without a secret could be anybody"
        self._app, self._secret = app, secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what the ingress sends, as if its client had."""
        if scope["type"] != "http":
            return
        said = dict(scope["headers"])
        if not compare_digest(said.get(SECRET.encode(), b""), self._secret):
            no = PermissionDenied("this is a gateway behind an ingress: send requests there", code="not_the_ingress")
            await _answer(send, no.http_status, refusals.encode(no, anthropic=False))
            return
        if KEY_SHOWN in scope:
            scope[KEY_SHOWN]()
        if scope["path"] == ALIVE:
            await _answer(send, 200, b"{}")
        else:
            scope["client"] = (said.get(CLIENT.encode(), b"").decode("latin-1"), 0)
            scope["headers"] = [each for each in scope["headers"] if each[0] not in _OURS]
            await self._app(scope, receive, send)


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [JSON, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
