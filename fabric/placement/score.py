"""What it would cost to run a job on one type in one pool, as one number in token-seconds (µHs), the least of which is best.

Its terms, each for the whole gang and the time that the job is expected to run there:

- *tokens*: what its devices burn there: less on a type that is cheaper for what it gets done, as measured of this job;
- *time*: how long it takes there, a device-second as one token-second: who is done sooner is worth so much;
- *data*: what its devices burn while they wait for what isn't on the nodes yet;
- *energy*: what its devices draw there, by their makers' board power, a full H100's second as one token-second;
- *risk*: what its devices burn for work that is lost when devices are taken away there, and to start again;
- *others*: what its devices burn there once more, as far as the type is in use: the more of it is, the sooner somebody waits for it
  who gains more by it.

The policy says how much each term counts (`score_percent`). Of a job that prefers to burn fewest tokens, time counts a tenth of that;
of one that prefers to be done soonest, tokens count with it: a type that is dear is one that others wait for. Whole numbers; knows
neither queues nor what is free.
"""

from typing import Final

import msgspec

from fabric.accelerators import watts_of
from fabric.units import PPM

TERMS: Final = ("tokens", "time", "data", "energy", "risk", "others")
PREFERENCES: Final = ("", "tokens", "soonest")
USUAL_PERCENT: Final = (100, 100, 100, 10, 100, 100)
Percents = tuple[int, int, int, int, int, int]
"""How much each term counts."""
RUNS_US: Final = 3_600_000_000
"""Expected of a job of which nothing is known."""
_RESTART_US: Final = 60_000_000
_FULL_WATTS: Final = 700
_SCORE_MAX: Final = 2**62


class Wish(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a job's choice of type is made by, as it was known when it was queued."""

    prefer: str
    """tokens (what burns fewest) | soonest (what is done first)"""
    runs_us: int = RUNS_US
    """How long it is expected to compute on devices of speed 1."""
    burns: tuple[tuple[str, int], ...] = ()
    """By type, what a device of it burns for this job, in ppm of an H100."""
    losses: tuple[tuple[str, int], ...] = ()
    """By pool and type ("spot/H100"), after how long, on average, a lease there loses what it hasn't saved."""
    unsaved_us: int = RUNS_US // 2
    """How much it has not saved at a moment, on average."""
    cold_us: int = 0
    """How long it waits for its data on any node but those it prefers."""


class Score(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What was reckoned for one type in one pool, in µHs, each term as it counts."""

    tokens: int
    time: int
    data: int
    energy: int
    risk: int
    others: int

    @property
    def total(self) -> int:
        return self.tokens + self.time + self.data + self.energy + self.risk + self.others


class Chosen(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why a job was placed where it is: what it came to there, and at the best of the others that had room."""

    group: str
    """Pool and type, such as "spot/H100"."""
    score: Score
    other: str = ""
    """"" = nothing else had room."""
    other_score: Score | None = None


def reckon(
    wish: Wish,
    *,
    pool: str,
    accelerator: str,
    devices: int,
    speed_ppm: int,
    warm: bool,
    used_ppm: int = 0,
    percent: Percents = USUAL_PERCENT,
) -> Score:
    """The score of a gang of so many devices there. `warm`: it has room on nodes that hold its data. `used_ppm`: the part of
    the type's devices there that is in use.
    """
    runs_us = wish.runs_us * PPM // max(speed_ppm, 1)
    burn_ppm = dict(wish.burns).get(accelerator, PPM)
    waits_us = 0 if warm else wish.cold_us
    loses_us = min(wish.unsaved_us, runs_us) + _RESTART_US
    every_us = dict(wish.losses).get(f"{pool}/{accelerator}", 0)
    lost_us = runs_us * loses_us // every_us if every_us else 0
    tokens, time, data, energy, risk, others = percent
    if wish.prefer == "tokens":
        time //= 10
    return Score(
        tokens=_part(devices * runs_us * burn_ppm // PPM, tokens),
        time=_part(devices * runs_us, time),
        data=_part(devices * waits_us * burn_ppm // PPM, data),
        energy=_part(devices * runs_us * watts_of(accelerator) // _FULL_WATTS, energy),
        risk=_part(devices * lost_us * burn_ppm // PPM, risk),
        others=_part(devices * runs_us * burn_ppm // PPM * used_ppm // PPM, others),
    )


def _part(uhs: int, percent: int) -> int:
    return min(uhs * percent // 100, _SCORE_MAX)
