"""The archive: where payloads, results, logs and checkpoints are kept as bytes under a key.

It does not know what it keeps, nor who may read it. A key is a path of plain segments (`jobs/acme/j-1/result`); keys are
checked here, once, so that none can leave the archive. Values are whole and durable when `put` returns, or absent:
nobody ever reads half a value. Every method blocks; on an event loop call them through `asyncio.to_thread`. An archive
pickles (it carries its address and credentials, not connections), so that node agents and runners open the same one.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import stamina

from fabric.errors import InvalidRequest, NotFound, Unavailable

_T = TypeVar("_T")
_SEGMENT = re.compile(r"[A-Za-z0-9_@=+:,-][A-Za-z0-9._@=+:,-]{0,199}", re.ASCII)
_KEY_CHARS_MAX: Final = 900
_ATTEMPTS: Final = 5


class Archive(Protocol):
    """Bytes by key. Raises `InvalidRequest` for a malformed key, `Unavailable` when the store can't be reached."""

    def put(self, key: str, data: bytes) -> None:
        """Keep `data`, replacing what was there; durable on return."""

    def get(self, key: str) -> bytes:
        """The bytes kept under the key; `NotFound` if there are none."""

    def exists(self, key: str) -> bool:
        """Whether something is kept under the key."""

    def list(self, prefix: str) -> "list[str]":
        """All keys below `prefix/`, in order; `prefix` is a key itself, or "" for all."""

    def delete(self, key: str) -> None:
        """Forget the key; fine if it isn't there."""


def checked_key(key: str) -> str:
    """The key itself, if every segment is plain.

    Raises:
        InvalidRequest: an empty, hidden or relative segment, a character outside `A-Za-z0-9._@=+:,-`, or too long.
    """
    if len(key) > _KEY_CHARS_MAX or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InvalidRequest(
            f"{key[:80]!r} is not a key: use plain segments of letters, digits and ._@=+:,- joined by /",
            code="invalid_key",
            key=key[:_KEY_CHARS_MAX],
        )
    return key


class DirectoryArchive:
    """An archive in a directory. A value appears by rename, after it and its directory were synced."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def root(self) -> Path:
        """The directory."""
        return self._root

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        draft = path.with_name(f".{secrets.token_hex(8)}.draft")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            _sync_directory(path.parent)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            raise Unavailable(
                f"the archive can't keep {key}: {error.strerror}", code="archive_failed", key=key
            ) from error

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _not_kept(key) from None

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str) -> "list[str]":
        folder = self._path(prefix) if prefix else self._root
        found = (Path(where, name) for where, _, names in os.walk(folder) for name in names if name[0] != ".")
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Credentials:
    """Who writes to a bucket. Shown by its id alone."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class S3Archive:
    """An archive in a bucket, with SHA-256 checked by the store at upload and by us at download."""

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str | None = None,
        credentials: S3Credentials | None = None,
        sse: str = "",
        kms_key_id: str = "",
    ) -> None:
        """Name the place; nothing is opened yet.

        Args:
            bucket: must be there.
            prefix: a key below which everything is kept; "" = at the top.
            endpoint_url: of a store that is not Amazon's.
            region: None = what the machine's environment says.
            credentials: None = each process that opens it uses its own machine's environment or role.
            sse: encryption at rest by the bucket, `AES256` or `aws:kms`; "" = the bucket's own setting.
            kms_key_id: of the key, with `aws:kms`; "" = the account's default key.
        """
        self._bucket = bucket
        self._prefix = f"{checked_key(prefix)}/" if prefix else ""
        self._endpoint_url = endpoint_url
        self._region = region
        self._credentials = credentials
        self._sse, self._kms_key_id = sse, kms_key_id
        self._sealing = {"ServerSideEncryption": sse} if sse else {}
        if kms_key_id:
            self._sealing["SSEKMSKeyId"] = kms_key_id
        self._opened: Any = None

    @property
    def place(self) -> dict[str, Any]:
        """Where it is and who writes there: the arguments for something else that keeps things in the same place."""
        return {
            "bucket": self._bucket,
            "prefix": self._prefix.rstrip("/"),
            "endpoint_url": self._endpoint_url,
            "region": self._region,
            "credentials": self._credentials,
            "sse": self._sse,
            "kms_key_id": self._kms_key_id,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.place,)

    def put(self, key: str, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        self._call(
            "put_object",
            Key=self._name(key),
            Body=data,
            ChecksumAlgorithm="SHA256",
            Metadata={"fabric-sha256": digest},
            **self._sealing,
        )

    def get(self, key: str) -> bytes:
        def read() -> bytes:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._name(key))
            data: bytes = answer["Body"].read()
            wanted = answer["Metadata"].get("fabric-sha256")
            if wanted and hashlib.sha256(data).hexdigest() != wanted:
                raise Unavailable(f"the archive's copy of {key} is damaged", code="archive_damaged", key=key)
            return data

        return self._retried(read, key=key)

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", Key=self._name(key))
        except NotFound:
            return False
        return True

    def list(self, prefix: str) -> "list[str]":
        below = self._prefix + (f"{checked_key(prefix)}/" if prefix else "")

        def read() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=below)
            return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

        return sorted(name.removeprefix(self._prefix) for name in self._retried(read, key=prefix))

    def delete(self, key: str) -> None:
        self._call("delete_object", Key=self._name(key))

    def _name(self, key: str) -> str:
        return self._prefix + checked_key(key)

    @property
    def _client(self) -> Any:
        if self._opened is None:
            import boto3  # noqa: PLC0415  # takes 100 ms and is not needed with a directory
            from botocore.config import Config  # noqa: PLC0415

            quick = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 1})
            own = self._credentials
            self._opened = boto3.client(
                "s3",
                endpoint_url=self._endpoint_url,
                region_name=self._region,
                aws_access_key_id=own.access_key_id if own else None,
                aws_secret_access_key=own.secret_access_key if own else None,
                aws_session_token=own.session_token if own else None,
                config=quick,
            )
        return self._opened

    def _call(self, operation: str, **arguments: Any) -> Any:
        def once() -> Any:
            return getattr(self._client, operation)(Bucket=self._bucket, **arguments)

        return self._retried(once, key=str(arguments["Key"]))

    def _retried(self, once: Callable[[], _T], *, key: str) -> _T:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            for attempt in stamina.retry_context(on=_is_passing, attempts=_ATTEMPTS, wait_initial=0.1, wait_max=2.0):
                with attempt:
                    return once()
        except ClientError as error:
            if error.response["ResponseMetadata"].get("HTTPStatusCode") == 404:  # noqa: PLR2004
                raise _not_kept(key) from None
            raise Unavailable(f"the archive refused {key}: {error}", code="archive_failed", key=key) from error
        except BotoCoreError as error:
            raise Unavailable(f"the archive can't be reached: {error}", code="archive_failed", key=key) from error
        raise AssertionError


def _reopened(place: dict[str, Any]) -> S3Archive:
    return S3Archive(**place)


def _is_passing(error: Exception) -> bool:
    """Whether trying again may help: throttling, a server's own fault, a broken connection, a damaged download."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    if isinstance(error, ClientError):
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", 500)
        return bool(status >= 500 or status == 429)  # noqa: PLR2004
    return isinstance(error, BotoCoreError | Unavailable)


def _not_kept(key: str) -> NotFound:
    return NotFound(f"the archive keeps nothing under {key}", code="blob_not_found", key=key)


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
