"""`fabric top`: what runs and what it burns, live."""

import sys
import time
from typing import Annotated, Any, Final

import typer
from rich.console import Group
from rich.live import Live

from fabric.cli.job_columns import TOP_COLUMNS, per_hour, per_second
from fabric.cli.output import console, print_json, record, table
from fabric.cli.session import AsJson, ForAccount, client
from fabric.wire import fabric_pb2 as pb

_JOBS_MAX: Final = 30


def top(
    *,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 3.0,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """What runs and what it burns, live; in a pipe, once."""
    door = client(account)
    if as_json:
        print_json([record(found) for found in _unended(door)])
        return
    if once or not sys.stdout.isatty():
        console().print(_top_view(_unended(door)))
        return
    with Live(_top_view(_unended(door)), console=console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(_top_view(_unended(door)), refresh=True)


def _unended(door: Any) -> list[pb.Job]:
    states = ("running", "stopping", "starting", "parked", "queued")
    found, _ = door.jobs(pb.ListJobsRequest(states=states), most=None)
    return sorted(found, key=lambda job: (states.index(job.state), -job.burn_uhs_per_s))


def _top_view(found: list[pb.Job]) -> Group:
    burn = sum(each.burn_uhs_per_s for each in found)
    running = sum(each.state == "running" for each in found)
    head = f"{running} running, {len(found)} in all · burning {per_second(burn)} CT/s = {per_hour(burn)} CT/h"
    rows = [[show(each) for show in TOP_COLUMNS.values()] for each in found[:_JOBS_MAX]]
    return Group(head, table("", tuple(TOP_COLUMNS), rows, spare=("limit CT", "why", "on", "burned CT", "progress")))
