"""An export, line by line: its entries lead to the root that was signed, and nothing before a kept checkpoint was rewritten."""

import base64
import hashlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

from .books import Books
from .check import Check, reported
from .compare import View, compare
from .notes import signed
from .report import Report, Wrong, require
from .statement import Statement
from .strict_json import loads
from .tree import EMPTY, Tree, consistent, included, leaf_hash

_SEAL = "token-fabric-audit-export"


def verify_export(
    lines: Iterable[str],
    *,
    trusted_key: str | None = None,
    witnessed: str | None = None,
    policy: str | None = None,
    statement: str | None = None,
    earlier: Iterable[str] | None = None,
) -> Report:
    """Check an export line by line, twice: first its seal, then what it says. No more of it is kept than the books need.

    Args:
        lines: the file's lines, with or without their newlines. What can be read only once (an iterator) is kept whole.
        trusted_key: the operator's verifier key, `<name>+<key id>+<base64>`. None = the one in the export.
        witnessed: the note of an older checkpoint of the same log, to find out whether history was rewritten.
        policy: a C2SP tlog-policy: logs that are believed, and witnesses that must have cosigned this checkpoint or that.
        statement: what `fabric statement --json` wrote, to be held against the export.
        earlier: the lines of an export of before, of this account or another one: all that it has must be here unchanged.
    """
    check = ExportCheck(Report(), trusted_key, witnessed, policy, statement)
    check.earlier = None if earlier is None else _readable_twice(earlier)
    return reported(check, _readable_twice(lines))


def checkpoint_of(lines: Iterable[str]) -> str:
    """The checkpoint that an export ends with, by its own word; "" = it is no export."""
    count, first, _, last, _ = _ends(lines)
    ours = count > 1 and first.startswith('{"format":"token-fabric-audit"') and last.startswith('{"checkpoint":')
    return str(loads(last)["checkpoint"]) if ours else ""


