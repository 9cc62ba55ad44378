"""Commands about quotas: how many devices of a type an account or a cohort is guaranteed, may borrow and lends."""

from typing import Annotated, Final

import typer

from fabric.cli.output import console, print_json, record, say, table
from fabric.cli.session import AsJson, client
from fabric.client.client import new_request_id
from fabric.wire import fabric_pb2 as pb

app = typer.Typer(help="Quotas: devices that are guaranteed, borrowed and lent.", no_args_is_help=True)

Owner = Annotated[str, typer.Argument(metavar="OWNER", help="An account, or cohort:NAME.")]
Accelerator = Annotated[str, typer.Argument(metavar="TYPE", help="Such as H100.")]
_COHORT: Final = "cohort:"
_COLUMNS: Final = ("owner", "type", "quota", "used", "borrowed", "may borrow", "lends")
_NO_LIMIT: Final = "any"


@app.command("ls")
def list_quotas(*, as_json: AsJson = False) -> None:
    """Show every quota, and what is used of it."""
    found = client().call(pb.ListQuotasRequest(), pb.ListQuotasReply)
    if as_json:
        print_json([record(quota) for quota in found.quotas])
    elif not found.quotas:
        console().print("there are no quotas: `fabric ops quota set` makes one")
    else:
        console().print(table("quotas", _COLUMNS, [_row(quota) for quota in found.quotas]))


@app.command("set")
def set_quota(
    owner: Owner,
    accelerator: Accelerator,
    *,
    nominal: Annotated[int, typer.Option(min=0, help="Devices that it gets whenever it asks.")],
    borrow: Annotated[
        int | None,
        typer.Option(min=0, help="So many more at most of what others don't use; without it, as many as there are."),
    ] = None,
    lend: Annotated[
        int | None,
        typer.Option(min=0, help="So many of them at most are lent while it doesn't use them; without it, all."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Guarantee devices of a type to an account, or to a cohort beside its accounts.

    What others borrowed of them is reclaimed when their owner asks: those jobs save within their grace, and leave. For example:
    fabric ops quota set acme H100 --nominal 16 --borrow 8
    """
    request = pb.SetQuotaRequest(
        request_id=new_request_id(),
        accelerator=accelerator,
        nominal=nominal,
        borrow_max=borrow,
        lend_max=lend,
    )
    _name(request, owner)
    accepted = client().call(request, pb.Accepted)
    print_json(record(accepted)) if as_json else say(f"the quota of {owner} of {accelerator} is set")


@app.command("rm")
def remove(owner: Owner, accelerator: Accelerator, *, as_json: AsJson = False) -> None:
    """Take a quota away: whoever had it borrows what it runs on, where others have one of the type."""
    request = pb.SetQuotaRequest(request_id=new_request_id(), accelerator=accelerator)
    _name(request, owner)
    accepted = client().call(request, pb.Accepted)
    print_json(record(accepted)) if as_json else say(f"{owner} has no quota of {accelerator} any more")


def _name(request: pb.SetQuotaRequest, owner: str) -> None:
    if owner.startswith(_COHORT):
        request.cohort = owner.removeprefix(_COHORT)
    else:
        request.account = owner


def _row(quota: pb.Quota) -> list[str]:
    mine = f" ({quota.nominal_in_all} with its accounts)" if quota.nominal_in_all != quota.nominal else ""
    return [
        f"{_COHORT}{quota.cohort}" if quota.cohort else quota.account,
        quota.accelerator,
        f"{quota.nominal}{mine}",
        str(min(quota.shared, quota.nominal_in_all)),
        str(quota.borrowed),
        str(quota.borrow_max) if quota.HasField("borrow_max") else _NO_LIMIT,
        str(quota.lend_max) if quota.HasField("lend_max") else _NO_LIMIT,
    ]
