"""Commands for whoever doubts a bill. `verify` works offline and trusts nothing of the fabric's."""

import base64
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fabric.cli.files import drafted
from fabric.cli.output import console, print_json, say, say_lines, table, tell
from fabric.cli.session import AsJson, ForAccount, client, job_named
from fabric.errors import InvalidRequest
from fabric.visible import visible_lines
from fabric.wire import fabric_pb2 as pb

app = typer.Typer(help="Proof: export the sealed log, verify it offline, read receipts.", no_args_is_help=True)

TrustedKey = Annotated[str | None, typer.Option("--key", help="The public key you trust; without it the file's own.")]
Witnessed = Annotated[
    Path | None, typer.Option("--witnessed", help="An older checkpoint of the same log, which you kept.")
]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="A C2SP tlog-policy: logs to believe, and witnesses that must have cosigned."),
]
NO_KEY_GIVEN: Final = 3
"""How a check ends that shows a whole file, signed with a key that nobody has vouched for."""
_REMEDIES: Final = {
    "no_export": "give a file that `fabric audit export FILE` has written",
    "export_cut_short": "export it again with `fabric audit export {file}`",
    "no_policy": "a policy has lines as C2SP tlog-policy says: log KEY, witness NAME KEY, group NAME COUNT NAMES, quorum NAME",
    "not_witnessed": "ask the operator for a checkpoint that they have cosigned, and give it as --witnessed",
    "another_key": "check --key against the key that the operator publishes; with the right one, the export is not theirs",
    "another_history": "keep both files: together they show what was signed twice, and otherwise",
    "not_verified": "export it again; if that does not verify either, keep both files and ask the operator",
}


@app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="Where to write it; standard output if not given.")] = None,
    *,
    since: Annotated[
        Path | None, typer.Option(help="A checkpoint or an export you kept: it shows that the log only grew since.")
    ] = None,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """Everything that is sealed about the account, as JSON lines: all of it, or nothing.

    For example: fabric audit export november.jsonl --since october.checkpoint
    """
    wanted = pb.ExportRequest()
    if since is not None:
        wanted.since_size = _size_of(since)
    door = client(account)
    if file is None:
        with tempfile.TemporaryFile() as out:
            door.fetch_into(wanted, out)
            out.seek(0)
            shutil.copyfileobj(out, sys.stdout.buffer)
        return
    with drafted(file) as out:
        door.fetch_into(wanted, out)
        size = out.tell()
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        also = f" --witnessed {since}" if since is not None else ""
        say(f"written to {file}: check it with `fabric audit verify {file} --key THE-OPERATORS-KEY{also}`")


