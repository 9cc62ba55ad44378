"""Leases of devices: reckoned again."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

from .report import Wrong, require

_PPM = 1_000_000
_MINUTE_US = 60_000_000
_HOUR_US = 60 * _MINUTE_US


class Leases:
    """Leases of devices: each record once, and charged by its counters, a weight and a curve that were in force."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.tariffs: dict[int, list[tuple[int | None, dict[str, Any]]]] = {}
        """By version; and since when they were in force, of those that had been announced."""
        self.newest: dict[str, Any] = {}
        self.turns: list[tuple[int, int]] = []
        """When such began, and their version."""
        self.fractions: dict[tuple[str, str], list[int] | None] = {}
        self.recorded: set[tuple[str, str]] = set()

    def learn(self, event: dict[str, Any], *, since_us: int | None = None) -> None:
        """Hear of an event that was accepted; of prices whose date has come, when that was."""
        if event["event"] == "configure" and event["tariffs"] != self.newest:
            self.newest, version = event["tariffs"], event["tariffs"]["version"]
            self.tariffs.setdefault(version, []).append((since_us, self.newest))
            self.turns += [] if since_us is None else [(since_us, version)]
        elif event["event"] == "submit":
            self.fractions[event["account_id"], event["job_id"]] = event["spec"].get("fraction")

    def post(self, seq: int, entry: dict[str, Any]) -> None:
        for record in (each for each in entry["records"] if not each.get("model")):
            name = f"in entry {seq} the record of lease {record['lease_id']}"
            known_as = (record["account_id"], record["cdr_id"])
            require(known_as not in self.recorded, f"{name} is a second one")
            self.recorded.add(known_as)
            self._check(name, record)

    def _check(self, name: str, record: dict[str, Any]) -> None:
        spans = _spans(record)
        for span in spans:
            _possible(name, record["devices"], span)
        metered, estimated = record["metered_us"], record["estimated_us"]
        turns = [record["started_at_us"], *(span["until_us"] for span in spans)]
        follow = [span["from_us"] for span in spans] == turns[:-1] and turns[-1] - turns[0] == metered
        require(
            follow and sum(span["estimated_us"] for span in spans) == estimated,
            f"{name} has spans that aren't all of its time, each once",
        )
        part = record.get("fraction")
        require(part is None or 0 < part[0] < part[1], f"{name} is of a part of a device that can't be: {part}")
        asked = self.fractions.get((record["account_id"], record["job_id"]), part)
        require(part == asked, f"{name} is of {part or 'all'} of a device, and its job asked for {asked or 'all'}")
        ran = record["ended_at_us"] - record["started_at_us"]
        require(metered <= ran, f"{name} is metered for {metered} µs and lasted {ran}")
        due = record["charged_uhs"] + record.get("refunded_uhs", 0) + record.get("absorbed_uhs", 0)
        require(0 <= record["charged_uhs"] <= due, f"{name} gives back more than it took")
        for version in {span["tariff_version"] for span in spans} - set(self.tariffs):
            raise Wrong(f"{name} is charged by tariffs of version {version}, which are not in the export")
        made = {0}
        for span in spans:
            made = {so_far + uhs for so_far in made for uhs in self._made(name, record, span)}
        require(due in made, f"{name} is charged {due} µHs, and its counters, rate and curve make {sorted(made)}")

    def _made(self, name: str, record: dict[str, Any], span: dict[str, Any]) -> set[int]:
        """What a span may come to, by the tariffs of its version."""
        in_force = self._of_its_time(name, record, span)
        kinds, weight = record["accelerator"].split("+"), span["weight_ppm"]
        weights = [
            line["ppm"]
            for tariffs in in_force
            for line in tariffs["weights"]
            if line["accelerator"] in kinds and _holds(line.get("hours"), tariffs.get("utc_offset_minutes", 0), span)
        ]
        offered = weight in weights or (len(kinds) > 1 and weights and min(weights) <= weight <= max(weights))
        require(offered, f"{name} has the weight {weight}, and {sorted(set(weights))} were offered")
        return {_burned(record, span, tariffs["curve"]["points"]) for tariffs in in_force}

    def _of_its_time(self, name: str, record: dict[str, Any], span: dict[str, Any]) -> list[dict[str, Any]]:
        """The tariffs of a span's version that it may be charged by: what had been announced counts from its date on, and only then."""
        started, first, last = record["started_at_us"], span["from_us"], span["until_us"]
        version, turns = span["tariff_version"], [(at, each) for at, each in self.turns if at > started]
        missed = [at for at, each in turns if first < at < last and each != version]
        require(not missed, f"{name} goes on at one price from {first} to {last}, and others began at {missed}")
        begun = [at for at, _ in turns if at <= first]
        found = [
            tariffs
            for since_us, tariffs in self.tariffs[version]
            if (since_us == begun[-1] if begun else since_us is None or since_us <= started)
        ]
        require(
            found, f"{name} is charged from {first} on by tariffs of version {version}, which were not in force then"
        )
        return found


def _spans(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of its time that have one weight each: of a record that names none, all of it is one."""
    if not record.get("spans"):
        whole = {name: record[name] for name in ("estimated_us", "tariff_version", "weight_ppm")}
        times = {"from_us": record["started_at_us"], "until_us": record["started_at_us"] + record["metered_us"]}
        return [{"bands": record.get("bands", []), **times, **whole}]
    require(not record.get("bands"), f"the record of lease {record['lease_id']} has bands beside its spans")
    return [{"estimated_us": 0, "bands": [], **span} for span in record["spans"]]


def _possible(name: str, devices: int, span: dict[str, Any]) -> None:
    bands, metered = span["bands"], span["until_us"] - span["from_us"]
    counters = [*(number for band in bands for number in band), metered, span["estimated_us"], devices]
    possible = min(counters) >= 0 and all(busy <= device for device, busy in bands)
    possible = possible and sum(device for device, _ in bands) == devices * (metered - span["estimated_us"])
    require(possible, f"{name} has counters that can't be: {counters}")


def _holds(hours: list[int] | None, offset_minutes: int, span: dict[str, Any]) -> bool:
    """Whether a weight of some hours holds in all of a span's."""
    if hours is None:
        return True
    first, last = (
        (at + offset_minutes * _MINUTE_US) // _HOUR_US
        for at in (span["from_us"], max(span["from_us"], span["until_us"] - 1))
    )
    start, end = hours
    within = [start <= hour < end if start < end else hour >= start or hour < end for hour in range(24)]
    return all(within[hour % 24] for hour in range(first, min(last, first + 23) + 1))


def _burned(record: dict[str, Any], span: dict[str, Any], points: list[list[int]]) -> int:
    """Device-time × part × weight × f(utilisation), half-even once: f linear between the points, and 1 for what is unknown."""
    bands, part = span["bands"], record.get("fraction") or (1, 1)
    require(len(bands) < len(points), "a record has more bands than its curve")
    scale = math.lcm(*(right[0] - left[0] for left, right in pairwise(points)))
    total = span["estimated_us"] * record["devices"] * _PPM * scale
    for (device, busy), (left, low), (right, high) in zip(bands, points, points[1:], strict=False):
        total += low * device * scale + (high - low) * (scale // (right - left)) * (busy * _PPM - left * device)
    whole: int = _PPM * _PPM * scale * part[1]
    due, rest = divmod(int(span["weight_ppm"] * total * part[0]), whole)
    return due + (2 * rest > whole or (2 * rest == whole and due % 2))
