"""What an account may expect: the policy's numbers, decayed usage, and the eviction budget.

Usage decays with a half-life, in integers and without ever touching an account that is idle: instead of shrinking what
was used, what is used later counts for more (forward decay), so accounts compare as if all had decayed to this moment.
Starting a job counts at once as an entry fee that later usage is set off against, so that a burst of submissions
cannot win before its usage is known (the idea is Kueue's admission fair sharing). Usage only grows, so an account's key
in a heap is never too high.
"""

from typing import Final

import msgspec

from fabric.units import MICROS_PER_S, PPM, AccountId, JobId

MINUTE_US: Final = 60_000_000
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US

POLICY_US_MAX: Final = 365 * DAY_US
POLICY_COUNT_MAX: Final = 1_000_000
POOLS: Final = ("reserved", "dedicated", "spot")
LONGEST_GRACE_US: Final = DAY_US
_USAGE_MAX: Final = 2**62
_UHS_PER_COUNT: Final = 1000
_REBASE_AFTER: Final = 4
_STEPS: Final = 64
# fmt: off
_FACTORS: Final = (  # 4096 × 2^(i/64)
    4096, 4141, 4186, 4231, 4277, 4324, 4371, 4419, 4467, 4515, 4565, 4614, 4664, 4715, 4767, 4819,
    4871, 4924, 4978, 5032, 5087, 5142, 5198, 5255, 5312, 5370, 5428, 5487, 5547, 5607, 5668, 5730,
    5793, 5856, 5919, 5984, 6049, 6115, 6182, 6249, 6317, 6386, 6455, 6526, 6597, 6668, 6741, 6814,
    6889, 6964, 7039, 7116, 7194, 7272, 7351, 7431, 7512, 7594, 7677, 7760, 7845, 7930, 8016, 8104,
)
# fmt: on


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of the placement policy."""

    headroom_devices: int = 0
    """Idle reserved devices of each type that are never lent. 0 lends everything: a reclaim frees them within the grace."""
    waits_us: tuple[int, int, int, int, int] = (MINUTE_US, 5 * MINUTE_US, 10 * MINUTE_US, HOUR_US, 6 * HOUR_US)
    """By class, best first: how long a job may wait before it is pinned."""
    bypasses_max: int = 50
    """How many jobs of its own class or lower may be placed past a blocked job before it is pinned."""
    run_us_min: int = 10 * MINUTE_US
    """A job runs at least this long before it is evicted, unless reserved inference reclaims its nodes."""
    evictions_max: int = 3
    """After so many evictions within a day a job is left alone for the day."""
    retry_us: int = MINUTE_US
    """How long a blocked lane waits before victims are looked for again."""
    half_life_us: int = 7 * DAY_US
    """After so long, use counts half as much against an account."""
    entry_us: int = 10 * MINUTE_US
    """Starting a job counts as the use of its devices for so long."""
    graces_us: tuple[int, int, int] = (2 * MINUTE_US, DAY_US, 10 * MINUTE_US)
    """By pool (`POOLS`): the longest that an evicted job may take to leave. One that asks for more isn't let in."""

    @property
    def mistake(self) -> str:
        """What of it can't be meant, in words; "" if nothing."""
        durations = {
            "waits_us": min(self.waits_us), "run_us_min": self.run_us_min, "entry_us": self.entry_us,
            "retry_us": self.retry_us - MICROS_PER_S, "half_life_us": self.half_life_us - HOUR_US,
        }  # fmt: skip
        longest = max(*self.waits_us, self.run_us_min, self.entry_us, self.retry_us, self.half_life_us)
        found = [name for name, us in durations.items() if us < 0] + ["a time"] * (longest > POLICY_US_MAX)
        found += ["graces_us"] * any(not 0 <= us <= LONGEST_GRACE_US for us in self.graces_us)
        counts = {"headroom_devices": 0, "bypasses_max": 1, "evictions_max": 1}
        found += [name for name, least in counts.items() if not least <= getattr(self, name) <= POLICY_COUNT_MAX]
        return ", ".join(found)

    def barred(self, grace_us: int) -> tuple[str, ...]:
        """The pools that a job which may be evicted with such a grace isn't let into."""
        if grace_us <= min(self.graces_us):
            return ()
        return tuple([pool for pool, longest_us in zip(POOLS, self.graces_us, strict=True) if grace_us > longest_us])


class Account(msgspec.Struct, gc=False):
    """What one account has used."""

    usage: int = 0
    """Thousands of µHs, each counted 4096 × 2^(when it was used, in half-lives since the epoch)."""
    credit: int = 0
    """Entry fees that were counted and not yet used, in thousands of µHs."""
    weight_ppm: int = PPM


