"""The archive: where payloads, results, logs and checkpoints are kept as bytes under a key.

It does not know what it keeps, nor who may read it. A key is a path of plain segments (`jobs/acme/j-1/result`); keys are
checked here, once, so that none can leave the archive. Values are whole and durable when `put` returns, or absent:
nobody ever reads half a value. Every method blocks; on an event loop call them through `asyncio.to_thread`. An archive
pickles (it carries its address and credentials, not connections), so that node agents and runners open the same one.
"""

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, Final, NamedTuple, Protocol

from fabric.errors import NotFound, Unavailable
from fabric.storage.keys import checked_key
from fabric.storage.s3 import Bucket, Place
from fabric.storage.s3_errors import is_beyond_end

PART_BYTES: Final = 1024 * 1024
"""Of a value that is passed on to a file."""
_SHA256: Final = "fabric-sha256"
"""Under which name a bucket keeps what we found a value to be."""


class Kept(NamedTuple):
    """What is kept under a key."""

    key: str
    bytes: int
    at_us: int
    """When it was put there."""


class Stored(NamedTuple):
    """How much is kept."""

    bytes: int
    values: int

    def __add__(self, other: "Stored") -> "Stored":  # type: ignore[override]  # no tuple's sum, on purpose
        return Stored(self.bytes + other.bytes, self.values + other.values)

    def __sub__(self, other: "Stored") -> "Stored":
        return Stored(self.bytes - other.bytes, self.values - other.values)


