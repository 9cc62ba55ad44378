"""Packages of LLM tokens for people: what is left, used and expired, in tokens and in what they are worth."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fabric.cli.output import moment, print_records
from fabric.units import LLM, THOUSANDTHS, family_of, format_cny, format_ct, format_llm_tokens
from fabric.wire import fabric_pb2 as pb


def print_packages(packages: Sequence[pb.Package]) -> None:
    """Each, and its lots that aren't used up."""
    if not packages:
        return
    print_records(packages, as_json=False, title="packages of LLM tokens", columns=_COLUMNS, spare=("a token takes",))
    lots = [lot for package in packages for lot in package.lots]
    if lots:
        print_records(lots, as_json=False, title="their lots", columns=_LOT_COLUMNS, spare=("granted",))


def packages_left(standing: Mapping[str, Any]) -> dict[str, str]:
    """What a statement says is free and held of each."""
    return {
        asset: f"{format_llm_tokens(free)} tokens free, {format_llm_tokens(held)} held"
        for asset, (free, held) in standing.get("packages", {}).items()
    }


def _part_of(line: Mapping[str, Any]) -> str:
    """What a line of a statement moves of packages: "+1000 llm:qwen"."""
    moved = ((asset, free + held) for asset, (free, held) in line.get("packages", {}).items())
    return ", ".join(
        f"{'+' if amount > 0 else ''}{format_llm_tokens(amount)} {family_of(asset)}"
        for asset, amount in moved
        if amount
    )


def money_of(line: dict[str, Any]) -> str:
    """What a line of a statement charges, or takes off: paid, invoiced, credited, refunded."""
    charged = line.get("cny_microcny")
    return format_cny(charged) if charged else ""


def what_of(line: dict[str, Any]) -> str:
    """What a line of a statement is about."""
    if line.get("paid_microcny"):
        return f"{line['kind']} of {format_cny(line['paid_microcny'])} CNY"
    if line.get("written_off_uhs"):
        return f"{line['kind']} of {format_ct(line['written_off_uhs'])}, borne by the operator"
    what = f"{line['kind']} ×{line['count']}" if line.get("count", 1) > 1 else str(line["kind"])
    return f"{what} {moved}" if (moved := _part_of(line)) else what


def paid_for(call: pb.Cdr) -> str:
    """What packages paid for of a call: "12.4 llm:qwen"."""
    return ", ".join(f"{format_llm_tokens(use.units)} {family_of(use.asset)}" for use in call.packages) or "–"


def totals_of(calls: Sequence[pb.Cdr]) -> str:
    """What packages paid for of many, as of one; with what that would have cost beside."""
    sums: dict[str, int] = {}
    for use in (each for call in calls for each in call.packages):
        sums[use.asset] = sums.get(use.asset, 0) + use.units
    paid = ", ".join(f"{format_llm_tokens(units)} {family_of(asset)}" for asset, units in sums.items())
    return f"{paid} for {format_ct(sum(call.spared_uhs for call in calls))} CT" if paid else "–"


def added(standing: Mapping[str, Any], moved: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of packages, one after the other."""
    found = dict(standing)
    for asset, (free, held) in moved.items():
        before = found.get(asset, (0, 0))
        found[asset] = (before[0] + free, before[1] + held)
    return found


def amount_of(asset: str, amount: int) -> str:
    """An amount of a package as it is sold; "" where it is something else."""
    return f"{format_llm_tokens(amount)} LLM tokens, {family_of(asset)}" if asset.startswith(LLM) else ""


def _weights(package: pb.Package) -> str:
    kinds = ("prompt", "cached", "answer", "reasoning")
    return ", ".join(f"{kind} {each / THOUSANDTHS:g}" for kind, each in zip(kinds, package.weights, strict=False))


def _worth(found: pb.Package | pb.PackageLot) -> str:
    return f"up to {format_ct(found.worth_uhs)}" if found.worth_uhs else "–"


_COLUMNS: Final[dict[str, Any]] = {
    "package": lambda one: one.family,
    "left": lambda one: format_llm_tokens(one.free),
    "held": lambda one: format_llm_tokens(one.held),
    "used": lambda one: format_llm_tokens(one.used),
    "expired": lambda one: format_llm_tokens(one.expired),
    "worth CT": _worth,
    "a token takes": _weights,
}
_LOT_COLUMNS: Final[dict[str, Any]] = {
    "lot": lambda lot: lot.lot_id,
    "left": lambda lot: format_llm_tokens(lot.free),
    "held": lambda lot: format_llm_tokens(lot.held),
    "granted": lambda lot: format_llm_tokens(lot.granted),
    "expires": lambda lot: moment(lot.expires_at_us),
    "good for": lambda lot: lot.scope,
}
