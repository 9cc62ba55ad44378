"""A store in an S3 bucket, through boto3: checksummed, create-once where asked, in parts where large, tried again.

It does not know what it keeps. Every upload carries its SHA-256, which the bucket checks; "only if nobody did" is
`If-None-Match: *`. A request whose answer was lost may have been carried out: a create that finds its own bytes there
counts as done. Credentials that run out are fetched anew (from `refresh`, or from the machine's own chain) and the request
goes on; if they can't be, the error says so.
"""

import base64
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import stamina

from fabric.adapters.archive import S3Credentials, checked_key
from fabric.checkpoints.clients import forget_credentials, opened_client
from fabric.checkpoints.directory import STALE_S, Buffer
from fabric.checkpoints.requests import MAX_ATTEMPTS, is_conflict, is_expired, is_missing, is_passing, refused
from fabric.errors import Conflict, NotFound, Unavailable

_T = TypeVar("_T")
PART_BYTES: Final = 16 * 2**20
"""Values larger than this go up in parts of this size; a bucket takes at most 10,000 parts, so parts grow with the value."""
PARTS_MAX: Final = 10_000
COPY_BYTES_MAX: Final = 5 * 2**30
"""The most a bucket copies in one request."""
_PARALLEL: Final = 4
_PROBE: Final = "create-once-probe"

Sse = Literal["", "AES256", "aws:kms"]


