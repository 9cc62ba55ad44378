"""How far what is sent or fetched is on its way: said where it takes longer than a second."""

import sys
import time
from typing import Final

from fabric.cli.output import tell, tell_over

_PATIENCE_S: Final = 1.0
_EVERY_S: Final = 2.0
_MIB: Final = 2**20


class Sending:
    """Is told how many bytes have been sent or fetched, and of how many."""

    def __init__(self, doing: str = "sending files") -> None:
        self._doing = doing
        self._began = self._said_at = time.monotonic()
        self._has_said = False

    def __call__(self, sent: int, of: int) -> None:
        now = time.monotonic()
        if now - self._began < _PATIENCE_S or (now - self._said_at < _EVERY_S and self._has_said and sent < of):
            return
        self._has_said, self._said_at = True, now
        said = f"{self._doing}: {sent / _MIB:.0f} of {of / _MIB:.0f} MiB"
        if sys.stderr.isatty():
            tell_over(said, done=sent == of)
        else:
            tell(said)
