"""Commands about API keys."""

import time
from typing import Annotated, Any, Final

import typer

from fabric.cli.limits import InUnit, InZone, limit, list_limits, terms_of, told
from fabric.cli.output import moment, print_json, print_records, say, tell
from fabric.cli.session import AsJson, ForAccount, client
from fabric.client.client import new_request_id
from fabric.errors import InvalidRequest
from fabric.units import format_ct, parse_ct
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret

app = typer.Typer(help="API keys: make, limit, list, revoke.", no_args_is_help=True)

_US_PER_DAY: Final = 86_400_000_000
_DAYS_MAX: Final = 3_650


@app.command()
def create(
    *,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    limit: Annotated[
        str | None,
        typer.Option(help="The most that may be spent with it, by jobs and models together, ever or in each --per."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it is for; repeat for more: read, jobs:own, jobs:all, models, money, holds, keys. Not given: all of"
            " them; with --limit jobs:own and models; with --days alone read, jobs:all and models."
        ),
    ] = None,
    per: Annotated[str, typer.Option(help="What --limit is for: day, week, month; not given: ever.")] = "",
    unit: InUnit = "ct",
    zone: InZone = "",
    rpm: Annotated[int, typer.Option(min=0, help="Calls of models a minute; 0 = no limit of its own.")] = 0,
    tpm: Annotated[int, typer.Option(min=0, help="LLM tokens of such calls a minute; 0 = no limit of its own.")] = 0,
    days: Annotated[float | None, typer.Option(help="How many days it is good.")] = None,
    project: Annotated[str, typer.Option(help="What it works for; without it, what your key does.")] = "",
    member: Annotated[str, typer.Option(help="Whose it is: it can do no more than that one's role.")] = "",
    tag: Annotated[
        list[str] | None,
        typer.Option(help="What all jobs and calls with it are marked with, such as team=red; repeat for more."),
    ] = None,
    operator: Annotated[
        bool,
        typer.Option(
            "--operator",
            help="Operators: make another operator's key; with --scope operator:billing, operator:support or operator:auditor"
            " one that may do no more than that.",
        ),
    ] = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown once: only its hash is kept.

    For example: fabric keys create --name ci --scope jobs:own --limit 5 --per day --zone Asia/Shanghai --days 30
    """
    if limit is None and (per or zone or unit != "ct"):
        raise InvalidRequest("--per, --unit and --zone are of --limit: name that", code="invalid_limit")
    resets = bool(per) or unit != "ct"
    if days is not None and not 0 < days <= _DAYS_MAX:
        raise InvalidRequest(f"--days {days:g}: give more than 0 and at most {_DAYS_MAX}", code="invalid_duration")
    secret = make_secret()
    request = pb.CreateKeyRequest(
        request_id=new_request_id(),
        secret_sha256=hash_secret(secret),
        name=name,
        operator=operator,
        limit_uhs=None if limit is None or resets else parse_ct(limit),
        limits=[terms_of(limit or "", per=per or "life", unit=unit, zone=zone)] if resets else [],
        scopes=scope or [],
        requests_per_min=rpm,
        tokens_per_min=tpm,
        project=project,
        member=member,
        tags=tag or [],
        expires_at_us=None if days is None else time.time_ns() // 1000 + round(days * _US_PER_DAY),
    )
    key_id = client(account).call(request, pb.CreateKeyReply).key_id
    api_key = format_key(key_id, secret)
    if as_json:
        print_json({"key_id": key_id, "api_key": api_key})
    else:
        say(api_key)
        tell("Keep it now: it is not shown again.")


@app.command("ls")
def list_keys(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """List keys, what each is for, and what was spent with it."""
    found = client(account).call(pb.ListKeysRequest(), pb.ListKeysReply).keys
    print_records(
        found,
        as_json=as_json,
        title="keys",
        columns=_COLUMNS,
        spare=("a minute", "tags", "scopes", "account", "project", "member"),
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id.")],
    *,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Make a key worthless."""
    client(account).call(pb.RevokeKeyRequest(request_id=new_request_id(), key_id=key_id), pb.Accepted)
    print_json({"key_id": key_id, "revoked": True}) if as_json else say(f"{key_id} is revoked")


app.command()(limit)
app.command("limits")(list_limits)


def _left(key: pb.Key) -> str:
    """Of its limit: what is held for what runs is set aside already."""
    return format_ct(max(key.limit_uhs - key.spent_uhs - key.held_uhs, 0)) if key.HasField("limit_uhs") else "–"


def _rates(key: pb.Key) -> str:
    """Requests and LLM tokens."""
    parts = [f"{key.requests_per_min} calls"] * bool(key.requests_per_min)
    return ", ".join([*parts, *[f"{key.tokens_per_min} tokens"] * bool(key.tokens_per_min)]) or "–"


_DEAD: Final = {"account_closed": "account closed", "member_left": "member left", "project_closed": "project closed"}
_COLUMNS: Final[dict[str, Any]] = {
    "key": lambda key: key.key_id,
    "name": lambda key: key.name or "–",
    "account": lambda key: key.account_id,
    "project": lambda key: key.project if key.project != key.account_id else "–",
    "member": lambda key: f"{key.member} ({key.role})" if key.member else "–",
    "tags": lambda key: " ".join(key.tags) or "–",
    "scopes": lambda key: " ".join(key.scopes),
    "used CT": lambda key: format_ct(key.spent_uhs),
    "left CT": _left,
    "limit CT": lambda key: format_ct(key.limit_uhs) if key.HasField("limit_uhs") else "–",
    "resets": lambda key: "; ".join(told(limit) for limit in key.limits) or "–",
    "a minute": _rates,
    "expires": lambda key: moment(key.expires_at_us),
    "state": lambda key: _DEAD.get(key.dead, key.dead) or "good",
}
