"""What an attempt says of its end, cut to what is kept of it."""

from typing import Final

REASON_MAX: Final = 300
"""Characters of an error that become a reason: those are kept for each attempt, and stand in every list."""
CODE_MAX: Final = 64


def code(error: str) -> str:
    """`peer_lost` of `peer_lost: rank 1 of 2 is silent`; "" where it begins with no code."""
    found = first_line(error).partition(":")[0]
    return found if len(found) <= CODE_MAX and found.replace("_", "").isalpha() and found.islower() else ""


def first_line(error: str) -> str:
    lines = error.strip().splitlines()
    return lines[-1][:REASON_MAX] if lines else ""
