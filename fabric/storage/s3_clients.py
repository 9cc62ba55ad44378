"""Clients of a bucket: opened quickly, anew in every process, and with whatever credentials hold now."""

import functools
import threading
from dataclasses import dataclass, field
from typing import Any, Final

_OPENING: Final = threading.Lock()
_CONNECT_TIMEOUT_S: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Credentials:
    """Who writes to a bucket. Shown by its id alone."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def opened_client(
    *,
    endpoint_url: str | None,
    region: str | None,
    credentials: S3Credentials | None,
    read_timeout_s: float,
    connect_timeout_s: float = _CONNECT_TIMEOUT_S,
) -> Any:
    """A client that tries each request once: trying again is the caller's business."""
    from botocore.config import Config  # noqa: PLC0415  # not needed with a directory

    once = Config(
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        tcp_keepalive=True,
        retries={"total_max_attempts": 1},
    )
    with _OPENING:
        return _session().client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region,
            aws_access_key_id=credentials.access_key_id if credentials else None,
            aws_secret_access_key=credentials.secret_access_key if credentials else None,
            aws_session_token=credentials.session_token if credentials else None,
            config=once,
        )


def forget_credentials() -> None:
    """The next client asks the machine's environment or role anew."""
    with _OPENING:
        _session.cache_clear()


@functools.cache
def _session() -> Any:
    """What clients are made from: it reads a description of the service once (a third of a second), forks included."""
    import boto3  # noqa: PLC0415  # takes 100 ms and is not needed with a directory

    return boto3.session.Session()
