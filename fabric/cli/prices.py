"""Commands about prices: what is in force and until when, and whether it is what it says it is reckoned from."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fabric.cli.money import as_strings
from fabric.cli.output import console, print_json, say, table
from fabric.cli.price_dates import dates, print_announced
from fabric.cli.session import AsJson, client
from fabric.errors import InvalidRequest
from fabric.units import PPM
from fabric.wire import fabric_pb2 as pb

ops = typer.Typer(help="Prices: what is in force, what is announced, and what they are reckoned from.")


@ops.callback(invoke_without_command=True)
def show(context: typer.Context, *, as_json: AsJson = False) -> None:
    """Show which prices are in force, since when and until when, and what is announced to change.

    Prices are announced by `effective_from` in tariffs.yaml or plans.yaml and a start of `fabric up`. For example: fabric ops prices
    """
    if context.invoked_subcommand is not None:
        return
    found = json.loads(client().fetch(pb.PricesRequest()))
    if as_json:
        print_json(as_strings(found))
        return
    console().print(table("prices", ("what", "version", "since", "until"), dates(found)))
    print_announced(found)


@ops.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(help="A tariffs file; without one, what the fabric has in force.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Reckon each weight again from the basis that it names, a line each; ends with 2 where one isn't what its basis makes.

    A weight that names no basis is accepted, and named. For example: fabric ops prices check cluster-configs/tariffs.yaml
    """
    from fabric.config import price_checks  # noqa: PLC0415 - what reads price files is slow to import, and only needed here

    found = (
        price_checks.check_in_force(client().fetch(pb.PricesRequest()))
        if file is None
        else price_checks.check_file(file)
    )
    if as_json:
        rows = [
            {"accelerator": each.accelerator, "ppm": each.ppm, "holds": each.holds, "says": each.says} for each in found
        ]
        print_json(rows)
    else:
        for each in found:
            verdict = "" if each.holds is None else "holds" if each.holds else "WRONG"
            say(f"{verdict:<6} {each.accelerator} {each.ppm / PPM:g} {each.says}")
    wrong = [each for each in found if each.holds is False]
    if wrong:
        names = ", ".join(dict.fromkeys(each.accelerator for each in wrong))
        raise InvalidRequest(
            f"{len(wrong)} of {len(found)} weights aren't what their basis makes: correct {names}",
            code="weight_mismatch",
        )
