"""Commands for operators."""

import json
from typing import Annotated, Any, Final

import typer

from fabric.cli import payments, policy, prices
from fabric.cli.output import moment, print_json, print_records, record, say, tell
from fabric.cli.session import AsJson, client
from fabric.client.client import facts_of, new_request_id
from fabric.units import format_cny, format_ct, parse_cny, parse_ct
from fabric.wire import fabric_pb2 as pb

app = typer.Typer(
    help="For operators: accounts, payments, nodes, leases, periods, models, policy.", no_args_is_help=True
)
policy.register(app)
app.add_typer(payments.ops, name="payments")
app.add_typer(prices.ops, name="prices")
app.command("reconcile")(payments.reconcile)

_US_PER_S: Final = 1_000_000
_US_PER_DAY: Final = 86_400 * _US_PER_S


@app.command()
def accounts(*, as_json: AsJson = False) -> None:
    """All customers."""
    found = client().call(pb.ListAccountsRequest(), pb.ListAccountsReply).accounts
    print_records(found, as_json=as_json, title="accounts", columns=_ACCOUNT_COLUMNS)


WholeOrganisation = Annotated[
    bool, typer.Option("--organisation", help="All accounts of its organisation, and not this one alone.")
]


@app.command("open-account")
def open_account(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its id.")],
    *,
    plan: Annotated[str, typer.Option(help="A plan's name, as `fabric plans` shows it.")],
    name: Annotated[str, typer.Option(help="What people see.")] = "",
    credit: Annotated[
        str | None, typer.Option(help="Tokens of credit, on a postpaid plan; without it, as the plan says.")
    ] = None,
    weight: policy.Weight = None,
    cohort: Annotated[
        str, typer.Option(help="Who pays for it together with other accounts: the share is theirs.")
    ] = "",
    organisation: Annotated[
        str, typer.Option(help="Any account of the organisation whose wallet it is, one more; without it, its own.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Open an account for a customer.

    For example: fabric ops open-account acme --plan starter --name "Acme Labs"
    """
    request = pb.OpenAccountRequest(
        request_id=new_request_id(),
        account_id=account_id,
        name=name,
        plan=plan,
        credit_limit_uhs=None if credit is None else 0 if credit.strip() == "0" else parse_ct(credit),
        weight_ppm=None if weight is None else policy.parse_weight(weight),
        cohort=cohort,
        organisation=organisation,
    )
    _done(client().call(request, pb.Accepted), f"account {account_id} is open", as_json=as_json)


@app.command()
def suspend(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    *,
    reason: Annotated[str, typer.Option(help="Told to the customer, and kept.")],
    organisation: WholeOrganisation = False,
    as_json: AsJson = False,
) -> None:
    """Suspend an account: its keys look and pay and do nothing else, its jobs save and are parked.

    For example: fabric ops suspend acme --reason "unpaid since August"
    """
    request = pb.SuspendAccountRequest(
        request_id=new_request_id(), account_id=account_id, reason=reason, organisation=organisation
    )
    _done(client().call(request, pb.Accepted), f"account {account_id} is suspended", as_json=as_json)


@app.command()
def resume(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    *,
    organisation: WholeOrganisation = False,
    as_json: AsJson = False,
) -> None:
    """Resume a suspended account: jobs that the suspension parked go on."""
    request = pb.ResumeAccountRequest(request_id=new_request_id(), account_id=account_id, organisation=organisation)
    _done(client().call(request, pb.Accepted), f"account {account_id} is open again", as_json=as_json)


@app.command()
def close_account(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    *,
    balance: Annotated[str, typer.Option(help="What is left of it: refund (to where it came from) or forfeit.")],
    reason: Annotated[str, typer.Option(help="Told to the customer, and kept.")],
    organisation: WholeOrganisation = False,
    as_json: AsJson = False,
) -> None:
    """Close an account for good: its keys are dead, its jobs save and are cancelled; its records stay for you to read.

    For example: fabric ops close-account acme --balance refund --reason "asked to, 14 August"
    """
    request = pb.CloseAccountRequest(
        request_id=new_request_id(), account_id=account_id, reason=reason, balance=balance, organisation=organisation
    )
    _done(client().call(request, pb.Accepted), f"account {account_id} is being closed", as_json=as_json)


@app.command()
def grant(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    tokens: Annotated[str, typer.Argument(help="How many.")],
    *,
    origin: Annotated[str, typer.Option(help="promotion or refund.")] = "promotion",
    days: Annotated[int | None, typer.Option(min=1, help="How many days they are good.")] = None,
    accelerator: Annotated[list[str] | None, typer.Option(help="Good only on these; repeat for more.")] = None,
    service: Annotated[list[str] | None, typer.Option(help="Good only for these; repeat for more.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Good only for calls of these; repeat for more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give tokens away.

    For example: fabric ops grant acme 5 --days 7 --accelerator A100 --service training
    """
    request = pb.GrantRequest(
        request_id=new_request_id(),
        account_id=account_id,
        amount_uhs=parse_ct(tokens),
        origin=origin,
        scope=pb.Scope(accelerators=accelerator or [], services=service or [], models=model or []),
        lifetime_us=None if days is None else days * _US_PER_DAY,
    )
    _done(client().call(request, pb.Accepted), f"{tokens} CT granted to {account_id}", as_json=as_json)


@app.command()
def void(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    lot_id: Annotated[
        str, typer.Argument(metavar="LOT", help="Its id, as `fabric balance --account ACCOUNT` shows it.")
    ],
    *,
    reason: Annotated[str, typer.Option(help="Why: it is kept with the booking for ever.")],
    tokens: Annotated[str | None, typer.Option(help="How many. Without it, all that are unused.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take back what is unused of a lot that was booked by mistake, and its part of the price. What is held or used stays.

    For example: fabric ops void acme lot-17 --tokens 900 --reason "typed 1000 for 100"
    """
    request = pb.VoidLotRequest(
        request_id=new_request_id(),
        account_id=account_id,
        lot_id=lot_id,
        amount_uhs=None if tokens is None else parse_ct(tokens),
        reason=reason,
    )
    answer = client().call(request, pb.Accepted)
    facts = facts_of(answer)
    voided, price = int(facts["voided_uhs"] or 0), int(facts["price_microcny"] or 0)
    what = f"{format_ct(voided)} CT of {lot_id} voided, {format_cny(price)} CNY taken back"
    _done(answer, what, as_json=as_json)


@app.command("record-payment")
def record_payment(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    cny: Annotated[str, typer.Argument(help="How much was received, in CNY.")],
    *,
    payment_ref: Annotated[str, typer.Option(help="What the payment is called where it was received: it books once.")],
    as_json: AsJson = False,
) -> None:
    """Book money that was received for a postpaid account's invoices, the oldest first. Until then they count as credit used.

    For example: fabric ops record-payment acme 1250.00 --payment-ref BANK-2026-11-30-17
    """
    request = pb.RecordPaymentRequest(
        request_id=new_request_id(), account_id=account_id, amount_microcny=parse_cny(cny), payment_ref=payment_ref
    )
    answer = client().call(request, pb.Accepted)
    left = int(facts_of(answer)["receivable_microcny"] or 0)
    _done(answer, f"{cny} CNY of {account_id} booked; {format_cny(left)} CNY are still to pay", as_json=as_json)


@app.command("credit-note")
def credit_note(
    account_id: Annotated[str, typer.Argument(metavar="ACCOUNT")],
    invoice_id: Annotated[str, typer.Argument(metavar="INVOICE", help="As `fabric balance` calls it: 2026-11/acme.")],
    cny: Annotated[str, typer.Argument(help="How much is taken off it, in CNY.")],
    *,
    reason: Annotated[str, typer.Option(help="Why: kept for ever.")],
    as_json: AsJson = False,
) -> None:
    """Correct an invoice that isn't paid: a credit note takes a part off it, or all of it.

    For example: fabric ops credit-note acme 2026-11/acme 120.50 --reason "outage of the 14th"
    """
    request = pb.CreditInvoiceRequest(
        request_id=new_request_id(),
        account_id=account_id,
        invoice_id=invoice_id,
        amount_microcny=parse_cny(cny),
        reason=reason,
    )
    answer = client().call(request, pb.Accepted)
    facts = facts_of(answer)
    left = format_cny(int(facts["receivable_microcny"] or 0))
    _done(answer, f"credit note {facts['credit_note']} of {cny} CNY; {left} CNY are still to pay", as_json=as_json)


@app.command()
def nodes(*, as_json: AsJson = False) -> None:
    """All nodes, and what is free on them."""
    found = client().call(pb.ListNodesRequest(), pb.ListNodesReply).nodes
    print_records(found, as_json=as_json, title="nodes", columns=_NODE_COLUMNS)


@app.command()
def leases(*, as_json: AsJson = False) -> None:
    """All leases."""
    found = client().call(pb.ListLeasesRequest(), pb.ListLeasesReply).leases
    print_records(found, as_json=as_json, title="leases", columns=_LEASE_COLUMNS, spare=("job", "accelerator"))


@app.command()
def drain(
    node_id: Annotated[str, typer.Argument(metavar="NODE")],
    *,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that jobs are given to checkpoint.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Let nothing new onto a node, and what runs there leave.

    For example: fabric ops drain h100-1 --grace 120
    """
    request = pb.DrainNodeRequest(node_id=node_id, grace_us=grace * _US_PER_S)
    _done(client().call(request, pb.Accepted), f"{node_id} is draining", as_json=as_json)


@app.command()
def undrain(node_id: Annotated[str, typer.Argument(metavar="NODE")], *, as_json: AsJson = False) -> None:
    """Let jobs onto a node again that is draining. What was asked to leave it still does, and may come back.

    For example: fabric ops undrain h100-1
    """
    request = pb.DrainNodeRequest(node_id=node_id, undo=True)
    _done(client().call(request, pb.Accepted), f"{node_id} takes jobs again", as_json=as_json)


@app.command("close-period")
def close_period(
    period: Annotated[str, typer.Argument(help="Its name, e.g. 2026-11.")], *, as_json: AsJson = False
) -> None:
    """Seal what has been booked since the last close; postpaid debt is invoiced at the prices it was used at. Until an invoice is
    paid (`fabric ops record-payment`) it counts against the account's credit as before.

    For example: fabric ops close-period 2026-11
    """
    request = pb.ClosePeriodRequest(request_id=new_request_id(), period=period)
    _done(client().call(request, pb.Accepted), f"period {period} is closed", as_json=as_json)


@app.command()
def usage(
    account_id: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="Whose call to close.")] = None,
    call_id: Annotated[str | None, typer.Argument(metavar="CALL", help="Its id, as the list shows it.")] = None,
    *,
    settle: Annotated[bool, typer.Option("--settle", help="Charge it by the rates there are now.")] = False,
    write_off: Annotated[bool, typer.Option("--write-off", help="Bear it yourself.")] = False,
    reason: Annotated[str, typer.Option(help="Why it is written off.")] = "",
    as_json: AsJson = False,
) -> None:
    """Calls that were used and could not be charged: list them, or close one by hand.

    What is settled is met from what the account has free, and the rest is written off. For example, once the model it was
    of has a rate again: fabric ops usage acme chatcmpl-7 --settle
    """
    if account_id is None or call_id is None:
        if account_id is not None or settle or write_off:
            raise typer.BadParameter("name the account and the call")
        found = client().call(pb.ListOpenUsageRequest(), pb.ListOpenUsageReply)
        print_records(found.usage, as_json=as_json, title="open usage", columns=_USAGE_COLUMNS)
        if found.unreported_calls and not as_json:
            tell(f"{found.unreported_calls} calls more are still with their replicas, which go on reporting them")
        return
    if settle == write_off:
        raise typer.BadParameter("say either --settle or --write-off")
    request = pb.CloseUsageRequest(
        request_id=new_request_id(), account_id=account_id, call_id=call_id, write_off=write_off, reason=reason
    )
    accepted = client().call(request, pb.Accepted)
    facts = json.loads(accepted.facts_json or "{}")
    charged, lost = (format_ct(facts.get(name, 0)) for name in ("captured_uhs", "written_off_uhs"))
    _done(accepted, f"call {call_id} is closed: {charged} CT charged, {lost} CT written off", as_json=as_json)


def _done(accepted: pb.Accepted, what: str, *, as_json: bool) -> None:
    print_json(record(accepted)) if as_json else say(what)


_ACCOUNT_COLUMNS: Final[dict[str, Any]] = {
    "account": lambda account: account.account_id,
    "name": lambda account: account.name,
    "plan": lambda account: account.plan,
    "cohort": lambda account: account.cohort or "–",
    "weight": lambda account: f"{account.weight_ppm / 1_000_000:g}",
    "free CT": lambda account: format_ct(account.free_uhs),
    "held CT": lambda account: format_ct(account.held_uhs),
    "owed CT": lambda account: format_ct(account.debt_uhs),
    "unpaid CNY": lambda account: format_cny(account.receivable_microcny),
}
_USAGE_COLUMNS: Final[dict[str, Any]] = {
    "account": lambda usage: usage.account_id,
    "call": lambda usage: usage.call.call_id,
    "model": lambda usage: usage.call.model,
    "since": lambda usage: moment(usage.kept_at_us),
    "why": lambda usage: f"{usage.code}: {usage.reason}",
}


def parts_said(node: pb.Node) -> str:
    """` × 1/7 (mig 1g.10gb)` of devices that are parts; ` in 4 (time-slice)` of those that can be divided so."""
    how = f" ({node.division})" if node.division else ""
    if node.fraction:
        return f" × {'/'.join(map(str, node.fraction))}{how}"
    return f" in {node.units}{how}" if node.units > 1 else ""


def parts_free(node: pb.Node) -> str:
    """` + 3/4 + 1/4`: what is free of devices that are divided now."""
    return "".join(f" + {free}/{node.units}" for free in sorted(node.free_units, reverse=True) if free)


_NODE_COLUMNS: Final[dict[str, Any]] = {
    "node": lambda node: node.node_id,
    "accelerator": lambda node: node.accelerator,
    "pool": lambda node: node.pool + (f" of {node.dedicated_to}" if node.dedicated_to else ""),
    "devices": lambda node: f"{node.devices}{parts_said(node)}",
    "free": lambda node: f"{node.free}{parts_free(node)}",
    "state": lambda node: node.state,
    "leases": lambda node: ", ".join(node.leases) or "–",
}
_LEASE_COLUMNS: Final[dict[str, Any]] = {
    "lease": lambda lease: lease.lease_id,
    "job": lambda lease: lease.job_id,
    "account": lambda lease: lease.account_id,
    "accelerator": lambda lease: "/".join(map(str, lease.fraction)) + " × " * bool(lease.fraction) + lease.accelerator,
    "where": lambda lease: ", ".join(f"{share.node_id}: {share.devices}" for share in lease.shares),
    "state": lambda lease: lease.state,
}