class Archive(Protocol):
    """Bytes by key. Raises `InvalidRequest` for a malformed key, `Unavailable` when the store can't be reached."""

    def put(self, key: str, data: bytes) -> None:
        """Keep `data`, replacing what was there; durable on return."""

    def get(self, key: str) -> bytes:
        """The bytes kept under the key; `NotFound` if there are none."""

    def get_up_to(self, key: str, limit_bytes: int) -> bytes | None:
        """The same, if there are no more than that; what is larger isn't read, and None."""

    def get_range(self, key: str, offset: int, limit_bytes: int) -> bytes:
        """A part of it, unchecked: so many bytes from an offset on, fewer at its end, none beyond."""

    def fetch(self, key: str, into: IO[bytes]) -> None:
        """The same, written to a file from where it stands on: whole and checked on return, in memory only in parts."""

    def exists(self, key: str) -> bool:
        """Whether something is kept under the key."""

    def list(self, prefix: str) -> "list[str]":
        """All keys below `prefix/`, in order; `prefix` is a key itself, or "" for all."""

    def kept(self, prefix: str) -> tuple[Kept, ...]:
        """What is kept below `prefix/`, as `list` names it."""

    def stored(self, prefix: str) -> Stored:
        """How much that is, together."""

    def delete(self, key: str) -> None:
        """Forget the key; fine if it isn't there."""

    def look(self, within_s: float) -> None:
        """Ask once whether it answers at all; `Unavailable` if it doesn't, in roughly that time."""


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
        with self._opened(key) as kept, _in_our_words(key):
            return kept.read()

    def get_up_to(self, key: str, limit_bytes: int) -> bytes | None:
        with self._opened(key) as kept, _in_our_words(key):
            return kept.read() if os.fstat(kept.fileno()).st_size <= limit_bytes else None

    def get_range(self, key: str, offset: int, limit_bytes: int) -> bytes:
        with self._opened(key) as kept:
            kept.seek(offset)
            return kept.read(limit_bytes)

    def fetch(self, key: str, into: IO[bytes]) -> None:
        with self._opened(key) as kept:
            shutil.copyfileobj(kept, into, PART_BYTES)

    def exists(self, key: str) -> bool:
        with _in_our_words(key):
            return self._path(key).is_file()

    def list(self, prefix: str) -> "list[str]":
        folder = self._path(prefix) if prefix else self._root
        found = (Path(where, name) for where, _, names in os.walk(folder) for name in names if name[0] != ".")
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def kept(self, prefix: str) -> tuple[Kept, ...]:
        found = []
        for key in self.list(prefix):
            with suppress(FileNotFoundError):  # it is gone meanwhile
                seen = self._path(key).stat()
                found.append(Kept(key, seen.st_size, seen.st_mtime_ns // 1_000))
        return tuple(found)

    def stored(self, prefix: str) -> Stored:
        size = values = 0
        for where, _, names in os.walk(self._path(prefix)):
            for name in names:
                if name[0] != ".":
                    with suppress(FileNotFoundError):  # it is gone meanwhile
                        size += Path(where, name).lstat().st_size
                        values += 1
        return Stored(size, values)

    def delete(self, key: str) -> None:
        with _in_our_words(key):
            self._path(key).unlink(missing_ok=True)

    def look(self, within_s: float) -> None:  # noqa: ARG002 - a directory can't be asked to be quick
        with _in_our_words("", but=(FileNotFoundError,)), suppress(FileNotFoundError):
            self._root.stat()

    def _opened(self, key: str) -> BinaryIO:
        try:
            with _in_our_words(key, but=(FileNotFoundError, IsADirectoryError, NotADirectoryError)):
                return self._path(key).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _not_kept(key) from None

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)


class S3Archive:
    """An archive in a bucket, with SHA-256 checked by the store at upload and by us at download."""

    def __init__(self, place: Place) -> None:
        """Name the place; nothing is opened yet."""
        self._bucket = Bucket(place, keeper="archive")

    @property
    def place(self) -> Place:
        """Where it is and who writes there: for something else that keeps things in the same place."""
        return self._bucket.place

    def put(self, key: str, data: bytes) -> None:
        metadata = {_SHA256: hashlib.sha256(data).hexdigest()}
        sealing = self._bucket.sealing
        self._bucket.call("put_object", key, Body=data, ChecksumAlgorithm="SHA256", Metadata=metadata, **sealing)

    def get(self, key: str) -> bytes:
        kept = io.BytesIO()
        self._read(key, kept)
        return kept.getvalue()

    def get_up_to(self, key: str, limit_bytes: int) -> bytes | None:
        kept = io.BytesIO()
        return kept.getvalue() if self._read(key, kept, limit_bytes=limit_bytes) else None

    def get_range(self, key: str, offset: int, limit_bytes: int) -> bytes:
        at, part = self._bucket.at(key), f"bytes={offset}-{offset + limit_bytes - 1}"

        def read() -> bytes:
            try:
                with closing(self._bucket.client.get_object(**at, Range=part)["Body"]) as body:
                    return bytes(body.read())
            except Exception as error:
                if is_beyond_end(error):
                    return b""
                raise

        return self._bucket.retried(read, key=key)

    def fetch(self, key: str, into: IO[bytes]) -> None:
        self._read(key, into)

    def exists(self, key: str) -> bool:
        try:
            self._bucket.call("head_object", key)
        except NotFound:
            return False
        return True

    def list(self, prefix: str) -> "list[str]":
        return self._bucket.keys(prefix)

    def kept(self, prefix: str) -> tuple[Kept, ...]:
        bucket = self._bucket
        found = bucket.pages("list_objects_v2", "Contents", key=prefix, Prefix=bucket.below(prefix))
        return tuple(
            Kept(
                each["Key"].removeprefix(bucket.prefix),
                each["Size"],
                round(each["LastModified"].timestamp()) * 1_000_000,
            )
            for each in found
        )

    def stored(self, prefix: str) -> Stored:
        found = self._bucket.pages(
            "list_objects_v2", "Contents", key=prefix, Prefix=self._bucket.below(prefix), of="Size"
        )
        return Stored(sum(found), len(found))

    def delete(self, key: str) -> None:
        self._bucket.call("delete_object", key)

    def look(self, within_s: float) -> None:
        self._bucket.look(within_s)

    def _read(self, key: str, into: IO[bytes], *, limit_bytes: int | None = None) -> bool:
        """Whether the value, checked, is in the file now: one beyond the limit isn't."""
        at, start = self._bucket.at(key), into.tell()

        def read() -> bool:
            into.seek(start)
            into.truncate()
            answer, digest = self._bucket.client.get_object(**at), hashlib.sha256()
            with closing(answer["Body"]) as body:
                if limit_bytes is not None and answer["ContentLength"] > limit_bytes:
                    return False
                for part in body.iter_chunks(PART_BYTES):
                    digest.update(part)
                    into.write(part)
            if answer["Metadata"].get(_SHA256, digest.hexdigest()) != digest.hexdigest():
                raise Unavailable(f"the archive's copy of {key} is damaged", code="archive_damaged", key=key)
            return True

        return self._bucket.retried(read, key=key)


@contextmanager
def _in_our_words(key: str, *, but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """A disk that fails, or a share that is away, is an archive that is away: safe to ask again."""
    try:
        yield
    except but:
        raise
    except OSError as error:
        raise Unavailable(
            f"the archive can't be read at {key}: {error.strerror or error}; try again when it is well",
            code="archive_failed",
            key=key,
        ) from error


def _not_kept(key: str) -> NotFound:
    return NotFound(f"the archive keeps nothing under {key}", code="blob_not_found", key=key)


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
