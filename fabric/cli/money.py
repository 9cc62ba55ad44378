"""Commands about tokens and money."""

import json
from typing import Annotated, Any, Final

import typer

from fabric.cli import payments
from fabric.cli.calls import booked_uhs, calls_in, gathered_by_model, print_calls, print_totals, say_what_is_open
from fabric.cli.job_columns import where
from fabric.cli.llm_packages import money_of, packages_left, print_packages, what_of
from fabric.cli.moments import Since, Until, parse_moment
from fabric.cli.offers import parts_of, terms_of
from fabric.cli.output import (
    console,
    duration,
    moment,
    print_facts,
    print_json,
    print_records,
    record,
    say,
    table,
)
from fabric.cli.price_dates import print_announced
from fabric.cli.session import AsJson, ForAccount, client, job_named
from fabric.cli.usage_by import print_by, print_project
from fabric.client.client import new_request_id
from fabric.units import CT_DECIMALS, PPM, UHS_PER_CT, format_cny, format_ct, parse_ct
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
            "free": f"{format_ct(found.free_uhs)} CT{_bound(found)}",
            "held": f"{format_ct(found.held_uhs)} CT",
            "owned": f"{format_ct(found.posted_uhs)} CT",
            "owed": f"{format_ct(found.debt_uhs)} CT of {format_ct(found.credit_limit_uhs)} CT credit{_unpaid(found)}",
            "runway": duration(found.runway_us if found.HasField("runway_us") else None),
        }
    )
    print_records(found.lots, as_json=False, title="lots", columns=_LOT_COLUMNS, spare=("granted CT",))
    print_packages(found.packages)
    payments.print_invoices(found.invoices)
    if found.units:
        print_records(found.units, as_json=False, title="besides tokens", columns=_UNIT_COLUMNS)


