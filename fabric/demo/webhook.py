"""A customer's own server, as the demo plays it: listens on this machine, and believes only what is signed with its secret."""

import base64
import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

BODY_MAX: Final = 64 * 1024


class Listener:
    """Keeps what it is told, by the notice's id: told again it is the same."""

    def __init__(self) -> None:
        self.secret = ""
        """What the fabric signs with; said once, when the endpoint is added."""
        self._told: dict[str, dict[str, Any]] = {}
        self._more = threading.Condition()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(min(int(self.headers.get("content-length", 0)), BODY_MAX))
                self.send_response(204 if listener.hear(dict(self.headers.items()), body) else 401)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing: the demo says what it was told."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def hear(self, headers: dict[str, str], body: bytes) -> bool:
        """Whether it is signed as it should be; then it is kept."""
        named = {name.lower(): value for name, value in headers.items()}
        notice_id = named.get("webhook-id", "")
        said = f"{notice_id}.{named.get('webhook-timestamp', '')}.".encode() + body
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        mine = "v1," + base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()
        if not any(hmac.compare_digest(mine, each) for each in named.get("webhook-signature", "").split()):
            return False
        with self._more:
            self._told[notice_id] = json.loads(body)
            self._more.notify_all()
        return True

    def wait(self, kind: str, *, timeout_s: float) -> list[dict[str, Any]]:
        """All that it was told, once something of this kind is among it."""
        with self._more:
            there = self._more.wait_for(lambda: kind in self._kinds(), timeout_s)
            assert there, f"no notice of {kind} came within {timeout_s:g} s"
            return list(self._told.values())

    def _kinds(self) -> list[str]:
        return [each["type"] for each in self._told.values()]
