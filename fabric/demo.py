"""The product's promise, kept before your eyes: `make demo`.

On a real Ray cluster of simulated mixed nodes, a customer buys tokens, is quoted a price, and runs two real training
jobs: one keeps its device busy, the other waits for its data half of the time and burns less. A third is refused for
lack of tokens. The bill is printed, exported, and verified offline by code that knows nothing of the fabric.
Everything goes through the doors that customers use; nothing here reaches behind them.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fabric import house
from fabric.audit.verify import verify_export
from fabric.client import new_request_id
from fabric.errors import InsufficientTokens
from fabric.sdk import Fabric, Job, connect
from fabric.units import format_cny, format_ct
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret

STEPS: Final = 120
"""Training steps of each job: some 12 s of one core."""
STARTER_CT: Final = "10"
LIMIT_CT: Final = "0.1"
TOO_MUCH_CT: Final = "25"
"""What the third job asks for: more than the account has."""
REFRESH_S: Final = 0.25

console = Console()


def main(argv: list[str] | None = None) -> int:
    """Run the demo; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m fabric.demo", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of each job")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running at the end")
    given = parser.parse_args(argv)
    state_dir = Path(tempfile.mkdtemp(prefix="fabric-demo-"))
    try:
        found = _bring_up(state_dir)
        try:
            _show(found, steps=given.steps)
        finally:
            if not given.keep:
                with console.status("cleaning up"):
                    house.down(state_dir)
    finally:
        if not given.keep:
            shutil.rmtree(state_dir, ignore_errors=True)
    _farewell(found, kept=given.keep)
    return 0


def _bring_up(state_dir: Path) -> house.Running:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting a local mixed cluster", total=None)
        found = house.up(state_dir=state_dir, any_port=True, say=lambda doing: progress.update(task, description=doing))
        progress.update(
            task, description=f"up: {found.nodes} mixed nodes behind one gate at {found.address}", total=1, completed=1
        )
    return found


