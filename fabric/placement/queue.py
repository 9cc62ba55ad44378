"""Who waits, and who is next: class, then the account with the least decayed usage, then who came first.

Jobs of one shape that can go to the same places form a *lane*: if its first job does not fit, none does, and the whole
lane is parked until a place it looks at gets room (equivalence classes, as in Borg and Kueue). Hundreds of thousands of
waiting jobs are a few dozen lanes. Knows nothing of nodes.
"""

import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Container, Iterator, Mapping

from fabric.placement.fitting import Group
from fabric.placement.guarantees import Guarantees
from fabric.placement.jobs import RANKS
from fabric.placement.lane import Head, Lane, LaneKey
from fabric.placement.quotas import Fairness, Policy
from fabric.placement.state import Claim, Queued
from fabric.units import AccountId, JobId

_LANES_KEPT = 1024
_HEADS_PER_LINE = 2
_HEADS_KEPT = 16
"""A lane has at most so many heads for each line, and so many more: beyond, those that no longer stand are thrown away."""
_FALLEN_KEPT = 4096
_PEERS_NAMED = 16
_MANY = AccountId("")
LAST = "\U0010ffff"
"""Behind every name."""


class Queue:
    """Lanes by class, and the next job of each.

    What an event costs must not grow with how many lanes wait: those that wait are found by how much they need, the next of
    those that are looked at by a heap, and that an account's key became less is told to a lane when it is looked at.
    """

    def __init__(self, queued: dict[JobId, Queued], fairness: Fairness, policy: Policy, guarantees: Guarantees) -> None:
        self._queued = queued
        self._guarantees = guarantees
        self.follow(policy)
        self._fairness = fairness
        self.owners: dict[AccountId, None] = {}
        """Accounts with nodes of their own: their jobs have lanes of their own."""
        self.fresh: tuple[Lane, Queued] | None = None
        """Who came last, into an empty lane, and isn't in line yet: most such jobs are placed at once."""
        self.lanes: dict[LaneKey, Lane] = {}
        self.named: dict[str, Lane] = {}
        self._lanes_max = _LANES_KEPT
        """With so many, those that are empty are forgotten."""
        self._fallen: list[AccountId] = []
        """Accounts whose keys have become less, the newest last; "" = too many at once to be named."""
        self._forgotten = 0
        """How many fell before those."""
        self.active: list[dict[str, Lane]] = [{} for _ in range(RANKS)]
        self.parked: list[dict[str, Lane]] = [{} for _ in range(RANKS)]
        self._needing: list[dict[str, list[tuple[int, str]]]] = [{} for _ in range(RANKS)]
        """By class and group, the lanes that are parked, those that need least first."""
        self._order: list[tuple[Head, str]] = []
        self._woken: dict[str, Lane] = {}
        """Lanes that are to be looked at, of which `_order` doesn't know yet."""

    def follow(self, policy: Policy) -> None:
        """Sort by this policy; whoever waits is sorted anew by `rebuild`."""
        self._policy = policy
        self._shortest_us = min(policy.graces_us)

    def rebuild(self, *, skip: Mapping[JobId, Claim]) -> None:
        """Sort every waiting job into its lane anew; those in `skip` are not in line."""
        self.fresh = None
        self.lanes.clear()
        self.named.clear()
        for active, parked in zip(self.active, self.parked, strict=True):
            for lane in list(parked.values()):
                self.wake(lane)
            active.clear()
        for job_id, queued in self._queued.items():
            lane = self.lane_of(queued)
            lane.jobs[job_id] = queued
            if job_id not in skip:
                self._line_up(lane, queued)

    def lane_of(self, queued: Queued) -> Lane:
        request, quotas = queued.request, self._guarantees
        account_id = request.account_id
        key = (
            queued.rank,
            request.devices,
            request.devices_per_node,
            request.accelerators,
            queued.preemptible,
            request.service == "inference",
            account_id if account_id in self.owners or (quotas.types and quotas.concerns(account_id)) else "",
            None if request.devices_least is None else (request.devices_least, request.speeds),
            (request.notice_us, request.mixtures) if request.notice_us or request.mixtures else None,
            request.prefers if request.patience_us else (),
            self._policy.barred(request.grace_us)
            if request.grace_us > self._shortest_us and request.is_movable(queued.preemptible)
            else (),
            request.fraction,
            () if request.wish is None else (request.wish.prefer, request.speeds),
        )
        lane = self.lanes.get(key)
        if lane is None:
            if len(self.lanes) >= self._lanes_max:
                self._drop_empty()
            lane = self.lanes[key] = Lane(key, request)
            lane.heard = self._forgotten + len(self._fallen)
            self.named[lane.name] = lane
        return lane

    def push(self, queued: Queued) -> Lane:
        """Put the job in line. Its lane is looked at, unless it is parked: where none of its jobs fits, one more doesn't."""
        if self.fresh is not None:
            self.settle()
        lane = self.lane_of(queued)
        if lane.jobs:
            lane.jobs[queued.request.job_id] = queued
            self._line_up(lane, queued)
        else:
            self.fresh = lane, queued
        return lane

    def settle(self) -> None:
        """Whoever isn't in line yet is from now on."""
        if self.fresh is not None:
            (lane, queued), self.fresh = self.fresh, None
            lane.jobs[queued.request.job_id] = queued
            self._line_up(lane, queued)

    def push_back(self, queued: Queued) -> None:
        """The job had a claim and lost it: it stands in line again."""
        self._line_up(self.lane_of(queued), queued)

    def remove(self, lane: Lane, job_id: JobId) -> None:
        """The job waits no longer."""
        if self.fresh is not None and self.fresh[1].request.job_id == job_id:
            self.fresh = None
            return
        del lane.jobs[job_id]
        if not lane.jobs:
            self._put_away(lane)
            lane.heads.clear()
            lane.lines.clear()
            lane.ages.clear()
        elif lane.parked and self._head(lane) is None:
            self._put_away(lane)

    def step_out(self, lane: Lane, queued: Queued) -> None:
        """The job has a claim: it is not in line, but still of the lane."""
        line = lane.lines[queued.request.account_id]
        if line[0][1] == queued.request.job_id:
            heapq.heappop(line)
        else:
            line.remove((queued.order, queued.request.job_id))
            heapq.heapify(line)
        if lane.parked and self._head(lane) is None:
            self._put_away(lane)

    def begin(self, rank: int) -> None:
        """Put the lanes of a class that are to be looked at in order, for `next`."""
        self._woken = self.active[rank].copy()
        self._order = []

    def next(self, rank: int) -> tuple[Lane, Queued] | None:
        """The next job of a class that may fit, or None. A lane with nobody in line is out of sight from now on."""
        active, order = self.active[rank], self._order
        while True:
            if self._woken:
                self._enter_woken(rank)
            if not order:
                return None
            head, name = order[0]
            lane = active.get(name)
            now = None if lane is None else self._head(lane)
            if lane is None or now is None:
                heapq.heappop(order)
                if lane is not None:
                    del active[name]
                    _want_no_more(lane)
            elif now is head or now == head:
                return lane, lane.jobs[lane.lines[head[2]][0][1]]
            else:
                heapq.heapreplace(order, (now, name))

    def _enter_woken(self, rank: int) -> None:
        woken, self._woken = self._woken, {}
        for lane in woken.values():
            if lane.rank != rank:
                continue
            head = self._head(lane)
            if head is not None:
                heapq.heappush(self._order, (head, lane.name))
            elif self.active[rank].pop(lane.name, None) is not None:
                _want_no_more(lane)

    def needing(self, rank: int, group: Group) -> Iterator[Lane]:
        """The parked lanes of a class that could have something in a group as it is now."""
        needs = self._needing[rank].get(group.name, ())
        parked = self.parked[rank]
        return (parked[name] for _, name in list(needs[: bisect_right(needs, (group.free, LAST))]))

    def needs(self, rank: int) -> dict[str, list[tuple[int, str]]]:
        """By group, the lanes of a class that are parked, with what they need: for comparing one planner with another."""
        return {name: list(needs) for name, needs in self._needing[rank].items() if needs}

    def first(self, lane: Lane) -> Queued | None:
        """Who is next in the lane; None if nobody is in line."""
        head = self._head(lane)
        return None if head is None else lane.jobs[lane.lines[head[2]][0][1]]

    def wanted(self, rank: int, group: Group, *, within: int) -> int:
        """How many devices of the group jobs of a class wait for at the least, of those that want no more than so many."""
        lanes = (*self.active[rank].values(), *self.parked[rank].values())
        might = [lane for lane in lanes if lane.shape.devices <= within and (lane.seen < 0 or group in lane.groups)]
        return sum([lane.wants for lane in might])

    def oldest(self, lane: Lane, *without: Container[JobId]) -> Queued | None:
        """Who came first of those in line, but of some; None if that is nobody."""
        ages, kept = lane.ages, []
        found = None
        while ages:
            order, job_id = ages[0]
            queued = lane.jobs.get(job_id)
            if queued is not None and queued.order == order and not any(job_id in some for some in without):
                found = queued
                break
            heapq.heappop(ages)
            if queued is not None and queued.order == order:
                kept.append((order, job_id))
        for entry in kept:
            heapq.heappush(ages, entry)
        return found

    def _put_away(self, lane: Lane) -> None:
        """Nobody is in line: there is nothing to look at, and nothing is wanted."""
        if lane.parked:
            self.wake(lane)
        self.active[lane.rank].pop(lane.name, None)
        _want_no_more(lane)

    def _head(self, lane: Lane) -> Head | None:
        """The key of the lane's next job. A key that falls is entered anew, so the least entry that is up to date is the least
        of all.
        """
        if lane.heard != self._forgotten + len(self._fallen):
            self._hear(lane)
        heads, lines, key_of, jobs = lane.heads, lane.lines, self._fairness.key, lane.jobs
        while heads:
            head = heads[0]
            account_id = head[2]
            line = lines.get(account_id)
            while line:
                queued = jobs.get(line[0][1])
                if queued is not None and queued.order == line[0][0]:
                    break
                heapq.heappop(line)
            if not line:
                heapq.heappop(heads)
                lines.pop(account_id, None)
            elif head[0] != (key := key_of(account_id)) or head[1] != line[0][0]:
                heapq.heapreplace(heads, (key, line[0][0], account_id))
            else:
                return head
        return None

    def restate(self, account_id: AccountId) -> None:
        """The account's key, and its payer's, may have become less. Lanes are told of it when they are looked at."""
        peers = self._fairness.peers(account_id)
        if len(peers) <= _PEERS_NAMED:
            self._fallen += peers
        else:
            self._fallen.append(_MANY)
        if len(self._fallen) > _FALLEN_KEPT:
            self._forgotten += len(self._fallen)
            self._fallen.clear()

    def _hear(self, lane: Lane) -> None:
        """Enter those whose keys have become less since the lane was looked at, or everybody if that is fewer."""
        since = lane.heard - self._forgotten
        lane.heard = self._forgotten + len(self._fallen)
        lines, key_of = lane.lines, self._fairness.key
        fallen = self._fallen[since:] if since >= 0 else [_MANY]
        if len(fallen) < len(lines) and _MANY not in fallen:
            for account_id in dict.fromkeys(fallen):
                if line := lines.get(account_id):
                    heapq.heappush(lane.heads, (key_of(account_id), line[0][0], account_id))
            if len(lane.heads) <= _HEADS_PER_LINE * len(lines) + _HEADS_KEPT:
                return
        lane.heads = [(key_of(account_id), line[0][0], account_id) for account_id, line in lines.items() if line]
        heapq.heapify(lane.heads)

    def wake(self, lane: Lane) -> None:
        """Look at the lane again."""
        if lane.parked:
            lane.parked = False
            del self.parked[lane.rank][lane.name]
            need = (lane.least, lane.name)
            lane.weigh_on_groups(-1)
            for group in lane.groups:
                needs = self._needing[lane.rank][group.name]
                del needs[bisect_left(needs, need)]
        self.active[lane.rank][lane.name] = self._woken[lane.name] = lane

    def park(self, lane: Lane) -> None:
        """None of its jobs fits; while inference waits for a group, nothing of it is lent."""
        del self.active[lane.rank][lane.name]
        lane.parked = True
        self.parked[lane.rank][lane.name] = lane
        lane.weigh_on_groups(1)
        for group in lane.groups:
            insort(self._needing[lane.rank].setdefault(group.name, []), (lane.least, lane.name))

    def ranked(self, claimed: Mapping[JobId, Claim]) -> list[JobId]:
        """Everybody in line, in order. Reads every job: for people, not for planning."""
        waiting = [queued for job_id, queued in self._queued.items() if job_id not in claimed]
        waiting.sort(key=lambda queued: (queued.rank, self._fairness.key(queued.request.account_id), queued.order))
        return [queued.request.job_id for queued in waiting]

    def _line_up(self, lane: Lane, queued: Queued) -> None:
        request = queued.request
        account_id = request.account_id
        entry = (queued.order, request.job_id)
        line = lane.lines.get(account_id)
        if line is None:
            if not lane.lines:
                lane.heads.clear()
                lane.heard = self._forgotten + len(self._fallen)
            lane.lines[account_id] = [entry]
            heapq.heappush(lane.heads, (self._fairness.key(account_id), queued.order, account_id))
        else:
            heapq.heappush(line, entry)
            if line[0] is entry:
                heapq.heappush(lane.heads, (self._fairness.key(account_id), queued.order, account_id))
        heapq.heappush(lane.ages, entry)
        if not lane.parked:
            self.wake(lane)

    def _drop_empty(self) -> None:
        """Not again before there are twice as many: who looks at all of them must not do so for each that comes."""
        for key in [key for key, lane in self.lanes.items() if not lane.jobs and not lane.parked]:
            lane = self.lanes.pop(key)
            del self.named[lane.name]
            self.active[lane.rank].pop(lane.name, None)
        self._lanes_max = max(_LANES_KEPT, 2 * len(self.lanes))


def _want_no_more(lane: Lane) -> None:
    """Nobody of the lane is in line: what it wanted may be lent again."""
    for group in lane.groups:
        group.touched = group.touched or lane.is_at_home(group)
