"""The witness's HTTP door: one call, bounded in bytes, time and how many at once. Put TLS in front of it where it is public."""

import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from fabric.audit.witness.requests import BODY_BYTES
from fabric.audit.witness.witness import Answer, Witness

CONNECTIONS = 64
"""At once; more are closed unheard, and come again."""
LIFE_S = 60.0
"""A connection is cut after it, whoever says what how slowly."""
SILENT_S = 10.0


class WitnessServer(socketserver.ThreadingMixIn, HTTPServer):
    """Listens as soon as it is made; `serve_forever` answers."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], witness: Witness, *, clock: Callable[[], float] = time.time) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.witness, self.clock = witness, clock
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        cut = threading.Timer(LIFE_S, _cut, [request])
        cut.daemon = True
        cut.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            cut.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nobody's error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SILENT_S
    server: WitnessServer

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        known = length.isascii() and length.isdecimal() and "Transfer-Encoding" not in self.headers
        if not known:
            self.close_connection = True
            self._say(Answer(411, "say how long the body is\n"))
        elif len(length) > len(str(BODY_BYTES)) or int(length) > BODY_BYTES:
            self.close_connection = True
            self._say(Answer(413, f"a request has {BODY_BYTES} bytes at most\n"))
        else:
            body = self.rfile.read(int(length))
            if self.path != "/add-checkpoint":
                self._say(Answer(404, "there is /add-checkpoint\n"))
            else:
                self._say(self.server.witness.add_checkpoint(body, at_s=int(self.server.clock())))

    def do_GET(self) -> None:
        """Who it is, for people."""
        witness = self.server.witness
        lines = [f"witness {witness.cosigner.key}", *(f"log {key}" for keys in witness.logs.values() for key in keys)]
        self._say(Answer(200, "".join(f"{line}\n" for line in lines)))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the library calls it
        """Requests aren't logged: a witness says what others should look at, and nothing else."""

    def _say(self, answer: Answer) -> None:
        body = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _cut(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
