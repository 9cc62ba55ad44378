"""Commands for whoever doubts a bill. `verify` works offline and trusts nothing of the fabric's."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer

from fabric.audit.verify import verify_export
from fabric.cli.files import drafted
from fabric.cli.output import console, print_json, say, table
from fabric.cli.session import AsJson, ForAccount, client, job_named
from fabric.errors import InvalidRequest
from fabric.wire import fabric_pb2 as pb

app = typer.Typer(help="Proof: export the sealed log, verify it offline, read receipts.", no_args_is_help=True)

_REMEDIES: Final = {
    "no_export": "give a file that `fabric audit export FILE` has written",
    "export_cut_short": "export it again with `fabric audit export {file}`",
    "another_key": "check --key against the key that the operator publishes; with the right one, the export is not theirs",
    "not_verified": "export it again; if that does not verify either, keep both files and ask the operator",
}


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="Where to write it; standard output if not given.")] = None,
    *,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Everything that is sealed about the account, as JSON lines: all of it, or nothing.

    For example: fabric audit export november.jsonl
    """
    door = client(account)
    if file is None:
        with tempfile.TemporaryFile() as out:
            door.fetch_into(pb.ExportRequest(), out)
            out.seek(0)
            shutil.copyfileobj(out, sys.stdout.buffer)
        return
    with drafted(file) as out:
        door.fetch_into(pb.ExportRequest(), out)
        size = out.tell()
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        say(f"written to {file}: check it with `fabric audit verify {file}`")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An export.")],
    *,
    key: Annotated[str | None, typer.Option(help="The public key you trust; without it the export's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check an export offline: every hash, signature, sum and charge. Ends with 0 if all is well, else with 2.

    For example: fabric audit verify november.jsonl --key "$(cat operators-key.txt)"
    """
    try:
        with file.open(encoding="utf-8") as lines:
            report = verify_export(lines, trusted_key=key)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"can't read {file}: {error}", code="no_export") from None
    if report.problem:
        where = f"{file}, line {report.line}" if report.line else str(file)
        about = f"{where}: {report.problem}: {_REMEDIES[report.code].format(file=file)}"
        raise InvalidRequest(about, code=report.code, file=str(file), line=report.line or None)
    facts = {"entries": report.size, "root": report.root, "origin": report.origin, "key": report.key}
    if as_json:
        print_json({"verified": True, **facts, "counts": dict(report.counts), "notes": report.notes})
    else:
        say(str(report))


@app.command()
def receipts(
    *,
    job: Annotated[str, typer.Option(help="Only this job's.")] = "",
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """The proofs that the account's entries are in the sealed log.

    For example: fabric audit receipts --job job-9829cded --json > receipts.json
    """
    door = client(account)
    wanted = pb.ReceiptsRequest(job_id=job_named(door, job))
    found = [json.loads(document.json) for document in door.collect(wanted, pb.Document)]
    if as_json:
        print_json(found)
        return
    rows = [
        (f"entry {receipt['seq']}", f"of {receipt['tree_size']}", receipt["leaf_hash"], str(len(receipt["proof"])))
        for receipt in found
    ]
    console().print(table("", ("entry", "", "leaf", "hashes"), rows, spare=("", "hashes")))
    say("each whole, with its checkpoint: fabric audit receipts --json")
