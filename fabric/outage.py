"""An outage of something that the gate depends on: since when, why, how often it was tried since, and when next.

Whoever keeps it tries again by itself, with longer and longer pauses; whoever calls meanwhile is told at once.
"""

import time
from typing import Final

from fabric.errors import Unavailable

PAUSE_S: Final = 0.2
PAUSE_S_MAX: Final = 3.0
"""So that whatever was away is in use within seconds of its return, however long it was away."""
_SHOWN: Final = 300


class Outage:
    """One outage, from its first failure on."""

    def __init__(self, what: str, error: BaseException, *, code: str = "journal_unavailable") -> None:
        """Say what is away, as it is called in a sentence, how that was noticed, and the code of what callers are told."""
        self._what = what
        self._code = code
        self._began = self._tried = time.monotonic()
        self.tries = 0
        self.error = error

    @property
    def lasted_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def pause_s(self) -> float:
        """How long to wait until the next try."""
        return min(PAUSE_S * (1 << min(self.tries, 16)), PAUSE_S_MAX)

    @property
    def is_due(self) -> bool:
        """Whether it is time for another try."""
        return time.monotonic() - self._tried >= self.pause_s

    @property
    def why(self) -> str:
        """What went wrong last."""
        said = str(getattr(self.error, "facts", {}).get("reason") or self.error) or type(self.error).__name__
        return said[:_SHOWN]

    def tried(self, error: BaseException) -> None:
        """It was tried again, and is still away."""
        self.tries += 1
        self.error = error
        self._tried = time.monotonic()

    def said(self) -> str:
        """The outage in one sentence."""
        ago_s = time.monotonic() - self._tried
        return (
            f"{self._what} is away since {self.lasted_s:.0f} s ({self.why}); it is tried again every {PAUSE_S_MAX:.0f} s or"
            f" sooner, last {ago_s:.1f} s ago"
        )

    def refusal(self, more: str = "") -> Unavailable:
        """The answer to whoever calls meanwhile."""
        return Unavailable(
            f"the gate can't answer now: {self.said()}. {more or 'Nothing of this call was done'}: retry in a"
            " moment. Where it stays away, start it, or free space",
            code=self._code,
            away=self._what,
            reason=self.why,
            lasted_s=round(self.lasted_s),
            tries=self.tries,
        )
