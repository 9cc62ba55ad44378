"""`fabric simulate`: a trace through the gate on a virtual clock, beside other schedulers. Needs no fabric that runs."""

import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from fabric.cli.files import drafted
from fabric.cli.output import console, print_facts, print_json, say, table, tell, tell_over
from fabric.cli.session import AsJson
from fabric.errors import Conflict
from fabric.extras import needed

_TOLD_EVERY_S: Final = 1.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Operators")(simulate)
    app.command(rich_help_panel="Operators")(replay)


def simulate(
    trace: Annotated[
        str,
        typer.Argument(
            metavar="TRACE|JOURNAL",
            help="A table of jobs (CSV, also packed with gzip), or a fabric's journal: journal.sqlite, or postgresql://…",
        ),
    ],
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
    spot: Annotated[
        Path | None, typer.Option(help="A table t_s,nodes: how many of the spot nodes there are, from when on.")
    ] = None,
    notice: Annotated[str, typer.Option(help="How long before a spot node goes it says so.")] = "0s",
    first: Annotated[int | None, typer.Option(min=1, help="Only so many jobs, the first to arrive.")] = None,
    prices: Annotated[
        Path | None, typer.Option(help="Tariffs to count tokens by; a journal's own if not given.")
    ] = None,
    plans: Annotated[Path | None, typer.Option(help="Plans to count money by; a journal's own if not given.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots into this file, too.")] = None,
    wide: Annotated[
        bool,
        typer.Option(
            "--wide", help="Also median and maximum of the waits, and how true it is what `fabric why` tells of starts."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Play a trace of jobs with our gate and with other schedulers, and compare what customers feel.

    Of a journal, what would have been stands beside what happened: with other nodes, another policy, other prices.

    For example: fabric simulate cluster04.csv.gz --nodes 64x8 --tiers 60/30/10 --policy fabric --policy best-effort
    or: fabric simulate journal.sqlite --nodes 12x8:H100 --prices new-tariffs.yaml
    """
    needed("pydantic", by="fabric simulate")
    from fabric.simulation import command  # noqa: PLC0415 - only needed here

    asked = command.Asked(
        nodes=nodes or [], cluster_file=cluster_file, policies=policy or ["fabric"], tiers=tiers, users=users, load=load,
        seeds=seeds, checkpoint=checkpoint, write=write, restore=restore, grace=grace, mtbf=mtbf, spot=spot, notice=notice, first=first, prices=prices, plans=plans,
    )  # fmt: skip
    teller = Teller()
    outcome = command.run(trace, asked, tell=teller)
    teller.end()
    if html is not None:
        with drafted(html) as out:
            out.write(command.html_of(outcome, name="a journal" if "://" in trace else Path(trace).name).encode())
    if as_json:
        print_json(command.json_of(outcome))
        return
    say(command.title(outcome))
    for name, head, rows in command.tables(outcome, wide=wide):
        console().print(table(name, head, rows))


def replay(
    journal: Annotated[
        str,
        typer.Argument(
            help="A fabric's journal.sqlite, or postgresql://… of its database: it is only read, also while a gate runs."
        ),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Decide a whole journal again, and say whether this version decides the same: else the first entry where it doesn't.

    For example: fabric replay journal.sqlite
    """
    needed("apsw", by="fabric replay")
    from fabric.simulation import command  # noqa: PLC0415 - only needed here

    teller = Teller()
    found = command.replay(journal, tell=teller)
    teller.end()
    parting = found.parting
    if as_json:
        facts: dict[str, int | str | bool] = {"entries": found.entries, "rules": found.rules, "same": parting is None}
        if parting is not None:
            facts |= {"seq": parting.seq, "written": parting.written, "decided": parting.decided}
        print_json(facts)
    elif parting is None:
        say(f"{found.entries:,} entries are decided as they were written, by rules {found.rules}")
    else:
        say(f"{found.entries:,} entries are decided as they were written; entry {parting.seq} isn't")
        print_facts({"written": parting.written, "now": parting.decided})
    if parting is not None:
        raise typer.Exit(Conflict.exit_code)


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
