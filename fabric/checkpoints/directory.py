"""A store in a directory: a value is written beside its place, synced, and appears there by one rename (or link).

It does not know what it keeps. A local disk, a shared file system, or memory (`/dev/shm`, then without `durable`): all that
is asked of it is that rename and link are atomic. What can't be written leaves everything else as it was.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from fabric.errors import InvalidRequest, NotFound, Unavailable
from fabric.storage.keys import checked_key

Buffer = bytes | bytearray | memoryview
CHUNK_BYTES: Final = 4 * 2**20
_WRITE_BYTES: Final = 16 * 2**20
_LARGE_BYTES: Final = 64 * 2**20
"""A value of so much is worth a thread that brings it to the disk while it is written."""
_SYNC_EVERY_S: Final = 0.02
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_DRAFT: Final = re.compile(r"\.[0-9a-f]{16}\.draft")
STALE_S: Final = 86_400.0
"""What is unfinished for so long belongs to nobody that still writes."""


class DirectoryStore:
    """See `fabric.checkpoints.stores.Store` for the promises."""

    def __init__(self, root: Path | str, *, durable: bool = True, leave_free: float = 0.0) -> None:
        """Name the place; nothing is made yet.

        Args:
            root: the directory everything stays in, links or not.
            durable: sync before a value counts as kept. False for memory, which a lost machine forgets anyway.
            leave_free: the share of the file system that others are left (0 to 1): for memory, which they need too.
        """
        self._root = Path(root).absolute()
        self._durable = durable
        self._leave_free = leave_free

    def __repr__(self) -> str:
        return f"DirectoryStore({str(self._root)!r}, durable={self._durable})"

    def path_of(self, key: str) -> Path:
        """Where a value lies, or would."""
        return self._inside(key)

    def put(self, key: str, data: Buffer, *, once: bool = False) -> bool:
        return self._keep(key, lambda file: _write_all(file, data), len(data), once=once)

    def put_file(self, key: str, path: Path) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0

        def copy(file: IO[bytes]) -> None:
            nonlocal size
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                _write_all(file, chunk)

        with path.open("rb", buffering=0) as source:
            self._keep(key, copy, os.fstat(source.fileno()).st_size, once=False)
        return digest.hexdigest(), size

    def get(self, key: str) -> bytes:
        with self._opened(key) as file:
            return file.read()

    def chunks(self, key: str) -> Iterator[bytes]:
        with self._opened(key) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def span(self, key: str, start: int, size: int) -> bytes:
        with self._opened(key) as file:
            return os.pread(file.fileno(), size, start)

    def keys(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        found = (Path(where, name) for where, _, names in os.walk(folder) for name in names if name[0] != ".")
        return sorted(path.relative_to(self._root).as_posix() for path in found)

    def folders(self, prefix: str) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self._path(prefix)) if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []

    def copy(self, key: str, to: str) -> None:
        """A hard link where the file system has them: values never change in place, so it is as good as a copy."""
        source, target = self._inside(key), self._inside(to)
        draft = _draft_beside(target)
        try:
            self._make_folder(target.parent)
            try:
                draft.hardlink_to(source)
            except FileNotFoundError:
                raise
            except OSError:
                shutil.copyfile(source, draft, follow_symlinks=False)
                self._sync_file(draft)
            draft.replace(target)
            self._sync_folder(target.parent)
        except FileNotFoundError:
            raise _not_kept(key) from None
        except OSError as error:
            raise self._refused(to, 0, error) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            self._inside(key).unlink()

    def delete_folder(self, prefix: str) -> None:
        shutil.rmtree(self._inside(prefix), ignore_errors=True)

    def tidy(self, prefix: str) -> None:
        before = time.time() - STALE_S
        for where, _, names in os.walk(self._inside(prefix)):
            for name in filter(_DRAFT.fullmatch, names):
                with suppress(OSError):
                    if Path(where, name).stat().st_mtime <= before:
                        Path(where, name).unlink()

    def _keep(self, key: str, write: Callable[[IO[bytes]], None], size: int, *, once: bool) -> bool:
        path = self._inside(key)
        draft = _draft_beside(path)
        try:
            self._make_folder(path.parent)
            self._check_room(size)
            with draft.open("xb", buffering=0) as file:
                if self._durable:
                    with _synced(file, size=size):
                        write(file)
                else:
                    write(file)
            if not once:
                draft.replace(path)
            elif not _linked(draft, path):
                return False
            self._sync_folder(path.parent)
        except OSError as error:
            raise self._refused(key, size, error) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        return True

    def _opened(self, key: str) -> IO[bytes]:
        try:
            handle = os.open(self._inside(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise _not_kept(key) from None
        except OSError as error:
            raise Unavailable(f"{key} can't be read: {error.strerror}", code="store_failed", key=key) from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise _not_kept(key)
        return os.fdopen(handle, "rb", buffering=0)

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def _inside(self, key: str) -> Path:
        """The key's path, if no link on the way leads out of the store."""
        path = self._path(key)
        if not path.parent.resolve().is_relative_to(self._root.resolve()):
            raise InvalidRequest(f"{key} lies behind a link that leaves the store", code="invalid_key", key=key)
        return path

    def _make_folder(self, folder: Path) -> None:
        """Make the folder and those above it; each is durable in the one that holds it."""
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            self._sync_folder(new.parent)

    def _check_room(self, size: int) -> None:
        if self._leave_free:
            usage = shutil.disk_usage(self._root)
            if usage.free - size < usage.total * self._leave_free:
                raise OSError(errno.ENOSPC, f"{self._leave_free:.0%} is left to others")

    def _sync_folder(self, folder: Path) -> None:
        if self._durable:
            self._sync_file(folder)

    def _sync_file(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _refused(self, key: str, size: int, error: OSError) -> Unavailable:
        if error.errno not in _FULL:
            return Unavailable(f"the store can't keep {key}: {error.strerror}", code="store_failed", key=key)
        free = _free_bytes(self._root)
        return Unavailable(
            f"the store is full: {key} has {size} bytes, {free} are free in {self._root} ({error.strerror}); what was"
            " saved before is untouched: free some space, or keep fewer checkpoints",
            code="store_full",
            key=key,
            size_bytes=size,
            free_bytes=free,
        )


def _write_all(file: IO[bytes], data: Buffer) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[file.write(rest[:_WRITE_BYTES]) :]


@contextmanager
def _synced(file: IO[bytes], *, size: int) -> Iterator[None]:
    """What is written inside is on the disk at the end; of much, most goes there while the rest is still written."""
    if size < _LARGE_BYTES:
        yield
        os.fsync(file.fileno())
        return
    written, failed = threading.Event(), list[OSError]()

    def sync() -> None:
        try:
            while not written.wait(_SYNC_EVERY_S):
                os.fdatasync(file.fileno())
        except OSError as error:  # the system tells it once: the sync at the end would find nothing wrong
            failed.append(error)

    syncing = threading.Thread(target=sync, name="fabric-sync", daemon=True)
    syncing.start()
    try:
        yield
    finally:
        written.set()
        syncing.join()
    if failed:
        raise failed[0]
    os.fsync(file.fileno())


def _linked(draft: Path, path: Path) -> bool:
    """Whether the draft now is the value: of any number that try, on any machine, exactly one is."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise Unavailable(
            f"{path.parent} is on a file system without hard links, by which two attempts of a job are told apart: use a"
            " local disk, NFS, or a bucket",
            code="store_without_create_once",
        ) from error
    return True


def _draft_beside(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.draft")


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _not_kept(key: str) -> NotFound:
    return NotFound(f"the store keeps nothing under {key}", code="blob_not_found", key=key)
