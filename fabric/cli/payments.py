"""Commands about payments that providers take."""

import json
import time
from typing import Annotated, Any, Final

import typer

from fabric.cli.moments import Since, Until, parse_moment
from fabric.cli.output import console, moment, print_json, say, table, tell
from fabric.cli.session import AsJson, ForAccount, client
from fabric.client.client import Client, facts_of, new_request_id
from fabric.errors import Conflict
from fabric.units import format_cny, format_ct, parse_cny, parse_ct
from fabric.wire import fabric_pb2 as pb

ops = typer.Typer(help="Payments that providers take: book, refund, reconcile, settle.", no_args_is_help=True)

PaymentRef = Annotated[
    str, typer.Option(help="What the payment is called where it was received: books once for each account.")
]

Pay = Annotated[bool, typer.Option("--pay", help="Pay at the provider: print where, and wait until it is paid.")]
LOOK_S: Final = 2.0
_US_PER_H: Final = 3_600_000_000
_DAY_US: Final = 24 * _US_PER_H
_OPEN: Final = ("asked", "pending")


def register(app: typer.Typer) -> None:
    app.command("payments", rich_help_panel="Tokens")(payments)
    app.command("auto-topup", rich_help_panel="Tokens")(auto_topup)


def pay(door: Client, wanted: pb.AskPaymentRequest, *, as_json: bool) -> None:
    """Ask for a payment, print where it is paid, and wait until it is."""
    wanted.request_id = new_request_id()
    found = _document(door.call(wanted, pb.Document))
    payment = found["payment"]
    if found["url"]:
        tell(f"pay {format_cny(payment['price_microcny'])} CNY here: {found['url']}")
    elif payment["state"] in _OPEN:
        tell(f"pay the operator {format_cny(payment['price_microcny'])} CNY, naming {payment['payment_id']}")
    while payment["state"] in _OPEN and not payment["aside"]:
        time.sleep(LOOK_S)
        payment = _document(door.call(pb.GetPaymentRequest(payment_id=payment["payment_id"]), pb.Document))["payment"]
    if as_json:
        print_json(payment)
    elif payment["state"] == "paid":
        say(f"{payment['buys']} bought for {format_cny(payment['price_microcny'])} CNY")
    if payment["state"] != "paid":
        why = "its money stands in suspense: ask the operator" if payment["aside"] else payment["state"]
        raise Conflict(f"payment {payment['payment_id']} bought nothing: {why}", code="not_paid")


