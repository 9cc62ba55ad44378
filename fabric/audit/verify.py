"""The independent verifier: does an audit export prove what it says?

A second implementation, on purpose: it imports nothing of the product, only the standard library and `cryptography`, so
that whoever doubts a bill can read these lines, copy this file, and run it anywhere, offline.

    python verify.py EXPORT --key VERIFIER_KEY [--witnessed OLDER_CHECKPOINT]
    python verify.py RECEIPTS --receipts --key VERIFIER_KEY [--witnessed OLDER_CHECKPOINT]

Without --key it shows that the export is whole and unchanged since *somebody* signed it, and ends with 3; with the
operator's published key, that the operator did. With a checkpoint that was kept earlier it also shows that nothing before
it was rewritten. What the entries say is reckoned again: no charge but by counters, rates and curve, no capture without a
hold, no lot that expires before its time.
"""

import argparse
import base64
import hashlib
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_EMPTY = hashlib.sha256().digest()
_MTOK = _PPM = 1_000_000
_DAY_US, _REMEMBERED = 86_400_000_000, 32_768
_INT64 = range(-(2**63), 2**63)
_PLACES = {"cust": ("available", "held", "debt"), "op": ("issued", "redeemed", "breakage", "written_off", "revenue")}
_PLACES |= dict.fromkeys(("receivable", "cash", "suspense"), ("",))
_ISSUES = {"top_up", "bundle", "subscription", "grant"}
_MOVES = {"hold", "release", "capture", "refund", "expire", "void"}
_MONEY = {"repay", "write_off", "invoice", "sale", "payment", "pay_out", "charge_back", "reinstate", "suspense"}
_KINDS, _ON_DEBT = _ISSUES | _MOVES | _MONEY, {"invoice", "reinstate"}
_BY = {("redeemed", True): {"capture", "write_off"}, ("redeemed", False): {"refund"}, ("breakage", True): {"expire"},
       ("issued", False): _ISSUES | _ON_DEBT}  # fmt: skip


class Wrong(Exception):
    """A reason why the export proves nothing, and its kind, as `Report.code` has it."""

    def __init__(self, why: str, code: str = "not_verified") -> None:
        super().__init__(why)
        self.code = code


@dataclass
class Report:
    """What was found. `ok` only if every check passed."""

    problem: str = ""
    code: str = ""
    """Of the problem: no_export | export_cut_short | another_key | not_verified"""
    line: int = 0
    """Of the problem: where it was met; 0 = in the whole."""
    origin: str = ""
    key: str = ""
    account: str | None = None
    size: int = 0
    root: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    trusted: bool = False
    """Whether it was signed with the key that the reader trusts, and not only with the one that it names itself."""

    @property
    def ok(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        if not self.ok:
            return f"NOT VERIFIED: {f'line {self.line}: ' if self.line else ''}{self.problem}"
        found = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        notes = "".join(f"\n  note    {note}" for note in self.notes)
        signed = f"  signed  {self.size} entries, root {self.root}, key {self.key}"
        said = "VERIFIED" if self.trusted else "WHOLE, BUT NOT VERIFIED: no trusted key was given,"
        return f"{said} {self.origin} {self.account or ''}\n{signed}\n  found   {found}{notes}"


def verify_export(lines: Iterable[str], *, trusted_key: str | None = None, witnessed: str | None = None) -> Report:
    """Check an export line by line.

    Args:
        lines: the file's lines, with or without their newlines.
        trusted_key: the operator's verifier key, `<name>+<key id>+<base64>`. None = the one in the export.
        witnessed: the note of an older checkpoint of the same log, to find out whether history was rewritten.
    """
    return _reported(_Check(Report(), trusted_key, witnessed), [line.removesuffix("\n") for line in lines])


def verify_receipts(text: str, *, trusted_key: str | None = None, witnessed: str | None = None) -> Report:
    """Check receipts, as a JSON list or one of them: that each entry is in the log that its checkpoint seals."""
    return _reported(_Receipts(Report(), trusted_key, witnessed), [text])


def size_of(note: str) -> int:
    """How many entries a checkpoint seals, by its own word.

    Raises:
        Wrong: it is no checkpoint.
    """
    lines = note.split("\n")
    sized = len(lines) > 4 and lines[1].isascii() and lines[1].isdecimal() and int(lines[1]) in _INT64  # noqa: PLR2004
    _require(sized, "this is no checkpoint: `fabric audit checkpoint FILE` writes one", "no_checkpoint")
    return int(lines[1])


def _reported(check: "_Check", lines: list[str]) -> Report:
    report = check.report
    try:
        check.run(lines)
    except Wrong as wrong:
        report.problem, report.code = str(wrong), wrong.code
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError) as error:
        report.problem, report.code = f"the export is malformed: {type(error).__name__}: {error}", "not_verified"
    return report


