"""A stand-in for a bucket on a bad day: a proxy before the real (moto's) one that fails requests as it is told."""

import http.client
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
SLOW_DOWN = (503, "SlowDown")
INTERNAL = (500, "InternalError")
UNAVAILABLE = (503, "ServiceUnavailable")
EXPIRED = (400, "ExpiredToken")
DENIED = (403, "AccessDenied")
DROP_BEFORE, DROP_AFTER, TRUNCATE, HANG = "drop before", "drop after", "truncate", "hang"


@dataclass
class Request:
    number: int
    method: str
    path: str
    access_key_id: str


@dataclass
class FaultyBucket:
    """`fault_of` says what becomes of a request: None = all is well, (status, code), or one of the words above."""

    target: str
    fault_of: object = staticmethod(lambda _request: None)
    seen: list[Request] = field(default_factory=list)
    hang_s: float = 1.0
    unheard: str = ""
    """A header that the bucket doesn't know."""

    def __post_init__(self):
        proxy, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                authorization = self.headers.get("Authorization", "")
                key_id = authorization.partition("Credential=")[2].partition("/")[0]
                with lock:
                    request = Request(len(proxy.seen), self.command, self.path, key_id)
                    proxy.seen.append(request)
                fault = proxy.fault_of(request)
                if isinstance(fault, tuple):
                    return self.reply(fault[0], {}, ERROR.format(code=fault[1]).encode())
                if fault == HANG:
                    time.sleep(proxy.hang_s)
                if fault in {DROP_BEFORE, HANG}:
                    self.close_connection = True
                    return None
                upstream = http.client.HTTPConnection(urlsplit(proxy.target).netloc)
                try:
                    heard = {name: said for name, said in self.headers.items() if name.lower() != proxy.unheard}
                    upstream.request(self.command, self.path, body, heard)
                    found = upstream.getresponse()
                    data, headers = found.read(), dict(found.getheaders())
                finally:
                    upstream.close()
                if fault == DROP_AFTER:
                    self.close_connection = True
                    return None
                return self.reply(found.status, headers, data, cut=fault == TRUNCATE)

            def reply(self, status, headers, data, *, cut=False):
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                        self.send_header(name, value)
                length = headers.get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
