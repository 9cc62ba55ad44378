"""What an account may expect: the policy's numbers, decayed usage, and the eviction budget.

Usage decays with a half-life, in integers and without ever touching an account that is idle: instead of shrinking what
was used, what is used later counts for more (forward decay), so accounts compare as if all had decayed to this moment.
Starting a job counts at once as use that is still to come, so that a burst of submissions cannot win before its usage is
known (the idea is Kueue's admission fair sharing): what the job uses is set off against that, and what is left over when it
ends is given back, so that at no time more is counted for an account than it has used and what its running jobs' starts count.

Accounts that one payer has are a *cohort*: the share is the cohort's, and its accounts are one line in which whoever came first
goes first. So a payer gains nothing by having many accounts.
"""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Protocol

import msgspec

from fabric.placement.quota_terms import POLICY_COUNT_MAX, QUOTAS_MAX, Quota
from fabric.placement.score import USUAL_PERCENT, Percents
from fabric.units import MICROS_PER_S, PPM, AccountId, Fraction, JobId

MINUTE_US: Final = 60_000_000
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US

POLICY_US_MAX: Final = 365 * DAY_US
POOLS: Final = ("reserved", "dedicated", "spot")
LONGEST_GRACE_US: Final = DAY_US
PERCENT_MAX: Final = 1_000

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
    keep_percent: int = 100
    """How long what reserved inference leaves is not lent, as a part of what an eviction usually loses of each device's work: 100
    = until keeping it idle has cost as much as having to evict who it would be lent to. 0 = lent at once."""
    lend_dedicated: bool = True
    """Whether idle cells of one account are lent to jobs of others that may be evicted, until their owner asks."""
    waits_us: tuple[int, int, int, int, int] = (MINUTE_US, 5 * MINUTE_US, 10 * MINUTE_US, HOUR_US, 6 * HOUR_US)
    """By class, best first: how long a job may wait before it is pinned."""
    bypasses_max: int = 50
    """How many jobs of others, of its own class or lower, may be placed past a blocked job before it is pinned."""
    run_us_min: int = 10 * MINUTE_US
    """A job runs at least this long before it is evicted, unless reserved inference reclaims its nodes."""
    evictions_max: int = 3
    """After so many evictions within a day a job is left alone by its equals, and goes last of those that a better class may evict."""
    reserved_percent: int = 8
    """Of a pool's devices of a type so many in a hundred are reserved at a time for jobs that waited too long, or one job's."""
    pins_max: int = 6
    """So many jobs of a class have reservations in one pool's devices of a type at a time."""
    whole_node_waits: int = 6
    """So many times as long as its class may wait for a reservation a gang waits for one node, where one could have it."""
    loss_percent: int = 10
    """For a job with a reservation at most so much is lost of others' work as this part of how long it has been reserved for."""
    cheap_us: int = 5 * MINUTE_US
    """So much of each device's work may be lost at once for a better class, where jobs save,"""
    patience: int = 4
    """and as much more as the time for which it has waited, divided by this."""
    retry_us: int = MINUTE_US
    """How long a blocked lane waits before victims are looked for again."""
    half_life_us: int = 7 * DAY_US
    """After so long, use counts half as much against an account."""
    entry_us: int = 10 * MINUTE_US
    """Starting a job counts as the use of its devices for so long."""
    graces_us: tuple[int, int, int] = (2 * MINUTE_US, DAY_US, 10 * MINUTE_US)
    """By pool (`POOLS`): the longest that an evicted job may take to leave. One that asks for more isn't let in."""
    score_percent: Percents = USUAL_PERCENT
    """By term of the score (`TERMS`), how much it counts where a job has several types to choose from and says what it prefers."""

    quotas: tuple[Quota, ...] = ()
    """What is guaranteed to whom, at most one for an owner and type. Of types without any nothing is guaranteed to anybody."""

    @property
    def mistake(self) -> str:
        """What of it can't be meant, in words; "" if nothing."""
        durations = {
            "waits_us": min(self.waits_us), "run_us_min": self.run_us_min, "entry_us": self.entry_us,
            "retry_us": self.retry_us - MICROS_PER_S, "half_life_us": self.half_life_us - HOUR_US, "cheap_us": self.cheap_us,
        }  # fmt: skip
        longest = max(*self.waits_us, self.run_us_min, self.entry_us, self.retry_us, self.half_life_us, self.cheap_us)
        found = [name for name, us in durations.items() if us < 0] + ["a time"] * (longest > POLICY_US_MAX)
        found += ["graces_us"] * any(not 0 <= us <= LONGEST_GRACE_US for us in self.graces_us)
        counts = {
            "headroom_devices": 0, "bypasses_max": 1, "evictions_max": 1, "pins_max": 1, "whole_node_waits": 0, "patience": 1,
        }  # fmt: skip
        found += [name for name, least in counts.items() if not least <= getattr(self, name) <= POLICY_COUNT_MAX]
        parts = {"reserved_percent": (0, 100), "loss_percent": (1, PERCENT_MAX), "keep_percent": (0, PERCENT_MAX)}
        found += [name for name, (least, most) in parts.items() if not least <= getattr(self, name) <= most]
        found += ["score_percent"] * any(not 0 <= percent <= PERCENT_MAX for percent in self.score_percent)
        owners = {quota.owner for quota in self.quotas}
        is_meant = len(owners) == len(self.quotas) <= QUOTAS_MAX and all(quota.is_meant for quota in self.quotas)
        return ", ".join(found + ["quotas"] * (not is_meant))

    def barred(self, grace_us: int) -> tuple[str, ...]:
        """The pools that a job which may be evicted with such a grace isn't let into."""
        reserved_us, dedicated_us, spot_us = self.graces_us
        if grace_us <= reserved_us and grace_us <= dedicated_us and grace_us <= spot_us:
            return ()
        return tuple([pool for pool, longest_us in zip(POOLS, self.graces_us, strict=True) if grace_us > longest_us])


