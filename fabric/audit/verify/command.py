"""The command: a file in, a sentence and an exit status out."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .exports import verify_export
from .receipts import verify_receipts
from .report import Report


def main(argv: Sequence[str] | None = None) -> int:
    """Verify a file and print what was found; 0 = verified, 1 = not, 2 = it can't be read, 3 = whole, but no key was given."""
    parser = argparse.ArgumentParser(description="Verify an audit export, or receipts, offline.")
    parser.add_argument("export", type=Path, help="the export; with --receipts, the file of receipts")
    parser.add_argument("--receipts", action="store_true", help="the file has receipts")
    parser.add_argument("--key", help="the operator's published verifier key: <name>+<key id>+<base64>")
    parser.add_argument("--witnessed", type=Path, help="a file with an older checkpoint of the same log")
    given = parser.parse_args(argv)
    try:
        text = given.export.read_bytes().decode().removesuffix("\n")
        witnessed = given.witnessed.read_text(encoding="utf-8") if given.witnessed else None
    except (OSError, UnicodeDecodeError) as error:
        print(f"can't read it: {error}", file=sys.stderr)  # noqa: T201
        return 2
    told: Any = (verify_receipts, text) if given.receipts else (verify_export, text.split("\n"))
    report: Report = told[0](told[1], trusted_key=given.key, witnessed=witnessed)
    print(report)  # noqa: T201
    return 1 if not report.ok else 0 if report.trusted else 3