def payments(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Payments of the account, newest first, and what it is to hear of. An operator without --account sees everybody's."""
    found = _document(client(account).call(pb.ListPaymentsRequest(), pb.Document))
    if as_json:
        print_json(found)
        return
    _print(found["payments"], title="payments", columns=_PAYMENT_COLUMNS)
    if found["notices"]:
        _print(found["notices"], title="notices", columns=_NOTICE_COLUMNS)


def auto_topup(
    tokens: Annotated[str, typer.Argument(help="How many to buy at a time; 0 = top up no more by itself.")],
    *,
    below: Annotated[str, typer.Option(help="When so many tokens or fewer can be spent.")] = "",
    hours: Annotated[float, typer.Option(help="Or when what is there lasts less long, at the burn of now.", min=0)] = 0,
    month_max: Annotated[str, typer.Option(help="The most that is bought so in a month of UTC.")] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Have the account top itself up. After three failures in a row it is off; `fabric payments` tells of each.

    For example: fabric auto-topup 10 --below 2 --month-max 50
    """
    request = pb.SetAutoTopUpRequest(request_id=new_request_id(), on=tokens.strip() != "0")
    if request.on:
        request.amount_uhs = parse_ct(tokens)
        request.month_max_uhs = parse_ct(month_max or tokens)
        if below:
            request.threshold_uhs = parse_ct(below)
        if hours:
            request.runway_us = round(hours * _US_PER_H)
    answer = client(account).call(request, pb.Accepted)
    _done(answer, f"tops up {tokens} CT by itself" if request.on else "tops up no more by itself", as_json=as_json)


@ops.command("book")
def book(
    payment_id: Annotated[str, typer.Argument(metavar="PAYMENT")],
    cny: Annotated[str, typer.Argument(help="How much has come in, in CNY.")],
    *,
    payment_ref: Annotated[str, typer.Option(help="What it is called where it was received: books once.")],
    as_json: AsJson = False,
) -> None:
    """Book what a customer was asked to pay to the operator.

    For example: fabric ops payments book pay-5f3a 125.00 --payment-ref BANK-2026-11-30-17
    """
    request = pb.BookPaymentRequest(payment_id=payment_id, payment_ref=payment_ref, amount_microcny=parse_cny(cny))
    _done(client().call(request, pb.Accepted), f"{payment_id} is paid", as_json=as_json)


@ops.command("refund")
def refund(
    payment_id: Annotated[str, typer.Argument(metavar="PAYMENT")],
    *,
    tokens: Annotated[str, typer.Option(help="How many to take back; without it, all that are unused.")] = "",
    reason: Annotated[str, typer.Option(help="Why: kept for ever.")],
    as_json: AsJson = False,
) -> None:
    """Take back unused tokens that a payment bought, and pay their price back to where it came from.

    For example: fabric ops payments refund pay-5f3a --reason "ordered twice"
    """
    request = pb.RefundPaymentRequest(request_id=new_request_id(), payment_id=payment_id, reason=reason)
    if tokens:
        request.amount_uhs = parse_ct(tokens)
    answer = client().call(request, pb.Accepted)
    facts = facts_of(answer)
    said = f"{format_ct(int(facts['amount_uhs'] or 0))} CT taken back, {format_cny(int(facts['amount_microcny'] or 0))} CNY go back"
    _done(answer, said, as_json=as_json)


@ops.command("suspense")
def suspense(
    suspense_id: Annotated[str, typer.Argument(metavar="ID", help="What to settle; without it, all are listed.")] = "",
    *,
    how: Annotated[str, typer.Option(help="returned | kept | booked | invoices")] = "",
    account: Annotated[str, typer.Option(help="Whose tokens it buys, or whose invoices it pays.")] = "",
    reason: Annotated[str, typer.Option(help="Why: kept for ever.")] = "",
    as_json: AsJson = False,
) -> None:
    """Money that could not be booked: list it, or say what becomes of it.

    For example: fabric ops payments suspense stripe/pay-5f3a --how returned --reason "another amount"
    """
    if not suspense_id:
        found = _document(client().call(pb.ListSuspenseRequest(), pb.Document))
        _print(found, title="suspense", columns=_SUSPENSE_COLUMNS) if not as_json else print_json(found)
        return
    request = pb.SettleSuspenseRequest(
        request_id=new_request_id(), suspense_id=suspense_id, how=how, account_id=account, reason=reason
    )
    _done(client().call(request, pb.Accepted), f"{suspense_id} is {how}", as_json=as_json)


def reconcile(*, since: Since = "", until: Until = "", as_json: AsJson = False) -> None:
    """Compare the provider's own list of payments with what is booked here: of the day before the last, or of another time.

    For example: fabric ops reconcile --since 2026-11-28 --until 2026-11-29
    """
    midnight_us = time.time_ns() // 1_000 // _DAY_US * _DAY_US
    until_us = parse_moment(until) or midnight_us
    from_us = parse_moment(since) or until_us - _DAY_US
    answer = client().call(pb.ReconcilePaymentsRequest(from_us=from_us, until_us=until_us), pb.Accepted)
    facts = facts_of(answer)
    _done(answer, ", ".join(f"{facts[name]} {name.replace('_', ' ')}" for name in _FOUND), as_json=as_json)


def print_invoices(found: Any) -> None:
    """Those of a balance."""
    if found:
        _print(list(found), title="invoices to pay", columns=_INVOICE_COLUMNS)


def _document(found: pb.Document) -> Any:
    return json.loads(found.json)


def _done(answer: pb.Accepted, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(facts_of(answer))
    else:
        say(what)


def _print(found: list[Any], *, title: str, columns: dict[str, Any]) -> None:
    rows = [tuple(show(each) for show in columns.values()) for each in found]
    console().print(table(title, tuple(columns), rows) if rows else f"no {title}")


_FOUND: Final = ("matched", "missing_here", "missing_there", "different")
_PAYMENT_COLUMNS: Final[dict[str, Any]] = {
    "payment": lambda each: each["payment_id"],
    "account": lambda each: each["account_id"],
    "at": lambda each: each["provider"],
    "state": lambda each: "in suspense" if each["aside"] else each["state"],
    "for": lambda each: each["buys"],
    "CNY": lambda each: format_cny(each["price_microcny"]),
    "asked": lambda each: moment(each["asked_at_us"]),
}
_NOTICE_COLUMNS: Final[dict[str, Any]] = {
    "time": lambda each: moment(each["at_us"]),
    "what": lambda each: each["what"].replace("_", " "),
    "about": lambda each: each["about"],
    "": lambda each: each["text"],
}
_SUSPENSE_COLUMNS: Final[dict[str, Any]] = {
    "what": lambda each: each["suspense_id"],
    "account": lambda each: each["account_id"],
    "amount": lambda each: f"{format_cny(each['amount'])} {each['currency']}",
    "why": lambda each: each["why"].replace("_", " "),
    "since": lambda each: moment(each["at_us"]),
}
_INVOICE_COLUMNS: Final[dict[str, Any]] = {
    "invoice": lambda each: each.invoice_id,
    "number": lambda each: str(each.number),
    "CNY": lambda each: format_cny(each.price_microcny),
    "unpaid CNY": lambda each: format_cny(each.unpaid_microcny),
    "due": lambda each: moment(each.due_at_us) if each.HasField("due_at_us") else "",
    "credit stopped": lambda each: moment(each.stopped_at_us) if each.HasField("stopped_at_us") else "",
    "next": lambda each: f"{each.next_step} {moment(each.next_at_us)}" if each.next_step else "",
}
