"""When an invoice that isn't paid is to be acted on next: reminded of, then no more credit, then its account's jobs parked, and then
the account closed. Pure arithmetic on a plan's terms.
"""

from typing import Final, NamedTuple

from fabric.charging.catalogue import Dunning
from fabric.charging.plans import DAY_US

REMIND: Final = "remind"
STOP: Final = "stop"
PARK: Final = "park"
CLOSE: Final = "close"
_ORDER: Final = (REMIND, STOP, PARK, CLOSE)
"""Of what falls due at one time."""


class Step(NamedTuple):
    """What is to be done, and when."""

    at_us: int
    what: str


def due_us(terms: Dunning, *, issued_at_us: int) -> int:
    """When it is to be paid by."""
    return issued_at_us + terms.due_days * DAY_US


def next_step(
    terms: Dunning | None, *, issued_at_us: int, reminded: int, done: frozenset[str] = frozenset()
) -> Step | None:
    """The next thing to do about it; None = nothing. `done` names the steps that were taken, but for reminders."""
    if terms is None or not issued_at_us or CLOSE in done:
        return None
    due, steps = due_us(terms, issued_at_us=issued_at_us), []
    if reminded < len(terms.remind_days):
        steps.append(Step(due + terms.remind_days[reminded] * DAY_US, REMIND))
    for what, days in ((STOP, terms.stop_days), (PARK, terms.park_days), (CLOSE, terms.close_days)):
        if days is not None and what not in done:
            steps.append(Step(due + days * DAY_US, what))
    return min(steps, key=lambda step: (step.at_us, _ORDER.index(step.what)), default=None)