class _Check:
    def __init__(self, report: Report, trusted_key: str | None, witnessed: str | None) -> None:
        self.report, self.trusted_key = report, trusted_key
        self.witnessed = witnessed.rstrip("\n") + "\n" if witnessed else None
        report.trusted = bool(trusted_key)
        self.edge: list[tuple[int, bytes]] = []

    def run(self, lines: list[str]) -> None:
        report = self.report
        parsed = self._parse(lines)
        header = parsed[0]
        ours = isinstance(header, dict) and header.get("format") == "token-fabric-audit"
        _require(ours and header["version"] == 1, "it does not begin as an audit export does", "no_export")
        body, last = parsed[1:-1], parsed[-1]
        report.origin, report.account = header["origin"], header["account"]
        _require(f"{report.origin}{report.account}".isprintable(), "its names have control characters")
        self._trust(header["key"])
        whole = set(last) == {"checkpoint"}
        _require(whole, "the export is cut short: the last line is no checkpoint", "export_cut_short")
        report.size, root, sealed = self._open(last["checkpoint"])
        report.root = root.hex()
        digest = hashlib.sha256("".join(f"{line}\n" for line in lines[:-1]).encode()).hexdigest()
        _require(sealed == f"export {digest}", "the export was changed after it was signed")
        old_size, old_root, _ = self._open(self.witnessed) if self.witnessed else (0, _EMPTY, "")
        _require(old_size <= report.size, f"the log was cut: {old_size} entries were witnessed, {report.size} are left")
        since = body.pop() if body and "consistent_since" in body[-1] else None
        if report.account is None:
            self._full(body, root, (old_size, old_root))
        else:
            self._account(body, root, (old_size, old_root), since)

    def _trust(self, key: str) -> None:
        trusted = self.trusted_key.strip() if self.trusted_key else key
        _require(key == trusted, f"it names the key {key}, not the trusted one", "another_key")
        self.report.key = key
        self.report.notes += [] if self.trusted_key else ["compare the key with the one the operator publishes: --key"]

    def _parse(self, lines: list[str]) -> list[Any]:
        _require(any(lines), "it is empty", "no_export")
        parsed = []
        for self.report.line, line in enumerate(lines, 1):
            try:
                parsed.append(_loads(line))
            except (ValueError, RecursionError):
                if self.report.line == 1:
                    raise Wrong("this is no JSON, and no audit export", "no_export") from None
                if self.report.line == len(lines):
                    raise Wrong("the export is cut short within its last line", "export_cut_short") from None
                raise Wrong("this line is no JSON") from None
        self.report.line = 0
        return parsed

    def _open(self, note: str) -> tuple[int, bytes, str]:
        """Size, root and the line after them of a checkpoint, if the key signed it for this origin."""
        name, key_id, encoded = self.report.key.split("+", 2)
        key = base64.b64decode(encoded, validate=True)
        digest = hashlib.sha256(name.encode() + b"\n" + key).digest()[:4]
        _require(digest.hex() == key_id and key[:1] == b"\x01", "the key is malformed: it does not hash to its id")
        text, _, signatures = note.rpartition("\n\n")
        mine = [line for line in signatures.split("\n")[:-1] if line.startswith(f"\u2014 {name} ")]
        _require(len(mine) == 1, f"the checkpoint has no signature by {name}")
        signature = base64.b64decode(mine[0].rpartition(" ")[2], validate=True)
        whole = f"\u2014 {name} {base64.b64encode(signature).decode()}" == mine[0]
        _require(whole and signature[:4] == digest, "the checkpoint was signed with another key")
        try:
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature[4:], f"{text}\n".encode())
        except InvalidSignature:
            raise Wrong("the signature of the checkpoint is wrong: it was changed or forged") from None
        origin, size, root, *more = text.split("\n")
        _require(origin == self.report.origin, f"the checkpoint is of another log, {origin}")
        return int(size), base64.b64decode(root), more[0] if more else ""

    def _full(self, body: list[dict[str, Any]], root: bytes, old: tuple[int, bytes]) -> None:
        """Every leaf is here: make the root from them, and audit what they say."""
        report, books, (old_size, old_root) = self.report, _Books(self.report.counts), old
        for seq, line in enumerate(body):
            report.line = seq + 2
            _require(set(line) == {"seq", "leaf"} and line["seq"] == seq, f"entry {seq} is missing or out of order")
            if seq == old_size:
                _require(self._root() == old_root, f"history was rewritten: another root at size {old_size}")
            leaf = base64.b64decode(line["leaf"])
            self._append(_leaf_hash(leaf))
            books.post(seq, leaf, whole=True)
        report.line = 0
        books.calls.finish()
        _require(len(body) == self.report.size, f"{self.report.size} entries were signed, {len(body)} are here")
        _require(self._root() == root, "the entries do not hash to the signed root: one was changed")
        _require(old_size != self.report.size or old_root == root, f"the log was forked at size {old_size}")

    def _account(self, body: list[dict[str, Any]], root: bytes, old: tuple[int, bytes], since: Any) -> None:
        """An account's own entries: each must be proved to be in the signed tree."""
        books, before, (old_size, old_root) = _Books(self.report.counts, account=self.report.account), -1, old
        for self.report.line, line in enumerate(body, 2):
            seq, proof = line["seq"], [bytes.fromhex(node) for node in line["proof"]]
            _require(before < seq < self.report.size, f"entry {seq} is out of order or beyond the signed tree")
            withheld = "leaf" not in line
            leaf = b"" if withheld else base64.b64decode(line["leaf"])
            digest = bytes.fromhex(line["leaf_hash"]) if withheld else _leaf_hash(leaf)
            _require(_included(digest, seq, self.report.size, proof) == root, f"the proof of entry {seq} is wrong")
            before = seq
            if withheld:
                self.report.counts["withheld entries"] += 1
            else:
                books.post(seq, leaf, whole=False)
        self.report.line = 0
        if not self.report.counts["withheld entries"]:
            books.calls.finish()
        if old_size in (0, self.report.size):
            _require(old_size == 0 or old_root == root, f"the log was forked at size {old_size}")
            return
        line = since or {"consistent_since": None, "proof": []}
        _require(line["consistent_since"] == old_size, f"ask for an export that is consistent since size {old_size}")
        grown = _consistent(old_size, self.report.size, [bytes.fromhex(node) for node in line["proof"]], old_root)
        _require(grown == (old_root, root), f"history before size {old_size} was rewritten: the log was forked")

    def _append(self, node: bytes, height: int = 0) -> None:
        while self.edge and self.edge[-1][0] == height:
            node, height = _node_hash(self.edge.pop()[1], node), height + 1
        self.edge.append((height, node))

    def _root(self) -> bytes:
        nodes = [node for _, node in self.edge]
        while len(nodes) > 1:
            nodes[-2:] = [_node_hash(*nodes[-2:])]
        return nodes[0] if nodes else _EMPTY


