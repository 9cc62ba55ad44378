"""Commands about limits that reset: `fabric keys limit`, `fabric keys limits`."""

import datetime as dt
from typing import Annotated, Any, Final

import typer

from fabric.cli.output import print_json, print_records, say
from fabric.cli.session import AsJson, ForAccount, client
from fabric.client.client import new_request_id
from fabric.client.limits import terms_of
from fabric.errors import InvalidRequest
from fabric.units import format_cny, format_ct
from fabric.wire import fabric_pb2 as pb

InUnit = Annotated[
    str, typer.Option("--unit", help="What it counts: ct (compute tokens), cny, or llm (tokens of language models).")
]
InZone = Annotated[
    str, typer.Option("--zone", help="By whose calendar it resets, such as Asia/Shanghai; not given: UTC.")
]

__all__ = ["InUnit", "InZone", "limit", "list_limits", "terms_of", "told"]


def limit(
    key_id: Annotated[
        str, typer.Argument(metavar="[KEY]", help="The key's id; not given: the account as a whole.")
    ] = "",
    *,
    project: Annotated[str, typer.Option(help="Of all keys of this project together, in a key's place.")] = "",
    member: Annotated[str, typer.Option(help="Of all keys of this member together, in a key's place.")] = "",
    amount: Annotated[str, typer.Option("--amount", help="The most that may be used in each period.")] = "",
    per: Annotated[str, typer.Option(help="day, week, month or life.")] = "month",
    unit: InUnit = "ct",
    zone: InZone = "",
    starts_on: Annotated[
        int,
        typer.Option(min=0, help="Of a week the weekday (1 = Monday), of a month the day; in shorter ones the last."),
    ] = 0,
    warn: Annotated[bool, typer.Option("--warn", help="Refuse nothing: tell of it, once a period.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take the limit of this period and unit away.")] = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Limit what a key, a project, a member or the account may use in a day, a week or a month.

    What runs when it is used up is parked with a checkpoint, and goes on when the limit resets. It counts from now on.

    For example: fabric keys limit fk1a2b3c --amount 5 --per day --zone Asia/Shanghai
    """
    if bool(amount) == remove:
        raise InvalidRequest("give --amount, or --remove: one of the two", code="invalid_limit")
    terms = terms_of(amount or "1", per=per, unit=unit, zone=zone, starts_on=starts_on, warning=warn)
    request = pb.SetLimitRequest(
        request_id=new_request_id(), key_id=key_id, project=project, member=member, terms=terms, remove=remove
    )
    client(account).call(request, pb.Accepted)
    if as_json:
        print_json(
            {"key_id": key_id, "project": project, "member": member, "period": per, "unit": unit, "removed": remove}
        )
        return
    whose = f"{key_id or project or member or 'the account'} has"
    say(
        f"{whose} no such limit any more"
        if remove
        else f"{whose} a limit of {amount} {_UNITS.get(unit, unit)} per {per}"
    )


def list_limits(
    key_id: Annotated[str, typer.Argument(metavar="[KEY]", help="Of this key and the account; not given: all.")] = "",
    *,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """List limits that reset: what is used, held and left of each, and when it begins anew."""
    found = client(account).call(pb.ListLimitsRequest(key_id=key_id), pb.ListLimitsReply).limits
    print_records(found, as_json=as_json, title="limits", columns=_COLUMNS)


def told(one: pb.Limit) -> str:
    """As in `1.5 of 5 CT a day`."""
    period = "ever" if one.period == "life" else f"a {one.period}"
    return f"{_number(one.used, one.unit)} of {_number(one.amount, one.unit)} {_UNITS.get(one.unit, one.unit)} {period}"


def _number(amount: int, unit: str) -> str:
    if unit == "ct":
        return format_ct(amount)
    return format_cny(amount) if unit == "cny" else str(amount)


def _anew(one: pb.Limit) -> str:
    """In this machine's own time, as all moments are."""
    if not one.HasField("resets_at_us"):
        return "never"
    return f"{dt.datetime.fromtimestamp(one.resets_at_us / 1e6).astimezone():%Y-%m-%d %H:%M}"


_UNITS: Final = {"ct": "CT", "cny": "CNY", "llm": "LLM tokens"}
_COLUMNS: Final[dict[str, Any]] = {
    "of": lambda one: "account" if one.whose == "account" else f"{one.whose} {one.name}",
    "per": lambda one: one.period,
    "in": lambda one: _UNITS.get(one.unit, one.unit),
    "limit": lambda one: _number(one.amount, one.unit),
    "used": lambda one: _number(one.used, one.unit),
    "held": lambda one: _number(one.held, one.unit),
    "left": lambda one: _number(one.left, one.unit),
    "before": lambda one: _number(one.used_before, one.unit),
    "resets": _anew,
    "zone": lambda one: one.zone,
    "kind": lambda one: "hard" if one.hard else "warning",
}
