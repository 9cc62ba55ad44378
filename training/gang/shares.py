"""Who computes which micro-batches of which step, as it changes while a gang runs.

All ranks hold the same plans: they are given the same measurements in the same order. A new split counts from a step that
no rank has read ahead for, so that each sample is still seen exactly once. Pure.
"""

from training.gang.mixing import Balance
from training.loop.virtual import Plan


class Shares:
    """The plans of a gang, from the step each of them counts from."""

    def __init__(self, count: int, *, world: int, rank: int, ahead: int = 0, balances: bool = False) -> None:
        """Begin with even shares.

        Args:
            count: virtual ranks of a whole step; at least one for each of the `world`.
            world: ranks of the gang.
            rank: whose shares are asked for.
            ahead: how many steps beyond the running one may have been read already.
            balances: whether shares follow measured speeds.
        """
        self._count, self._world, self._rank, self._ahead = count, world, rank, ahead
        even = Plan.even(count, world)
        self._plans: list[tuple[int, Plan]] = [(0, even)]
        self._balance = Balance(even.shares) if balances else None

    def plan(self, step: int, parts: int) -> Plan:
        """The plan of a step of `parts` micro-batches: fewer than usual only at the end of the data, and then even."""
        if parts < self._count:
            return Plan.even(parts, self._world)
        return next(plan for since, plan in reversed(self._plans) if since <= step)

    @property
    def count(self) -> int:
        """Virtual ranks of a whole step."""
        return self._count

    def counts(self, step: int) -> tuple[int, ...]:
        """How many micro-batches of a whole step each rank computes; () before the first."""
        return self.plan(step, self._count).shares if step >= 0 else ()

    def block(self, step: int, parts: int) -> range:
        """The micro-batches of this rank among the step's `parts`; none for some where there are fewer than ranks."""
        return self.plan(step, parts).block(self._rank)

    def observe(self, step: int, laps_us: tuple[int, ...]) -> None:
        """After `step` steps: how long each rank computed its share of the one before last."""
        if self._balance is None or step < 2:  # noqa: PLR2004  # there was none before last
            return
        if self.plan(step - 2, self._count).shares != self._balance.shares:
            return  # measured with an older split, whose successor is on its way
        if self._balance.observe(laps_us):
            self._plans.append((step + 1 + self._ahead, Plan(self._balance.shares)))