@app.command()
def checkpoint(
    file: Annotated[Path | None, typer.Argument(help="Where to keep it; standard output if not given.")] = None,
    *,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """The signed checkpoint of the whole log as it is now: keep it, and nobody can rewrite what it seals.

    For example: fabric audit checkpoint october.checkpoint
    """
    sealed = client(account).call(pb.LogCheckpointRequest(), pb.LogCheckpointReply)
    if file is not None:
        with drafted(file) as out:
            out.write(sealed.note.encode())
    if as_json:
        print_json({"checkpoint": sealed.note, "key": sealed.key, "file": str(file) if file else None})
    elif file is None:
        sys.stdout.write(visible_lines(sealed.note))
    else:
        say(f"written to {file}: later, `fabric audit export --since {file}` shows that nothing of it was rewritten")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An export.")],
    *,
    key: TrustedKey = None,
    witnessed: Witnessed = None,
    policy: PolicyFile = None,
    statement: Annotated[
        Path | None, typer.Option(help="What `fabric statement --json` wrote: hold it against the export.")
    ] = None,
    earlier: Annotated[
        Path | None,
        typer.Option(
            help="An export of before, yours or another customer's: all that it has must be in this one unchanged."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an export offline: every hash, signature, sum and charge. Ends with 0 if all is well and --key has signed it,
    with 3 if it is whole and no key was given, else with 2.

    For example: fabric audit verify november.jsonl --key "$(cat operators-key.txt)" --witnessed october.checkpoint
    """
    from fabric.audit.verify import Lines, verify_export  # noqa: PLC0415  # it needs cryptography, which a client alone has not

    try:
        told = {"witnessed": _text(witnessed), "policy": _text(policy), "statement": _text(statement)}
        report = verify_export(Lines(file), trusted_key=key, earlier=Lines(earlier) if earlier else None, **told)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None
    _tell(report, file, as_json=as_json)


@app.command()
def verify_receipt(
    file: Annotated[
        Path, typer.Argument(help="Receipts, as `fabric audit receipts --json` writes them, or a tlog-proof.")
    ],
    *,
    key: TrustedKey = None,
    witnessed: Witnessed = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
) -> None:
    """Check receipts offline: each entry's hash, its proof and the signature of its checkpoint. Ends as `verify` does.

    For example: fabric audit verify-receipt receipts.json --key "$(cat operators-key.txt)"
    """
    from fabric.audit.verify import verify_receipts  # noqa: PLC0415

    report = verify_receipts(_read(file), trusted_key=key, witnessed=_text(witnessed), policy=_text(policy))
    _tell(report, file, as_json=as_json)


@app.command()
def verifier(
    *,
    browser: Annotated[
        bool,
        typer.Option("--browser", help="A page for a browser instead: a second implementation, without dependencies."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the verifier as one file, which runs without the product: the standard library and `cryptography` are enough.

    For example: fabric audit verifier > verify.py && python verify.py november.jsonl --key "$(cat operators-key.txt)"
    """
    from fabric.audit.one_file import one_file, one_page  # noqa: PLC0415

    source = one_page() if browser else one_file()
    if as_json:
        print_json({"source": source, "sha256": hashlib.sha256(source.encode()).hexdigest()})
    else:
        sys.stdout.write(source)


@app.command()
def witness(
    *,
    name: Annotated[str, typer.Option(help="What it cosigns as: a host and path, such as witness.example/w1.")],
    log: Annotated[
        list[str], typer.Option(help="The public key of a log to watch, `<name>+<id>+<base64>`; several may be given.")
    ],
    state: Annotated[Path, typer.Option(help="A folder: what was cosigned is kept there, and its key.")],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT. Put TLS in front of it where it is public.")
    ] = "127.0.0.1:7490",
    key: Annotated[
        Path | None, typer.Option(help="Its key; made where there is none. None = STATE/witness.key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Cosign checkpoints of others' logs that have only grown (C2SP tlog-witness), until it is ended.

    For example: fabric audit witness --name witness.example/w1 --log "$(cat operators-key.txt)" --state /var/lib/witness
    """
    from fabric.audit.signing import load_or_create_key  # noqa: PLC0415  # they need cryptography, which a client alone has not
    from fabric.audit.witness import Cosigner, Kept, Witness, WitnessServer  # noqa: PLC0415

    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()):
        raise InvalidRequest(f"--listen {listen!r} is no HOST:PORT", code="bad_option")
    try:
        cosigner = Cosigner(name, load_or_create_key(key or state / "witness.key"))
        server = WitnessServer((host.strip("[]"), int(port)), Witness(cosigner, log, Kept(state), say))
    except (OSError, OverflowError, ValueError) as error:
        raise InvalidRequest(f"can't start a witness: {error}", code="bad_option") from None
    url = f"http://{host}:{server.server_address[1]}"
    if as_json:
        print_json({"key": cosigner.key, "url": url})
    else:
        say(
            f"cosigns as {cosigner.key} at {url}: give both to the operators of these logs, and the key to those who verify"
        )
    with server:
        server.serve_forever()


def _tell(report: Any, file: Path, *, as_json: bool) -> None:
    if report.problem:
        where = f"{file}, line {report.line}" if report.line else str(file)
        about = f"{where}: {report.problem}: {_REMEDIES[report.code].format(file=file)}"
        raise InvalidRequest(about, code=report.code, file=str(file), line=report.line or None)
    facts = {"entries": report.size, "root": report.root, "origin": report.origin, "key": report.key}
    if as_json:
        whole = {"verified": report.trusted, "whole": True}
        print_json({**whole, **facts, "counts": dict(report.counts), "notes": report.notes})
    else:
        say_lines(str(report))
    if not report.trusted:
        raise typer.Exit(NO_KEY_GIVEN)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None


def _text(file: Path | None) -> str | None:
    return _read(file) if file else None


def _unreadable(file: Path, error: OSError | UnicodeDecodeError) -> InvalidRequest:
    why = getattr(error, "strerror", None) or error  # without the file's name once more
    return InvalidRequest(f"can't read {file}: {why}", code="no_export")


def _size_of(file: Path) -> int:
    """How many entries a checkpoint that was kept seals, or an export by its last line."""
    from fabric.audit.verify import Lines, Wrong, checkpoint_of, size_of  # noqa: PLC0415

    try:
        return size_of(checkpoint_of(Lines(file)) or _read(file))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None
    except Wrong as wrong:
        raise InvalidRequest(f"{file}: {wrong}", code=wrong.code, file=str(file)) from None


def tlog_proof(receipt: dict[str, Any]) -> str:
    """C2SP tlog-proof@v1, with the entry as its extra data, where it is shown."""
    nodes = [base64.b64encode(bytes.fromhex(node)).decode() for node in receipt["proof"]]
    extra = [f"extra {receipt['leaf']}"] if receipt["leaf"] else []
    lines = ["c2sp.org/tlog-proof@v1", *extra, f"index {receipt['seq']}", *nodes]
    return "\n".join([*lines, "", receipt["checkpoint"]])


@app.command()
def receipts(
    *,
    job: Annotated[str, typer.Option(help="Only this job's.")] = "",
    proofs: Annotated[
        Path | None,
        typer.Option(help="A folder: write each there as a C2SP tlog-proof, which other people's tools read."),
    ] = None,
    account: ForAccount = "",
    as_json: AsJson = False,
) -> None:
    """The proofs that the account's entries are in the sealed log.

    For example: fabric audit receipts --job job-9829cded --json > receipts.json
    """
    door = client(account)
    wanted = pb.ReceiptsRequest(job_id=job_named(door, job))
    found = [json.loads(document.json) for document in door.collect(wanted, pb.Document)]
    if proofs is not None:
        for receipt in found:
            with drafted(proofs / f"entry-{receipt['seq']}.tlog-proof") as out:
                out.write(tlog_proof(receipt).encode())
    if as_json:
        print_json(found)
        return
    rows = [
        (f"entry {receipt['seq']}", f"of {receipt['tree_size']}", receipt["leaf_hash"], str(len(receipt["proof"])))
        for receipt in found
    ]
    console().print(table("", ("entry", "", "leaf", "hashes"), rows, spare=("", "hashes")))
    tell("each whole, with its checkpoint: fabric audit receipts --json > FILE; then fabric audit verify-receipt FILE")
