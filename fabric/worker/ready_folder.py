"""The folders of an attempt, made before there is one: making each may wait for the disk, and a short job waits with it.

They lie among what is nobody's (`IDLE`) until an attempt takes them by a rename, and are swept there if none does. What can't
be had so is made when it is wanted, as for a process's first job.
"""

import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from fabric.errors import FabricError
from fabric.system.private_folder import IDLE, YOUNG_S, make_private, rooms_of

FIRST: Final = "0"
"""The folder of an attempt's first rank, mostly its only one."""
_GOOD_S: Final = YOUNG_S / 2
"""What is older may be swept while it is taken."""


class ReadyFolder:
    """One, at most, is ready. Of one process that runs one job at a time."""

    def __init__(self) -> None:
        self._ready: Path | None = None
        self._made_at = 0.0

    def make(self, work_dir: Path) -> None:
        """Have one ready, if that can be."""
        if self._is_good():
            return
        ready = work_dir / IDLE / f"ready-{secrets.token_hex(8)}"
        with suppress(FabricError, OSError):
            rooms_of(make_private(ready / FIRST))
            self._ready, self._made_at = ready, time.monotonic()

    def become(self, folder: Path) -> None:
        """Make what is ready the folder of a rank, if it is the first that has anything of its attempt on this machine."""
        ready = self._ready
        if ready is None or folder.name != FIRST or not self._is_good():
            return
        try:
            ready.rename(folder.parent)
        except FileNotFoundError:
            self._ready = None  # somebody has removed it
        except OSError:
            return  # others of its attempt are here: it stays for the next
        self._ready = None

    def _is_good(self) -> bool:
        return self._ready is not None and time.monotonic() - self._made_at < _GOOD_S
