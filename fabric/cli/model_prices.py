"""The price list of a model, both ways: what a million LLM tokens of each kind cost, and how many a compute token or a yuan buys."""

from typing import Any, Final

from fabric.cli.output import console, print_json, table
from fabric.client.client import Client
from fabric.errors import NotFound
from fabric.units import UHS_PER_CT, format_cny, format_ct
from fabric.wire import fabric_pb2 as pb

_MTOK: Final = 1_000_000
_MICRO: Final = 1_000_000
_KINDS: Final = (
    ("input", "prompt"),
    ("cached", "prompt, cached"),
    ("output", "completion"),
    ("reasoning", "reasoning"),
)


def show(door: Client, name: str, *, as_json: bool) -> None:
    """Print the list.

    Raises:
        NotFound: no such model is offered to the caller.
    """
    found = next(
        (each for each in door.call(pb.ListModelsRequest(), pb.ListModelsReply).models if each.name == name), None
    )
    if found is None:
        raise NotFound(f"no model {name!r} is offered to you: see fabric models", code="not_found")
    rows = price_list(found)
    if as_json:
        print_json({"model": name, "price_microcny_per_ct": str(found.price_microcny_per_ct), "rates": rows})
        return
    columns = ("on", "LLM tokens", "CT/M", "CNY/M", "a CT buys", "a CNY buys")
    cells = [
        (row["accelerator"] or "any", row["kind"], _ct(row["uhs_per_mtok"]), _cny(row), *_buys(row)) for row in rows
    ]
    title = f"{name}: 1 CT is {format_cny(found.price_microcny_per_ct)} CNY" if found.price_microcny_per_ct else name
    console().print(table(title, columns, cells))


def price_list(model: pb.Model) -> list[dict[str, Any]]:
    """For each type of accelerator and kind of LLM token what 10⁶ of them cost, in µHs and 10⁻⁶ CNY (rounded up, as a customer reckons),
    and how many 1 CT and 1 CNY buy (rounded down; None = any number, they cost nothing, or no price in money is known).
    """
    price, rows = model.price_microcny_per_ct, []
    for rate in model.rates:
        for field, kind in _KINDS:
            uhs = int(getattr(rate, f"{field}_uhs_per_mtok"))
            cost = uhs * price
            rows.append(
                {
                    "accelerator": rate.accelerator,
                    "kind": kind,
                    "uhs_per_mtok": uhs,
                    "microcny_per_mtok": -(-cost // UHS_PER_CT) if price else None,
                    "tokens_per_ct": UHS_PER_CT * _MTOK // uhs if uhs else None,
                    "tokens_per_cny": UHS_PER_CT * _MICRO * _MTOK // cost if cost else None,
                }
            )
    return rows


def _ct(uhs: int) -> str:
    return format_ct(uhs, round_up=True)


def _cny(row: dict[str, Any]) -> str:
    return "" if row["microcny_per_mtok"] is None else f"{row['microcny_per_mtok'] / _MICRO:.4f}"


def _buys(row: dict[str, Any]) -> tuple[str, str]:
    per_ct, per_cny = row["tokens_per_ct"], row["tokens_per_cny"]
    return ("any" if per_ct is None else f"{per_ct:,}", "" if per_cny is None else f"{per_cny:,}")
