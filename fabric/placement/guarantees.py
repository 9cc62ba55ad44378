"""Quotas: how many devices of a type are guaranteed to an account or a cohort, and how many more it may borrow or lends.

The terms are Kueue's: *nominal* is what its owner gets whenever it asks; what it doesn't use is lent, at most `lend_max` of
it; and nobody holds more than its nominal quota and `borrow_max`. A cohort's quota is on top of those of its accounts, which
lend to each other first. Who has no quota borrows all it runs on.

A quota is of devices of the shared pool (`spot`): an account's own cells aren't counted, and what runs on nodes that others
lend (reserved ones, cells) counts only against what may be borrowed. A part of a device counts as one; of devices that are
divided for good there are no quotas. Of an account's jobs those are within its quota that
can't be evicted, then those of better classes, then those that came first; the rest is borrowed. What is borrowed is
evicted at once, whatever its class, for who is within a quota; what is within a quota for nobody of another account who isn't
nearer to his own. So an eviction always puts somebody nearer to his quota in the place of somebody farther from it, and
no two jobs evict each other in turn.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from fabric.placement.fitting import Group
from fabric.placement.quota_terms import Order, Part, Quota, Used
from fabric.placement.quota_use import POOL, parts_of
from fabric.placement.state import PlacementState, Queued, Running
from fabric.units import AccountId, JobId

OWN: Final = 0
"""Within the account's own quota;"""
SHARED: Final = 1
"""within that of its cohort, which includes what its other accounts don't use;"""
BORROWED: Final = 2
"""beyond both."""


