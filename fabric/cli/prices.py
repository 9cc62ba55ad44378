"""Commands about prices: whether what is charged is what it says it is reckoned from."""

from pathlib import Path
from typing import Annotated

import typer

from fabric.cli.output import print_json, say
from fabric.cli.session import AsJson, client
from fabric.errors import InvalidRequest
from fabric.units import PPM
from fabric.wire import fabric_pb2 as pb

ops = typer.Typer(help="Prices: check what they are reckoned from.", no_args_is_help=True)


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