def topup(
    tokens: Annotated[str, typer.Argument(help="How many, e.g. 10 or 0.5.")],
    *,
    payment_ref: payments.PaymentRef = "",
    pay: payments.Pay = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Buy tokens at the price of the account's plan. Where payments are real, pay them (--pay), or have an operator book them.

    For example: fabric topup 12.5 --pay, or fabric topup 12.5 --payment-ref INV-2026-0142 --account acme
    """
    if pay:
        payments.pay(client(account), pb.AskPaymentRequest(amount_uhs=parse_ct(tokens)), as_json=as_json)
        return
    request = pb.TopUpRequest(request_id=new_request_id(), amount_uhs=parse_ct(tokens), payment_ref=payment_ref)
    _bought(client(account).call(request, pb.Accepted), f"{tokens} CT bought", as_json=as_json)


def bundle(
    name: Annotated[str, typer.Argument(help="Its name, as `fabric plans` shows it.")],
    *,
    payment_ref: payments.PaymentRef = "",
    pay: payments.Pay = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Buy a bundle: one purchase, several lots.

    For example: fabric bundle edge-inference --pay
    """
    if pay:
        payments.pay(client(account), pb.AskPaymentRequest(bundle=name), as_json=as_json)
        return
    request = pb.BuyBundleRequest(request_id=new_request_id(), bundle=name, payment_ref=payment_ref)
    _bought(client(account).call(request, pb.Accepted), f"bundle {name} bought", as_json=as_json)


def subscribe(
    name: Annotated[str, typer.Argument(help="Its name, as `fabric plans` shows it.")],
    *,
    payment_ref: payments.PaymentRef = "",
    pay: payments.Pay = False,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Subscribe to tokens that come every cycle. Paid (--pay), the next cycles are asked for by themselves. Where an operator
    books payments, each booking pays one cycle: booked again while the subscription runs, it pays the next one; a cycle
    that isn't paid isn't granted, and ends the subscription.

    For example: fabric subscribe professional-monthly --pay
    """
    if pay:
        payments.pay(client(account), pb.AskPaymentRequest(subscription=name), as_json=as_json)
        return
    request = pb.SubscribeRequest(request_id=new_request_id(), subscription=name, payment_ref=payment_ref)
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
    project: Annotated[str, typer.Option(help="Only this project.")] = "",
    every_call: Annotated[
        bool, typer.Option("--calls", help="Every call of a language model, not a line a model.")
    ] = False,
    by: Annotated[
        str, typer.Option(help="Sums instead: for each key, project, member, model, job, or value of a tag (tag:team).")
    ] = "",
    since: Since = "",
    until: Until = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """The charging records: what ran, and what it cost. One for each time that a job was on devices, and one for each call
    of a language model; with --json all of them. A call's is there some seconds after it has ended. Of a time (--since, --until)
    each counts with what was booked in it, as in the statement of that time; what still runs is a line, too.

    For example: fabric usage --since 7d --job job-9829cded
    """
    door = client(account)
    request = pb.UsageRequest(job_id=job_named(door, job), project=project, from_us=parse_moment(since) or 0)
    if (until_us := parse_moment(until)) is not None:
        request.until_us = until_us
    found = door.collect(request, pb.Cdr)
    if by:
        print_by(door, found, by, as_json=as_json)
        return
    calls = [record for record in found if record.model]
    leases = found if as_json else [record for record in found if not record.model]
    if leases or not calls:
        print_records(leases, as_json=as_json, title="charging records", columns=_CDR_COLUMNS, spare=("name", "util"))
    if calls and not as_json:
        print_calls(calls) if every_call else print_totals(calls)
    if not as_json and until_us is None and not since:
        say_what_is_open(door, request.job_id)


def statement(
    *,
    every: Annotated[bool, typer.Option("--every", help="Every single charge, not one line for each hold.")] = False,
    every_call: Annotated[bool, typer.Option("--calls", help="Every call of a language model, too.")] = False,
    project: Annotated[
        str, typer.Option(help="Only what this project was charged, of those its wallet pays for.")
    ] = "",
    since: Since = "",
    until: Until = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """What was booked: each purchase, hold, charge and release, and what is left. With --json, every transfer.

    For example: fabric statement --since 2026-11-01 --until 2026-12-01
    """
    request, until_us = pb.StatementRequest(from_us=parse_moment(since) or 0), parse_moment(until)
    if project:
        print_project(client(account), project, from_us=request.from_us, until_us=until_us, as_json=as_json)
        return
    if until_us is not None:
        request.until_us = until_us
    found = json.loads(client(account).fetch(request))
    if as_json:
        print_json(as_strings(found))
        return
    lines = found["lines"] if every else _gathered(gathered_by_model(found["lines"], found["records"]))
    opening, closing = found["opening"], found["closing"]
    amounts, left = _rounded(_worth(opening), [line["amount_uhs"] for line in lines])
    held, left_held = _rounded(opening["held_uhs"], [line["held_uhs"] for line in lines])
    rows = [
        (moment(line["at_us"]), what_of(line), line["ref"], _signed(shown), _signed(shown_held), money_of(line))
        for line, shown, shown_held in zip(lines, amounts, held, strict=True)
    ]
    if left or left_held:
        rows.append(("", "rounding", "what the lines leave out", _signed(left), _signed(left_held), ""))
    console().print(table(f"account {found['account_id']}", ("time", "what", "about", "CT", "held CT", "CNY"), rows))
    if every_call and (calls := calls_in(found["records"])):
        print_calls(calls)
    if since:
        print_facts({**_balances(opening), **packages_left(opening)}, title="opening")
    print_facts(
        {
            **_balances(closing),
            **packages_left(closing),
            "tree": f"{found['until_size']} entries, root {found['until_root']}",
        },
        title="closing",
    )


def plans(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """What can be bought, what each accelerator burns, and what is announced to change."""
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
    weights = [
        (each["accelerator"], format_ct(each["ppm"] * UHS_PER_CT // PPM), _condition(each))
        for each in found["tariffs"]["weights"]
    ]
    console().print(table("burn of one device at 80 %", ("accelerator", "CT/h", "where"), weights))
    if catalogue.get("bundles"):
        bundles = [
            (each["name"], format_cny(each["price_microcny"]), *parts_of(each), each.get("title", ""))
            for each in catalogue["bundles"]
        ]
        console().print(table("bundles", ("bundle", "CNY", "gives", "life", "what"), bundles, spare=("what",)))
    if catalogue.get("subscriptions"):
        subscriptions = [
            (each["name"], format_cny(each["price_microcny"]), *terms_of(each), each["plan"], each.get("title", ""))
            for each in catalogue["subscriptions"]
        ]
        columns = ("subscription", "CNY", "CT", "each", "life", "carried over", "used up", "plan", "what")
        console().print(table("subscriptions", columns, subscriptions, spare=("what",)))
    print_announced(found)


def plan(*, account: ForAccount = "", as_json: AsJson = False) -> None:
    """The account's own plan."""
    own = client(account).call(pb.BalanceRequest(), pb.BalanceReply).plan
    catalogue = json.loads(client(account).fetch(pb.PricesRequest()))["catalogue"]
    found: dict[str, Any] = next((each for each in catalogue["plans"] if each["name"] == own), {"name": own})
    print_json(as_strings(found)) if as_json else print_facts(_plan_facts(found))


def _plan_facts(found: dict[str, Any]) -> dict[str, str]:
    facts = {"plan": found["name"]}
    if "price_microcny_per_ct" in found:
        facts["price"] = f"{format_cny(found['price_microcny_per_ct'])} CNY a token"
        facts["tokens are good"] = f"{found['lifetime_days']} days"
        facts["queue"] = found["queue"] + (", dedicated nodes" if found["dedicated"] else "")
        facts["paid"] = found["mode"]
    if found.get("credit_limit_uhs"):
        facts["credit"] = f"{format_ct(found['credit_limit_uhs'])} CT"
    return facts


def _condition(weight: dict[str, Any]) -> str:
    """For what a line of the tariff counts."""
    parts = [str(weight[name]) for name in ("operator", "tier", "service") if weight.get(name)]
    if weight.get("hours"):
        parts.append("{}–{} h".format(*weight["hours"]))
    return ", ".join(parts) or "everywhere"


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
        return
    facts = json.loads(accepted.facts_json or "{}")
    if facts.get("price_microcny") is not None:
        what += f" for {format_cny(facts['price_microcny'])} CNY"
        what += f", good until {moment(facts['expires_at_us'])}" if facts.get("expires_at_us") else ", good for ever"
    say(f"{what}; {format_ct(facts['free_uhs'])} CT free now" if "free_uhs" in facts else what)


def _unpaid(found: pb.BalanceReply) -> str:
    """What was invoiced, which takes credit up until it is paid; and what is owed for charge-backs, apart from credit."""
    uhs, due = found.charged_back_uhs, found.receivable_microcny
    invoiced = f", and {format_ct(found.invoiced_uhs)} CT in invoices of {format_cny(due)} CNY to pay" if due else ""
    return invoiced + (f", and {format_ct(uhs)} CT for what was charged back" if uhs else "")


def _bound(found: pb.BalanceReply) -> str:
    """What of the free tokens is good for some uses only."""
    if not found.bound_uhs:
        return ""
    bound = [
        f"{format_ct(lot.free_uhs)} only {lot.scope}" for lot in found.lots if lot.free_uhs and lot.scope != _ANYTHING
    ]
    return f", of which {'; '.join(bound)}"


def _gathered(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A running job is charged every second: its charges as one line, where the last of them is."""
    gathered: dict[object, dict[str, Any]] = {}
    for at, line in enumerate(lines):
        key = ("capture", line["ref"]) if line["kind"] == "capture" else at
        before = gathered.pop(key, _NO_CHARGES)
        sums = {name: before[name] + line[name] for name in ("amount_uhs", "held_uhs")}
        gathered[key] = {**line, **sums, "count": before["count"] + 1}
    return list(gathered.values())


def _rounded(opening: int, amounts: list[int]) -> tuple[list[int], int]:
    """Amounts in the finest decimal that is shown, each as `fabric usage` has it, and what is missing to the sum of the
    exact ones.
    """
    shown = [(abs(each) // UHS_PER_DECIMAL) * (1 if each > 0 else -1) for each in amounts]
    total = (opening + sum(amounts)) // UHS_PER_DECIMAL - opening // UHS_PER_DECIMAL
    return shown, total - sum(shown)


def _balances(standing: dict[str, int]) -> dict[str, str]:
    """What is free, held and owed, in the sums that the lines lead to."""
    worth, held = _worth(standing) // UHS_PER_DECIMAL, standing["held_uhs"] // UHS_PER_DECIMAL
    owed = -(-standing["debt_uhs"] // UHS_PER_DECIMAL)
    parts = {"free": worth - held + owed, "held": held, "owed": owed}
    return {name: f"{format_ct(count * UHS_PER_DECIMAL, decimals=CT_DECIMALS)} CT" for name, count in parts.items()}


def _worth(standing: dict[str, int]) -> int:
    return standing["free_uhs"] + standing["held_uhs"] - standing["debt_uhs"]


def _signed(count: int) -> str:
    """All decimals, so that what is below one another can be compared."""
    if not count:
        return "0"
    whole, decimals = divmod(abs(count), 10**CT_DECIMALS)
    return f"{'-' if count < 0 else '+'}{whole}.{decimals:0{CT_DECIMALS}}"


_ANYTHING: Final = "anything"
UHS_PER_DECIMAL: Final = UHS_PER_CT // 10**CT_DECIMALS
_NO_CHARGES: Final[dict[str, Any]] = {"amount_uhs": 0, "held_uhs": 0, "count": 0}
_LOT_COLUMNS: Final[dict[str, Any]] = {
    "lot": lambda lot: lot.lot_id,
    "origin": lambda lot: lot.origin,
    "free CT": lambda lot: format_ct(lot.free_uhs),
    "held CT": lambda lot: format_ct(lot.held_uhs),
    "granted CT": lambda lot: format_ct(lot.granted_uhs),
    "expires": lambda lot: moment(lot.expires_at_us),
    "good for": lambda lot: lot.scope or _ANYTHING,
}
_UNIT_COLUMNS: Final[dict[str, Any]] = {
    "what": lambda units: units.asset,
    "how many": lambda units: str(units.amount),
    "expires": lambda units: moment(units.expires_at_us),
}
_CDR_COLUMNS: Final[dict[str, Any]] = {
    "job": lambda cdr: cdr.job_id,
    "name": lambda cdr: cdr.name,
    "on": where,
    "ran": lambda cdr: duration(cdr.metered_us),
    "util": lambda cdr: f"{cdr.busy_us * 100 // max(cdr.devices * cdr.metered_us, 1)} %",
    "charged CT": lambda cdr: format_ct(booked_uhs(cdr), decimals=8),
    "refunded CT": lambda cdr: format_ct(cdr.refunded_uhs, decimals=8) if cdr.refunded_uhs else "–",
    "ended": lambda cdr: cdr.ended,
}
