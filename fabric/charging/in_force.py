"""What is in force at a moment: of steps that follow each other, the last that has begun. The one place where that is looked up.

Prices change in steps, each with the moment from which it holds: what a token costs on a plan, a model's rates, what a subscription
is offered for, prices that are announced. What was used is charged by the step in which it was used, whenever it is booked.
"""

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Final, Protocol, TypeVar


class Step(Protocol):
    """Something that holds from a moment on, until the next step begins."""

    @property
    def since_us(self) -> int: ...


AnyStep = TypeVar("AnyStep", bound=Step)
_SINCE: Final = attrgetter("since_us")


def in_force(steps: Sequence[AnyStep], at_us: int) -> AnyStep | None:
    """The step that holds at a moment; None = none has begun.

    Args:
        steps: in the order in which they begin; of those that begin together the last counts.
        at_us: the moment. A step holds from its `since_us` on, that moment included.
    """
    place = bisect_right(steps, at_us, key=_SINCE)
    return steps[place - 1] if place else None


def turns(steps: Sequence[Step], *, after_us: int, until_us: int) -> tuple[int, ...]:
    """The moments between two at which another step begins, neither of these two included."""
    first = bisect_right(steps, after_us, key=_SINCE)
    found = (step.since_us for step in steps[first:] if step.since_us < until_us)
    return tuple(dict.fromkeys(found))
