"""An export, line by line: its entries lead to the root that was signed, and nothing before a kept checkpoint was rewritten."""

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

from .books import Books
from .check import Check, reported
from .notes import signed
from .report import Report, Wrong, require
from .strict_json import loads
from .tree import EMPTY, Tree, consistent, included, leaf_hash

_SEAL = "token-fabric-audit-export"


def verify_export(lines: Iterable[str], *, trusted_key: str | None = None, witnessed: str | None = None) -> Report:
    """Check an export line by line.

    Args:
        lines: the file's lines, with or without their newlines.
        trusted_key: the operator's verifier key, `<name>+<key id>+<base64>`. None = the one in the export.
        witnessed: the note of an older checkpoint of the same log, to find out whether history was rewritten.
    """
    return reported(ExportCheck(Report(), trusted_key, witnessed), [line.removesuffix("\n") for line in lines])


class ExportCheck(Check):
    """A header, the entries in order, and the checkpoint that seals them."""

    def run(self, lines: list[str]) -> None:
        report = self.report
        parsed = self._parse(lines)
        header = parsed[0]
        ours = isinstance(header, dict) and header.get("format") == "token-fabric-audit"
        require(ours and header["version"] == 2, "it does not begin as an audit export of version 2 does", "no_export")  # noqa: PLR2004
        body, last = parsed[1:-1], parsed[-1]
        report.origin, report.account = header["origin"], header["account"]
        require(f"{report.origin}{report.account}".isprintable(), "its names have control characters")
        self._trust(header["key"])
        whole = set(last) == {"checkpoint", "seal"}
        require(whole, "the export is cut short: the last line is no checkpoint", "export_cut_short")
        report.size, root = self._open(last["checkpoint"])
        report.root = root.hex()
        digest = hashlib.sha256("".join(f"{line}\n" for line in lines[:-1]).encode()).hexdigest()
        whose = "everybody" if report.account is None else f"account {report.account}"
        seal = "\n".join((_SEAL, whose, digest, *last["checkpoint"].split("\n")[:3]))
        unchanged = signed(last["seal"], key=report.key, what="seal") == seal
        require(unchanged, "the export was changed after it was signed")
        old_size, old_root = self._open(self.witnessed) if self.witnessed else (0, EMPTY)
        require(old_size <= report.size, f"the log was cut: {old_size} entries were witnessed, {report.size} are left")
        since = body.pop() if body and "consistent_since" in body[-1] else None
        if report.account is None:
            self._full(body, root, (old_size, old_root))
        else:
            self._account(body, root, (old_size, old_root), since)

    def _parse(self, lines: list[str]) -> list[Any]:
        require(any(lines), "it is empty", "no_export")
        parsed = []
        for self.report.line, line in enumerate(lines, 1):
            try:
                parsed.append(loads(line))
            except (ValueError, RecursionError):
                if self.report.line == 1:
                    raise Wrong("this is no JSON, and no audit export", "no_export") from None
                if self.report.line == len(lines):
                    raise Wrong("the export is cut short within its last line", "export_cut_short") from None
                raise Wrong("this line is no JSON") from None
        self.report.line = 0
        return parsed

    def _full(self, body: list[dict[str, Any]], root: bytes, old: tuple[int, bytes]) -> None:
        """Every leaf is here: make the root from them, and audit what they say."""
        report, books, tree, (old_size, old_root) = self.report, Books(self.report.counts), Tree(), old
        for seq, line in enumerate(body):
            report.line = seq + 2
            require(set(line) == {"seq", "leaf"} and line["seq"] == seq, f"entry {seq} is missing or out of order")
            if seq == old_size:
                require(tree.root() == old_root, f"history was rewritten: another root at size {old_size}")
            leaf = base64.b64decode(line["leaf"])
            tree.append(leaf_hash(leaf))
            books.post(seq, leaf, whole=True)
        report.line = 0
        books.finish()
        require(len(body) == self.report.size, f"{self.report.size} entries were signed, {len(body)} are here")
        require(tree.root() == root, "the entries do not hash to the signed root: one was changed")
        require(old_size != self.report.size or old_root == root, f"the log was forked at size {old_size}")

    def _account(self, body: list[dict[str, Any]], root: bytes, old: tuple[int, bytes], since: Any) -> None:
        """An account's own entries: each must be proved to be in the signed tree."""
        books, before, (old_size, old_root) = Books(self.report.counts, account=self.report.account), -1, old
        for self.report.line, line in enumerate(body, 2):
            seq, proof = line["seq"], [bytes.fromhex(node) for node in line["proof"]]
            require(before < seq < self.report.size, f"entry {seq} is out of order or beyond the signed tree")
            withheld = "leaf" not in line
            leaf = b"" if withheld else base64.b64decode(line["leaf"])
            digest = bytes.fromhex(line["leaf_hash"]) if withheld else leaf_hash(leaf)
            require(included(digest, seq, self.report.size, proof) == root, f"the proof of entry {seq} is wrong")
            before = seq
            if withheld:
                self.report.counts["withheld entries"] += 1
            else:
                books.post(seq, leaf, whole=False)
        self.report.line = 0
        if not self.report.counts["withheld entries"]:
            books.finish()
        if old_size in (0, self.report.size):
            require(old_size == 0 or old_root == root, f"the log was forked at size {old_size}")
            return
        line = since or {"consistent_since": None, "proof": []}
        require(line["consistent_since"] == old_size, f"ask for an export that is consistent since size {old_size}")
        grown = consistent(old_size, self.report.size, [bytes.fromhex(node) for node in line["proof"]], old_root)
        require(grown == (old_root, root), f"history before size {old_size} was rewritten: the log was forked")