class _Books:
    """What the entries say, added up: nothing is made of nothing, and nobody goes below zero."""

    def __init__(self, counts: Counter[str], *, account: str | None = None) -> None:
        self.counts, self.account = counts, account
        self.held, self.balances = defaultdict[str, int](int), defaultdict[tuple[str, str], int](int)
        self.requests: defaultdict[str, dict[Any, tuple[Any, Any, int]]] = defaultdict(dict)
        self.ended: set[str] = set()
        self.ending = (0, "")  # the entry that ends a hold, and which: those that continue it may move it still
        self.opened: set[str] = set()
        self.calls, self.leases, self.lots = _Calls(counts), _Leases(counts), _Lots()
        self.transfer_id = self.at_us = 0

    def post(self, seq: int, leaf: bytes, *, whole: bool) -> None:
        """Add an entry; `whole` says that none is missing before it."""
        entry = _loads(leaf)
        _require(entry["seq"] == seq, f"entry {seq} says that it is number {entry['seq']}")
        _require(entry["at_us"] >= self.at_us, f"in entry {seq} time runs backwards")
        self.at_us = entry["at_us"]
        self.counts["entries"] += 1
        event, outcome = entry["event"] or {"event": ""}, entry["outcome"] or {"outcome": ""}
        self.counts["refusals"] += outcome["outcome"] == "refused"
        self._request(seq, event, outcome, entry["transfers"])
        if self.ending[1] and entry.get("continues") != self.ending[0]:
            self.ended.add(self.ending[1])
            self.ending = (0, "")
        if outcome["outcome"] == "accepted":
            self.leases.learn(event)
            self.lots.learn(event)
        for transfer in entry["transfers"]:
            self._transfer(seq, transfer, whole=whole)
            self.lots.post(seq, transfer, event, whole=whole or not self.counts["withheld entries"])
        self.calls.post(seq, event, outcome, entry)
        self.leases.post(seq, entry)
        if event["event"] in ("settle_hold", "release_hold") and outcome["outcome"] == "accepted":
            self.ending = (seq, event["hold_id"])

    def _request(self, seq: int, event: dict[str, Any], outcome: dict[str, Any], transfers: list[Any]) -> None:
        """A request id that got a yes gets it again for 32 days, and moves nothing; a refused one is decided anew."""
        name, known = event.get("request_id"), self.requests[event.get("account_id") or ""]
        first, answer, at_us = known.get(name, (event, outcome, 0))
        if first is not event and self.at_us - at_us < 32 * _DAY_US:
            _require(not transfers, f"entry {seq} books request {name} a second time")
            same = outcome == answer if event == first else outcome["outcome"] == "refused"
            _require(same, f"entry {seq} answers request {name} otherwise than before")
        elif name and outcome["outcome"] == "accepted":
            known.pop(name, None)
            known[name] = (event, outcome, self.at_us)
            if len(known) > _REMEMBERED:
                del known[next(iter(known))]

    def _transfer(self, seq: int, transfer: dict[str, Any], *, whole: bool) -> None:
        number, kind, ref = transfer["transfer_id"], transfer["kind"], transfer["ref"]
        complete = whole or not self.counts["withheld entries"]  # what is withheld may explain what is missing
        next_one = number == self.transfer_id + 1 if whole else number > self.transfer_id
        _require(next_one, f"in entry {seq} transfer {number} follows {self.transfer_id}")
        self.transfer_id = number
        self.counts["transfers"] += 1
        sums: Counter[str] = Counter()
        held = 0
        for account, asset, amount in transfer["postings"]:
            _require(type(amount) is int, f"transfer {number} has an amount that is no integer")
            sums[asset] += amount
            self.balances[account, asset] += amount
            held += amount if account.startswith("cust/") and account.endswith("/held") else 0
        _require(not any(sums.values()), f"the postings of transfer {number} do not sum to zero: {dict(sums)}")
        _require(not held or ref not in self.ended, f"transfer {number} moves hold {ref}, which had ended")
        self.opened |= {ref} if kind == "hold" else set()
        known = ref in self.opened or kind not in ("capture", "refund") or not complete
        _require(known, f"in entry {seq} transfer {number} is a {kind} without a hold: {ref}")
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
            fits = leaf in _PLACES.get(root, ()) and (middle == owner or root not in ("cust", "receivable"))
            fits &= kind in _BY.get((leaf, amount > 0), _KINDS) and kind in _KINDS
            _require(fits, f"transfer {transfer['transfer_id']}, a {kind} of {owner}, books on {account}")

    def _above_zero(self, transfer: dict[str, Any], ref: str, *, whole: bool) -> None:
        for account, asset, _ in transfer["postings"]:
            guarded = account.startswith("cust/" if whole else f"cust/{self.account}/")
            guarded &= account.endswith(("/available", "/held"))
            _require(not guarded or self.balances[account, asset] >= 0, f"{transfer} takes {account} below zero")
        _require(self.held[ref] >= 0, f"transfer {transfer['transfer_id']} takes hold {ref} below zero")


