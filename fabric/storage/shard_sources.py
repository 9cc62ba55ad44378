"""Where shards come from: buckets and files, by address. The version is part of a shard's name, so asked for first."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from fabric.errors import InvalidRequest, NotFound, Unavailable

Fetch = Callable[[Path], None]
_SCHEMES: Final = ("s3", "file")


def source_of(address: str, *, s3: Any = None) -> tuple[str, Fetch]:
    """A shard's name (address and version) and what fetches it.

    Raises:
        InvalidRequest: neither `s3://bucket/key` nor `file:///path`.
        NotFound: there is nothing there.
        Unavailable: the bucket can't be reached.
    """
    parts = urlsplit(address)
    if parts.scheme == "file" and parts.path:
        return _file(address, Path(parts.path))
    if parts.scheme == "s3" and parts.netloc and parts.path.strip("/"):
        return _object(address, parts.netloc, parts.path.lstrip("/"), s3)
    raise InvalidRequest(
        f"{address[:200]!r} is no shard: write s3://bucket/key or file:///path",
        code="invalid_data",
        given=address[:200],
    )


def _file(address: str, path: Path) -> tuple[str, Fetch]:
    try:
        about = path.stat()
    except OSError as error:
        raise NotFound(f"there is no {address}: {error.strerror}", code="no_such_data") from None
    return f"{address}@{about.st_size}-{about.st_mtime_ns}", lambda to: _copied(path, to)


def _copied(path: Path, to: Path) -> None:
    shutil.copyfile(path, to)


def _object(address: str, bucket: str, key: str, s3: Any) -> tuple[str, Fetch]:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  # slow, and not needed for files

    if s3 is None:
        import boto3  # noqa: PLC0415

        s3 = boto3.client("s3")

    def told(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") == 404:  # noqa: PLR2004
                raise NotFound(f"there is no {address}", code="no_such_data") from None
            raise Unavailable(f"{address} can't be read: {error}", code="data_unavailable") from error
        except BotoCoreError as error:
            raise Unavailable(f"{address} can't be read: {error}", code="data_unavailable") from error

    etag = told(lambda: s3.head_object(Bucket=bucket, Key=key))["ETag"]
    return f"{address}@{etag}", lambda to: told(lambda: s3.download_file(bucket, key, str(to)))
