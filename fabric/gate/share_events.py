"""Events of shares: how much of what is there an account, or those who pay together, may expect beside others."""

from fabric.gate.event import Event
from fabric.units import AccountId


class SetShare(Event, frozen=True, kw_only=True, tag="set_share"):
    """What share of devices an account has, and with whom it has it. None = as before."""

    account_id: AccountId
    weight_ppm: int | None = None
    cohort: str | None = None
    """None = as before, "" = it is a payer of its own."""
    request_id: str = ""


class SetCohort(Event, frozen=True, kw_only=True, tag="set_cohort"):
    """What share the accounts of one payer have together. A cohort is there as soon as an account names it."""

    cohort: str
    weight_ppm: int
    request_id: str = ""


class SetQuota(Event, frozen=True, kw_only=True, tag="set_quota"):
    """How many devices of a type an account, or a cohort, is guaranteed, may borrow and lends from now on."""

    accelerator: str
    account: AccountId = AccountId("")
    cohort: str = ""
    """One of the two is named."""
    nominal: int | None
    """None = it has no quota of the type any more."""
    borrow_max: int | None = None
    """None = as many as there are."""
    lend_max: int | None = None
    """None = all that it doesn't use."""
    request_id: str = ""
