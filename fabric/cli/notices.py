"""Commands about notices: `fabric notices add`, `ls`, `rm`, `rotate`, `test`, `deliveries`, `redeliver`."""

import json
from typing import Annotated, Any, Final

import typer

from fabric.cli.output import console, moment, print_json, say, table, tell
from fabric.cli.session import AsJson, ForAccount, client
from fabric.client.client import new_request_id
from fabric.wire import fabric_pb2 as pb

app = typer.Typer(
    help="Word in time, by webhook or in a chat: a runway that runs out, limits and packages nearly used, tokens that expire, what becomes of"
    " jobs, payments that fail.",
    no_args_is_help=True,
)

EndpointId = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="The endpoint's id, as `fabric notices ls` shows it.")
]


@app.command("add")
def add(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="Where your server listens: https://HOST/...; or a chat: slack://, dingtalk://, feishu:// or wecombot://, as apprise writes them.",
        ),
    ],
    *,
    of: Annotated[
        str, typer.Option("--of", help="Of what, as in job.ended,job.parked,balance.runway; not given: of everything.")
    ] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Have notices sent to a webhook or a chat, and show the secret that signs them, once.

    Each is a POST of JSON as Standard Webhooks has it: check the header webhook-signature with the secret, answer 2xx, and keep the
    header webhook-id: the same notice may come again.

    For example: fabric notices add https://hooks.example.com/fabric --of job.ended,job.parked
    """
    kinds = [each.strip() for each in of.split(",") if each.strip()]
    request = pb.AddEndpointRequest(request_id=new_request_id(), url=url, kinds=kinds)
    _show_secret(client(account).call(request, pb.Document), as_json=as_json)


@app.command("ls")
def list_endpoints(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """List endpoints: of what they are told, and whether it arrives."""
    _print(client(account).call(pb.ListEndpointsRequest(), pb.Document), "endpoints", _ENDPOINTS, as_json=as_json)


@app.command("rm")
def remove(endpoint_id: EndpointId, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Remove an endpoint, with what waits for it."""
    client(account).call(pb.RemoveEndpointRequest(endpoint_id=endpoint_id), pb.Accepted)
    _done({"endpoint_id": endpoint_id, "removed": True}, f"{endpoint_id} is told nothing any more", as_json=as_json)


@app.command("rotate")
def rotate(endpoint_id: EndpointId, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Give an endpoint a new secret, and show it, once. The one before signs beside it for a day."""
    _show_secret(client(account).call(pb.RotateSecretRequest(endpoint_id=endpoint_id), pb.Document), as_json=as_json)


@app.command("test")
def check(endpoint_id: EndpointId, *, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Have something sent to an endpoint now; `fabric notices deliveries` says what came of it."""
    request = pb.TestEndpointRequest(request_id=new_request_id(), endpoint_id=endpoint_id)
    found = json.loads(client(account).call(request, pb.Document).json)
    _done(found, f"{found['notice_id']} is on its way to {endpoint_id}", as_json=as_json)


@app.command("deliveries")
def deliveries(
    endpoint_id: EndpointId,
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="So many, newest first.")] = 20,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """List what an endpoint was told, newest first, and what it answered."""
    request = pb.ListDeliveriesRequest(endpoint_id=endpoint_id, limit=limit)
    _print(client(account).call(request, pb.Document), "deliveries", _DELIVERIES, as_json=as_json)


@app.command("redeliver")
def redeliver(
    endpoint_id: EndpointId,
    notice_id: Annotated[str, typer.Argument(metavar="NOTICE", help="The notice's id, as `deliveries` shows it.")],
    *,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Deliver a notice again, under its own id."""
    client(account).call(pb.RedeliverRequest(endpoint_id=endpoint_id, notice_id=notice_id), pb.Accepted)
    _done(
        {"endpoint_id": endpoint_id, "notice_id": notice_id},
        f"{notice_id} is on its way to {endpoint_id} again",
        as_json=as_json,
    )


def _show_secret(answer: pb.Document, *, as_json: bool) -> None:
    found = json.loads(answer.json)
    if as_json:
        print_json({**found["endpoint"], "secret": found["secret"]})
        return
    tell(f"{found['endpoint']['endpoint_id']}: {found['endpoint']['url']}")
    if found["secret"]:
        say(found["secret"])
        tell("Keep it where your server runs: it is not shown again.")


def _print(answer: pb.Document, title: str, columns: dict[str, Any], *, as_json: bool) -> None:
    found = json.loads(answer.json)
    if as_json:
        print_json(found)
        return
    if not found:
        console().print(f"no {title}")
        return
    console().print(table(title, tuple(columns), [[str(show(row)) for show in columns.values()] for row in found]))


def _done(found: dict[str, Any], said: str, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        say(said)


def _state(endpoint: dict[str, Any]) -> str:
    if endpoint["ended"]:
        return f"ended: {endpoint['ended']}"
    failing = endpoint["failing_since_us"]
    return f"fails since {moment(failing)}" if failing else "good"


_ENDPOINTS: Final[dict[str, Any]] = {
    "endpoint": lambda each: each["endpoint_id"],
    "url": lambda each: each["url"],
    "of": lambda each: ", ".join(each["kinds"]) or "everything",
    "state": _state,
}
_DELIVERIES: Final[dict[str, Any]] = {
    "notice": lambda each: each["notice_id"],
    "at": lambda each: moment(each["at_us"]),
    "of": lambda each: each["kind"],
    "subject": lambda each: each["subject"],
    "state": lambda each: each["state"].replace("_", " "),
    "tries": lambda each: each["tries"],
    "answer": lambda each: each["answer"],
}
