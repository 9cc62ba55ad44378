"""Calls of language models: reckoned again."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from .assets import CT, asset_of, paid_by_packages
from .rates import Rates
from .report import Wrong, require

_MTOK = 1_000_000
_TOLD = (
    *("model", "accelerator", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "covered"),
    "tags",
)


class Calls:
    """Calls of language models: each charged once, by the rates that were offered; its hold or the operator bears that."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.charged: set[tuple[str, str]] = set()
        self.rates = Rates()
        self.heard: defaultdict[str, int] = defaultdict(int)
        self.used: Counter[str] = Counter()
        self.met: Counter[str] = Counter()  # by the customer, or by the operator where it was written off

    def post(self, seq: int, event: dict[str, Any], outcome: dict[str, Any], entry: dict[str, Any]) -> None:
        if outcome["outcome"] == "accepted":
            self.rates.learn(event, outcome)
        for transfer in entry["transfers"]:
            if transfer["kind"] in ("capture", "write_off"):
                asset = asset_of(transfer)
                self.met[transfer["ref"] if asset == CT else f"{transfer['ref']} in {asset}"] += transfer["postings"][
                    -1
                ][2]
        calls = [record for record in entry["records"] if record.get("model")]
        self.counts["calls"] += len(calls)
        self.counts["charging records"] += len(entry["records"]) - len(calls)
        for call in calls:
            self._check(seq, call)
            self._told(seq, call, event)
            self.used[call["lease_id"]] += call["charged_uhs"] + call.get("absorbed_uhs", 0)
            for use in call.get("packages", ()):
                self.used[f"{call['lease_id']} in {use['asset']}"] += use["units"]
        self._lots(seq, calls, entry["transfers"])
        said = event["event"] in ("update_hold", "settle_hold", "release_hold") and outcome["outcome"] == "accepted"
        if said and event["seq"] > self.heard[event["hold_id"]]:  # an old word is answered again, and moves nothing
            self.heard[event["hold_id"]] = event["seq"]
            self.used[event["hold_id"]] += event.get("used_uhs", 0)
        if said and event["event"] != "update_hold" and self.used[event["hold_id"]] == self.met[event["hold_id"]]:
            del (
                self.used[event["hold_id"]],
                self.met[event["hold_id"]],
            )  # settled; what comes later must be even by itself

    def finish(self) -> None:
        """What was reported of each hold is what was taken off it."""
        for hold in {**self.used, **self.met}:
            used = self.used[hold]
            if "#" in hold and not used:
                continue  # a job's, which its records charge
            require(used == self.met[hold], f"hold {hold} paid {self.met[hold]} µHs for a use of {used}")

    def _told(self, seq: int, call: dict[str, Any], event: dict[str, Any]) -> None:
        """A record says what its hold was told: "calls" has the words of all that were told in this decision."""
        if not call["charged_uhs"] and "calls" not in event:
            return  # what the operator bears may be told of later, as a sum
        said = [each for each in event.get("calls", ()) if each["call_id"] == call["cdr_id"]]
        same = any(all(each.get(name) == call.get(name) for name in _TOLD) for each in said)
        require(same, f"in entry {seq} call {call['cdr_id']} is not recorded as it was told")

    def _lots(self, seq: int, calls: list[dict[str, Any]], transfers: list[dict[str, Any]]) -> None:
        """The lots that records name are those that were taken from."""
        named, taken = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        for use in (each for call in calls for each in call.get("packages", ())):
            named += Counter({(use["asset"], lot): amount for lot, amount in use["lots"]})
        for transfer in transfers:
            asset = asset_of(transfer) if transfer["kind"] == "capture" else CT
            for lot, amount in transfer["lots"] if asset != CT else ():
                taken[asset, lot] += amount
        if named != taken:
            raise Wrong(f"entry {seq} takes {dict(taken)} of packages, and its records say {dict(named)}")

    def _check(self, seq: int, call: dict[str, Any]) -> None:
        name, numbers = call["cdr_id"], call["rate_uhs_per_mtok"]
        offered = self.rates.offered(call["model"], call["rate_version"])
        version = f"rates of version {call['rate_version']} of {call['model']}"
        require(offered is not None, f"in entry {seq} call {name} is charged by {version}, which are not in the export")
        was_over = self.rates.was_over(call["model"], call["rate_version"], call["started_at_us"])
        require(
            not was_over, f"in entry {seq} call {name} is charged by {version}, and began when others were in force"
        )
        rate = (offered or {}).get(call["accelerator"], (offered or {}).get(""))
        require(rate == numbers, f"in entry {seq} call {name} is charged at {numbers}, and {rate} was offered")
        cached, reasoning = call.get("cached_tokens", 0), call.get("reasoning_tokens", 0)
        plain, spoken = call.get("prompt_tokens", 0) - cached, call.get("completion_tokens", 0) - reasoning
        counts = (plain, cached, spoken, reasoning)
        require(min(counts) >= 0, f"in entry {seq} call {name} has counts that can't be")
        paid = paid_by_packages(call, counts, f"in entry {seq} call {name}")
        whole_due, due = (
            _cost(counts, numbers),
            _cost([n - part for n, part in zip(counts, paid, strict=True)], numbers),
        )
        spared = call.get("spared_uhs", 0)
        require(
            spared == (whole_due - due), f"in entry {seq} packages spare {whole_due - due} of call {name}, not {spared}"
        )
        due = 0 if call.get("covered") else due
        costs, whole = call["charged_uhs"] + call.get("absorbed_uhs", 0), 0 <= call["charged_uhs"] <= due
        require(costs == due and whole, f"in entry {seq} call {name} costs {due}, not {costs} µHs")
        known_as = (call["account_id"], name)
        if call["charged_uhs"] or not call.get("absorbed_uhs"):  # what the operator bears may be told of again
            require(known_as not in self.charged, f"in entry {seq} call {name} is charged a second time")
            self.charged.add(known_as)


def _cost(counts: Sequence[int], rates: Sequence[int]) -> int:
    """µHs of so many LLM tokens of each kind at rates per 10⁶ of them: the sum rounded once, half-even."""
    due, rest = divmod(sum(n * rate for n, rate in zip(counts, rates, strict=True)), _MTOK)
    return due + (2 * rest > _MTOK or (2 * rest == _MTOK and due % 2))
