"""What the gate keeps of a limit that resets: its terms, and what of it is used."""

import msgspec

from fabric.gate.limit_events import LimitTerms


class Limit(msgspec.Struct, kw_only=True, gc=False):
    """A limit of a key or an account, with the counts of its period. Times in µs, counts in the unit of its terms."""

    terms: LimitTerms
    set_at_us: int
    by_operator: bool = False
    """Only an operator changes it."""
    from_us: int
    """When the period began that `used` is of."""
    until_us: int | None
    """When the next one begins; None = never."""
    used: int = 0
    rest: int = 0
    """Of CNY: what of 10⁻⁶ CNY is used beyond `used`, in (10⁻⁶ CNY × µHs) / CT."""
    used_before: int = 0
    """In the period before."""
    used_ever: int = 0
    """Since it was set; what was given back is taken off."""
    is_told: bool = False
    """Whether its owner was told, in this period, that it is used up."""
