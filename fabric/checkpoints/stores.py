"""Where checkpoints are kept: bytes by key, whole and durable or absent, with one way to say "only if nobody did".

Both stores, a directory and a bucket, keep the same promises; everything above is written against them alone:

- `put` and `put_file` are durable on return, and nobody ever reads half a value;
- `put(..., once=True)` is atomic against every other writer of that key, on every machine;
- `keys` sees everything whose `put` returned before it was called.

Keys are checked by the archive's rules, so none leaves the store. Every method blocks, and may be called from any thread.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fabric.checkpoints.bucket import S3Store
from fabric.checkpoints.directory import Buffer, DirectoryStore
from fabric.errors import InvalidConfig
from fabric.storage.archive import Archive, DirectoryArchive, S3Archive


class Quota(Protocol):
    """How much may be kept, and how large a checkpoint may be (see `fabric.storage.quota`)."""

    on_refused: Callable[[str], None]
    """Told what a refusal says."""

    def room(self, size: int) -> AbstractContextManager[None]:
        """Set room aside for a value while it is written; raises `RateLimited` if there is none."""

    def check_checkpoint(self, size: int) -> None:
        """Raises `InvalidRequest` if a checkpoint of that size isn't kept."""

    def warning(self, size: int) -> str:
        """What is to be said after a checkpoint of that size, while there is still room; "" = nothing."""


class Store(Protocol):
    """Raises `InvalidRequest` for a malformed key, `Unavailable` (with a code) when the store refuses or is away."""

    def put(self, key: str, data: Buffer, *, once: bool = False) -> bool:
        """Keep `data`, durable on return. With `once`, False (and nothing kept) if the key was there already."""

    def put_file(self, key: str, path: Path) -> tuple[str, int]:
        """Keep the bytes of a file; the sha256 and size of what was kept, even if the file changes meanwhile."""

    def get(self, key: str) -> bytes:
        """The bytes kept under the key; `NotFound` if there are none."""

    def chunks(self, key: str) -> Iterator[bytes]:
        """The same, piece by piece; a broken connection is taken up where it broke."""

    def span(self, key: str, start: int, size: int) -> bytes:
        """So many of its bytes from there on; fewer where it ends before. `NotFound` if nothing is kept under the key."""

    def keys(self, prefix: str) -> list[str]:
        """All keys below `prefix/`, in order."""

    def folders(self, prefix: str) -> list[str]:
        """The names one level below `prefix/` that have keys below them, in order."""

    def copy(self, key: str, to: str) -> None:
        """Keep the same bytes under another key, without moving them through this process."""

    def delete(self, key: str) -> None:
        """Forget the key; fine if it isn't there."""

    def delete_folder(self, prefix: str) -> None:
        """Forget everything below `prefix/`."""

    def tidy(self, prefix: str) -> None:
        """Delete what writers that died more than a day ago left unfinished below `prefix/`."""


def store_of(archive: Archive) -> Store:
    """The store that keeps its values where the archive does, with the same credentials.

    Raises:
        InvalidConfig: the archive is neither a directory nor a bucket.
    """
    match archive:
        case DirectoryArchive():
            return DirectoryStore(archive.root)
        case S3Archive():
            return S3Store(archive.place)
        case _:
            raise InvalidConfig(f"checkpoints need a directory or a bucket, not a {type(archive).__name__}")