class S3Store:
    """See `fabric.checkpoints.stores.Store` for the promises. Pickles; nothing is opened until it is used."""

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str | None = None,
        credentials: S3Credentials | None = None,
        refresh: Callable[[], S3Credentials] | None = None,
        sse: Sse = "",
        kms_key_id: str = "",
        part_bytes: int = PART_BYTES,
        read_timeout_s: float = 60.0,
    ) -> None:
        """Name the place.

        Args:
            bucket: must be there.
            prefix: a key below which everything is kept; "" = at the top.
            endpoint_url: of a store that is not Amazon's.
            region: None = what the machine's environment says.
            credentials: None = the machine's environment or role.
            refresh: gives credentials anew when those in use have expired; None = the machine's chain is asked again.
            sse: encryption at rest by the bucket; "" = the bucket's own default.
            kms_key_id: the key, with `sse="aws:kms"`; "" = the account's default key.
            part_bytes: how large a part of a large value is (a bucket wants at least 5 MiB).
            read_timeout_s: how long an answer may take before the request counts as failed.
        """
        self._arguments = {
            "bucket": bucket, "prefix": prefix, "endpoint_url": endpoint_url, "region": region,
            "credentials": credentials, "refresh": refresh, "sse": sse, "kms_key_id": kms_key_id,
            "part_bytes": part_bytes, "read_timeout_s": read_timeout_s,
        }  # fmt: skip
        self._bucket = bucket
        self._prefix = f"{checked_key(prefix)}/" if prefix else ""
        self._credentials = credentials
        self._refresh = refresh
        self._part_bytes = part_bytes
        self._endpoint_url, self._region, self._read_timeout_s = endpoint_url, region, read_timeout_s
        self._sealing: dict[str, str] = {"ServerSideEncryption": sse} if sse else {}
        if kms_key_id:
            self._sealing["SSEKMSKeyId"] = kms_key_id
        self._opened: tuple[int, Any] | None = None
        self._keeps_once = False

    def __repr__(self) -> str:
        return f"S3Store({self._bucket!r}, prefix={self._prefix!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._arguments,)

    def put(self, key: str, data: Buffer, *, once: bool = False) -> bool:
        view = memoryview(data).cast("B")
        if once:
            return self._put_once(key, bytes(view))
        if len(view) <= self._part_bytes:
            self._put_whole(key, view)
        else:
            self._put_in_parts(key, len(view), lambda start, end: bytes(view[start:end]))
        return True

    def put_file(self, key: str, path: Path) -> tuple[str, int]:
        """See `Store`; a file that changes between its two readings is refused (`file_changed`)."""
        with path.open("rb", buffering=0) as file:
            handle, size = file.fileno(), os.fstat(file.fileno()).st_size
            if size <= self._part_bytes:
                data = file.read()
                self._put_whole(key, memoryview(data))
                return hashlib.sha256(data).hexdigest(), len(data)
            digest, parts = _measured(handle, size, self._part_of(size))

            def read(start: int, end: int) -> bytes:
                data = os.pread(handle, end - start, start)
                if _sha256(data) != parts[start]:
                    raise Conflict(f"{path} changed while it was saved: save again", code="file_changed", key=key)
                return data

            self._put_in_parts(key, size, read)
        return digest, size

    def get(self, key: str) -> bytes:
        return b"".join(self.chunks(key))

    def chunks(self, key: str) -> Iterator[bytes]:
        """See `Store`; a large value comes in parts, a few of them on their way at a time."""
        data, size, tag = self._part(key, 0, "")
        yield data
        if len(data) == size:
            return
        starts = iter(range(len(data), size, self._part_bytes))
        with ThreadPoolExecutor(_PARALLEL) as pool:
            coming = deque(pool.submit(self._part, key, start, tag) for start in islice(starts, _PARALLEL))
            while coming:
                data, _, _ = coming.popleft().result()
                coming.extend(pool.submit(self._part, key, start, tag) for start in islice(starts, 1))
                yield data

    def keys(self, prefix: str) -> list[str]:
        below = self._name(prefix) + "/"

        def read() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=below)
            return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

        return sorted(name.removeprefix(self._prefix) for name in self._retried(read, key=prefix))

    def folders(self, prefix: str) -> list[str]:
        below = self._name(prefix) + "/"

        def read() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=below, Delimiter="/"
            )
            return [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]

        return sorted(name.removeprefix(below).rstrip("/") for name in self._retried(read, key=prefix))

    def copy(self, key: str, to: str) -> None:
        size = int(self._call("head_object", key)["ContentLength"])
        source = {"Bucket": self._bucket, "Key": self._name(key)}
        if size <= COPY_BYTES_MAX:
            self._call("copy_object", to, CopySource=source, **self._sealing)
            return

        def send(upload: str, number: int, start: int, end: int) -> dict[str, Any]:
            answer = self._call(
                "upload_part_copy", to, CopySource=source, CopySourceRange=f"bytes={start}-{end - 1}",
                UploadId=upload, PartNumber=number,
            )  # fmt: skip
            return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

        self._in_parts(to, size, COPY_BYTES_MAX // 5, send, checksums={})

    def delete(self, key: str) -> None:
        self._call("delete_object", key)

    def delete_folder(self, prefix: str) -> None:
        names = self.keys(prefix)
        for start in range(0, len(names), 1000):
            batch = [{"Key": self._name(name)} for name in names[start : start + 1000]]

            def send(batch: list[dict[str, str]] = batch) -> None:
                self._client.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})

            self._retried(send, key=prefix)

    def tidy(self, prefix: str) -> None:
        self._abort_uploads(prefix, before=datetime.now(UTC) - timedelta(seconds=STALE_S))

    def _put_whole(self, key: str, view: memoryview) -> None:
        self._call("put_object", key, Body=bytes(view), ChecksumSHA256=_sha256(view), **self._sealing)

    def _put_once(self, key: str, data: bytes) -> bool:
        if not self._keeps_once:
            self._check_once()
        return self._created(key, data)

    def _check_once(self) -> None:
        """Try whether the bucket refuses to create twice: some that speak S3 don't, and say nothing."""
        if self._created(_PROBE, b"first") and self._created(_PROBE, b"second"):
            raise Unavailable(
                f"the bucket {self._bucket} ignores If-None-Match, so two attempts of a job could overwrite each other's"
                " checkpoints: use a store that knows conditional writes (Amazon S3, MinIO, Ceph from Squid on)",
                code="store_without_create_once",
                key=_PROBE,
            )
        self._keeps_once = True

    def _created(self, key: str, data: bytes) -> bool:
        def send() -> bool:
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=self._name(key), Body=data, ChecksumSHA256=_sha256(data), IfNoneMatch="*",
                    **self._sealing,
                )  # fmt: skip
            except Exception as error:
                if not is_conflict(error):
                    raise
                return False
            return True

        if self._retried(send, key=key):
            return True
        with suppress(NotFound):
            return self.get(key) == data
        return False

    def _put_in_parts(self, key: str, size: int, read: Callable[[int, int], bytes]) -> None:
        def send(upload: str, number: int, start: int, end: int) -> dict[str, Any]:
            data = read(start, end)
            digest = _sha256(data)
            answer = self._call(
                "upload_part", key, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=digest
            )  # fmt: skip
            return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": digest}

        self._in_parts(key, size, self._part_of(size), send, checksums={"ChecksumAlgorithm": "SHA256"})

    def _part_of(self, size: int) -> int:
        return max(self._part_bytes, -(-size // PARTS_MAX))

    def _in_parts(
        self,
        key: str,
        size: int,
        part: int,
        send: Callable[[str, int, int, int], dict[str, Any]],
        *,
        checksums: dict[str, str],
    ) -> None:
        """All parts, a few at a time and each tried again by itself; what was sent is dropped if one can't be."""
        upload = str(self._call("create_multipart_upload", key, **checksums, **self._sealing)["UploadId"])
        starts = range(0, size, part)
        try:
            with ThreadPoolExecutor(_PARALLEL) as pool:
                jobs = [
                    pool.submit(send, upload, number, start, min(start + part, size))
                    for number, start in enumerate(starts, 1)
                ]
                try:
                    parts = [job.result() for job in jobs]
                except BaseException:
                    for job in jobs:
                        job.cancel()
                    raise
            self._call("complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": parts})
        except NotFound:
            if not self._is_whole(key, size):
                raise
        except BaseException:
            with suppress(Exception):
                self._call("abort_multipart_upload", key, UploadId=upload)
            raise

    def _is_whole(self, key: str, size: int) -> bool:
        """Whether an upload that is said not to be there any more was completed by the request whose answer was lost."""
        try:
            return bool(self._call("head_object", key)["ContentLength"] == size)
        except NotFound:
            return False

    def _abort_uploads(self, prefix: str, *, before: datetime) -> None:
        below = self._name(prefix) + "/"

        def read() -> list[dict[str, Any]]:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=below)
            return [entry for page in pages for entry in page.get("Uploads", ())]

        with suppress(Exception):  # some stores have no such list; what is left there is theirs to expire
            for entry in self._retried(read, key=prefix):
                if entry["Initiated"] > before:
                    continue
                self._client.abort_multipart_upload(Bucket=self._bucket, Key=entry["Key"], UploadId=entry["UploadId"])

    def _part(self, key: str, start: int, tag: str) -> tuple[bytes, int, str]:
        """One part of a value from `start` on, the size of the whole, and its tag: all parts are of the same value."""
        ranged = {"Range": f"bytes={start}-{start + self._part_bytes - 1}", "IfMatch": tag} if start else {}

        def read() -> tuple[bytes, int, str]:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._name(key), **ranged)
            with closing(answer["Body"]) as body:
                data = body.read(self._part_bytes)
            due = min(self._part_bytes, int(answer["ContentLength"]))
            if len(data) < due:
                raise ConnectionError(f"{len(data)} of {due} bytes arrived")
            return data, int(answer["ContentLength"]), str(answer["ETag"])

        return self._retried(read, key=key)

    def _name(self, key: str) -> str:
        return self._prefix + checked_key(key)

    @property
    def _client(self) -> Any:
        """A client of this process: connections don't survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            client = opened_client(
                endpoint_url=self._endpoint_url,
                region=self._region,
                credentials=self._credentials,
                read_timeout_s=self._read_timeout_s,
            )
            self._opened = (os.getpid(), client)
        return self._opened[1]

    def _call(self, operation: str, key: str, **arguments: Any) -> Any:
        name = self._name(key)

        def once() -> Any:
            return getattr(self._client, operation)(Bucket=self._bucket, Key=name, **arguments)

        return self._retried(once, key=key)

    def _retried(self, once: Callable[[], _T], *, key: str) -> _T:
        """What `once` gives, after as many tries as may help; expired credentials are renewed one time."""
        renewed = False
        try:
            for attempt in stamina.retry_context(on=is_passing, attempts=MAX_ATTEMPTS, wait_initial=0.1, wait_max=2.0):
                with attempt:
                    try:
                        return once()
                    except Exception as error:
                        if renewed or not is_expired(error):
                            raise
                        renewed = True
                        self._renew()
                        return once()
        except Exception as error:
            if is_missing(error):
                raise NotFound(f"the store keeps nothing under {key}", code="blob_not_found", key=key) from None
            raise refused(key, error) from error
        raise AssertionError

    def _renew(self) -> None:
        """Credentials anew, and a client that uses them."""
        if self._refresh is not None:
            self._credentials = self._refresh()
            self._arguments["credentials"] = self._credentials
        forget_credentials()
        self._opened = None


def _measured(handle: int, size: int, part: int) -> tuple[str, dict[int, str]]:
    """The sha256 of a file in hexadecimal, and of each of its parts, by where it starts, as a bucket writes it."""
    whole, parts = hashlib.sha256(), {}
    for start in range(0, size, part):
        data = os.pread(handle, min(part, size - start), start)
        whole.update(data)
        parts[start] = _sha256(data)
    return whole.hexdigest(), parts


def _sha256(data: Buffer) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode("ascii")


def _reopened(arguments: dict[str, Any]) -> S3Store:
    return S3Store(**arguments)
