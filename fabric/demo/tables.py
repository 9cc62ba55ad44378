"""How the demo shows things: the jobs while they run, what they cost, the statement."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fabric.sdk import Fabric, Job
from fabric.units import format_cny, format_ct
from fabric.wire import fabric_pb2 as pb

console = Console()


def heading(number: int, text: str) -> None:
    console.print(f"\n[bold]{number}  {text}[/]")


def quoted(fabric: Fabric, *, tokens: str, accelerators: str) -> Table:
    quote = fabric.quote(tokens=tokens, accelerators=accelerators)
    shown = table("", "")
    shown.add_row("asked for", f"1 × {quote.accelerator}, at most {tokens} tokens")
    shown.add_row(
        "burns", f"{_ct_per_h(quote.burn_uhs_per_s)} CT/h busy, {_ct_per_h(quote.burn_idle_uhs_per_s)} CT/h idle"
    )
    shown.add_row("lasts", f"{quote.runtime_s / 60:.1f} min at 80 % utilisation")
    shown.add_row("holds", f"{quote.hold_ct} CT of {quote.free_ct} free, worth {format_cny(quote.cost_microcny)} CNY")
    shown.add_row("would start", "now" if quote.placeable_now and quote.affordable else "later")
    return shown


def live(fabric: Fabric, jobs: Sequence[Job], *, also: str = "") -> Group:
    """Burn and runway of jobs that run, and a line of what else goes on."""
    shown = table("job", "state", "on", "step", "utilisation", "burn CT/h", "burned CT", "held CT", "runway")
    for job in jobs:
        info, cost = job.info(), job.cost()
        shown.add_row(
            info.name,
            _coloured(info.state),
            f"{info.devices} × {info.accelerator}",
            f"{info.step} of {info.steps_total}" if info.steps_total else str(info.step or ""),
            f"{cost.utilisation:.0%}" if cost.burn_uhs_per_s else "",
            _ct_per_h(cost.burn_uhs_per_s) if cost.burn_uhs_per_s else "",
            format_ct(cost.burned_uhs, decimals=6),
            format_ct(cost.held_uhs),
            "" if cost.runway_s is None else f"{cost.runway_s / 60:.1f} min",
        )
    balance = fabric.balance()
    said = f"   balance: {balance.free_ct} CT free, {balance.held_ct} held" + (f" · {also}" if also else "")
    return Group(shown, Text(said, style="dim"))


def results(fabric: Fabric, jobs: Sequence[Job]) -> Table:
    shown = table("job", "learned (bits/byte)", "device time", "utilisation", "charged CT", "per second")
    for job in jobs:
        records = fabric.usage(job_id=job.id)
        device_s = sum(each.devices * (each.ended_at_us - each.started_at_us) for each in records) / 1_000_000
        metered_us = sum(each.devices * each.metered_us for each in records)
        charged_uhs = sum(each.charged_uhs for each in records)
        shown.add_row(
            job.info().name,
            learned(job).removesuffix(" bits per byte"),
            " + ".join(_ran(each) for each in records),
            f"{sum(each.busy_us for each in records) / max(metered_us, 1):.0%}",
            format_ct(charged_uhs, decimals=6),
            f"{charged_uhs / max(device_s, 0.001) / 1_000_000:.2f} H100-s",
        )
    return shown


def paid(fabric: Fabric, job: Job) -> str:
    """What was paid for a job, and for what."""
    records, cost = fabric.usage(job_id=job.id), job.cost()
    ran = " + ".join(_ran(each) for each in records)
    return f"   paid for {ran}: {format_ct(cost.burned_uhs, decimals=6)} CT of {fabric.balance().free_ct} free"


def learned(job: Job) -> str:
    result = job.result()
    return f"{result['bits_per_byte_before']:.2f} → {result['bits_per_byte_after']:.2f} bits per byte"


def statement(fabric: Fabric) -> Table:
    said = json.loads(fabric.client.fetch(pb.StatementRequest()))
    shown = table("entry", "what", "about", "CT", "held CT", "CNY")
    for line in said["lines"]:
        if line["kind"] != "capture":
            shown.add_row(
                str(line["seq"]),
                line["kind"],
                line["ref"][:24],
                _signed(line["amount_uhs"]),
                _signed(line["held_uhs"]),
                format_cny(line["cny_microcny"]) if line["cny_microcny"] else "",
            )
    captured = [line["amount_uhs"] for line in said["lines"] if line["kind"] == "capture"]
    shown.add_row("", f"{len(captured)} captures", "metered use", _signed(sum(captured)), "", "")
    closing = said["closing"]
    shown.add_section()
    owned_uhs = closing["free_uhs"] + closing["held_uhs"]
    shown.add_row("", "closing", "", format_ct(owned_uhs, decimals=6), "", "")
    return shown


def table(*columns: str) -> Table:
    shown = Table(box=None, show_header=any(columns), padding=(0, 2, 0, 3))
    for column in columns:
        shown.add_column(column)
    return shown


def _ran(record: Any) -> str:
    ran_s = (record.ended_at_us - record.started_at_us) / 1_000_000
    return f"{ran_s:.1f} s on {record.devices} × {record.accelerator}"


def _ct_per_h(uhs_per_s: int) -> str:
    return format_ct(uhs_per_s * 3_600, decimals=3)


def _signed(uhs: int) -> str:
    return "" if not uhs else ("+" if uhs > 0 else "-") + format_ct(abs(uhs), decimals=6)


def _coloured(state: str) -> str:
    colour = {"running": "green", "succeeded": "bold green", "failed": "red", "parked": "yellow"}.get(state, "cyan")
    return f"[{colour}]{state}[/]"
