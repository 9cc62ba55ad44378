"""What is said of a call that failed, or could not be made at all: as the fabric's own errors."""

import re
from pathlib import Path
from typing import Any, Final

from fabric.client.profile import Profile
from fabric.errors import (
    FabricError,
    Internal,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from fabric.transport import parse_target, status_of, tells_of_silence
from fabric.wire import ERROR_METADATA, decode_error

GATE_SILENT: Final = "gate_silent"
_CUT: Final = re.compile(
    r"RST_STREAM|GOAWAY|stream removed|stream terminated|socket closed|connection reset", re.IGNORECASE
)
"""What gRPC says of a call whose connection broke, where it gives that another status than UNAVAILABLE."""
_SENDABLE: Final = re.compile(r"[\x20-\x7e]*")


def check_sendable(profile: Profile) -> None:
    """What no key and no account can be, and could not be sent."""
    if not _SENDABLE.fullmatch(profile.api_key):
        raise Unauthenticated(
            "the API key has letters in it that none has: check FABRIC_API_KEY, or the profile", code="key_unknown"
        )
    if not _SENDABLE.fullmatch(profile.account):
        raise NotFound(
            f"there is no account {profile.account!r}: an account's id is of ASCII letters", code="not_found"
        )


def closed(address: str) -> InvalidRequest:
    """What is said of a connection that is used after it was closed."""
    return InvalidRequest(
        f"this connection to {address} was closed: make another one with fabric.connect()", code="connection_closed"
    )


def read_ca(path: str) -> bytes | None:
    if not path:
        return None
    try:
        pem = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InvalidConfig(
            f"can't read the CA certificate {path}: {error.strerror}. Set FABRIC_CA to the ca.pem of the fabric's state"
            " directory",
            code="no_ca",
            path=path,
        ) from None
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise InvalidConfig(
            f"{path} holds no certificate: set FABRIC_CA to the ca.pem of the fabric's state directory",
            code="no_ca",
            path=path,
        )
    return pem


def error_of_call(error: Any, *, address: str) -> FabricError:
    """The typed error behind a failed call: the door's own where it sent one, else what the transport says."""
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == ERROR_METADATA:
            return decode_error(value)
    return _transport_error(status_of(error), error.details() or "", address=address)


def _transport_error(status: str, details: str, *, address: str) -> FabricError:
    match status:
        case "UNAVAILABLE":
            return _not_reached(details, address=address)
        case "DEADLINE_EXCEEDED":
            return Unavailable(f"the fabric at {address} did not answer in time", code="timeout", address=address)
        case "RESOURCE_EXHAUSTED":
            return InvalidRequest(f"too large for one message: {details}", code="too_large")
        case "CANCELLED":
            return Unavailable("the call was cancelled", code="cancelled")
        case "INTERNAL" | "UNKNOWN" if _CUT.search(details):
            return Unavailable(
                f"the connection to the fabric at {address} broke off before it answered: ask again", address=address
            )
        case _:
            return Internal(f"the fabric at {address} failed: {status}: {details}", code="transport")


def _not_reached(details: str, *, address: str) -> FabricError:
    if "certificate" in details.lower():
        return InvalidConfig(
            f"the certificate of {address} can't be trusted: set FABRIC_CA to the fabric's ca.pem",
            code="tls_untrusted",
            address=address,
        )
    if tells_of_silence(details):
        return silent(address, "doesn't answer")
    remedy = (
        "is it up? Try `fabric doctor`"
        if parse_target(address).is_here
        else "check FABRIC_ADDRESS, the network and its proxies, and whether the fabric is up"
    )
    return Unavailable(f"can't reach the fabric at {address}: {remedy}", address=address)


def silent(address: str, what: str) -> Unavailable:
    """The error for a gate of which nothing is heard."""
    return Unavailable(
        f"the gate at {address} {what}: it hangs, or the network to it swallows what is sent. Whether this call was carried"
        " out is not known, and asking again with the same request id is safe: retry in a moment; if it stays so, `fabric"
        " doctor` on its machine says what is wrong",
        code=GATE_SILENT,
        address=address,
    )
