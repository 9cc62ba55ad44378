"""Commands that start, stop and examine a whole fabric: the only ones that reach beyond the wire."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from fabric.cli.output import console, print_facts, print_json, say, table, tell, warn
from fabric.cli.plain_logs import log_plainly
from fabric.cli.session import AsJson
from fabric.client.profile import Profile, save_profile
from fabric.errors import Unavailable
from fabric.extras import check_cluster_python, needed

StateDir = Annotated[Path | None, typer.Option(help="Where its state lives.")]
NEXT = "fabric topup 10, then fabric submit train.py --tokens 2 --follow"
NEXT_WITH_CUSTOMERS = "fabric ops open-account acme --plan starter, then fabric topup 10 --account acme --payment-ref INV-1 when it has paid"
Config = Annotated[
    Path | None,
    typer.Option(envvar="FABRIC_CONFIG", show_envvar=True, help="A cluster file; without one, a local cluster."),
]


def register(app: typer.Typer) -> None:
    for name, command in (("up", up), ("down", down), ("doctor", doctor)):
        app.command(name, rich_help_panel="Cluster")(command)


def up(
    *,
    local: Annotated[bool, typer.Option("--local", help="A local cluster of simulated nodes.")] = False,
    config: Config = None,
    state_dir: StateDir = None,
    any_port: Annotated[
        bool, typer.Option("--any-port", help="Listen at free ports: beside another fabric on this machine.")
    ] = False,
    profile: Annotated[
        str, typer.Option(help="Under which name to keep the connection: FABRIC_PROFILE says which to use.")
    ] = "default",
    accept_time: Annotated[
        bool, typer.Option("--accept-time", help="The clock is right, however far it is ahead of the journal.")
    ] = False,
    replay_from: Annotated[
        int | None,
        typer.Option(
            min=0, help="Start from the newest snapshot at or before this entry of the journal; 0: from none."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a fabric, and keep how to reach it in the profile.

    Where the clock is more than a day (clock.ahead_max_h) ahead of the journal's last entry, it asks whether the clock is
    right, and --accept-time answers. Where the journal can't be decided again from its newest snapshot, --replay-from
    starts from an older one, or with 0 from the whole journal; nothing is deleted.
    """
    check_cluster_python(by="fabric up")
    needed("fabric.daemon", by="fabric up")
    log_plainly()
    from fabric import daemon  # noqa: PLC0415  # what starts a fabric is slow to import, and only needed here
    from fabric.config import cluster  # noqa: PLC0415  # what starts a fabric is slow to import, and only needed here

    if local and config is not None:
        raise typer.BadParameter("choose --local or --config (FABRIC_CONFIG counts as that)")

    def start(*, accept_time: bool) -> daemon.Running:
        return daemon.up(
            config,
            state_dir=state_dir,
            any_port=any_port,
            replay_from=replay_from,
            accept_time=accept_time,
            say=lambda doing: None if as_json else tell(f"… {doing}"),
        )

    try:
        found = start(accept_time=accept_time)
    except Unavailable as error:
        if error.code != "clock_ahead" or as_json or not _is_a_person():
            raise
        typer.confirm(error.message, abort=True)
        found = start(accept_time=True)
    api_key = daemon.operator_key(Path(found.state_dir))
    file = save_profile(
        Profile(address=found.address, ca=found.ca, api_key=api_key, account=found.account), name=profile
    )
    if as_json:
        print_json(
            {
                "name": found.name,
                "address": found.address,
                "ca": found.ca,
                "dashboard": found.dashboard,
                "ray_token": found.ray_token,
                "endpoint": found.endpoint,
                "state_dir": found.state_dir,
                "verifier_key": found.verifier_key,
                "giveaway": found.giveaway,
                "profile": str(file),
            }
        )
        return
    print_facts(
        {
            "up": f"{found.name}, {found.nodes} nodes, at {found.address}",
            "dashboard": f"{found.dashboard} (it asks for the token in {found.ray_token})"
            if found.dashboard and found.ray_token
            else found.dashboard or "–",
            "models": found.endpoint or "–",
            "signs": f"{found.verifier_key} (publish it: customers verify exports with --key)",
            "state": found.state_dir,
            "profile": f"{file} ({profile})",
            "next": NEXT if found.account and found.payments != "operator" else NEXT_WITH_CUSTOMERS,
        }
    )
    if found.giveaway:
        warn(f"{found.giveaway}: {cluster.FOR_MONEY}")


