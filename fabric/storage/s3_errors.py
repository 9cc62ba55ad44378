"""What a bucket's refusal means: try again, credentials have expired, not there, somebody was first, or it is final."""

from typing import Final

from fabric.errors import FabricError, Unavailable

MAX_ATTEMPTS: Final = 6
_EXPIRED: Final = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_PASSING: Final = {
    "SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed", "InternalError",
    "ServiceUnavailable", "BadDigest", "XAmzContentChecksumMismatch", "RequestLimitExceeded",
    "ConditionalRequestConflict", "OperationAborted",
}  # fmt: skip
"""Codes that say "again", whatever the status."""
_MISSING: Final = {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}


def error_code(error: Exception) -> str:
    """The store's own word for it; "" if the error is not the store's answer."""
    from botocore.exceptions import ClientError  # noqa: PLC0415  # not needed with a directory

    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _status(error: Exception) -> int:
    from botocore.exceptions import ClientError  # noqa: PLC0415

    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))


def is_passing(error: Exception) -> bool:
    """Throttling, a server's own fault, a broken or slow connection, a value that arrived damaged, there or here."""
    import http.client  # noqa: PLC0415

    import urllib3  # noqa: PLC0415
    from botocore.exceptions import (  # noqa: PLC0415
        BotoCoreError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    if isinstance(error, Unavailable) or error_code(error) in _PASSING:
        return True
    if status := _status(error):
        return status >= 500 or status == 429  # noqa: PLR2004
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ParamValidationError):
        return False
    return isinstance(error, BotoCoreError | OSError | urllib3.exceptions.HTTPError | http.client.HTTPException)


def is_beyond_end(error: Exception) -> bool:
    """A part was asked for that begins where the value has ended."""
    return _status(error) == 416  # noqa: PLR2004


def is_expired(error: Exception) -> bool:
    """The credentials were good once."""
    return error_code(error) in _EXPIRED


def is_missing(error: Exception) -> bool:
    """There is no such key, or no such upload. A bucket that isn't there is another matter."""
    return error_code(error) in _MISSING


def is_conflict(error: Exception) -> bool:
    """A create-once that somebody else did first."""
    return error_code(error) == "PreconditionFailed" or _status(error) == 412  # noqa: PLR2004


def refused(key: str, error: Exception, *, keeper: str) -> FabricError:
    """The error to raise when trying again is over; `keeper` is what people know the bucket as."""
    if isinstance(error, FabricError):
        return error
    if is_expired(error):
        return Unavailable(
            f"the credentials for the {keeper} expired while {key} was on its way: what was saved before is untouched;"
            f" renew them (or give the {keeper} a `refresh`) and try again",
            code="credentials_expired",
            key=key,
        )
    said = error_code(error)
    if said and not is_passing(error):
        return Unavailable(
            f"the {keeper} refuses {key} ({said}): check that the bucket is there and that its credentials may do this;"
            " what was saved before is untouched",
            code=f"{keeper}_refused",
            key=key,
        )
    return Unavailable(
        f"the {keeper} failed {MAX_ATTEMPTS} times to handle {key} ({said or type(error).__name__}: {error}): what was"
        " saved before is untouched; try again when it is well",
        code=f"{keeper}_failed",
        key=key,
    )
