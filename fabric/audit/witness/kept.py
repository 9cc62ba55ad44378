"""What a witness has cosigned, kept through any crash: one file for each log, replaced as a whole before it answers."""

import fcntl
import hashlib
import os
from pathlib import Path

from fabric.errors import Conflict


class Kept:
    """A folder of one witness. Two processes never have it at once: each would cosign a history of its own."""

    def __init__(self, folder: Path) -> None:
        """Take the folder over; make it where there is none.

        Raises:
            Conflict: another process has it.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._lock = (folder / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Conflict(
                f"another witness runs in {folder}: end it, or give another --state", code="witness_runs"
            ) from None

    def read(self, origin: str) -> str:
        """The newest checkpoint of a log that was cosigned, as the log signed it; "" = none."""
        file = self._file(origin)
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def write(self, origin: str, note: str) -> None:
        """Keep a newer one. When this returns, no crash undoes it; when it raises, the one before is there, or this one."""
        file = self._file(origin)
        draft = file.with_suffix(".new")
        with draft.open("w", encoding="utf-8") as out:
            out.write(note)
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Leave it to others."""
        self._lock.close()

    def _file(self, origin: str) -> Path:
        return self.folder / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.checkpoint"
