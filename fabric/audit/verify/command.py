"""The command: a file in, a sentence and an exit status out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .check import Lines
from .exports import verify_export
from .receipts import verify_receipts


def main(argv: Sequence[str] | None = None) -> int:
    """Verify a file and print what was found; 0 = verified, 1 = not, 2 = it can't be read, 3 = whole, but no key was given."""
    parser = argparse.ArgumentParser(description="Verify an audit export, or receipts, offline.")
    parser.add_argument("export", type=Path, help="the export; with --receipts, the file of receipts")
    parser.add_argument("--receipts", action="store_true", help="the file has receipts")
    parser.add_argument("--key", help="the operator's published verifier key: <name>+<key id>+<base64>")
    parser.add_argument("--witnessed", type=Path, help="a file with an older checkpoint of the same log")
    parser.add_argument(
        "--policy", type=Path, help="a tlog-policy: logs to believe, and witnesses that must have cosigned"
    )
    parser.add_argument(
        "--statement", type=Path, help="what `fabric statement --json` wrote, to be held against the export"
    )
    parser.add_argument("--earlier", type=Path, help="an export of before, all of which must be in this one unchanged")
    given = parser.parse_args(argv)
    try:
        witnessed = given.witnessed.read_text(encoding="utf-8") if given.witnessed else None
        policy = given.policy.read_text(encoding="utf-8") if given.policy else None
        statement = given.statement.read_text(encoding="utf-8") if given.statement else None
        if given.receipts:
            text = given.export.read_bytes().decode().removesuffix("\n")
            report = verify_receipts(text, trusted_key=given.key, witnessed=witnessed, policy=policy)
        else:
            report = verify_export(
                Lines(given.export),
                trusted_key=given.key,
                witnessed=witnessed,
                policy=policy,
                statement=statement,
                earlier=Lines(given.earlier) if given.earlier else None,
            )
    except (OSError, UnicodeDecodeError) as error:
        print(f"can't read it: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(report)  # noqa: T201
    return 1 if not report.ok else 0 if report.trusted else 3