class _Calls:
    """Calls of language models: each charged once, by the rates that were offered; its hold or the operator bears that."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.charged: set[tuple[str, str]] = set()
        self.rates: dict[tuple[str, int], dict[str, list[int]]] = {}
        self.tariffs: list[dict[str, Any]] = []
        self.own: dict[str, list[dict[str, Any]]] = {}  # rates that models were offered with themselves
        self.heard: defaultdict[str, int] = defaultdict(int)
        self.used: Counter[str] = Counter()
        self.met: Counter[str] = Counter()  # by the customer, or by the operator where it was written off

    def post(self, seq: int, event: dict[str, Any], outcome: dict[str, Any], entry: dict[str, Any]) -> None:
        if event["event"] in ("configure", "offer_model") and outcome["outcome"] == "accepted":
            self._offer(event, outcome)
        for transfer in entry["transfers"]:
            if transfer["kind"] in ("capture", "write_off"):
                self.met[transfer["ref"]] += transfer["postings"][-1][2]
        calls = [record for record in entry["records"] if record.get("model")]
        self.counts["calls"] += len(calls)
        self.counts["charging records"] += len(entry["records"]) - len(calls)
        for call in calls:
            self._check(seq, call)
            self.used[call["lease_id"]] += call["charged_uhs"] + call.get("absorbed_uhs", 0)
        said = event["event"] in ("update_hold", "settle_hold", "release_hold") and outcome["outcome"] == "accepted"
        if said and event["seq"] > self.heard[event["hold_id"]]:  # an old word is answered again, and moves nothing
            self.heard[event["hold_id"]] = event["seq"]
            self.used[event["hold_id"]] += event.get("used_uhs", 0)

    def finish(self) -> None:
        """What was reported of each hold is what was taken off it."""
        for hold, used in self.used.items():
            _require(used == self.met[hold], f"hold {hold} paid {self.met[hold]} µHs for a use of {used}")

    def _offer(self, event: dict[str, Any], outcome: dict[str, Any]) -> None:
        if event["event"] == "configure":
            self.tariffs = event["tariffs"].get("rates", [])
            return
        name, version, parent = event["spec"]["name"], outcome["facts"]["rate_version"], event["spec"].get("parent")
        listed, general = ([rate for rate in self.tariffs if rate["model"] == named] for named in (name, ""))
        self.own[name] = event["rates"]
        # None at all: no entry says what the parent costs that follows the tariffs.
        rates = event["rates"] or listed or (self.own.get(parent, []) if parent else general)
        kinds = [f"{kind}_uhs_per_mtok" for kind in ("input", "cached", "output", "reasoning")]
        self.rates[name, version] = {rate["accelerator"]: [rate[kind] for kind in kinds] for rate in rates}

    def _check(self, seq: int, call: dict[str, Any]) -> None:
        name, numbers = call["cdr_id"], call["rate_uhs_per_mtok"]
        offered = self.rates.get((call["model"], call["rate_version"]))
        if offered:
            rate = offered.get(call["accelerator"], offered.get(""))
            _require(rate == numbers, f"in entry {seq} call {name} is charged at {numbers}, and {rate} was offered")
        cached, reasoning = call.get("cached_tokens", 0), call.get("reasoning_tokens", 0)
        plain, spoken = call.get("prompt_tokens", 0) - cached, call.get("completion_tokens", 0) - reasoning
        counts = (plain, cached, spoken, reasoning)
        _require(min(counts) >= 0, f"in entry {seq} call {name} has counts that can't be")
        due, rest = divmod(sum(n * rate for n, rate in zip(counts, numbers, strict=True)), _MTOK)
        due += 2 * rest > _MTOK or (2 * rest == _MTOK and due % 2)
        due = 0 if call.get("covered") else due
        costs, whole = call["charged_uhs"] + call.get("absorbed_uhs", 0), 0 <= call["charged_uhs"] <= due
        _require(costs == due and whole, f"in entry {seq} call {name} costs {due}, not {costs} µHs")
        known_as = (call["account_id"], name)
        if call["charged_uhs"] or not call.get("absorbed_uhs"):  # what the operator bears may be told of again
            _require(known_as not in self.charged, f"in entry {seq} call {name} is charged a second time")
            self.charged.add(known_as)


class _Leases:
    """Leases of devices: each record once, and charged by its counters, a weight and a curve that were in force."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.tariffs: dict[int, list[dict[str, Any]]] = {}
        self.fractions: dict[tuple[str, str], list[int] | None] = {}
        self.recorded: set[tuple[str, str]] = set()

    def learn(self, event: dict[str, Any]) -> None:
        if event["event"] == "configure":
            self.tariffs.setdefault(event["tariffs"]["version"], []).append(event["tariffs"])
        elif event["event"] == "submit":
            self.fractions[event["account_id"], event["job_id"]] = event["spec"].get("fraction")

    def post(self, seq: int, entry: dict[str, Any]) -> None:
        for record in (each for each in entry["records"] if not each.get("model")):
            name = f"in entry {seq} the record of lease {record['lease_id']}"
            known_as = (record["account_id"], record["cdr_id"])
            _require(known_as not in self.recorded, f"{name} is a second one")
            self.recorded.add(known_as)
            self._check(name, record)

    def _check(self, name: str, record: dict[str, Any]) -> None:
        devices, bands = record["devices"], record.get("bands", [])
        metered, estimated = record["metered_us"], record["estimated_us"]
        counters = [*(number for band in bands for number in band), metered, estimated, devices]
        possible = min(counters) >= 0 and all(busy <= device for device, busy in bands)
        possible = possible and sum(device for device, _ in bands) == devices * (metered - estimated)
        _require(possible, f"{name} has counters that can't be: {counters}")
        part = record.get("fraction")
        _require(part is None or 0 < part[0] < part[1], f"{name} is of a part of a device that can't be: {part}")
        asked = self.fractions.get((record["account_id"], record["job_id"]), part)
        _require(part == asked, f"{name} is of {part or 'all'} of a device, and its job asked for {asked or 'all'}")
        ran = record["ended_at_us"] - record["started_at_us"]
        _require(metered <= ran, f"{name} is metered for {metered} µs and lasted {ran}")
        due = record["charged_uhs"] + record.get("refunded_uhs", 0) + record.get("absorbed_uhs", 0)
        _require(0 <= record["charged_uhs"] <= due, f"{name} gives back more than it took")
        in_force = self.tariffs.get(record["tariff_version"])
        if in_force is None:
            self.counts["charges that could not be reckoned again"] += 1
            return
        kinds, weight = record["accelerator"].split("+"), record["weight_ppm"]
        weights = [w["ppm"] for tariffs in in_force for w in tariffs["weights"] if w["accelerator"] in kinds]
        offered = weight in weights or (len(kinds) > 1 and weights and min(weights) <= weight <= max(weights))
        _require(offered, f"{name} has the weight {weight}, and {sorted(set(weights))} were offered")
        made = sorted({_burned(record, tariffs["curve"]["points"]) for tariffs in in_force})
        _require(due in made, f"{name} is charged {due} µHs, and its counters, rate and curve make {made}")


