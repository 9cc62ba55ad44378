"""Leases of devices: reckoned again."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

from .report import require

_PPM = 1_000_000


class Leases:
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
            require(known_as not in self.recorded, f"{name} is a second one")
            self.recorded.add(known_as)
            self._check(name, record)

    def _check(self, name: str, record: dict[str, Any]) -> None:
        devices, bands = record["devices"], record.get("bands", [])
        metered, estimated = record["metered_us"], record["estimated_us"]
        counters = [*(number for band in bands for number in band), metered, estimated, devices]
        possible = min(counters) >= 0 and all(busy <= device for device, busy in bands)
        possible = possible and sum(device for device, _ in bands) == devices * (metered - estimated)
        require(possible, f"{name} has counters that can't be: {counters}")
        part = record.get("fraction")
        require(part is None or 0 < part[0] < part[1], f"{name} is of a part of a device that can't be: {part}")
        asked = self.fractions.get((record["account_id"], record["job_id"]), part)
        require(part == asked, f"{name} is of {part or 'all'} of a device, and its job asked for {asked or 'all'}")
        ran = record["ended_at_us"] - record["started_at_us"]
        require(metered <= ran, f"{name} is metered for {metered} µs and lasted {ran}")
        due = record["charged_uhs"] + record.get("refunded_uhs", 0) + record.get("absorbed_uhs", 0)
        require(0 <= record["charged_uhs"] <= due, f"{name} gives back more than it took")
        in_force = self.tariffs.get(record["tariff_version"])
        if in_force is None:
            self.counts["charges that could not be reckoned again"] += 1
            return
        kinds, weight = record["accelerator"].split("+"), record["weight_ppm"]
        weights = [w["ppm"] for tariffs in in_force for w in tariffs["weights"] if w["accelerator"] in kinds]
        offered = weight in weights or (len(kinds) > 1 and weights and min(weights) <= weight <= max(weights))
        require(offered, f"{name} has the weight {weight}, and {sorted(set(weights))} were offered")
        made = sorted({_burned(record, tariffs["curve"]["points"]) for tariffs in in_force})
        require(due in made, f"{name} is charged {due} µHs, and its counters, rate and curve make {made}")


def _burned(record: dict[str, Any], points: list[list[int]]) -> int:
    """Device-time × part × weight × f(utilisation), half-even once: f linear between the points, and 1 for what is unknown."""
    bands, part = record.get("bands", []), record.get("fraction") or (1, 1)
    require(len(bands) < len(points), "a record has more bands than its curve")
    scale = math.lcm(*(right[0] - left[0] for left, right in pairwise(points)))
    total = record["estimated_us"] * record["devices"] * _PPM * scale
    for (device, busy), (left, low), (right, high) in zip(bands, points, points[1:], strict=False):
        total += low * device * scale + (high - low) * (scale // (right - left)) * (busy * _PPM - left * device)
    whole: int = _PPM * _PPM * scale * part[1]
    due, rest = divmod(int(record["weight_ppm"] * total * part[0]), whole)
    return due + (2 * rest > whole or (2 * rest == whole and due % 2))
