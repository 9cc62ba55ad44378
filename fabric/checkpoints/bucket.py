"""A store in an S3 bucket: checksummed, create-once where asked, in parts where large.

It does not know what it keeps. Every upload carries its SHA-256, which the bucket checks; "only if nobody did" is
`If-None-Match: *`. A request whose answer was lost may have been carried out: a create that finds its own bytes there
counts as done.
"""

import base64
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any, Final

from fabric.checkpoints.directory import STALE_S, Buffer
from fabric.errors import Conflict, NotFound, Unavailable
from fabric.storage.keys import checked_key
from fabric.storage.s3 import Bucket, Place
from fabric.storage.s3_errors import is_conflict

PART_BYTES: Final = 16 * 2**20
"""Values larger than this go up in parts of this size; a bucket takes at most 10,000 parts, so parts grow with the value."""
PARTS_MAX: Final = 10_000
COPY_BYTES_MAX: Final = 5 * 2**30
"""The most a bucket copies in one request."""
_PARALLEL: Final = 4
_PROBE: Final = "create-once-probe"


class S3Store:
    """See `fabric.checkpoints.stores.Store` for the promises. Pickles; nothing is opened until it is used."""

    def __init__(self, place: Place, *, part_bytes: int = PART_BYTES) -> None:
        """Name the place; `part_bytes` is how large a part of a large value is (a bucket wants at least 5 MiB)."""
        self._bucket = Bucket(place, keeper="store")
        self._part_bytes = part_bytes
        self._keeps_once = False

    def __repr__(self) -> str:
        return f"S3Store({self._bucket})"

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

    def span(self, key: str, start: int, size: int) -> bytes:
        at = self._bucket.at(key)

        def read() -> bytes:
            answer = self._bucket.client.get_object(**at, Range=f"bytes={start}-{start + size - 1}")
            with closing(answer["Body"]) as body:
                data: bytes = body.read(size)
            if len(data) < int(answer["ContentLength"]):
                raise ConnectionError(f"{len(data)} of {answer['ContentLength']} bytes arrived")
            return data

        return self._bucket.retried(read, key=key)

    def keys(self, prefix: str) -> list[str]:
        return self._bucket.keys(checked_key(prefix))

    def folders(self, prefix: str) -> list[str]:
        below = self._bucket.below(checked_key(prefix))
        found = self._bucket.pages("list_objects_v2", "CommonPrefixes", key=prefix, Prefix=below, Delimiter="/")
        return sorted(entry["Prefix"].removeprefix(below).rstrip("/") for entry in found)

    def copy(self, key: str, to: str) -> None:
        size = int(self._bucket.call("head_object", key)["ContentLength"])
        source = self._bucket.at(key)
        if size <= COPY_BYTES_MAX:
            self._bucket.call("copy_object", to, CopySource=source, **self._bucket.sealing)
            return

        def send(upload: str, number: int, start: int, end: int) -> dict[str, Any]:
            answer = self._bucket.call(
                "upload_part_copy", to, CopySource=source, CopySourceRange=f"bytes={start}-{end - 1}",
                UploadId=upload, PartNumber=number,
            )  # fmt: skip
            return {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}

        self._in_parts(to, size, COPY_BYTES_MAX // 5, send, checksums={})

    def delete(self, key: str) -> None:
        self._bucket.call("delete_object", key)

    def delete_folder(self, prefix: str) -> None:
        names = self.keys(prefix)
        for start in range(0, len(names), 1000):
            batch = [{"Key": self._bucket.at(name)["Key"]} for name in names[start : start + 1000]]

            def send(batch: list[dict[str, str]] = batch) -> None:
                self._bucket.client.delete_objects(Bucket=self._bucket.name, Delete={"Objects": batch, "Quiet": True})

            self._bucket.retried(send, key=prefix)

    def tidy(self, prefix: str) -> None:
        self._abort_uploads(prefix, before=datetime.now(timezone.utc) - timedelta(seconds=STALE_S))

    def _put_whole(self, key: str, view: memoryview) -> None:
        self._bucket.call("put_object", key, Body=bytes(view), ChecksumSHA256=_sha256(view), **self._bucket.sealing)

    def _put_once(self, key: str, data: bytes) -> bool:
        if not self._keeps_once:
            self._check_once()
        return self._created(key, data)

    def _check_once(self) -> None:
        """Try whether the bucket refuses to create twice: some that speak S3 don't, and say nothing."""
        if self._created(_PROBE, b"first") and self._created(_PROBE, b"second"):
            raise Unavailable(
                f"the bucket {self._bucket.name} ignores If-None-Match, so two attempts of a job could overwrite each other's"
                " checkpoints: use a store that knows conditional writes (Amazon S3, MinIO, Ceph from Squid on)",
                code="store_without_create_once",
                key=_PROBE,
            )
        self._keeps_once = True

    def _created(self, key: str, data: bytes) -> bool:
        at = self._bucket.at(key)

        def send() -> bool:
            try:
                self._bucket.client.put_object(
                    Body=data, ChecksumSHA256=_sha256(data), IfNoneMatch="*", **at, **self._bucket.sealing
                )
            except Exception as error:
                if not is_conflict(error):
                    raise
                return False
            return True

        if self._bucket.retried(send, key=key):
            return True
        with suppress(NotFound):
            return self.get(key) == data
        return False

    def _put_in_parts(self, key: str, size: int, read: Callable[[int, int], bytes]) -> None:
        def send(upload: str, number: int, start: int, end: int) -> dict[str, Any]:
            data = read(start, end)
            digest = _sha256(data)
            answer = self._bucket.call(
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
        upload = str(self._bucket.call("create_multipart_upload", key, **checksums, **self._bucket.sealing)["UploadId"])
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
            self._bucket.call("complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": parts})
        except NotFound:
            if not self._is_whole(key, size):
                raise
        except BaseException:
            with suppress(Exception):
                self._bucket.call("abort_multipart_upload", key, UploadId=upload)
            raise

    def _is_whole(self, key: str, size: int) -> bool:
        """Whether an upload that is said not to be there any more was completed by the request whose answer was lost."""
        try:
            return bool(self._bucket.call("head_object", key)["ContentLength"] == size)
        except NotFound:
            return False

    def _abort_uploads(self, prefix: str, *, before: datetime) -> None:
        with suppress(Exception):  # some stores have no such list; what is left there is theirs to expire
            below = self._bucket.below(prefix)
            for entry in self._bucket.pages("list_multipart_uploads", "Uploads", key=prefix, Prefix=below):
                if entry["Initiated"] > before:
                    continue
                self._bucket.client.abort_multipart_upload(
                    Bucket=self._bucket.name, Key=entry["Key"], UploadId=entry["UploadId"]
                )

    def _part(self, key: str, start: int, tag: str) -> tuple[bytes, int, str]:
        """One part of a value from `start` on, the size of the whole, and its tag: all parts are of the same value."""
        at = self._bucket.at(key)
        ranged = {"Range": f"bytes={start}-{start + self._part_bytes - 1}", "IfMatch": tag} if start else {}

        def read() -> tuple[bytes, int, str]:
            answer = self._bucket.client.get_object(**at, **ranged)
            with closing(answer["Body"]) as body:
                data = body.read(self._part_bytes)
            due = min(self._part_bytes, int(answer["ContentLength"]))
            if len(data) < due:
                raise ConnectionError(f"{len(data)} of {due} bytes arrived")
            return data, int(answer["ContentLength"]), str(answer["ETag"])

        return self._bucket.retried(read, key=key)


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
