"""`fabric simulate`: a trace through the gate on a virtual clock, beside other schedulers. Needs no fabric that runs."""

import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from fabric.cli.output import console, print_json, say, table, tell, tell_over
from fabric.cli.session import AsJson
from fabric.extras import needed

_TOLD_EVERY_S: Final = 1.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Operators")(simulate)


def simulate(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A table of jobs (CSV, also packed with gzip).")],
    *,
    nodes: Annotated[
        list[str] | None, typer.Option("--nodes", help="COUNTxDEVICES[:TYPE][:reserved], again for more kinds.")
    ] = None,
    cluster_file: Annotated[
        Path | None, typer.Option("--cluster", help="A cluster file: its nodes, and its `scheduling:`.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="fabric, a peer's name, `all`, or a cluster file. Again for more."),
    ] = None,
    tiers: Annotated[str, typer.Option(help="Percent of users: Starter/Professional/Enterprise, as in 60/30/10.")] = "",
    users: Annotated[int, typer.Option(min=1, help="How many, where the trace names none.")] = 100,
    load: Annotated[float | None, typer.Option(min=0.01, help="Stretch the arrivals to this load.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each policy, paired by seed.")] = 1,
    checkpoint: Annotated[str, typer.Option(help="How often jobs save.")] = "1h",
    write: Annotated[str, typer.Option(help="How long a save takes.")] = "20s",
    restore: Annotated[str, typer.Option(help="How long a restart takes: on one node/on several.")] = "40s/60s",
    grace: Annotated[str, typer.Option(help="How long jobs are given to save when they must go.")] = "0s",
    mtbf: Annotated[str, typer.Option(help="How long a node lasts on average; nothing = for ever.")] = "",
    first: Annotated[int | None, typer.Option(min=1, help="Only so many jobs, the first to arrive.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Also median and maximum of the waits.")] = False,
    as_json: AsJson = False,
) -> None:
    """Play a trace of jobs with our gate and with other schedulers, and compare what customers feel.

    For example: fabric simulate cluster04.csv.gz --nodes 64x8 --tiers 60/30/10 --policy fabric --policy best-effort
    """
    needed("pydantic", by="fabric simulate")
    from fabric.simulation import command  # noqa: PLC0415 - only needed here

    asked = command.Asked(
        nodes=nodes or [], cluster_file=cluster_file, policies=policy or ["fabric"], tiers=tiers, users=users, load=load,
        seeds=seeds, checkpoint=checkpoint, write=write, restore=restore, grace=grace, mtbf=mtbf, first=first,
    )  # fmt: skip
    teller = Teller()
    outcome = command.run(trace, asked, tell=teller)
    teller.end()
    if as_json:
        print_json(command.json_of(outcome))
        return
    say(command.title(outcome))
    for name, head, rows in command.tables(outcome, wide=wide):
        console().print(table(name, head, rows))


class Teller:
    """Says how far a run is, where that takes more than a second: on a terminal over the last word, else a line a run."""

    def __init__(self) -> None:
        self._began_s = self._told_s = time.monotonic()
        self._name = ""
        self._tells_over = sys.stderr.isatty()
        self._open = False

    def __call__(self, name: str, part: float) -> None:
        """The run of this name is so far."""
        now_s = time.monotonic()
        if now_s - self._told_s < _TOLD_EVERY_S:
            return
        self._told_s = now_s
        if self._tells_over:
            self._open = True
            tell_over(f"{name}: {part:4.0%} of the jobs, {now_s - self._began_s:.0f} s   ", done=False)
        elif name != self._name:
            tell(f"{name} ...")
        self._name = name

    def end(self) -> None:
        """All is told."""
        if self._open:
            tell_over(" " * 60, done=True)
