"""What can be seen of a limit that resets."""

import msgspec


class LimitView(msgspec.Struct, frozen=True, kw_only=True):
    """A limit, and how it stands now. Amounts in the unit: µHs, 10⁻⁶ CNY or LLM tokens."""

    whose: str
    """key | project | member | account"""
    name: str
    period: str
    """day | week | month | life"""
    unit: str
    """ct | cny | llm"""
    amount: int
    hard: bool
    zone: str
    starts_on: int
    by_operator: bool
    used: int
    """In this period."""
    held: int
    """What runs may use of it."""
    left: int
    used_before: int
    """In the period before."""
    from_us: int
    resets_at_us: int | None
