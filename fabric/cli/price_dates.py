"""What is announced of prices, for people: which set holds from when to when, and what it changes."""

from collections.abc import Iterator, Mapping
from typing import Any

from fabric.cli.output import console, table, time_of
from fabric.units import PPM, format_cny, format_ct

Prices = Mapping[str, Any]
"""As the fabric answers: `tariffs`, `catalogue`, and `announced`, a list of `since_us` with either or both."""
KINDS = ("tariffs", "catalogue")


def dates(found: Prices) -> list[tuple[str, str, str, str]]:
    """A row for each set that is in force or announced: what it is, its version, since when and until when."""
    rows = []
    for kind in KINDS:
        steps = [(found[kind].get("effective_from_us", 0), found[kind]), *_announced(found, kind)]
        ends = [since_us for since_us, _ in steps[1:]]
        for (since_us, each), until_us in zip(steps, [*ends, None], strict=True):
            begins = time_of(since_us) if since_us else "in force"
            rows.append((kind, str(each["version"]), begins, "" if until_us is None else time_of(until_us)))
    return rows


def changes(found: Prices) -> list[tuple[str, str, str, str]]:
    """A row for each thing that will cost something else: from when on, what, now and then."""
    rows: list[tuple[int, str, str, str]] = []
    for kind, said in (("tariffs", _of_tariffs), ("catalogue", _of_catalogue)):
        before = found[kind]
        for since_us, each in _announced(found, kind):
            was, will = dict(said(before)), dict(said(each))
            names = [name for name in dict.fromkeys((*was, *will)) if was.get(name) != will.get(name)]
            rows += [(since_us, name, was.get(name, "not sold"), will.get(name, "not sold")) for name in names]
            before = each
    rows.sort(key=lambda row: row[0])
    return [(time_of(since_us), what, now, then) for since_us, what, now, then in rows]


def print_announced(found: Prices) -> None:
    """What will cost something else, if anything is announced."""
    if rows := changes(found):
        console().print(table("announced", ("from", "what", "now", "then"), rows))


def _announced(found: Prices, kind: str) -> list[tuple[int, dict[str, Any]]]:
    return [(each["since_us"], each[kind]) for each in found.get("announced", ()) if each.get(kind)]


def _of_tariffs(tariffs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for each in tariffs["weights"]:
        parts = [each["accelerator"], *(each[name] for name in ("operator", "tier", "service") if each.get(name))]
        if each.get("hours"):
            parts.append("{}–{} h".format(*each["hours"]))
        yield " ".join(parts), f"{each['ppm'] / PPM:g}"
    yield "burn curve", ", ".join(f"{at / PPM:g}: {burn / PPM:g}" for at, burn in tariffs["curve"]["points"])
    for each in tariffs.get("rates", ()):
        name = " ".join(part for part in ("rate of", each["model"] or "any model", each["accelerator"]) if part)
        kinds = ("input", "cached", "output", "reasoning")
        yield name, " / ".join(format_ct(each[f"{kind}_uhs_per_mtok"]) for kind in kinds) + " CT"


def _of_catalogue(catalogue: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for each in catalogue["plans"]:
        yield f"plan {each['name']}", f"{format_cny(each['price_microcny_per_ct'])} CNY"
    for each in catalogue.get("bundles", ()):
        yield f"bundle {each['name']}", f"{format_cny(each['price_microcny'])} CNY"
    for each in catalogue.get("subscriptions", ()):
        ends = each.get("ends")
        until = f", ends {time_of(ends['at_us'])}, then {ends['then'] or 'stop'}" if ends else ""
        amount = format_ct(each["amount_uhs"]) if each.get("asset", "CT") == "CT" else str(each["amount_uhs"] // 1_000)
        yield f"subscription {each['name']}", f"{amount} for {format_cny(each['price_microcny'])} CNY{until}"