class Guarantees:
    """Who may have how much of which type, and whose use of it is borrowed."""

    __slots__ = ("_accounts", "_cohorts", "_freed", "_kept", "_levels", "_parts", "_payers", "_state", "_uses", "types")

    def __init__(self, state: PlacementState) -> None:
        self._state = state
        self.follow()

    def follow(self) -> None:
        """The state's policy is another one."""
        state = self._state
        self.types: dict[str, None] = {quota.accelerator: None for quota in state.policy.quotas}
        """Types that there is a quota of; of others nothing is noted, and nothing changes."""
        self._accounts: dict[str, dict[str, Quota]] = {kind: {} for kind in self.types}
        self._cohorts: dict[str, dict[str, Quota]] = {kind: {} for kind in self.types}
        for quota in state.policy.quotas:
            if quota.cohort:
                self._cohorts[quota.accelerator][quota.cohort] = quota
            else:
                self._accounts[quota.accelerator][quota.account] = quota
        self._parts: dict[JobId, dict[str, Part]] = {}
        """By job that has devices, or has a claim on some, and type: what it has."""
        self._uses: dict[str, dict[AccountId, dict[JobId, Part]]] = {kind: {} for kind in self.types}
        """The same by type and account."""
        self._freed: dict[AccountId, None] = {}
        """Accounts with quotas that have had more since the last plan."""
        self._kept: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {}
        """By type, what of quotas is kept free: all, and by payer for him, and of that for single accounts of his."""
        self._levels: dict[str, dict[JobId, int]] = {}
        """By type, the jobs that are within a quota."""
        self.regroup()
        if self.types:
            for job_id in (*state.running, *state.claims):
                self._enter(job_id)

    def regroup(self) -> None:
        """Accounts are of other cohorts than before, or there are other quotas."""
        owners = [_cohort(quota.cohort) if quota.cohort else quota.account for quota in self._state.policy.quotas]
        self._payers = frozenset(self._payer(owner) for owner in owners)
        self._reckon_anew()

    # -- what changes ------------------------------------------------------------------------------------------------------

    def note(self, job_id: JobId) -> None:
        """The job has other devices, or another claim, than before."""
        if self.types:
            had = self._parts.get(job_id, {})
            self._leave(job_id)
            self._enter(job_id)
            has = self._parts.get(job_id, {})
            for kind, part in had.items():
                if (kind not in has or has[kind] != part) and self.concerns(part.account_id):
                    self._freed[part.account_id] = None

    def take_freed(self) -> frozenset[AccountId]:
        """The accounts that may start more than when they were asked for last: those that have less, and who shares with them."""
        if not self._freed:
            return frozenset()
        freed, self._freed = self._freed, {}
        cohorts = {cohort for account_id in freed if (cohort := self._name_of(account_id))}
        others = self._state.accounts.items() if cohorts else ()
        return frozenset((*freed, *[other for other, account in others if account.cohort in cohorts]))

    @property
    def is_settled(self) -> bool:
        """Whether nobody has less than when plans were made last."""
        return not self._freed

    def concerns(self, account_id: AccountId) -> bool:
        """Whether there is a quota of the account's own, or that it shares: its jobs don't stand in line with others'."""
        return bool(self.types) and self._payer(account_id) in self._payers

    # -- what may be -------------------------------------------------------------------------------------------------------

    def admits(self, group: Group, queued: Queued, devices: int, *, strictly: bool = True) -> bool:
        """Whether a job may have so many free devices of a group. `strictly`: without those that are kept free for others."""
        if not self._counts(group, queued.request.account_id):
            return True
        if not self.allows(group, queued, devices):
            return False
        if group.pool != POOL:
            return True
        level = self.level(group, queued, devices)
        is_to_stay = level == BORROWED and not queued.request.is_movable(queued.preemptible)
        if is_to_stay and self._stays(group) + devices > self._unassigned(group):
            return False
        return not strictly or group.free - devices >= self.kept(group, queued.request.account_id)

    def allows(self, group: Group, queued: Queued, devices: int) -> bool:
        """Whether the job would leave its account, and its cohort, within what they may borrow."""
        return self.limiting(group, queued, devices) is None

    def limiting(self, group: Group, queued: Queued, devices: int) -> Used | None:
        """The quota that doesn't let the job have so many devices more; None if there is none."""
        account_id, kind = queued.request.account_id, group.accelerator
        if not self._counts(group, account_id):
            return None
        own = self._accounts[kind].get(account_id)
        if own is not None and _beyond(own.limit, self._sum(kind, account_id) + devices):
            return self._used(own, (account_id,))
        cohort = self._name_of(account_id)
        shared = self._cohorts[kind].get(cohort) if cohort else None
        if shared is None or shared.borrow_max is None:
            return None
        members = self._members(kind, cohort)
        most = self._nominal(kind, cohort, members) + shared.borrow_max
        counted = sum([max(self._sum(kind, each), self._unlent(kind, each)) for each in members if each != account_id])
        mine = max(self._sum(kind, account_id) + devices, self._unlent(kind, account_id))
        return self._used(shared, members) if counted + mine > most else None

    def most(self, kind: str, account_id: AccountId) -> int | None:
        """How many devices of a type the account can ever have at once, its own cells aside; None = no quota says."""
        if kind not in self.types:
            return None
        found, own = [], self._accounts[kind].get(account_id)
        if own is not None and own.limit is not None:
            found.append(own.limit)
        cohort = self._name_of(account_id)
        shared = self._cohorts[kind].get(cohort) if cohort else None
        if shared is not None and shared.borrow_max is not None:
            members = self._members(kind, cohort)
            others = sum([self._unlent(kind, each) for each in members if each != account_id])
            found.append(self._nominal(kind, cohort, members) + shared.borrow_max - others)
        return min(found, default=None)

    def level(self, group: Group, queued: Queued, devices: int | None = None) -> int:
        """Of whose quota it would be if the job started there: OWN, SHARED or BORROWED."""
        request, kind = queued.request, group.accelerator
        account_id = request.account_id
        if group.pool != POOL or not self._counts(group, account_id):
            return BORROWED
        asked = request.least if devices is None else devices
        order = (request.is_movable(queued.preemptible), queued.rank, queued.seq)
        ahead = sum([part.shared for part in self._of(kind, account_id) if part.order < order])
        own = self._accounts[kind].get(account_id)
        if own is not None and ahead + asked <= own.nominal:
            return OWN
        cohort = self._name_of(account_id)
        if not cohort:
            return BORROWED
        members = self._members(kind, cohort)
        others = sum([self._taken(kind, each) for each in members if each != account_id])
        return SHARED if others + ahead + asked <= self._nominal(kind, cohort, members) else BORROWED

    def lacks(self, group: Group, queued: Queued) -> bool:
        """Whether the job's account, or its cohort, has less than is guaranteed to it even with the job, whatever runs of its
        own: only then may it start on what is kept free for others.
        """
        kind, account_id, asked = group.accelerator, queued.request.account_id, queued.request.least
        own = self._accounts[kind].get(account_id)
        if own is not None and self._shared(kind, account_id) + asked <= own.nominal:
            return True
        cohort = self._name_of(account_id)
        if not cohort:
            return False
        members = self._members(kind, cohort)
        taken = sum([self._shared(kind, each) for each in members])
        return taken + asked <= self._nominal(kind, cohort, members)

    def level_of(self, group: Group, running: Running) -> int:
        """Of whose quota it is what a job has there."""
        if group.pool != POOL or group.accelerator not in self.types:
            return BORROWED
        return self._levels_of(group.accelerator).get(running.request.job_id, BORROWED)

    def may_evict(self, group: Group, running: Running, queued: Queued) -> bool | None:
        """Whether quotas say that the job gives way, at once (True), or that it doesn't (False); None where they say nothing. A
        divided device gives way where all that are on it do.
        """
        if group.pool != POOL or not self._counts(group, queued.request.account_id):
            return None
        if not running.is_divided:
            return self._may_evict(group, running, queued)
        known = self._state.running
        there = self._state.nodes[running.shares[0][0]].divided[running.request.job_id].jobs
        said = [self._may_evict(group, known[job_id], queued) for job_id in there]
        return False if False in said else None if None in said else True

    def _may_evict(self, group: Group, running: Running, queued: Queued) -> bool | None:
        account_id, other = queued.request.account_id, running.request.account_id
        if account_id == other:
            return None
        if not running.request.is_movable(running.preemptible):
            return False
        wants, has = self.level(group, queued), self.level_of(group, running)
        if has == BORROWED or self._payer(account_id) == self._payer(other):
            return True if wants < has else None if wants == has else False
        return False

    def kept(self, group: Group, account_id: AccountId) -> int:
        """How many free devices of the shared pool aren't for the account: quotas that aren't lent, and aren't used."""
        kind = group.accelerator
        if group.pool != POOL or kind not in self.types:
            return 0
        (every, kept), payer = self._kept_of(kind), self._payer(account_id)
        of_payer, of_accounts = kept.get(payer, (0, 0))
        mine = max(self._unlent(kind, account_id) - self._shared(kind, account_id), 0)
        return every - of_payer + max(of_accounts - mine, 0)

    # -- for people --------------------------------------------------------------------------------------------------------

    def used(self) -> Iterator[Used]:
        """Every quota, in the order of the policy, and what is used of it."""
        for quota in self._state.policy.quotas:
            kind = quota.accelerator
            yield self._used(quota, self._members(kind, quota.cohort) if quota.cohort else (AccountId(quota.account),))

    def view(self) -> dict[str, object]:
        """What is derived, for comparing two planners."""
        return {"quotas in use": self._uses}

    # -- reckoning ---------------------------------------------------------------------------------------------------------

    def _counts(self, group: Group, account_id: AccountId) -> bool:
        return group.accelerator in self.types and group.owner != account_id and group.fraction is None

    def _name_of(self, account_id: AccountId) -> str:
        account = self._state.accounts.get(account_id)
        return account.cohort if account is not None else ""

    def _payer(self, account_id: str) -> str:
        cohort = self._name_of(AccountId(account_id))
        return _cohort(cohort) if cohort else account_id

    def _members(self, kind: str, cohort: str) -> tuple[AccountId, ...]:
        """The accounts of a cohort that have a quota of the type, or use some of it."""
        named = dict.fromkeys((*map(AccountId, self._accounts[kind]), *self._uses[kind]))
        return tuple(each for each in named if self._name_of(each) == cohort)

    def _nominal(self, kind: str, cohort: str, members: Iterable[AccountId]) -> int:
        """What is guaranteed to a cohort: its own quota, and those of its accounts."""
        shared = self._cohorts[kind].get(cohort)
        own = [self._accounts[kind][each].nominal for each in members if each in self._accounts[kind]]
        return sum(own) + (0 if shared is None else shared.nominal)

    def _unlent(self, kind: str, account_id: AccountId) -> int:
        """What of the account's own quota is never lent."""
        own = self._accounts[kind].get(account_id)
        return 0 if own is None or own.lend_max is None else own.nominal - own.lend_max

    def _of(self, kind: str, account_id: AccountId) -> Iterable[Part]:
        return self._uses[kind].get(account_id, {}).values()

    def _sum(self, kind: str, account_id: AccountId) -> int:
        return sum([part.devices for part in self._of(kind, account_id)])

    def _shared(self, kind: str, account_id: AccountId) -> int:
        return sum([part.shared for part in self._of(kind, account_id)])

    def _taken(self, kind: str, account_id: AccountId) -> int:
        """What of the shared pool the account uses, or has others not use."""
        return max(self._shared(kind, account_id), self._unlent(kind, account_id))

    def _kept_of(self, kind: str) -> tuple[int, dict[str, tuple[int, int]]]:
        found = self._kept.get(kind)
        if found is None:
            payers = dict.fromkeys(self._payer(each) for each in self._accounts[kind])
            payers |= dict.fromkeys(_cohort(name) for name in self._cohorts[kind])
            kept = {payer: self._kept_for(kind, payer) for payer in payers}
            found = self._kept[kind] = sum([each for each, _ in kept.values()]), kept
        return found

    def _kept_for(self, kind: str, payer: str) -> tuple[int, int]:
        cohort = payer.removeprefix(_cohort(""))
        members = self._members(kind, cohort) if cohort != payer else (AccountId(payer),)
        of_accounts = sum([max(self._unlent(kind, each) - self._shared(kind, each), 0) for each in members])
        shared = self._cohorts[kind].get(cohort) if cohort != payer else None
        if shared is None or shared.lend_max is None:
            return of_accounts, of_accounts
        idle = self._nominal(kind, cohort, members) - shared.lend_max
        return max(idle - sum([self._shared(kind, each) for each in members]), of_accounts), of_accounts

    def _levels_of(self, kind: str) -> dict[JobId, int]:
        found = self._levels.get(kind)
        if found is None:
            found = self._levels[kind] = self._within(kind)
        return found

    def _within(self, kind: str) -> dict[JobId, int]:
        """The jobs that are within a quota, and whose it is."""
        found: dict[JobId, int] = {}
        beyond: dict[str, list[tuple[Order, int, JobId]]] = {}
        left: dict[str, int] = {}
        for account_id, parts in self._uses[kind].items():
            own = self._accounts[kind].get(account_id)
            room = 0 if own is None else own.nominal
            cohort = self._name_of(account_id)
            if cohort and cohort not in left:
                left[cohort] = self._left(kind, cohort)
            used = 0
            for order, devices, job_id in sorted((part.order, part.shared, job_id) for job_id, part in parts.items()):
                used += devices
                if used <= room:
                    found[job_id] = OWN
                    if cohort:
                        left[cohort] -= devices
                elif cohort:
                    beyond.setdefault(cohort, []).append((order, devices, job_id))
        for cohort, jobs in beyond.items():
            for _, devices, job_id in sorted(jobs):
                left[cohort] -= devices
                if left[cohort] >= 0:
                    found[job_id] = SHARED
        return found

    def _left(self, kind: str, cohort: str) -> int:
        """What is guaranteed to a cohort, without what single accounts don't use and don't lend."""
        members = self._members(kind, cohort)
        idle = [self._taken(kind, each) - self._shared(kind, each) for each in members]
        return self._nominal(kind, cohort, members) - sum(idle)

    def _stays(self, group: Group) -> int:
        """Devices of the shared pool that jobs have which can't be evicted and are beyond a quota."""
        within = self._levels_of(group.accelerator)
        every = [item for parts in self._uses[group.accelerator].values() for item in parts.items()]
        return sum([part.shared for job_id, part in every if not part.order[0] and job_id not in within])

    def _unassigned(self, group: Group) -> int:
        """Devices of the shared pool that nobody has a quota of."""
        quotas = [quota.nominal for quota in self._state.policy.quotas if quota.accelerator == group.accelerator]
        return sum([size * count for size, count in group.standing.items()]) - sum(quotas)

    def _used(self, quota: Quota, members: tuple[AccountId, ...]) -> Used:
        kind = quota.accelerator
        shared = sum([self._shared(kind, each) for each in members])
        devices = sum([self._sum(kind, each) for each in members])
        nominal = self._nominal(kind, quota.cohort, members) if quota.cohort else quota.nominal
        return Used(quota, nominal, shared, devices)

    def _enter(self, job_id: JobId) -> None:
        parts = parts_of(self._state, job_id, self.types)
        if not parts:
            return
        self._parts[job_id] = parts
        for kind, part in parts.items():
            self._uses[kind].setdefault(part.account_id, {})[job_id] = part
        self._reckon_anew()

    def _leave(self, job_id: JobId) -> None:
        for kind, part in self._parts.pop(job_id, {}).items():
            jobs = self._uses[kind][part.account_id]
            del jobs[job_id]
            if not jobs:
                del self._uses[kind][part.account_id]
            self._reckon_anew()

    def _reckon_anew(self) -> None:
        """What was reckoned from quotas, uses and cohorts doesn't hold any more."""
        self._kept.clear()
        self._levels.clear()


def _beyond(limit: int | None, devices: int) -> bool:
    return limit is not None and devices > limit


def _cohort(name: str) -> str:
    return f"cohort {name}"
