"""How soon either end of a connection notices that the other has fallen silent: it hangs, or a network swallows what is sent.

A call that waits asks again and again whether somebody is there (HTTP/2 pings); whoever is alive answers, however long the
call itself may take. So a long answer is told from none at all.
"""

from typing import Final

PING_MS: Final = 4_000
"""How long nothing may come, while a call waits, until it is asked whether somebody is there."""
PONG_MS: Final = 4_000
"""How long the answer to that may take."""
CONNECT_MS: Final = 5_000
"""How long a connection may take to come about, with all that TLS says at its beginning."""
CLIENT: Final = (
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PONG_MS),
    ("grpc.http2.ping_timeout_ms", PONG_MS),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
SERVER: Final = (
    ("grpc.http2.min_ping_interval_without_data_ms", PING_MS // 2),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
"""It takes the pings of clients, and lets go of those that are gone without a word: their streams count as open until then."""
_SILENCE: Final = ("ping timeout", "ping_timeout", "keepalive", "handshake read failed", "handshake timed out")


def tells_of_silence(details: str) -> bool:
    """Whether what gRPC says of a failed call means that nobody answers, rather than that nobody is there."""
    said = details.lower()
    return any(words in said for words in _SILENCE)