def _show(found: house.Running, *, steps: int) -> None:
    _heading(1, "An account, its own API key, and a Starter pack")
    with _as_customer(found) as fabric:
        fabric.top_up(STARTER_CT, payment_ref="demo")
        balance = fabric.balance()
        console.print(f"   acme bought {STARTER_CT} tokens: {balance.free_ct} free, plan {balance.plan}")

        _heading(2, "A quote before anything runs")
        _print_quote(fabric)

        _heading(3, "Two real training jobs, metered while they run")
        from training import byte_lm  # noqa: PLC0415 - torch takes seconds to import: not before there is something to see

        busy = fabric.submit(
            byte_lm.train, kwargs={"steps": steps}, tokens=LIMIT_CT, accelerators="H100:1", name="train"
        )
        waiting = fabric.submit(
            byte_lm.train_waiting,
            kwargs={"steps": steps * 3 // 4},
            tokens=LIMIT_CT,
            accelerators="H100:1",
            name="waits-on-data",
        )
        _watch(fabric, [busy, waiting])
        _print_results(fabric, [busy, waiting])

        _heading(4, "A job that the account can't cover")
        _refused(fabric, byte_lm.train)

        _heading(5, "The bill, and its proof")
        _print_statement(fabric)
        _verify(fabric, found)
        _print_dashboard(found)


def _as_customer(found: house.Running) -> Fabric:
    """Open an account as the operator, make it a key, and connect with nothing but that."""
    with connect(found.address, house.operator_key(Path(found.state_dir)), found.ca, account="acme") as operator:
        operator.client.call(
            pb.OpenAccountRequest(request_id=new_request_id(), account_id="acme", name="Acme Labs", plan="starter"),
            pb.Accepted,
        )
        secret = make_secret()
        made = operator.client.call(
            pb.CreateKeyRequest(request_id=new_request_id(), secret_sha256=hash_secret(secret), name="demo"),
            pb.CreateKeyReply,
        )
    return connect(found.address, format_key(made.key_id, secret), found.ca)


def _print_quote(fabric: Fabric) -> None:
    quote = fabric.quote(tokens=LIMIT_CT, accelerators="H100:1")
    table = _table("", "")
    table.add_row("asked for", f"1 × {quote.accelerator}, at most {LIMIT_CT} tokens")
    table.add_row(
        "burns", f"{_ct_per_h(quote.burn_uhs_per_s)} CT/h busy, {_ct_per_h(quote.burn_idle_uhs_per_s)} CT/h idle"
    )
    table.add_row("lasts", f"{quote.runtime_s / 60:.1f} min at 80 % utilisation")
    table.add_row("holds", f"{quote.hold_ct} CT of {quote.free_ct} free, worth {format_cny(quote.cost_microcny)} CNY")
    table.add_row("would start", "now" if quote.placeable_now and quote.affordable else "later")
    console.print(table)


def _watch(fabric: Fabric, jobs: list[Job]) -> None:
    """Burn and runway, live, until both jobs have ended and are settled."""
    with Live(console=console, refresh_per_second=4, transient=not console.is_terminal) as live:
        while True:
            live.update(_live_table(fabric, jobs))
            if all(job.done() and job.cost().settled for job in jobs):
                return
            time.sleep(REFRESH_S)


def _live_table(fabric: Fabric, jobs: list[Job]) -> Group:
    table = _table("job", "state", "on", "utilisation", "burn CT/h", "burned CT", "held CT", "runway")
    for job in jobs:
        info, cost = job.info(), job.cost()
        runway = "" if cost.runway_s is None else f"{cost.runway_s / 60:.1f} min"
        table.add_row(
            info.name,
            _coloured(info.state),
            f"{info.devices} × {info.accelerator}",
            f"{cost.utilisation:.0%}" if cost.burn_uhs_per_s else "",
            _ct_per_h(cost.burn_uhs_per_s) if cost.burn_uhs_per_s else "",
            format_ct(cost.burned_uhs, decimals=6),
            format_ct(cost.held_uhs),
            runway,
        )
    balance = fabric.balance()
    return Group(table, Text(f"   balance: {balance.free_ct} CT free, {balance.held_ct} held", style="dim"))


def _print_results(fabric: Fabric, jobs: list[Job]) -> None:
    table = _table("job", "learned (bits/byte)", "device time", "utilisation", "charged CT", "per second")
    for job in jobs:
        result = job.result()
        (record,) = fabric.usage(job_id=job.id)
        ran_s = (record.ended_at_us - record.started_at_us) / 1_000_000
        table.add_row(
            job.info().name,
            f"{result['bits_per_byte_before']:.2f} → {result['bits_per_byte_after']:.2f}",
            f"{ran_s:.1f} s on {record.accelerator}",
            f"{record.busy_us / max(record.devices * record.metered_us, 1):.0%}",
            format_ct(record.charged_uhs, decimals=6),
            f"{record.charged_uhs / ran_s / 1_000_000:.2f} H100-s",
        )
    console.print(table)


def _refused(fabric: Fabric, work: Callable[..., Any]) -> None:
    try:
        fabric.submit(work, tokens=TOO_MUCH_CT, accelerators="H100:2", name="too-big")
    except InsufficientTokens as refusal:
        console.print(f"   [red]refused[/] ({refusal.code}): {refusal.message}")
    else:
        raise AssertionError("a job was accepted that nobody can pay for")


def _print_statement(fabric: Fabric) -> None:
    statement = json.loads(fabric.client.fetch(pb.StatementRequest()))
    table = _table("entry", "what", "about", "CT", "held CT", "CNY")
    for line in statement["lines"]:
        if line["kind"] != "capture":
            table.add_row(
                str(line["seq"]),
                line["kind"],
                line["ref"][:24],
                _signed(line["amount_uhs"]),
                _signed(line["held_uhs"]),
                format_cny(line["cny_microcny"]) if line["cny_microcny"] else "",
            )
    captured = [line["amount_uhs"] for line in statement["lines"] if line["kind"] == "capture"]
    table.add_row("", f"{len(captured)} captures", "metered use", _signed(sum(captured)), "", "")
    closing = statement["closing"]
    owned_uhs = closing["free_uhs"] + closing["held_uhs"]
    table.add_section()
    table.add_row("", "closing", "", format_ct(owned_uhs, decimals=6), "", "")
    console.print(table)


def _verify(fabric: Fabric, found: house.Running) -> None:
    export = Path(found.state_dir) / "acme-export.jsonl"
    export.write_bytes(fabric.client.fetch(pb.ExportRequest()))
    lines = export.read_text().splitlines()
    report = verify_export(lines, trusted_key=found.verifier_key)
    if not report.ok:
        raise AssertionError(f"the export does not verify: {report.problem}")
    console.print(f"   [green]verified offline[/]: {report}")
    lines[1] = lines[1].replace("A", "B", 1)
    forged = verify_export(lines, trusted_key=found.verifier_key)
    if forged.ok:
        raise AssertionError("a forged export verifies")
    console.print(f"   with one byte changed: [red]{forged.problem}[/]")


def _print_dashboard(found: house.Running) -> None:
    if found.dashboard:
        console.print(f"   on Ray's dashboard ({found.dashboard} → Jobs) each job shows its account and tokens")


def _farewell(found: house.Running, *, kept: bool) -> None:
    nxt = (
        "fabric up --local               the same cluster, left running\n"
        "fabric topup 10                 sandbox payment\n"
        "fabric submit --tokens 0.5 --accelerators H100:1 -- python -c 'print(42)'\n"
        "fabric top                      burn and runway, live\n"
        "fabric down"
    )
    title = f"still up at {found.address}" if kept else "cleaned up; try next"
    console.print(Panel(nxt, title=title, expand=False))


def _heading(number: int, text: str) -> None:
    console.print(f"\n[bold]{number}  {text}[/]")


def _table(*columns: str) -> Table:
    table = Table(box=None, show_header=any(columns), padding=(0, 2, 0, 3))
    for column in columns:
        table.add_column(column)
    return table


def _ct_per_h(uhs_per_s: int) -> str:
    return format_ct(uhs_per_s * 3_600, decimals=3)


def _signed(uhs: int) -> str:
    return "" if not uhs else ("+" if uhs > 0 else "-") + format_ct(abs(uhs), decimals=6)


def _coloured(state: str) -> str:
    colour = {"running": "green", "succeeded": "bold green", "failed": "red", "parked": "yellow"}.get(state, "cyan")
    return f"[{colour}]{state}[/]"


if __name__ == "__main__":
    sys.exit(main())
