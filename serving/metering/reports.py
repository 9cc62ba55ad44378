"""Reports of use: how much goes into one message, and calls that the ledger refused by themselves.

Pure. A refusal is never the end of what was used: a report that is refused is halved until the call at fault is alone, and
that one is offered to the ledger to be kept as open, again and again, until it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from serving.calls import Call
from serving.metering.slices import Ask, Slice, Terms

_FIXED_BYTES: Final = 160
"""Of a call's counts and times, and what frames its fields."""
_PAUSE_US_MAX: Final = 3_600_000_000
LONG_US: Final = 60_000_000
"""An ended call that the ledger has not heard of for so long is told of."""


def first_report(calls: Sequence[Call], *, calls_max: int, bytes_max: int) -> tuple[Call, ...]:
    """As many of the first calls as fit into a message; at least one."""
    size, count = 0, 0
    for call in calls[:calls_max]:
        names = (call.call_id, call.key_id, call.model, call.accelerator, call.ended)
        size += _FIXED_BYTES + sum(len(name.encode(errors="replace")) for name in (*names, *call.tags))
        if count and size > bytes_max:
            break
        count += 1
    return tuple(calls[:count])


def unreported(pieces: Sequence[Slice], now_us: int) -> int:
    """Calls of these slices that should have been reported long since."""
    waiting = sum(len(piece.ended) for piece in pieces if now_us - piece.report_since_us > LONG_US)
    asked = [piece.asked for piece in pieces if piece.asked is not None]
    return waiting + sum(len(ask.calls) for ask in asked if now_us - ask.asked_at_us > LONG_US)


@dataclass(slots=True)
class _Refused:
    ask: Ask
    asked: bool = False
    due_at_us: int = 0
    pause_us: int = 0


class RefusedCalls:
    """Calls that the ledger refused by themselves, until it keeps them."""

    def __init__(self, terms: Terms) -> None:
        self._pause_us = terms.retry_us
        self._calls: dict[str, _Refused] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, ask: Ask, *, code: str, reason: str) -> None:
        """A report of one call was refused."""
        (call,) = ask.calls
        self._calls[call.call_id] = _Refused(replace(ask, kind="keep", seq=0, amount_uhs=0, code=code, reason=reason))

    def due(self, now_us: int) -> list[Ask]:
        """What is to be offered to the ledger now."""
        due = [each for each in self._calls.values() if not each.asked and now_us >= each.due_at_us]
        for each in due:
            each.asked = True
        return [each.ask for each in due]

    def kept(self, ask: Ask) -> None:
        """The ledger keeps it."""
        self._calls.pop(ask.calls[0].call_id, None)

    def again(self, ask: Ask, now_us: int) -> None:
        """The ledger wouldn't even keep it: later."""
        each = self._calls[ask.calls[0].call_id]
        each.pause_us = min(_PAUSE_US_MAX, 2 * each.pause_us or self._pause_us)
        each.asked, each.due_at_us = False, now_us + each.pause_us
