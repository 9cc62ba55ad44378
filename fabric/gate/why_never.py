"""Why a job as written can never be placed here, in words: each with what to ask for instead."""

from collections.abc import Mapping

from fabric.gate import refusals
from fabric.gate.instructions import Refusal
from fabric.placement import Unplaceable


def refusal(impossible: Unplaceable) -> Refusal:
    """The planner's reason as the gate refuses it."""
    facts = impossible.facts
    if impossible.code == "unknown_accelerator":
        return refusals.unknown_accelerator(str(facts.get("given", "")), (str(facts.get("known", "")),))
    if impossible.code == "only_parts":
        said = f"such devices are had only in parts here: ask for one, as in accelerators=H100:1/7 (--accelerators); there are {facts['offered']}"
        return refusals.invalid(said, code=impossible.code, **facts)
    if impossible.code == "no_such_fraction":
        said = _no_such_part(str(facts["fraction"]), str(facts["offered"]))
        return refusals.invalid(said, code=impossible.code, **facts)
    return refusals.invalid(_said(impossible.code, facts), code=impossible.code, **facts)


def _said(code: str, facts: Mapping[str, str | int]) -> str:  # noqa: PLR0911 - a case each
    devices, each = facts.get("devices"), facts.get("devices_per_node")
    match code:
        case "gang_too_large" if "on_a_node" in facts:
            return (
                f"a gang of {devices} can never be placed with {each} on each node: no node that it may have, such as those of"
                f" {facts.get('accelerator')}, has more than {facts['on_a_node']}: ask for fewer with devices_per_node="
                " (--devices-per-node), or leave that out"
            )
        case "gang_too_large" if facts.get("largest") == 0:
            return (
                f"a gang of {devices} can never be placed: such a job may have no device of {facts.get('accelerator')} here,"
                " because all are kept free for inference: ask for another type"
            )
        case "gang_too_large":
            return (
                f"a gang of {devices} can never be placed: the largest that fits is {facts.get('largest')} ×"
                f" {facts.get('accelerator')}: ask for fewer devices or another type"
            )
        case "grace_too_long":
            return (
                f"no pool that has room for it lets a job take {_seconds(facts['grace_us'])} to leave: ask for a grace of at most"
                f" {_seconds(facts['longest_us'])} (grace=, --grace)"
            )
        case "over_quota":
            return (
                f"a gang of {devices} can never be placed: with what it may borrow, this account's quota lets it have"
                f" {facts.get('most')} × {facts.get('accelerator')} at once: ask for fewer devices or another type, or the operator for"
                " a larger quota"
            )
        case "uneven_gang":
            return (
                f"a gang of {devices} can't be split evenly over nodes of {each}: ask for a multiple of that, or leave"
                " devices_per_node= (--devices-per-node) out"
            )
        case _:
            return _no_pool(facts)


def _no_such_part(fraction: str, offered: str) -> str:
    if not offered:
        return (
            f"devices are had only whole here, and {fraction} of one was asked for: ask for one, as in accelerators=H100:1"
            " (--accelerators)"
        )
    return (
        f"no device here can be had in parts of {fraction}: ask for what there is ({offered}), or for a whole device, as in"
        " accelerators=H100:1 (--accelerators)"
    )


def _no_pool(facts: Mapping[str, str | int]) -> str:
    kind = "preemptible" if facts.get("preemptible") else "not preemptible"
    return (
        f"no pool that has such devices takes a job for {facts.get('service')} that is {kind}; the pools are:"
        f" {facts.get('pools') or 'none'}. Choose another service= (--service), let it be preemptible, or choose devices"
        " that another pool has: for a model, whose replicas are not preemptible, only that (--accelerator) helps"
    )


def _seconds(us: str | int) -> str:
    return f"{int(us) // 1_000_000:,} s"
