"""Who the jobs of a trace belong to, where it doesn't say, and how it is stretched to another load."""

import random
from collections.abc import Sequence
from typing import Final

import msgspec

from fabric.simulation.workload import Work, load

USERS: Final = 100
NAMED_MIN: Final = 20
"""With fewer users than so many, shares of users are no shares of what they ask for: others are drawn."""


def with_tiers(works: list[Work], shares: Sequence[int], *, seed: int, users: int = USERS) -> list[Work]:
    """Jobs with users, and each user in a tier: shares are percent of users, the last tier's (Starter) first.

    A trace that names few or no users gets so many, each job one of them by chance. Jobs of reserved inference stay what they are.
    """
    rng = random.Random(seed)
    named = sorted({work.user for work in works if not work.is_reserved})
    made = len(named) < NAMED_MIN
    names = [f"user-{at}" for at in range(users)] if made else named
    shuffled = names[:]
    rng.shuffle(shuffled)
    tier_of: dict[str, int] = {}
    begin = 0
    for at, share in enumerate(shares):
        end = len(names) if at == len(shares) - 1 else begin + round(len(names) * share / sum(shares))
        for name in shuffled[begin:end]:
            tier_of[name] = max(len(shares) - 1 - at, 0)
        begin = end
    found = []
    for work in works:
        if work.is_reserved:
            found.append(work)
            continue
        user = rng.choice(names) if made else work.user
        found.append(msgspec.structs.replace(work, user=user, tier=tier_of[user]))
    return found


def stretched(works: list[Work], wanted: float, *, devices: int) -> list[Work]:
    """The same jobs, arriving so much faster or slower that they ask for so much of the cluster."""
    ppm = round(load(works, devices) / wanted * 1_000_000)
    first_us = works[0].submit_us
    return [msgspec.structs.replace(work, submit_us=(work.submit_us - first_us) * ppm // 1_000_000) for work in works]
