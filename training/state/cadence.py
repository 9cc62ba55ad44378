"""When to save: before a loss that comes unannounced, and when one is announced. Pure arithmetic, all times in seconds.

The interval between snapshots is Young's and Daly's first-order optimum, √(2 · cost · mean time between losses), from the
cost that was measured here and the rate at which the pool takes capacity away without notice.
"""

import math
from enum import Enum, auto
from typing import Final

LOSS_EVERY_S: Final = 4 * 3600.0
"""How often a device is lost without notice, where nobody has measured it."""
FIRST_SNAPSHOT_S: Final = 30.0
"""When the first snapshot is taken, whose cost nobody knows yet."""
_OVERHEAD_MAX: Final = 0.05
"""At most this share of the time goes into snapshots, or copies, however often devices are lost."""
_LOOK_EACH_S: Final = 10.0
_QUICK_SHARE: Final = 0.001
"""What costs less of the time than this in looks is looked at oftener than that."""
_HOPE: Final = 0.8
"""A save that would have to be this much quicker than the last ones is still tried: it ends whole or not at all."""


class Choice(Enum):
    """What a run does when it is asked to stop."""

    SAVE_NOW = auto()
    """Save the last boundary; if a step is half done, as soon as it ends."""
    KEEP_LAST = auto()
    """Save nothing: the newest checkpoint that is durable already is what counts."""


def snapshot_interval_s(cost_s: float | None, *, loss_every_s: float = LOSS_EVERY_S) -> float:
    """Seconds from one snapshot to the next; `cost_s` is what the last ones cost the run, None = none was taken yet."""
    if cost_s is None:
        return FIRST_SNAPSHOT_S
    optimum = math.sqrt(2 * max(cost_s, 1e-3) * loss_every_s)
    return min(max(optimum, cost_s / _OVERHEAD_MAX), loss_every_s)


def again_in_s(cost_s: float, *, share: float) -> float:
    """Seconds from one look at what may have changed to the next: every 10 s; sooner, if a thousandth of the time is enough for it,
    and later, if it would take more than this share of the time.
    """
    return max(cost_s / share, min(cost_s / _QUICK_SHARE, _LOOK_EACH_S))


def copy_interval(*, copy_s: float, sent_s: float, step_s: float) -> int:
    """Steps from one copy in a peer's memory to the next: copying costs a bounded share, and is sent before the next one.

    `copy_s` is what a copy costs the step, `sent_s` how long it is under way beside the training.
    """
    if step_s <= 0:
        return 1
    return max(1, math.ceil(copy_s / (_OVERHEAD_MAX * step_s)), math.ceil(sent_s / step_s))


def choice_at_stop(*, seconds_left: float | None, save_s: float | None, is_wanted: bool, is_new: bool) -> Choice:
    """What to do with `seconds_left` before the job is ended anyway (None = as long as it takes).

    `save_s` is how long a save takes (None = not known: it is tried), `is_wanted` whether anyone wants the state,
    `is_new` whether there is a boundary that is not durable yet.
    """
    if not is_wanted or not is_new:
        return Choice.KEEP_LAST
    fits = seconds_left is None or save_s is None or save_s * _HOPE <= seconds_left
    return Choice.SAVE_NOW if fits else Choice.KEEP_LAST


def smoothed(before: float | None, measured: float) -> float:
    """The estimate after one more measurement; the last few count most, and a slow one at once."""
    return measured if before is None or measured > before else 0.7 * before + 0.3 * measured
