"""What commands do with jobs by way of the SDK, which takes a while to import: submit them, follow them, read results.

Commands import this where they begin, so that `--help` and all other commands answer without it.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import typer

from fabric.cli.output import duration, print_json, record, say, tell
from fabric.cli.sending import Sending
from fabric.cli.session import client, tell_away
from fabric.client.client import new_request_id
from fabric.errors import Unavailable
from fabric.results import shown
from fabric.sdk import Fabric
from fabric.sdk.job import Job, is_own

__all__ = ["PARKED", "connected", "follow", "is_own", "print_submitted", "shown", "submitted"]

_NAMED: Final = 5
PARKED: Final = 9
"""How a command ends that followed a job until it was parked: not done, and nothing to be ashamed of."""


def connected(account: str = "") -> Fabric:
    """A connection from the environment and the profile."""
    return Fabric(client(account))


def submitted(
    fabric: Fabric, words: list[str], *, env: Mapping[str, str], name: str, request_id: str, **more: Any
) -> Job:
    """Words as the SDK wants them: a Python script and its arguments, or a command, which has its own."""
    work, arguments = (words[0], words[1:]) if words[0].endswith(".py") else (words, [])
    fabric.client.on_sent = Sending()
    intention = request_id or new_request_id()
    try:
        made = fabric.submit(work, *arguments, name=name or None, env=env, request_id=intention, **more)
    except KeyboardInterrupt:
        tell(f"it may have been submitted all the same: `fabric jobs --request-id {intention}` looks")
        raise
    if pools := made.facts.get("barred_pools"):
        longest = duration(int(made.facts.get("grace_max_us") or 0))
        tell(f"not placed on {pools} nodes: its --grace is longer than the {longest} that they give")
    _tell_left_out(fabric.left_out, "because .gitignore names it")
    _tell_left_out(fabric.secrets_left_out, "because such files hold secrets")
    if fabric.unsent:
        names = f"{', '.join(fabric.unsent[:_NAMED])}{'' if len(fabric.unsent) <= _NAMED else ', …'}"
        tell(f"not sent, though the code names it: {names}. If the job reads it, send its folder with --working-dir")
    return made


def print_submitted(made: Job, *, as_json: bool) -> None:
    print_json({"job_id": made.id, "state": made.state}) if as_json else say(made.id)


def follow(made: Job, *, as_json: bool, timeline: bool = False) -> None:
    """Show a job's logs until it ends or is parked; raise what it failed with. With JSON, standard output is the job as
    it ended, and the logs go where words for people do.
    """
    tell(made.id)
    try:
        made.print_logs(follow=True, file=sys.stderr if as_json else sys.stdout, on_away=tell_away)
        found = made.info()
    except (KeyboardInterrupt, Unavailable):
        tell(f"{made.id} goes on: `fabric logs {made.id} -f`, `fabric cancel {made.id}`")
        raise
    if timeline:
        tell(found.timeline)
    if as_json:
        print_json(record(found))
    if found.state == "parked":
        why = found.reason.replace("_", " ")
        tell(f"parked: {why}. `fabric raise-limit {made.id} TOKENS`, a top-up or `fabric resume` lets it go on")
        raise typer.Exit(PARKED)
    made.result()


def _tell_left_out(names: Sequence[str], why: str) -> None:
    if names:
        more = "" if len(names) <= _NAMED else ", …"
        tell(f"not sent, {why}: {', '.join(names[:_NAMED])}{more}; `!{names[0]}` in .fabricignore sends it")