class Account(msgspec.Struct, gc=False):
    """What one account, or the accounts of one cohort together, have used. Amounts are thousands of µHs, each counted
    4096 × 2^(when it was used, in half-lives since the epoch).
    """

    usage: int = 0
    credit: int = 0
    """Of that, what was counted for starts and isn't used yet: never more than `fees`, and less where it isn't known by which
    jobs something was used."""
    weight_ppm: int = PPM
    fees: int = 0
    """What is left of the fees of jobs that run now."""
    cohort: str = ""
    """Who pays for it together with others; "" = it is a payer of its own."""
    joined: bool = False
    """Whether it ever had a job in line."""


class Charged(Protocol):
    """A job that runs, and what is left of that which its start was counted with."""

    fee: int


class Fairness:
    """Who is next: the payer with the least decayed usage for its weight."""

    __slots__ = (
        "_accounts",
        "_cohorts",
        "_factor",
        "_factor_step",
        "_policy",
        "_started",
        "cohort_keys",
        "epoch_us",
        "keys",
        "members",
        "present",
    )

    def __init__(
        self,
        accounts: dict[AccountId, Account],
        policy: Policy,
        *,
        epoch_us: int,
        cohorts: dict[str, Account] | None = None,
        started: Mapping[JobId, Charged] = MappingProxyType({}),
    ) -> None:
        """Reckon with these accounts and `cohorts` (which this changes), and with the fees of the jobs that were `started`."""
        self._accounts = accounts
        self._cohorts = {} if cohorts is None else cohorts
        self._started = started
        self._policy = policy
        self.epoch_us = epoch_us
        self.keys = {account_id: _key(account) for account_id, account in accounts.items()}
        """By account, as it counts where it is a payer of its own."""
        self.cohort_keys = {name: _key(cohort) for name, cohort in self._cohorts.items()}
        self.members: dict[str, dict[AccountId, None]] = {}
        for account_id, account in accounts.items():
            if account.cohort:
                self.members.setdefault(account.cohort, {})[account_id] = None
        self.present: dict[AccountId, int] = {}
        """How many jobs each account has in line or running."""
        self._factor_step = -1
        self._factor = 0

    def key(self, account_id: AccountId) -> int:
        """What its payer has used, by weight: less goes first."""
        cohort = self._accounts[account_id].cohort
        return self.cohort_keys[cohort] if cohort else self.keys[account_id]

    def peers(self, account_id: AccountId) -> Collection[AccountId]:
        """The accounts whose keys change with this one's."""
        cohort = self._accounts[account_id].cohort
        return self.members[cohort] if cohort else (account_id,)

    def payer(self, account_id: AccountId) -> str:
        """Whose share it is that the account uses."""
        account = self._accounts.get(account_id)
        return f"cohort {account.cohort}" if account is not None and account.cohort else account_id

    def join(self, account_id: AccountId, *, weight_ppm: int, cohort: str = "", cohort_weight_ppm: int = PPM) -> bool:
        """Make the account known, with its weight; True if its key may have become less. The first time it has a job in line it
        begins where the least of those stand that are there, not before everybody.
        """
        account = self._accounts.get(account_id)
        if account is None:
            account = self._accounts[account_id] = Account(weight_ppm=weight_ppm)
        elif account.joined and not cohort and not account.cohort and account.weight_ppm == weight_ppm:
            return False
        changed = self._weigh(account_id, account, weight_ppm, cohort, cohort_weight_ppm)
        if not account.joined:
            account.joined = True
            account.usage = max(account.usage, 0 if cohort else self._least(account_id) * weight_ppm // PPM)
            self.keys[account_id] = _key(account)
        return changed

    def weigh(self, account_id: AccountId, *, weight_ppm: int, cohort: str = "", cohort_weight_ppm: int = PPM) -> bool:
        """Give the account, and its cohort, these weights; True if that is new."""
        account = self._accounts.setdefault(account_id, Account())
        return self._weigh(account_id, account, weight_ppm, cohort, cohort_weight_ppm)

    def arrive(self, account_id: AccountId) -> None:
        """One job more of the account is in line, or runs."""
        self.present[account_id] = self.present.get(account_id, 0) + 1

    def depart(self, account_id: AccountId) -> bool:
        """One job fewer. True if nothing of its payer is there any more."""
        left = self.present[account_id] - 1
        if left:
            self.present[account_id] = left
            return False
        del self.present[account_id]
        cohort = self._accounts[account_id].cohort
        return not cohort or not any(member in self.present for member in self.members[cohort])

    def enter(self, account_id: AccountId, *, devices: int, now_us: int, fraction: Fraction | None = None) -> int:
        """Count the start of a job of so many devices (or of a part of one) as use that is still to come; how much that is."""
        entry = devices * self._policy.entry_us // _UHS_PER_COUNT
        if fraction is not None:
            entry = entry * fraction[0] // fraction[1]
        fee = entry * self._scale(now_us)
        account = self._accounts[account_id]
        self._count(account_id, account, used=0, fees=account.fees + fee, early=account.fees - account.credit)
        return fee

    def leave(self, account_id: AccountId, *, fee: int) -> bool:
        """The job is over: what it has not used of its fee goes back. True if the account has less than before."""
        account = self._accounts[account_id]
        fees = account.fees - fee if account.fees > fee else 0
        return self._count(account_id, account, used=0, fees=fees, early=account.fees - account.credit) < 0

    def use(self, account_id: AccountId, *, uhs: int, now_us: int, charged: Charged | None = None) -> None:
        """Count what was used by a job that runs, less what is left of its fee. What nobody says by which job it was used is set
        off against the fees of all that run.
        """
        account = self._accounts.get(account_id)
        if account is None:
            account = self._accounts[account_id] = Account()
        used = -(-uhs // _UHS_PER_COUNT) * self._scale(now_us)
        fees, early = account.fees, account.fees - account.credit
        if charged is None:
            early += used
        else:
            covered = min(used, charged.fee)
            charged.fee -= covered
            fees = max(fees - covered, 0)
        self._count(account_id, account, used=used, fees=fees, early=early)

    def rebase(self, *, now_us: int) -> bool:
        """Move the epoch up before numbers outgrow 64 bits: every usage halves as often. True if it did (every few weeks)."""
        if self.epoch_us < 0:
            self.epoch_us = now_us
            return False
        halvings = (now_us - self.epoch_us) // self._policy.half_life_us
        if halvings < _REBASE_AFTER:
            return False
        self.epoch_us += halvings * self._policy.half_life_us
        self._rescale(1, 1 << halvings)
        return True

    def follow(self, policy: Policy, *, now_us: int) -> None:
        """Reckon by another policy from now on. What was used decays from here with the new half-life, and counts now as it
        did a moment ago.
        """
        if policy.half_life_us != self._policy.half_life_us and self.epoch_us >= 0:
            octaves, rest = divmod(max((now_us - self.epoch_us) * _STEPS // self._policy.half_life_us, 0), _STEPS)
            self._rescale(_FACTORS[0], _FACTORS[rest] << octaves)
            self.epoch_us = now_us
        self._policy, self._factor_step = policy, -1

    def _weigh(
        self, account_id: AccountId, account: Account, weight_ppm: int, cohort: str, cohort_weight_ppm: int
    ) -> bool:
        before = (account.weight_ppm, account.cohort)
        account.weight_ppm, account.cohort = weight_ppm, cohort
        self.keys[account_id] = _key(account)
        changed = before != (weight_ppm, cohort)
        if before[1] != cohort and before[1]:
            del self.members[before[1]][account_id]
        if not cohort:
            return changed
        shared = self._cohorts.get(cohort)
        if shared is None:
            begins = 0 if account.joined else self._least(account_id) * cohort_weight_ppm // PPM
            shared = self._cohorts[cohort] = Account(usage=max(account.usage, begins))
        self.members.setdefault(cohort, {})[account_id] = None
        changed = changed or shared.weight_ppm != cohort_weight_ppm
        shared.weight_ppm = cohort_weight_ppm
        self.cohort_keys[cohort] = _key(shared)
        return changed

    def _least(self, account_id: AccountId) -> int:
        """Where the payer stands that has used least of those who have jobs here. Where nobody has, of all that ever had; 0 where
        nobody else ever had.
        """
        there = [self.key(other) for other in self.present if other != account_id]
        return min(there) if there else min((key for key in self._all_keys(account_id) if key), default=0)

    def _all_keys(self, account_id: AccountId) -> Iterator[int]:
        for other, account in self._accounts.items():
            if other != account_id and account.joined and not account.cohort:
                yield self.keys[other]
        yield from self.cohort_keys.values()

    def _rescale(self, times: int, over: int) -> None:
        for charged in self._started.values():
            charged.fee = charged.fee * times // over
        for account_id, account in self._accounts.items():
            account.usage = account.usage * times // over
            account.fees = account.fees * times // over
            account.credit = min(account.credit * times // over, account.fees)
            self.keys[account_id] = _key(account)
        for name, cohort in self._cohorts.items():
            cohort.usage = cohort.usage * times // over
            self.cohort_keys[name] = _key(cohort)
        self._factor_step = -1

    def _scale(self, now_us: int) -> int:
        step = (now_us - self.epoch_us) * _STEPS // self._policy.half_life_us
        if step != self._factor_step:
            octaves, rest = divmod(max(step, 0), _STEPS)
            self._factor_step, self._factor = step, _FACTORS[rest] << octaves
        return self._factor

    def _count(self, account_id: AccountId, account: Account, *, used: int, fees: int, early: int) -> int:
        """Have so many fees stand for what is to come, of which so much was used early; how much more the account has now."""
        credit = fees - early if early < fees else 0
        more = used + credit - account.credit
        account.fees, account.credit = fees, credit
        usage = account.usage + more
        account.usage = usage = usage if 0 <= usage <= _USAGE_MAX else max(min(usage, _USAGE_MAX), 0)
        self.keys[account_id] = usage * PPM // account.weight_ppm
        if account.cohort:
            shared = self._cohorts[account.cohort]
            shared.usage = max(min(shared.usage + more, _USAGE_MAX), 0)
            self.cohort_keys[account.cohort] = _key(shared)
        return more


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
        """Whether the job was evicted as often within a day as it may be."""
        times = self._evictions.get(job_id)
        return times is not None and sum(at > now_us - DAY_US for at in times) >= evictions_max


def _key(account: Account) -> int:
    return account.usage * PPM // account.weight_ppm