def _is_a_person() -> bool:
    """Whether somebody is there who can be asked."""
    return sys.stdin.isatty()


def down(
    *,
    gate: Annotated[
        bool, typer.Option("--gate", help="Stop the gate too, where Ray was there before the fabric.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Don't wait for jobs to save: they go on from their last checkpoint.")
    ] = False,
    config: Config = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Stop a fabric in order. Nothing that was booked is lost.

    On a local cluster, what runs is asked to save first, within its grace, and goes on after the next `fabric up`;
    --now, or Ctrl-C twice, doesn't wait for that. Where a running Ray cluster was joined, the door closes, and the gate
    and the jobs go on; --gate stops the gate as well, to upgrade it or to give it another cluster file. Jobs go on even
    then, and the next `fabric up` finds them.
    """
    needed("fabric.daemon", by="fabric down")
    log_plainly()
    from fabric import daemon  # noqa: PLC0415

    found = daemon.down(
        state_dir, gate=gate, config=config, now=now, say=lambda doing: None if as_json else tell(f"… {doing}")
    )
    name = found.name if found else None
    stays = found is not None and found.joined and not gate
    left = daemon.unsettled_calls(daemon.state_dir.state_dir_of(state_dir))
    if as_json:
        print_json({"name": name, "stopped": True, "gate": "running" if stays else "stopped", "unsettled_calls": left})
        return
    goes_on = ": its gate and jobs go on (fabric down --gate stops the gate)" if stays else ""
    say(f"{name or 'the gate'} is down{goes_on}")
    if left:
        say(
            f"{left} calls of models are not settled yet: what they used is kept here, and is charged after the next `fabric"
            " up`. What they held stays set aside until then"
        )


def doctor(*, config: Config = None, as_json: AsJson = False) -> None:
    """Say what is missing on this machine or beyond, and how to mend it; and how the fabric is that is up here.

    Ends with 0 if nothing fails (a warning is no failure), with 1 if something does: `fabric up` will not work then.
    """
    log_plainly()
    from fabric.config.cluster import load_cluster  # noqa: PLC0415
    from fabric.daemon import condition  # noqa: PLC0415
    from fabric.doctor import Finding, Health, diagnose  # noqa: PLC0415

    found = diagnose(load_cluster(config) if config is not None else None)
    if (said := condition()) is not None:
        health = Health("warn" if said.remedy else "ok")
        found.append(Finding(name="fabric", health=health, found=said.found, remedy=said.remedy))
    if as_json:
        print_json(
            [
                {"name": each.name, "health": each.health.value, "found": each.found, "remedy": each.remedy}
                for each in found
            ]
        )
    else:
        rows = [(each.health.value, each.name, each.found, each.remedy) for each in found]
        console().print(table("", ("", "what", "found", "remedy"), rows))
        if config is not None and (giveaway := load_cluster(config).giveaway):
            warn(giveaway)
    if any(each.health is Health.FAIL for each in found):
        raise typer.Exit(1)


def is_all_here(address: str) -> bool:
    """Whether the fabric at this address is this machine's own, with all of its nodes."""
    if importlib.util.find_spec("fabric.daemon") is None:
        return False  # a client alone starts none
    from fabric import daemon  # noqa: PLC0415

    found = daemon.running()
    return found is not None and not found.joined and found.address == address
