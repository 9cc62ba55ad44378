"""When an invoice that isn't paid is to be acted on next: reminded of, then no more credit. Pure arithmetic on a plan's terms."""

from typing import Final, NamedTuple

from fabric.charging.catalogue import Dunning
from fabric.charging.plans import DAY_US

REMIND: Final = "remind"
STOP: Final = "stop"


class Step(NamedTuple):
    """What is to be done, and when."""

    at_us: int
    what: str


def due_us(terms: Dunning, *, issued_at_us: int) -> int:
    """When it is to be paid by."""
    return issued_at_us + terms.due_days * DAY_US


def next_step(terms: Dunning | None, *, issued_at_us: int, reminded: int, is_stopped: bool) -> Step | None:
    """The next thing to do about it; None = nothing."""
    if terms is None or not issued_at_us:
        return None
    due, steps = due_us(terms, issued_at_us=issued_at_us), []
    if reminded < len(terms.remind_days):
        steps.append(Step(due + terms.remind_days[reminded] * DAY_US, REMIND))
    if terms.stop_days is not None and not is_stopped:
        steps.append(Step(due + terms.stop_days * DAY_US, STOP))
    return min(steps, default=None)
