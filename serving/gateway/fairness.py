"""Whose turn it is at one model: better tiers first, within a tier the account that was served least, nobody for ever last.

Each account has a counter of the LLM tokens it was served, which halves every `HALF_LIFE_US` (virtual token counting, "VTC",
Sheng et al., OSDI 2024, with decay). An account that comes back from idleness starts no lower than the least of those who
wait, so that idleness saves up no turns. An account whose first ticket has seen `BYPASS_MAX` turns more than there are
accounts in line is *overdue*, and every `OVERDUE_EVERY`-th turn belongs to whoever is overdue longest. That bounds the
wait of every account's first ticket, whatever the others do; how many more one has behind it is its own affair.

Pure: no clock, no I/O; integers only, so that equal histories give equal orders.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from typing import Final

BYPASS_MAX: Final = 32
"""How many turns beyond one for each account in line may pass an account's first ticket by."""
OVERDUE_EVERY: Final = 4
"""Of so many turns, one goes to whoever is overdue, if anybody is: no flood of better tiers can take it."""
HALF_LIFE_US: Final = 60_000_000
_SLACK: Final = 64


class QueueTicket:
    """One request in line."""

    __slots__ = ("account", "adapter", "apart", "cost", "due", "order", "rank", "sequences", "waiting")

    def __init__(
        self, account: str, *, rank: int, cost: int, sequences: int = 1, apart: int = 1, adapter: str = ""
    ) -> None:
        self.account = account
        self.adapter = adapter
        """What it asks for, where that is not what all replicas serve."""
        self.rank = rank
        """The tier's: lower goes first."""
        self.cost = max(1, cost)
        """What it will take, in LLM tokens, as far as can be told before."""
        self.sequences = sequences
        """How many answers an engine writes for it,"""
        self.apart = apart
        """and how many of them, those to one prompt, can't be written one after another."""
        self.order = 0
        self.due = 0
        self.waiting = False


class _Tier:
    """The accounts of one rank that wait, by how much they were served."""

    def __init__(self) -> None:
        self.lines: dict[str, deque[QueueTicket]] = {}
        self.heap: list[tuple[int, int, str]] = []