def _burned(record: dict[str, Any], points: list[list[int]]) -> int:
    """Device-time × part × weight × f(utilisation), half-even once: f linear between the points, and 1 for what is unknown."""
    bands, part = record.get("bands", []), record.get("fraction") or (1, 1)
    _require(len(bands) < len(points), "a record has more bands than its curve")
    scale = math.lcm(*(right[0] - left[0] for left, right in pairwise(points)))
    total = record["estimated_us"] * record["devices"] * _PPM * scale
    for (device, busy), (left, low), (right, high) in zip(bands, points, points[1:], strict=False):
        total += low * device * scale + (high - low) * (scale // (right - left)) * (busy * _PPM - left * device)
    whole: int = _PPM * _PPM * scale * part[1]
    due, rest = divmod(int(record["weight_ppm"] * total * part[0]), whole)
    return due + (2 * rest > whole or (2 * rest == whole and due % 2))


class _Lots:
    """Lots: none gives more than it was granted, and none expires before the time that it was sold for."""

    def __init__(self) -> None:
        self.catalogue: dict[str, Any] = {}
        self.plans: dict[str, str] = {}
        self.left: Counter[str] = Counter()
        self.good_until: dict[str, int] = {}
        self.on_credit: set[str] = set()

    def learn(self, event: dict[str, Any]) -> None:
        if event["event"] == "configure":
            self.catalogue = event["catalogue"]
        elif event["event"] == "open_account":
            self.plans[event["account_id"]] = event["plan"]

    def post(self, seq: int, transfer: dict[str, Any], event: dict[str, Any], *, whole: bool) -> None:
        kind, shares = transfer["kind"], transfer["lots"]
        issued = any(account.endswith("/issued") and amount < 0 for account, _, amount in transfer["postings"])
        for lot, amount in shares:
            name = f"in entry {seq} lot {lot} of {transfer['account_id']}"
            lot_of = f"{transfer['account_id']}/{lot}"
            if issued and kind != "invoice":
                self.left[lot_of] += amount
                self._sold(lot_of, transfer, event)
            elif kind in ("capture", "expire", "repay", "void"):
                self.left[lot_of] -= amount
                covered = not whole or self.left[lot_of] >= 0 or lot.startswith("refund/")
                _require(covered, f"{name} gives more than it had")
            elif kind == "refund":
                self.left[lot_of] += amount
            if kind == "expire":
                early = self.good_until.get(lot_of, 0) - transfer["at_us"]
                _require(early <= 0, f"{name} expired {early} µs early")
        moved = sum(amount for _, asset, amount in transfer["postings"] if asset == "CT" and amount > 0)
        lots = sum(amount if amount >= 0 else _INT64.stop for _, amount in shares)
        self.on_credit |= {transfer["account_id"] for name, _, _ in transfer["postings"] if name.endswith("/debt")}
        exact = issued or (whole and kind in _MOVES and transfer["account_id"] not in self.on_credit)
        same = lots <= moved if not exact or kind in _ON_DEBT else lots == moved
        _require(same, f"in entry {seq} a {kind} moves {moved}, and its lots {lots}")
        if kind in ("top_up", "grant") and event["event"] == kind:
            asked = (event["account_id"], event["amount_uhs"]) == (transfer["account_id"], moved)
            _require(asked, f"entry {seq} books {moved}, asked for is {event['amount_uhs']} for {event['account_id']}")

    def _sold(self, lot: str, transfer: dict[str, Any], event: dict[str, Any]) -> None:
        """The earliest that it may expire, where the export says what it was sold for."""
        said, days = event["event"], None
        if said == "top_up":
            plans = {each["name"]: each["lifetime_days"] for each in self.catalogue.get("plans", ())}
            days = plans.get(self.plans.get(transfer["account_id"]))
        elif said == "buy_bundle":
            sold = (each for each in self.catalogue.get("bundles", ()) if each["name"] == event["bundle"])
            parts = [part for each in sold for part in each["components"] if part["asset"] == "CT"]
            days = min((part["lifetime_days"] for part in parts), default=None)
        elif said == "grant":
            self.good_until[lot] = transfer["at_us"] + (event["lifetime_us"] or _INT64.stop)
        if days is not None:
            self.good_until[lot] = transfer["at_us"] + days * _DAY_US


class _Receipts(_Check):
    """Single entries of an account, each with the proof that it is in the log."""

    def run(self, lines: list[str]) -> None:
        try:
            found = _loads(lines[0])
        except (ValueError, RecursionError):
            raise Wrong("this is no JSON, and no receipt", "no_export") from None
        receipts = found if isinstance(found, list) else [found]
        wanted = {"seq", "leaf", "leaf_hash", "proof", "tree_size", "checkpoint"}
        fit = receipts and all(isinstance(one, dict) and wanted <= set(one) for one in receipts)
        _require(fit, "no receipt", "no_export")
        for receipt in receipts:
            note = receipt["checkpoint"]
            self._trust(receipt.get("key") or self.trusted_key or "")
            self.report.origin = note.split("\n")[0]
            self.report.size, root, _ = self._open(note)
            self.report.root = root.hex()
            old_size, old_root, _ = self._open(self.witnessed) if self.witnessed else (0, _EMPTY, "")
            _require(old_size != self.report.size or old_root == root, f"the log was forked at size {old_size}")
            self._receipt(receipt, root)
        if old_size not in (0, self.report.size):
            self.report.notes.append("that nothing was rewritten since shows an export: fabric audit export --since")
        self.report.notes = list(dict.fromkeys(self.report.notes))

    def _receipt(self, receipt: dict[str, Any], root: bytes) -> None:
        seq, proof = receipt["seq"], [bytes.fromhex(node) for node in receipt["proof"]]
        _require(receipt["tree_size"] == self.report.size, f"the receipt of entry {seq} is of another tree")
        _require(0 <= seq < self.report.size, f"entry {seq} is beyond the signed tree")
        digest = bytes.fromhex(receipt["leaf_hash"])
        if receipt["leaf"]:
            leaf = base64.b64decode(receipt["leaf"], validate=True)
            _require(_leaf_hash(leaf) == digest, f"entry {seq} is not what its receipt was given for")
            _require(_loads(leaf)["seq"] == seq, f"entry {seq} says that it is another")
        _require(_included(digest, seq, self.report.size, proof) == root, f"the proof of entry {seq} is wrong")
        self.report.counts["entries" if receipt["leaf"] else "withheld entries"] += 1


def _loads(text: str | bytes) -> Any:
    """JSON in which every key stands once, and every number is a whole one of 64 bits: else two readers may differ."""
    numbers: Any = {"parse_int": _int64, "parse_float": _no_number, "parse_constant": _no_number}
    return json.loads(text, object_pairs_hook=_once, **numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    _require(len(found) == len(pairs), f"a key stands twice: {sorted(key for key, _ in pairs)}"[:200])
    return found


def _int64(digits: str) -> int:
    _require(len(digits) <= 20 and int(digits) in _INT64, f"a number is beyond 64 bits: {digits[:30]}")  # noqa: PLR2004
    return int(digits)


def _no_number(text: str) -> Any:
    raise Wrong(f"a number is no integer: {text[:30]}")


def _require(holds: object, otherwise: str, code: str = "not_verified") -> None:
    if not holds:
        raise Wrong(otherwise, code)


def _leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _included(digest: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that a leaf's proof leads to: from the top, a tree of n leaves splits at the largest power of two < n."""
    if size == 1:
        _require(not proof, "the proof is too long")
        return digest
    _require(proof, "the proof is too short")
    split = 1 << (size - 1).bit_length() - 1
    if index < split:
        return _node_hash(_included(digest, index, split, proof[:-1]), proof[-1])
    return _node_hash(proof[-1], _included(digest, index - split, size - split, proof[:-1]))


def _consistent(old: int, size: int, proof: Sequence[bytes], known: bytes | None) -> tuple[bytes, bytes]:
    """The old and the new root that a consistency proof leads to; `known` is the old root while it is a subtree's."""
    if old == size:
        _require(len(proof) == (known is None), "the consistency proof has the wrong length")
        return (known, known) if known is not None else (proof[0], proof[0])
    _require(proof, "the consistency proof is too short")
    split = 1 << (size - 1).bit_length() - 1
    if old <= split:
        before, now = _consistent(old, split, proof[:-1], known)
        return before, _node_hash(now, proof[-1])
    before, now = _consistent(old - split, size - split, proof[:-1], None)
    return _node_hash(proof[-1], before), _node_hash(proof[-1], now)


def main(argv: Sequence[str] | None = None) -> int:
    """Verify a file and print what was found; 0 = verified, 1 = not, 2 = it can't be read, 3 = whole, but no key was given."""
    parser = argparse.ArgumentParser(description="Verify an audit export, or receipts, offline.")
    parser.add_argument("export", type=Path, help="the export; with --receipts, the file of receipts")
    parser.add_argument("--receipts", action="store_true", help="the file has receipts")
    parser.add_argument("--key", help="the operator's published verifier key: <name>+<key id>+<base64>")
    parser.add_argument("--witnessed", type=Path, help="a file with an older checkpoint of the same log")
    given = parser.parse_args(argv)
    try:
        text = given.export.read_bytes().decode().removesuffix("\n")
        witnessed = given.witnessed.read_text(encoding="utf-8") if given.witnessed else None
    except (OSError, UnicodeDecodeError) as error:
        print(f"can't read it: {error}", file=sys.stderr)  # noqa: T201
        return 2
    told: Any = (verify_receipts, text) if given.receipts else (verify_export, text.split("\n"))
    report: Report = told[0](told[1], trusted_key=given.key, witnessed=witnessed)
    print(report)  # noqa: T201
    return 1 if not report.ok else 0 if report.trusted else 3


if __name__ == "__main__":
    sys.exit(main())
