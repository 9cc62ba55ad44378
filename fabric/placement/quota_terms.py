"""What a quota says, and what is used of it. How it is kept: `fabric.placement.guarantees`."""

from typing import Final, NamedTuple

import msgspec

from fabric.units import AccountId

Order = tuple[bool, int, int]
POLICY_COUNT_MAX: Final = 1_000_000
QUOTAS_MAX: Final = 1_000
"""So many quotas there are at most: some of them are gone through for each job that starts."""


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """How many devices of a type an account, or a cohort beside its accounts, has, borrows and lends; see the module."""

    accelerator: str
    account: str = ""
    cohort: str = ""
    """One of the two is named."""
    nominal: int
    """Guaranteed: whoever borrowed them leaves within his grace when they are asked for."""
    borrow_max: int | None = None
    """So many more at most, of what others don't use or nobody has a quota of; None = as many as there are."""
    lend_max: int | None = None
    """So many of them at most are lent while they aren't used; None = all."""

    @property
    def limit(self) -> int | None:
        """The most that is held at a time."""
        return None if self.borrow_max is None else self.nominal + self.borrow_max

    @property
    def owner(self) -> tuple[str, str, str]:
        """What there is one quota for."""
        return self.accelerator, self.cohort, self.account

    @property
    def is_meant(self) -> bool:
        """Whether it names one owner and a type, with counts that can be."""
        counts = (self.nominal, self.borrow_max or 0, self.lend_max or 0)
        is_named = bool(self.accelerator) and bool(self.account) != bool(self.cohort)
        return (
            is_named and all(0 <= each <= POLICY_COUNT_MAX for each in counts) and (self.lend_max or 0) <= self.nominal
        )


class Used(NamedTuple):
    """A quota and what is used of it, for people."""

    quota: Quota
    nominal: int
    """What is guaranteed; to a cohort with what is guaranteed to its accounts."""
    shared: int
    """Devices of the shared pool that its accounts' jobs have."""
    devices: int
    """All that they have, but on their own cells."""

    @property
    def borrowed(self) -> int:
        """Devices beyond what is guaranteed: those of the shared pool, and all that others lend."""
        return self.devices - min(self.shared, self.nominal)


class Part(NamedTuple):
    """What a job has of one type."""

    account_id: AccountId
    devices: int
    """In all pools but its account's own cells,"""
    shared: int
    """and of these in the shared pool."""
    order: Order
    """Who is within the quota first: who can't be evicted, better classes, who came first."""