class Fairness:
    """Who is next among accounts: the one with the least decayed usage for its weight."""

    __slots__ = ("_accounts", "_factor", "_factor_step", "_policy", "epoch_us", "keys")

    def __init__(self, accounts: dict[AccountId, Account], policy: Policy, *, epoch_us: int) -> None:
        self._accounts = accounts
        self._policy = policy
        self.epoch_us = epoch_us
        self.keys = {account_id: _key(account) for account_id, account in accounts.items()}
        self._factor_step = -1
        self._factor = 0

    def join(self, account_id: AccountId, *, weight_ppm: int) -> bool:
        """Make the account known; True if its weight changed, so that its key may have become less."""
        account = self._accounts.get(account_id)
        if account is None:
            self._accounts[account_id] = Account(weight_ppm=weight_ppm)
            self.keys[account_id] = 0
            return False
        if account.weight_ppm == weight_ppm:
            return False
        account.weight_ppm = weight_ppm
        self.keys[account_id] = _key(account)
        return True

    def enter(self, account_id: AccountId, *, devices: int, now_us: int) -> None:
        """Count the entry fee of a job of so many devices."""
        account = self._accounts[account_id]
        fee = devices * self._policy.entry_us // _UHS_PER_COUNT
        account.credit += fee
        self._add(account_id, account, fee, now_us)

    def use(self, account_id: AccountId, *, uhs: int, now_us: int) -> None:
        """Count what was used, less the entry fees that stood for it."""
        account = self._accounts.setdefault(account_id, Account())
        used = -(-uhs // _UHS_PER_COUNT)
        covered = min(used, account.credit)
        account.credit -= covered
        self._add(account_id, account, used - covered, now_us)

    def rebase(self, *, now_us: int) -> bool:
        """Move the epoch up before numbers outgrow 64 bits: every usage halves as often. True if it did (every few weeks)."""
        if self.epoch_us < 0:
            self.epoch_us = now_us
            return False
        halvings = (now_us - self.epoch_us) // self._policy.half_life_us
        if halvings < _REBASE_AFTER:
            return False
        self.epoch_us += halvings * self._policy.half_life_us
        self._factor_step = -1
        for account_id, account in self._accounts.items():
            account.usage >>= halvings
            self.keys[account_id] = _key(account)
        return True

    def follow(self, policy: Policy, *, now_us: int) -> None:
        """Reckon by another policy from now on. What was used decays from here with the new half-life, and counts now as it
        did a moment ago.
        """
        if policy.half_life_us != self._policy.half_life_us and self.epoch_us >= 0:
            octaves, rest = divmod(max((now_us - self.epoch_us) * _STEPS // self._policy.half_life_us, 0), _STEPS)
            for account_id, account in self._accounts.items():
                account.usage = account.usage * _FACTORS[0] // (_FACTORS[rest] << octaves)
                self.keys[account_id] = _key(account)
            self.epoch_us = now_us
        self._policy, self._factor_step = policy, -1

    def _add(self, account_id: AccountId, account: Account, amount: int, now_us: int) -> None:
        step = (now_us - self.epoch_us) * _STEPS // self._policy.half_life_us
        if step != self._factor_step:
            octaves, rest = divmod(max(step, 0), _STEPS)
            self._factor_step, self._factor = step, _FACTORS[rest] << octaves
        account.usage = min(account.usage + amount * self._factor, _USAGE_MAX)
        self.keys[account_id] = account.usage * PPM // account.weight_ppm


class EvictionBudget:
    """How often each job was evicted within a day: the promise behind cheap capacity."""

    __slots__ = ("_evictions",)

    def __init__(self, evictions: dict[JobId, list[int]]) -> None:
        self._evictions = evictions

    def count(self, job_id: JobId, *, now_us: int) -> None:
        """One more eviction; what is older than a day is forgotten, the longest ago first."""
        times = self._evictions.pop(job_id, [])
        self._evictions[job_id] = [at for at in times if at > now_us - DAY_US] + [now_us]
        while (eldest := next(iter(self._evictions))) != job_id and self._evictions[eldest][-1] <= now_us - DAY_US:
            del self._evictions[eldest]

    def is_spent(self, job_id: JobId, *, evictions_max: int, now_us: int) -> bool:
        """Whether the job was evicted so often today that it is now left alone."""
        times = self._evictions.get(job_id)
        return times is not None and sum(at > now_us - DAY_US for at in times) >= evictions_max


def _key(account: Account) -> int:
    return account.usage * PPM // account.weight_ppm
