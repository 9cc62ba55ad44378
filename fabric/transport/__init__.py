"""How a client's calls get to a door: gRPC's own library where it is installed, else HTTP/2 in plain Python.

Both are called alike, with the part of grpcio's surface that our clients use. Knows bytes, no messages of ours. A client
that is installed alone has no grpcio, which is larger than all else together; a cluster's nodes have.
"""

from fabric.transport.choice import Trust, channel_to, failures, options_for, status_of, written
from fabric.transport.target import Proxy, Target, parse_target, proxy_for
from fabric.wire.keepalive import tells_of_silence

__all__ = [
    "Proxy",
    "Target",
    "Trust",
    "channel_to",
    "failures",
    "options_for",
    "parse_target",
    "proxy_for",
    "status_of",
    "tells_of_silence",
    "written",
]
