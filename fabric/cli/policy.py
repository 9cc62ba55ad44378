"""Commands about the policy of placement: by which numbers jobs are placed, and whose share is how large."""

import json
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Final

import typer

from fabric.cli.output import console, print_json, record, say, table, tell
from fabric.cli.session import AsJson, client
from fabric.client.client import new_request_id
from fabric.units import PPM
from fabric.wire import fabric_pb2 as pb

Weight = Annotated[str | None, typer.Option(help="Its weight against others', such as 3 or 0.5; without one, 1.")]
_DECIMALS: Final = Decimal(PPM)


def register(app: typer.Typer) -> None:
    """Make these commands of the operator's."""
    for name, command in (("policy", policy), ("share", share), ("cohort", cohort)):
        app.command(name)(command)


def policy(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SETTING=VALUE]...", help="What is to change, e.g. waits_min.starter=30."),
    ] = None,
    *,
    as_filed: Annotated[bool, typer.Option("--as-filed", help="First go back to what the cluster file says.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show by which numbers jobs are placed, or change some while jobs wait and run.

    The names are those of `scheduling:` in a cluster file. What is changed here holds, also over a restart, until the file
    says something new. For example: fabric ops policy headroom_devices=8 graces_s.reserved=60
    """
    door = client()
    if settings or as_filed:
        request = pb.SetPolicyRequest(
            request_id=new_request_id(), changes_json=json.dumps(_nested(settings or [])), as_filed=as_filed
        )
        found = door.call(request, pb.Policy)
    else:
        found = door.call(pb.GetPolicyRequest(), pb.Policy)
    in_force, filed = json.loads(found.in_force_json), json.loads(found.filed_json)
    if as_json:
        print_json({"in_force": in_force, "filed": filed})
        return
    by_name = _flat(filed)
    rows = [
        [name, str(value), "" if by_name.get(name) == value else str(by_name.get(name))]
        for name, value in _flat(in_force).items()
    ]
    console().print(table("policy", ("setting", "value", "in the file"), rows))
    if in_force != filed:
        tell("set by hand: write it into the cluster file, too; `fabric ops policy --as-filed` undoes it")


def share(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    *,
    weight: Weight = None,
    cohort: Annotated[
        str | None,
        typer.Option(
            help="Who pays for it together with other accounts: the share is theirs. '' = it is its own payer."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set what share of devices an account has where others wait for them too, or with whom it has it.

    For example: fabric ops share acme-research --cohort acme
    """
    if weight is None and cohort is None:
        raise typer.BadParameter("say --weight or --cohort")
    request = pb.SetShareRequest(
        request_id=new_request_id(),
        account_id=account_id,
        weight_ppm=None if weight is None else parse_weight(weight),
        cohort=cohort,
    )
    _done(client().call(request, pb.Accepted), f"the share of {account_id} is set", as_json=as_json)


def cohort(
    name: Annotated[str, typer.Argument(metavar="COHORT", help="A payer of several accounts.")],
    *,
    weight: Annotated[str, typer.Option(help="Its weight against other payers', such as 3 or 0.5.")],
    as_json: AsJson = False,
) -> None:
    """Set what share of devices the accounts of one payer have together.

    For example: fabric ops cohort acme --weight 3
    """
    request = pb.SetCohortRequest(request_id=new_request_id(), cohort=name, weight_ppm=parse_weight(weight))
    _done(client().call(request, pb.Accepted), f"the share of cohort {name} is set", as_json=as_json)


def parse_weight(text: str) -> int:
    """A weight in ppm; the gate says which make sense."""
    try:
        ppm = Decimal(text) * _DECIMALS
        whole = int(ppm)
    except (InvalidOperation, ValueError, OverflowError):
        raise typer.BadParameter(f"a weight is a number such as 3 or 0.5, not {text!r}") from None
    if whole != ppm or abs(whole) >= PPM**3:
        raise typer.BadParameter(f"a weight has up to six decimals, and is at most 1000, not {text!r}")
    return whole


def _nested(settings: list[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        *outer, name = path.strip().split(".")
        if not equals or not name:
            raise typer.BadParameter(f"say SETTING=VALUE, as in run_min=5, not {setting!r}")
        inside = changes
        for step in outer:
            inside = inside.setdefault(step, {})
            if not isinstance(inside, dict):
                raise typer.BadParameter(f"{path} lies within a setting that has a value of its own")
        inside[name] = int(value) if value.strip().lstrip("-").isdecimal() else value.strip()
    return changes


def _flat(settings: dict[str, Any], within: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{within}.{name}" if within else name
        found |= _flat(value, path) if isinstance(value, dict) else {path: value}
    return found


def _done(accepted: pb.Accepted, what: str, *, as_json: bool) -> None:
    print_json(record(accepted)) if as_json else say(what)
