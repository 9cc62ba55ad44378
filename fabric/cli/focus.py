"""`fabric focus`: an account's costs as other people's tools import them, and a check of such a file."""

from pathlib import Path
from typing import Annotated, Final

import typer

from fabric.cli.files import drafted
from fabric.cli.moments import Since, Until, parse_moment
from fabric.cli.output import print_json, say, say_lines
from fabric.cli.session import AsJson, ForAccount, client
from fabric.errors import InvalidRequest
from fabric.wire import fabric_pb2 as pb

app = typer.Typer(help="Costs in FOCUS 1.4: export them, check a file.", no_args_is_help=True)
_SHOWN_MAX: Final = 50
_DATASETS: Final = {"cost-and-usage": "CostAndUsage", "contract-commitment": "ContractCommitment"}


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help="Where to write it.")],
    *,
    dataset: Annotated[str, typer.Option(help="cost-and-usage, or contract-commitment: the lots.")] = "cost-and-usage",
    form: Annotated[str, typer.Option("--format", help="csv or jsonl (JSON Lines).")] = "csv",
    since: Since = "",
    until: Until = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """The account's charges, each with what it cost exactly by the lots that paid for it; or its lots.

    For example: fabric focus export november.csv --since 2026-11-01 --until 2026-12-01
    """
    if dataset not in _DATASETS:
        raise InvalidRequest(f"--dataset {dataset[:40]!r}: choose of {', '.join(_DATASETS)}", code="invalid_dataset")
    wanted = pb.ExportFocusRequest(dataset=_DATASETS[dataset], format=form, from_us=parse_moment(since) or 0)
    if (until_us := parse_moment(until)) is not None:
        wanted.until_us = until_us
    door = client(account)
    with drafted(file) as out:
        door.fetch_into(wanted, out)
        size = out.tell()
    if as_json:
        print_json({"file": str(file), "bytes": size, "focus_version": "1.4"})
    else:
        say(f"written to {file}: check it with `fabric focus check {file}`")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="CSV or JSON Lines of FOCUS 1.4.")], *, as_json: AsJson = False
) -> None:
    """Whether a file keeps to the rules of FOCUS 1.4: columns, types, nulls, allowed values, sums and periods. Offline.

    For example: fabric focus check november.csv
    """
    from fabric.focus.rules import check_file  # noqa: PLC0415

    count, first = 0, list[str]()
    try:
        for flaw in check_file(file):
            count += 1
            if len(first) < _SHOWN_MAX:
                first.append(str(flaw))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidRequest(f"can't read {file}: {why}", code="no_export") from None
    if as_json:
        print_json({"file": str(file), "flaws": count, "first": first})
    elif count:
        say_lines("\n".join(first))
    if count:
        raise InvalidRequest(
            f"{file}: {count} things are not as FOCUS 1.4 asks for them", code="not_focus", flaws=count
        )
    if not as_json:
        say(f"{file} keeps to the rules of FOCUS 1.4")
