"""Commands about tokens and money."""

import json
from typing import Annotated, Any, Final

import typer

from fabric.cli.output import console, duration, print_facts, print_json, print_records, record, table, time_of
from fabric.cli.session import AsJson, ForAccount, client
from fabric.client import new_request_id
from fabric.units import format_cny, format_ct, parse_ct
from fabric.wire import fabric_pb2 as pb


def register(app: typer.Typer) -> None:
    for name, command in (
        ("balance", balance),
        ("topup", topup),
        ("bundle", bundle),
        ("usage", usage),
        ("statement", statement),
        ("plans", plans),
        ("plan", plan),
        ("subscribe", subscribe),
        ("unsubscribe", unsubscribe),
    ):
        app.command(name, rich_help_panel="Tokens")(command)


def balance(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """What the account owns, lot by lot."""
    found = client(account).call(pb.BalanceRequest(), pb.BalanceReply)
    if as_json:
        print_json(record(found))
        return
    print_facts(
        {
            "account": f"{found.account_id} ({found.name}), plan {found.plan}",
            "free": f"{format_ct(found.free_uhs)} CT",
            "held": f"{format_ct(found.held_uhs)} CT",
            "owned": f"{format_ct(found.posted_uhs)} CT",
            "owed": f"{format_ct(found.debt_uhs)} CT of {format_ct(found.credit_limit_uhs)} CT credit",
            "runway": duration(found.runway_us if found.HasField("runway_us") else None),
        }
    )
    print_records(found.lots, as_json=False, title="lots", columns=_LOT_COLUMNS)


def topup(
    tokens: Annotated[str, typer.Argument(help="How many, e.g. 10 or 0.5.")],
    *,
    payment_ref: Annotated[str, typer.Option(help="What the payment is called elsewhere.")] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Buy tokens at the price of the account's plan."""
    request = pb.TopUpRequest(request_id=new_request_id(), amount_uhs=parse_ct(tokens), payment_ref=payment_ref)
    _bought(client(account).call(request, pb.Accepted), f"{tokens} CT bought", as_json=as_json)


def bundle(
    name: Annotated[str, typer.Argument(help="Its name, as `fabric plans` shows it.")],
    *,
    payment_ref: Annotated[str, typer.Option(help="What the payment is called elsewhere.")] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Buy a bundle: one purchase, several lots."""
    request = pb.BuyBundleRequest(request_id=new_request_id(), bundle=name, payment_ref=payment_ref)
    _bought(client(account).call(request, pb.Accepted), f"bundle {name} bought", as_json=as_json)


def subscribe(
    name: Annotated[str, typer.Argument(help="Its name, as `fabric plans` shows it.")],
    *,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Subscribe to tokens that come every cycle."""
    request = pb.SubscribeRequest(request_id=new_request_id(), subscription=name)
    _bought(client(account).call(request, pb.Accepted), f"subscribed to {name}", as_json=as_json)


def unsubscribe(
    name: Annotated[str, typer.Argument(help="Its name.")], *, account: ForAccount = "", as_json: AsJson = False
) -> None:
    """End a subscription with its current cycle."""
    request = pb.UnsubscribeRequest(request_id=new_request_id(), subscription=name)
    _bought(client(account).call(request, pb.Accepted), f"{name} ends with its current cycle", as_json=as_json)


def usage(
    *,
    job: Annotated[str, typer.Option(help="Only this job.")] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """The charging records: what ran, and what it cost."""
    found = list(client(account).stream(pb.UsageRequest(job_id=job), pb.Cdr))
    print_records(found, as_json=as_json, title="charging records", columns=_CDR_COLUMNS)


def statement(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """Opening, every transfer, closing."""
    found = json.loads(client(account).fetch(pb.StatementRequest()))
    if as_json:
        print_json(as_strings(found))
        return
    rows = [
        (time_of(line["at_us"]), line["kind"], line["ref"], _signed(line["amount_uhs"]), _signed(line["held_uhs"]))
        for line in found["lines"]
    ]
    console().print(table(f"account {found['account_id']}", ("time", "what", "about", "CT", "held CT"), rows))
    closing = found["closing"]
    print_facts(
        {
            "free": f"{format_ct(closing['free_uhs'], decimals=8)} CT",
            "held": f"{format_ct(closing['held_uhs'], decimals=8)} CT",
            "owed": f"{format_ct(closing['debt_uhs'], decimals=8)} CT",
            "tree": f"{found['until_size']} entries, root {found['until_root']}",
        },
        title="closing",
    )


def plans(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """What can be bought, and what each accelerator burns."""
    found = json.loads(client(account).fetch(pb.PricesRequest()))
    if as_json:
        print_json(as_strings(found))
        return
    catalogue = found["catalogue"]
    rows = [
        (
            each["name"],
            format_cny(each["price_microcny_per_ct"]),
            f"{each['lifetime_days']} d",
            each.get("queue", ""),
            each.get("mode", ""),
        )
        for each in catalogue["plans"]
    ]
    console().print(table("plans", ("plan", "CNY", "life", "queue", "paid"), rows))
    for kind in ("bundles", "subscriptions"):
        if catalogue.get(kind):
            offers = [
                (each["name"], format_cny(each["price_microcny"]), each.get("title", "")) for each in catalogue[kind]
            ]
            console().print(table(kind, ("name", "CNY", "what"), offers))


def plan(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """The account's own plan."""
    own = client(account).call(pb.BalanceRequest(), pb.BalanceReply).plan
    catalogue = json.loads(client(account).fetch(pb.PricesRequest()))["catalogue"]
    found: dict[str, Any] = next((each for each in catalogue["plans"] if each["name"] == own), {"name": own})
    if as_json:
        print_json(as_strings(found))
    else:
        print_facts({name: str(value) for name, value in found.items()})


def as_strings(value: Any, *, name: str = "") -> Any:
    """A document with its amounts as strings, because JSON's numbers end at 2⁵³ in many languages."""
    if isinstance(value, dict):
        return {key: as_strings(inner, name=key) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_strings(inner, name=name) for inner in value]
    is_amount = "_uhs" in name or "microcny" in name
    return str(value) if is_amount and isinstance(value, int) else value


def _bought(accepted: pb.Accepted, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({**record(accepted), "facts": json.loads(accepted.facts_json or "{}")})
    else:
        console().print(what)


def _signed(uhs: int) -> str:
    return f"{'-' if uhs < 0 else '+' if uhs else ''}{format_ct(abs(uhs), decimals=8)}"


_LOT_COLUMNS: Final[dict[str, Any]] = {
    "lot": lambda lot: lot.lot_id,
    "origin": lambda lot: lot.origin,
    "free CT": lambda lot: format_ct(lot.free_uhs),
    "held CT": lambda lot: format_ct(lot.held_uhs),
    "granted CT": lambda lot: format_ct(lot.granted_uhs),
    "expires": lambda lot: time_of(lot.expires_at_us),
    "good for": lambda lot: lot.scope or "anything",
}
_CDR_COLUMNS: Final[dict[str, Any]] = {
    "job": lambda cdr: cdr.job_id,
    "name": lambda cdr: cdr.name,
    "accelerator": lambda cdr: f"{cdr.devices} × {cdr.accelerator}",
    "ran": lambda cdr: duration(cdr.metered_us),
    "util": lambda cdr: f"{cdr.busy_us * 100 // max(cdr.devices * cdr.metered_us, 1)} %",
    "charged CT": lambda cdr: format_ct(cdr.charged_uhs, decimals=8),
    "refunded CT": lambda cdr: format_ct(cdr.refunded_uhs, decimals=8),
    "ended": lambda cdr: cdr.ended,
}