class FairQueue:
    """Tickets in, one ticket out at a time."""

    def __init__(self, *, now_us: int = 0) -> None:
        self._tiers: dict[int, _Tier] = {}
        self._served: dict[str, int] = {}
        self._depths: dict[str, int] = {}
        self._due: list[tuple[int, int, QueueTicket]] = []
        self._depth = 0
        self._arrived = 0
        self._taken = 0
        self._since_overdue = 0
        self._halved_us = now_us

    def __len__(self) -> int:
        return self._depth

    def depth_of(self, account: str) -> int:
        """How many of an account's tickets wait."""
        return self._depths.get(account, 0)

    def served(self, account: str) -> int:
        """The account's counter: LLM tokens, decayed."""
        return self._served.get(account, 0)

    def depths(self) -> dict[int, int]:
        """How many wait, by rank."""
        return {rank: sum(map(len, tier.lines.values())) for rank, tier in self._tiers.items()}

    def put(self, ticket: QueueTicket) -> None:
        """Take a place in line."""
        assert not ticket.waiting, "a ticket waits in one line at a time"
        self._arrived += 1
        ticket.order = self._arrived
        ticket.waiting = True
        tier = self._tiers.setdefault(ticket.rank, _Tier())
        line = tier.lines.get(ticket.account)
        if line is None:
            line = tier.lines[ticket.account] = deque()
            self._lift(ticket.account, tier)
            heapq.heappush(tier.heap, (self._served.get(ticket.account, 0), ticket.order, ticket.account))
            line.append(ticket)
            if len(tier.heap) > 2 * len(tier.lines) + _SLACK:
                self._rebuild(tier)
        else:
            line.append(ticket)
        self._depth += 1
        self._depths[ticket.account] = self._depths.get(ticket.account, 0) + 1
        if line[0] is ticket:
            self._time(ticket)

    def take(self, now_us: int) -> QueueTicket | None:
        """The ticket whose turn it is; its account is charged the ticket's cost at once."""
        if not self._depth:
            return None
        self._decay(now_us)
        self._since_overdue += 1
        ticket = self._overdue() if self._since_overdue >= OVERDUE_EVERY else None
        if ticket is None:
            ticket = self._next()
        else:
            self._since_overdue = 0
        self._remove(ticket)
        self._taken += 1
        self.charge(ticket.account, ticket.cost)
        return ticket

    def drop(self, ticket: QueueTicket) -> None:
        """Leave the line. Costs the account nothing."""
        if ticket.waiting:
            self._remove(ticket)

    def charge(self, account: str, tokens: int) -> None:
        """Count tokens that an account was served, or (negative) that were counted too many."""
        self._served[account] = max(0, self._served.get(account, 0) + tokens)
        if tokens < 0:
            self._reseat(account)

    def decay(self, now_us: int) -> None:
        """Let time pass also when nobody takes a turn: forgets accounts that were idle long."""
        self._decay(now_us)

    def _lift(self, account: str, tier: _Tier) -> None:
        least = self._least(tier, but=account)
        if least is not None and self._served.get(account, 0) < least:
            self._served[account] = least

    def _least(self, tier: _Tier, *, but: str) -> int | None:
        """The smallest counter of those who wait."""
        while tier.heap:
            counted, _, account = tier.heap[0]
            line = tier.lines.get(account)
            served = self._served.get(account, 0)
            if line is None or account == but:
                heapq.heappop(tier.heap)
            elif served > counted:
                heapq.heapreplace(tier.heap, (served, line[0].order, account))
            else:
                return served
        return None

    def _next(self) -> QueueTicket:
        for rank in sorted(self._tiers):
            tier = self._tiers[rank]
            if self._least(tier, but="") is not None:
                return tier.lines[tier.heap[0][2]][0]
        raise AssertionError("what waits is in a line")

    def _overdue(self) -> QueueTicket | None:
        while self._due and not self._due[0][2].waiting:
            heapq.heappop(self._due)
        if self._due and self._due[0][0] <= self._taken:
            return self._due[0][2]
        return None

    def _time(self, first: QueueTicket) -> None:
        """From now on the first of its line: it is overdue when everybody had a turn, and some more."""
        first.due = self._taken + len(self._depths) + BYPASS_MAX
        heapq.heappush(self._due, (first.due, first.order, first))

    def _remove(self, ticket: QueueTicket) -> None:
        tier = self._tiers[ticket.rank]
        line = tier.lines[ticket.account]
        ticket.waiting = False
        self._depth -= 1
        self._depths[ticket.account] -= 1
        if not self._depths[ticket.account]:
            del self._depths[ticket.account]
        if line[0] is not ticket:
            line.remove(ticket)
        else:
            line.popleft()
            if line:
                self._time(line[0])
            else:
                del tier.lines[ticket.account]
        if len(self._due) > 2 * self._depth + _SLACK:
            self._due = [entry for entry in self._due if entry[2].waiting]
            heapq.heapify(self._due)

    def _reseat(self, account: str) -> None:
        """A counter that fell is found again only if the heap says so."""
        for tier in self._waiting_in(account):
            entry = (self._served[account], tier.lines[account][0].order, account)
            heapq.heappush(tier.heap, entry)
            if len(tier.heap) > 2 * len(tier.lines) + _SLACK:
                self._rebuild(tier)

    def _waiting_in(self, account: str) -> Iterator[_Tier]:
        return (tier for tier in self._tiers.values() if account in tier.lines)

    def _decay(self, now_us: int) -> None:
        halvings = (now_us - self._halved_us) // HALF_LIFE_US
        if halvings <= 0:
            return
        self._halved_us += halvings * HALF_LIFE_US
        halved = ((account, served >> halvings) for account, served in self._served.items())
        self._served = {account: served for account, served in halved if served}
        for tier in self._tiers.values():
            self._rebuild(tier)

    def _rebuild(self, tier: _Tier) -> None:
        tier.heap = [(self._served.get(account, 0), line[0].order, account) for account, line in tier.lines.items()]
        heapq.heapify(tier.heap)
