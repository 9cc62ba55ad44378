"""What an operator may have to say about one start of the gate: from where it is replayed, and that the clock is right.

A clock that is far ahead at a start charges every renewal and expires every lot that is due by then, for ever: so it is a
question. One that jumps while the gate runs is not followed.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog

from fabric.clock import SteadyClock
from fabric.errors import Unavailable

CLOCK_AHEAD: Final = "clock_ahead"
IDLE_TICKS: Final = 24
"""So many entries tell of an idle time as long as a start may find the clock ahead."""
_HOUR_US: Final = 3_600_000_000
_DAYS_FROM_H: Final = 48
_JUMP_US: Final = 60_000_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTerms:
    """What an operator says about one start."""

    replay_from: int | None = None
    """From the newest snapshot after at most so many entries; 0 = the whole journal. None = from the newest."""
    accept_time: bool = False
    """The clock is right, however far it is ahead of the journal."""


def check_clock(now_us: int, *, last_us: int, limit_us: int) -> None:
    """Ask whether the clock is right, where that isn't plain.

    Args:
        now_us: what it says.
        last_us: the time of the journal's last entry.
        limit_us: how far ahead of that is plausible.

    Raises:
        Unavailable: with the question; nothing was decided.
    """
    if now_us - last_us <= limit_us:
        return
    raise Unavailable(
        f"is this machine's clock right? It says {_moment(now_us)}, {_span(now_us - last_us)} after the journal's last entry"
        f" ({_moment(last_us)}), and more than {_span(limit_us)} is not taken for granted: what falls due by a wrong clock"
        " (renewals that are charged, tokens that expire) has fallen due for ever. If it is right: fabric up --accept-time."
        " If not, set it; nothing was decided yet. The limit is clock.ahead_max_h in the cluster file",
        code=CLOCK_AHEAD,
        clock_us=now_us,
        last_us=last_us,
        limit_us=limit_us,
    )


class Jumps:
    """Watches a machine's clock while the gate runs by monotonic time."""

    def __init__(self, clock: SteadyClock, *, limit_us: int) -> None:
        self._clock = clock
        self._limit_us = limit_us
        self._told = False

    def look(self) -> None:
        """A jump is told of once."""
        ahead_us = self._clock.wall_ahead_us()
        told, self._told = self._told, abs(ahead_us) > _JUMP_US
        if self._told and not told:
            log.error("clock_jumped", ahead_s=ahead_us // 1_000_000, told="the gate goes on by monotonic time")

    def said(self) -> str:
        """What is wrong with the clock; "" if it has not jumped ahead, or not far."""
        ahead_us = self._clock.wall_ahead_us()
        if ahead_us <= self._limit_us:
            return ""
        return (
            f"this machine's clock is {_span(ahead_us)} ahead of the gate's, which goes on as if it had not jumped: set it"
            " right, or, if it is right, stop the gate and start it with fabric up --accept-time"
        )


def _moment(at_us: int) -> str:
    return f"{datetime.fromtimestamp(at_us / 1_000_000, tz=UTC):%Y-%m-%d %H:%M} UTC"


def _span(us: int) -> str:
    hours = us / _HOUR_US
    return f"{hours / 24:.1f} days" if hours >= _DAYS_FROM_H else f"{hours:.1f} h"
