"""What the entries say, added up: accounts, holds and requests."""

from collections import Counter, defaultdict
from sys import intern
from typing import Any

from .assets import CT, asset_of
from .calendar import Calendar
from .calls import Calls
from .jobs import Jobs
from .kinds import BY, KINDS, PLACES
from .leases import Leases
from .lots import DAY_US, Lots
from .numbers import Numbers
from .report import Wrong, require
from .sales import Sales
from .statement import Statement
from .strict_json import loads
from .whose import Whose

_REMEMBERED = 32_768


class Books:
    """What the entries say, added up: nothing is made of nothing, and nobody goes below zero."""

    def __init__(self, counts: Counter[str], *, account: str | None = None, statement: Statement | None = None) -> None:
        self.statement = statement
        self.counts, self.account = counts, account
        self.held, self.balances = defaultdict[str, int](int), defaultdict[tuple[str, str], int](int)
        self.requests: defaultdict[str, dict[Any, tuple[Any, Any, int]]] = defaultdict(dict)
        self.ended: set[str] = set()
        self.over: set[str] = set()  # holds that a word has ended, with all that stood beside them in packages
        self.ending = (0, "")  # the entry that ends a hold, and which: those that continue it may move it still
        self.opened: set[str] = set()
        self.calls, self.leases, self.lots = Calls(counts), Leases(counts), Lots()
        self.jobs, self.sales, self.numbers, self.whose = Jobs(), Sales(), Numbers(), Whose()
        self.calendar = Calendar()
        self.transfer_id = self.at_us = 0

    def post(self, seq: int, leaf: bytes, *, whole: bool) -> None:
        """Add an entry; `whole` says that none is missing before it."""
        entry = loads(leaf)
        require(entry["seq"] == seq, f"entry {seq} says that it is number {entry['seq']}")
        require(entry["at_us"] >= self.at_us, f"in entry {seq} time runs backwards")
        self.at_us = entry["at_us"]
        self.counts["entries"] += 1
        event, outcome = entry["event"] or {"event": ""}, entry["outcome"] or {"outcome": ""}
        for each, name in (*((transfer, "ref") for transfer in entry["transfers"]), (event, "hold_id")):
            if name in each:
                each[name] = intern(each[name])  # the name of a hold stands in many places: kept once
        self.counts["refusals"] += outcome["outcome"] == "refused"
        self._request(seq, event, outcome, entry["transfers"])
        if self.ending[1] and entry.get("continues") != self.ending[0]:
            self.ended.add(self.ending[1])
            self.over.add(self.ending[1])
            self.ending = (0, "")
        for since_us, prices in self.calendar.due(self.at_us):
            self._learn(seq, prices, since_us=since_us)
            self.calls.rates.learn(prices, {}, since_us=since_us)
        if outcome["outcome"] == "accepted":
            event = self.calendar.hear(event, self.at_us)
            self._learn(seq, event)
            self.whose.learn(event)
        self.sales.post(seq, event, entry["transfers"])
        self.numbers.post(seq, entry["transfers"])
        if self.statement:
            self.statement.post(seq, self.at_us, entry["transfers"])
        for transfer in entry["transfers"]:
            self._transfer(seq, transfer, whole=whole)
            self.lots.post(seq, transfer, event, whole=whole or not self.counts["withheld entries"])
        self.calls.post(seq, event, outcome, entry)
        self.leases.post(seq, entry)
        self.jobs.post(entry)
        self.whose.post(seq, entry)
        if event["event"] in ("settle_hold", "release_hold") and outcome["outcome"] == "accepted":
            self.ending = (seq, event["hold_id"])

    def _learn(self, seq: int, event: dict[str, Any], *, since_us: int | None = None) -> None:
        self.leases.learn(event, since_us=since_us)
        self.lots.learn(event)
        self.sales.learn(seq, event)

    def finish(self) -> None:
        """At the end of all: what was taken is what was used."""
        if self.ending[1]:
            self.ended.add(self.ending[1])
        self.calls.finish()
        self.jobs.finish(self.ended)
        if self.statement:
            self.statement.finish()

    def _request(self, seq: int, event: dict[str, Any], outcome: dict[str, Any], transfers: list[Any]) -> None:
        """A request id that got a yes gets it again for 32 days, and moves nothing; a refused one is decided anew."""
        name, known = event.get("request_id"), self.requests[event.get("account_id") or ""]
        first, answer, at_us = known.get(name, (event, outcome, 0))
        if first is not event and self.at_us - at_us < 32 * DAY_US:
            require(not transfers, f"entry {seq} books request {name} a second time")
            same = outcome == answer if event == first else outcome["outcome"] == "refused"
            require(same, f"entry {seq} answers request {name} otherwise than before")
        elif name and outcome["outcome"] == "accepted":
            known.pop(name, None)
            known[name] = (event, outcome, self.at_us)
            if len(known) > _REMEMBERED:
                del known[next(iter(known))]

    def _transfer(self, seq: int, transfer: dict[str, Any], *, whole: bool) -> None:
        number, kind, ref = transfer["transfer_id"], transfer["kind"], transfer["ref"]
        if (asset := asset_of(transfer)) != CT:  # a hold of compute tokens has others of its name beside it in packages
            ref = f"{ref} in {asset}"
        complete = whole or not self.counts["withheld entries"]  # what is withheld may explain what is missing
        next_one = number == self.transfer_id + 1 if whole else number > self.transfer_id
        require(next_one, f"in entry {seq} transfer {number} follows {self.transfer_id}")
        self.transfer_id = number
        self.counts["transfers"] += 1
        sums: Counter[str] = Counter()
        held = 0
        for account, asset, amount in transfer["postings"]:
            require(type(amount) is int, f"transfer {number} has an amount that is no integer")
            sums[asset] += amount
            self.balances[account, asset] += amount
            held += amount if account.startswith("cust/") and account.endswith("/held") else 0
        if any(sums.values()):
            raise Wrong(f"the postings of transfer {number} do not sum to zero: {dict(sums)}")
        over = ref in self.ended or transfer["ref"] in self.over
        require(not held or not over, f"transfer {number} moves hold {ref}, which had ended")
        self.opened |= {ref, transfer["ref"]} if kind == "hold" else set()
        known = ref in self.opened or kind not in ("capture", "refund") or not complete
        require(known, f"in entry {seq} transfer {number} is a {kind} without a hold: {ref}")
        self._places(transfer)
        self.held[ref] += held
        if complete:
            self._above_zero(transfer, ref, whole=whole)
        goes_on = {"anew", "carried"} & set(transfer["flags"])  # a lot of it expired, and it may hold others
        if held < 0 and kind in ("release", "expire") and self.held[ref] == 0 and not goes_on:
            self.ended.add(ref)
        if not self.held[ref]:
            del self.held[ref]

    def _places(self, transfer: dict[str, Any]) -> None:
        """A customer's tokens are on accounts that there are, of its own, and leave them as what they are said to."""
        kind, owner = transfer["kind"], transfer["account_id"]
        for account, _, amount in transfer["postings"]:
            root, middle, leaf = (*account.split("/", 2), "", "")[:3]
            fits = leaf in PLACES.get(root, ()) and (middle == owner or root not in ("cust", "receivable"))
            fits &= kind in BY.get((leaf, amount > 0), KINDS) and kind in KINDS
            require(fits, f"transfer {transfer['transfer_id']}, a {kind} of {owner}, books on {account}")

    def _above_zero(self, transfer: dict[str, Any], ref: str, *, whole: bool) -> None:
        for account, asset, _ in transfer["postings"]:
            guarded = account.startswith("cust/" if whole else f"cust/{self.account}/")
            guarded &= account.endswith(("/available", "/held"))
            if guarded and self.balances[account, asset] < 0:
                raise Wrong(f"transfer {transfer['transfer_id']}, {transfer}, takes {account} below zero")
        require(self.held[ref] >= 0, f"transfer {transfer['transfer_id']} takes hold {ref} below zero")