class ExportCheck(Check):
    """A header, the entries in order, and the checkpoint that seals them."""

    earlier: Iterable[str] | None = None
    note = ""
    view: View | None = None

    def run(self, lines: Iterable[str]) -> None:
        view, since = self.sealed(lines)
        if self.earlier is not None:
            self._hold_against(view, self.earlier)
        self._quorum(self.note)
        old = self._open(self.witnessed) if self.witnessed else (0, EMPTY)
        cut = f"the log was cut: {old[0]} entries were witnessed, {view.size} are left"
        require(old[0] <= view.size, cut)
        body = (loads(line) for line in islice(map(_bare, lines), 1, view.count - 1 - bool(since)))
        if view.account is None:
            self._full(body, bytes.fromhex(view.root), old)
        else:
            self._account(body, bytes.fromhex(view.root), old, since)

    def sealed(self, lines: Iterable[str]) -> tuple[View, Any]:
        """Whose export it is and of which tree, if the bytes are those that were signed; and its line of consistency, if any."""
        report = self.report
        count, first, before_last, last_line, digest = _ends(lines)
        require(count > 1 or first, "it is empty", "no_export")
        header, last = self._first(first), self._last(lines, count, last_line)
        ours = isinstance(header, dict) and header.get("format") == "token-fabric-audit"
        require(ours and header["version"] == 2, "it does not begin as an audit export of version 2 does", "no_export")  # noqa: PLR2004
        report.origin, report.account = header["origin"], header["account"]
        require(f"{report.origin}{report.account}".isprintable(), "its names have control characters")
        self._trust(header["key"])
        whole = set(last) == {"checkpoint", "seal"}
        require(whole, "the export is cut short: the last line is no checkpoint", "export_cut_short")
        self.note = last["checkpoint"]
        report.size, root = self._open(self.note)
        report.root = root.hex()
        whose = "everybody" if report.account is None else f"account {report.account}"
        seal = "\n".join((_SEAL, whose, digest, *last["checkpoint"].split("\n")[:3]))
        if signed(last["seal"], key=report.key, what="seal") != seal:
            self._all_json(lines, count)
            raise Wrong("the export was changed after it was signed")
        since = loads(before_last) if before_last.startswith('{"consistent_since":') else None
        self.view = View(lines, count, report.account, report.size, report.root)
        return self.view, since

    def _hold_against(self, view: View, lines: Iterable[str]) -> None:
        """An export of before: whole itself, of the same log, and all of it here."""
        require(not self.witnessed, "an earlier export has a checkpoint of its own: give that or --witnessed, not both")
        before = ExportCheck(Report(), self.report.key, None)
        found = reported(before, lines)
        require(found.ok and before.view, f"the earlier export: {found.problem}", found.code)
        require(
            found.origin == self.report.origin, f"the earlier export is of another log, {found.origin}", "another_key"
        )
        self.witnessed = before.note
        if before.view:
            self.report.counts += compare(view, before.view)

    def _books(self) -> Books:
        statement, account = (Statement(self.statement) if self.statement else None), self.report.account
        fits = statement is None or account in (None, statement.account)
        require(fits, f"the statement is of another account than the export, {account}")
        return Books(self.report.counts, account=account, statement=statement)

    def _first(self, first: str) -> Any:
        try:
            return loads(first)
        except (ValueError, RecursionError):
            self.report.line = 1
            raise Wrong("this is no JSON, and no audit export", "no_export") from None

    def _last(self, lines: Iterable[str], count: int, line: str) -> Any:
        try:
            return loads(line)
        except (ValueError, RecursionError):
            self._all_json(lines, count)
            self.report.line = count
            raise Wrong("the export is cut short within its last line", "export_cut_short") from None

    def _all_json(self, lines: Iterable[str], count: int) -> None:
        """Name the line of what was changed so that it can't be read, if any."""
        for self.report.line, line in enumerate(islice(map(_bare, lines), count - 1), 1):
            try:
                loads(line)
            except (ValueError, RecursionError):
                raise Wrong("this line is no JSON") from None
        self.report.line = 0

    def _full(self, body: Iterable[dict[str, Any]], root: bytes, old: tuple[int, bytes]) -> None:
        """Every leaf is here: make the root from them, and audit what they say."""
        report, books, tree, (old_size, old_root) = self.report, self._books(), Tree(), old
        found = 0
        for seq, line in enumerate(body):
            report.line, found = seq + 2, seq + 1
            require(set(line) == {"seq", "leaf"} and line["seq"] == seq, f"entry {seq} is missing or out of order")
            if seq == old_size:
                require(tree.root() == old_root, f"history was rewritten: another root at size {old_size}")
            leaf = base64.b64decode(line["leaf"])
            tree.append(leaf_hash(leaf))
            books.post(seq, leaf, whole=True)
        report.line = 0
        books.finish()
        require(found == self.report.size, f"{self.report.size} entries were signed, {found} are here")
        require(tree.root() == root, "the entries do not hash to the signed root: one was changed")
        require(old_size != self.report.size or old_root == root, f"the log was forked at size {old_size}")

    def _account(self, body: Iterable[dict[str, Any]], root: bytes, old: tuple[int, bytes], since: Any) -> None:
        """An account's own entries: each must be proved to be in the signed tree."""
        books, before, (old_size, old_root) = self._books(), -1, old
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


def _readable_twice(lines: Iterable[str]) -> Iterable[str]:
    return list(lines) if iter(lines) is lines else lines


def _bare(line: str) -> str:
    return line.removesuffix("\n")


def _ends(lines: Iterable[str]) -> tuple[int, str, str, str, str]:
    """How many lines there are, the first, the last but one, the last, and the SHA-256 of all but the last."""
    count, first, before_last, last, digest = 0, "", "", "", hashlib.sha256()
    for line in map(_bare, lines):
        if count:
            digest.update(f"{last}\n".encode())
        count, first, before_last, last = count + 1, first if count else line, last, line
    return count, first, before_last, last, digest.hexdigest()
