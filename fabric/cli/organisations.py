"""Commands about organisations: wallets, projects and members."""

import json
from typing import Annotated, Any, Final

import typer

from fabric.cli.output import console, moment, print_json, record, say, table, tell
from fabric.cli.session import AsJson, ForAccount, client
from fabric.client.client import new_request_id
from fabric.wire import fabric_pb2 as pb
from fabric.wire import format_key, hash_secret, make_secret

org = typer.Typer(help="Your organisation: its wallets, projects and members.", no_args_is_help=True)
projects = typer.Typer(help="Projects: what is done with their keys, one wallet pays.", no_args_is_help=True)
members = typer.Typer(help="Members: who may act for your organisation, and in which role.", no_args_is_help=True)

ProjectName = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name.")]
MemberName = Annotated[str, typer.Argument(metavar="MEMBER", help="The member's name, such as an address.")]
RoleName = Annotated[str, typer.Option("--role", help="owner, billing, developer or read-only.")]


@org.command("show")
def show(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Show whose account this is: wallets, projects and members."""
    found = _organisation(account)
    if as_json:
        print_json(found)
        return
    say(f"organisation {found['organisation']}, wallets: {', '.join(found['wallets'])}")
    _table("projects", found["projects"], _PROJECTS)
    _table("members", found["members"], _MEMBERS)


@projects.command("ls")
def list_projects(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """List projects, which wallet pays for each, and how many keys each has."""
    _list(account, "projects", _PROJECTS, as_json=as_json)


@projects.command("create")
def create_project(
    project: ProjectName,
    *,
    wallet: Annotated[str, typer.Option(help="The account of your organisation that pays for it, for ever.")],
    name: Annotated[str, typer.Option(help="What it is shown as.")] = "",
    tag: Annotated[
        list[str] | None,
        typer.Option(help="What all its jobs and calls are marked with, such as cost-centre=4711; repeat for more."),
    ] = None,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Make a project. Its keys are paid from its wallet, and from no other.

    For example: fabric projects create search --wallet acme-research --tag cost-centre=4711
    """
    request = pb.CreateProjectRequest(
        request_id=new_request_id(), project=project, wallet=wallet, name=name, tags=tag or []
    )
    _done(client(account).call(request, pb.Accepted), f"project {project} is there, and {wallet} pays", as_json=as_json)


@projects.command("close")
def close_project(project: ProjectName, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Close a project: its keys are dead from now on, what runs goes on."""
    request = pb.CloseProjectRequest(request_id=new_request_id(), project=project)
    _done(client(account).call(request, pb.Accepted), f"project {project} is closed", as_json=as_json)


@members.command("ls")
def list_members(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """List members, their roles, and how many keys each has."""
    _list(account, "members", _MEMBERS, as_json=as_json)


@members.command("invite")
def invite(
    member: MemberName,
    *,
    role: RoleName,
    name: Annotated[str, typer.Option(help="What it is shown as.")] = "",
    project: Annotated[str, typer.Option(help="What its first key works for; without it, what yours does.")] = "",
    key: Annotated[bool, typer.Option("--key/--no-key", help="Whether to make its first key.")] = True,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Let somebody in, with a first key to hand on: it is shown once, and is what a member signs in with.

    For example: fabric members invite dan@example.com --role developer --project search
    """
    asker = client(account)
    asker.call(pb.AddMemberRequest(request_id=new_request_id(), member=member, role=role, name=name), pb.Accepted)
    api_key = ""
    if key:
        secret = make_secret()
        request = pb.CreateKeyRequest(
            request_id=new_request_id(),
            secret_sha256=hash_secret(secret),
            name=f"{member}'s first",
            member=member,
            project=project,
        )
        api_key = format_key(asker.call(request, pb.CreateKeyReply).key_id, secret)
    if as_json:
        print_json({"member": member, "role": role, "api_key": api_key})
        return
    tell(f"{member} is a member, as {role}")
    if api_key:
        say(api_key)
        tell("Hand it on now: it is not shown again.")


@members.command("role")
def set_role(member: MemberName, *, role: RoleName, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Give a member another role: it holds for all its keys at once."""
    request = pb.SetRoleRequest(request_id=new_request_id(), member=member, role=role)
    _done(client(account).call(request, pb.Accepted), f"{member} is {role}", as_json=as_json)


@members.command("remove")
def remove(member: MemberName, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Remove a member: its keys are dead at once. The last owner stays."""
    request = pb.RemoveMemberRequest(request_id=new_request_id(), member=member)
    _done(client(account).call(request, pb.Accepted), f"{member} has left, and its keys are dead", as_json=as_json)


def _organisation(account: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client(account).call(pb.GetOrganisationRequest(), pb.Document).json)
    return found


def _list(account: str, what: str, columns: dict[str, Any], *, as_json: bool) -> None:
    rows = _organisation(account)[what]
    print_json(rows) if as_json else _table(what, rows, columns)


def _table(what: str, rows: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    if not rows:
        console().print(f"no {what}")
        return
    console().print(table(what, tuple(columns), [[show(row) for show in columns.values()] for row in rows]))


def _done(accepted: pb.Accepted, sentence: str, *, as_json: bool) -> None:
    print_json(record(accepted)) if as_json else say(sentence)


_PROJECTS: Final[dict[str, Any]] = {
    "project": lambda row: row["project"],
    "name": lambda row: row["name"],
    "wallet": lambda row: row["wallet"],
    "tags": lambda row: " ".join(row["tags"]) or "–",
    "keys": lambda row: str(row["keys"]),
    "state": lambda row: "closed" if row["closed_at_us"] else "open",
}
_MEMBERS: Final[dict[str, Any]] = {
    "member": lambda row: row["member"],
    "name": lambda row: row["name"],
    "role": lambda row: row["role"],
    "keys": lambda row: str(row["keys"]),
    "since": lambda row: moment(row["joined_at_us"]),
    "state": lambda row: "left" if row["left_at_us"] else "here",
}
