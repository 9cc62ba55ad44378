"""An HTTP/2 client that minds the protocol's rules and no manners: it begins what it doesn't end."""

import selectors
import socket
import ssl
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
FRAME_MAX = 16_384
WINDOW = 65_535


def literal(name, value):
    """A header, literally: HPACK without its tables."""
    return b"\x00" + _sized(name) + _sized(value)


def _sized(text):
    raw = text.encode()
    size, out = len(raw), bytearray()
    if size < 127:
        return bytes((size,)) + raw
    out.append(127)
    size -= 127
    while size >= 128:
        out.append(size % 128 + 128)
        size //= 128
    out.append(size)
    return bytes(out) + raw


class Connection:
    """One TLS connection to the door."""

    def __init__(self, address, ca, *, source=None):
        host, _, port = address.rpartition(":")
        context = ssl.create_default_context(cafile=ca)
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((host, int(port)), 10, source_address=None if source is None else (source, 0))
        self.socket = context.wrap_socket(plain, server_hostname="localhost")
        self.socket.sendall(PREFACE + self._frame(SETTINGS, 0, 0, b""))
        self.socket.settimeout(0)
        self.windows, self.window, self.initial = {}, WINDOW, WINDOW
        self.ended, self.closed = set(), False
        self._unread = b""

    def call(self, stream, path, *, key=""):
        """The headers of a call: nothing of its message."""
        headers = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "localhost")]
        headers += [("te", "trailers"), ("content-type", "application/grpc")]
        headers += [("authorization", f"Bearer {key}")] if key else []
        block = b"".join(literal(name, value) for name, value in headers)
        self.windows[stream] = self.initial
        self._send(self._frame(HEADERS, END_HEADERS, stream, block))

    def pour(self, streams, size, *, seconds):
        """Send up to so much on each as the other side lets us, and never the end. Returns how much went out."""
        left = dict.fromkeys(streams, size)
        first, sent, deadline = set(streams), 0, time.monotonic() + seconds
        while left and not self.closed and time.monotonic() < deadline:
            self.hear(0.02)
            for stream in list(left):
                if stream in self.ended or not left[stream]:
                    del left[stream]
                    continue
                room = min(left[stream], FRAME_MAX, self.window, self.windows[stream])
                if room < 5:
                    continue
                begin = struct.pack(">BI", 0, size) if stream in first else b""
                first.discard(stream)
                self.window -= room
                self.windows[stream] -= room
                left[stream] -= room
                sent += room
                self._send(self._frame(DATA, 0, stream, begin + b"x" * (room - len(begin))))
        return sent

    def hear(self, seconds):
        """Take in what the other side says, for so long at most."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(self.socket, selectors.EVENT_READ)
            while not self.closed:
                try:
                    got = self.socket.recv(65_536)
                except (ssl.SSLWantReadError, BlockingIOError):
                    left = deadline - time.monotonic()
                    if left <= 0 or not ready.select(left):
                        return
                    continue
                except OSError:
                    got = b""
                if not got:
                    self.closed = True
                    return
                self._unread += got
                self._take()

    def close(self):
        self.socket.close()

    def _take(self):
        while len(self._unread) >= 9:
            size = int.from_bytes(self._unread[:3])
            kind, flags = self._unread[3], self._unread[4]
            stream = int.from_bytes(self._unread[5:9]) & 0x7FFFFFFF
            if len(self._unread) < 9 + size:
                return
            body, self._unread = self._unread[9 : 9 + size], self._unread[9 + size :]
            self._heed(kind, flags, stream, body)

    def _heed(self, kind, flags, stream, body):
        match kind:
            case 4 if not flags & ACK:
                for at in range(0, len(body), 6):
                    name, value = struct.unpack(">HI", body[at : at + 6])
                    if name == 4:
                        self.windows = {each: had + value - self.initial for each, had in self.windows.items()}
                        self.initial = value
                self._send(self._frame(SETTINGS, ACK, 0, b""))
            case 6 if not flags & ACK:
                self._send(self._frame(PING, ACK, 0, body))
            case 8:
                more = int.from_bytes(body) & 0x7FFFFFFF
                if stream:
                    self.windows[stream] = self.windows.get(stream, self.initial) + more
                else:
                    self.window += more
            case 3:
                self.ended.add(stream)
            case 0 | 1 if flags & END_STREAM:
                self.ended.add(stream)
            case 7:
                self.goaway = True

    def _send(self, raw):
        while raw and not self.closed:
            try:
                raw = raw[self.socket.send(raw) :]
            except (ssl.SSLWantWriteError, BlockingIOError):
                self.hear(0.005)
            except OSError:
                self.closed = True

    @staticmethod
    def _frame(kind, flags, stream, body):
        return len(body).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + body
