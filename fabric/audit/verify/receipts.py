"""Receipts: single entries of an account, each with the proof that it is in the log."""

import base64
from collections.abc import Iterable
from typing import Any

from .check import Check, reported
from .notes import size_of
from .report import Report, Wrong, require
from .strict_json import loads
from .tree import EMPTY, included, leaf_hash

_TLOG_PROOF = "c2sp.org/tlog-proof@v1"


def verify_receipts(
    text: str, *, trusted_key: str | None = None, witnessed: str | None = None, policy: str | None = None
) -> Report:
    """Check receipts: that each entry is in the log that its checkpoint seals.

    Args:
        text: a JSON list of receipts, one of them, or a C2SP tlog-proof whose extra data are the entry.
        trusted_key: the operator's verifier key. None = the one in the receipt; a tlog-proof names none.
        witnessed: the note of an older checkpoint of the same log.
        policy: a C2SP tlog-policy, as of an export.
    """
    return reported(ReceiptsCheck(Report(), trusted_key, witnessed, policy), [text])


class ReceiptsCheck(Check):
    """Single entries of an account, each with the proof that it is in the log."""

    def run(self, lines: Iterable[str]) -> None:
        found = self._read(next(iter(lines)))
        receipts = found if isinstance(found, list) else [found]
        wanted = {"seq", "leaf", "leaf_hash", "proof", "tree_size", "checkpoint"}
        fit = receipts and all(isinstance(one, dict) and wanted <= set(one) for one in receipts)
        require(fit, "no receipt", "no_export")
        for receipt in receipts:
            note = receipt["checkpoint"]
            self._trust(receipt.get("key") or self.trusted_key or "")
            self.report.origin = note.split("\n")[0]
            self.report.size, root = self._open(note)
            self.report.root = root.hex()
            old_size, old_root = self._open(self.witnessed) if self.witnessed else (0, EMPTY)
            require(old_size != self.report.size or old_root == root, f"the log was forked at size {old_size}")
            self._quorum(note)
            self._receipt(receipt, root)
        if old_size not in (0, self.report.size):
            self.report.notes.append("that nothing was rewritten since shows an export: fabric audit export --since")
        self.report.notes = list(dict.fromkeys(self.report.notes))

    def _read(self, text: str) -> Any:
        if text.startswith(f"{_TLOG_PROOF}\n"):
            require(self.trusted_key, "a tlog-proof names no key: give the operator's with --key", "another_key")
            return _of_proof(text)
        try:
            return loads(text)
        except (ValueError, RecursionError):
            raise Wrong("this is no JSON, and no receipt", "no_export") from None

    def _receipt(self, receipt: dict[str, Any], root: bytes) -> None:
        seq, proof = receipt["seq"], [bytes.fromhex(node) for node in receipt["proof"]]
        require(receipt["tree_size"] == self.report.size, f"the receipt of entry {seq} is of another tree")
        require(0 <= seq < self.report.size, f"entry {seq} is beyond the signed tree")
        digest = bytes.fromhex(receipt["leaf_hash"])
        if receipt["leaf"]:
            leaf = base64.b64decode(receipt["leaf"], validate=True)
            require(leaf_hash(leaf) == digest, f"entry {seq} is not what its receipt was given for")
            require(loads(leaf)["seq"] == seq, f"entry {seq} says that it is another")
        require(included(digest, seq, self.report.size, proof) == root, f"the proof of entry {seq} is wrong")
        self.report.counts["entries" if receipt["leaf"] else "withheld entries"] += 1


def _of_proof(text: str) -> dict[str, Any]:
    """The receipt that a tlog-proof is: its lines, an empty one, and the checkpoint."""
    head, _, note = text.partition("\n\n")
    note = note.rstrip("\n") + "\n"
    _, *lines = head.split("\n")
    extra = lines.pop(0).removeprefix("extra ") if lines and lines[0].startswith("extra ") else ""
    require(
        extra, "the proof does not carry the entry that it is for: it also concerns others, and only they can check it"
    )
    index = lines.pop(0).removeprefix("index ") if lines and lines[0].startswith("index ") else ""
    require(index.isascii() and index.isdecimal() and str(int(index)) == index, "the proof has no index")
    proof = [base64.b64decode(line, validate=True).hex() for line in lines]
    digest = leaf_hash(base64.b64decode(extra, validate=True)).hex()
    size = size_of(note)
    return {
        "seq": int(index),
        "leaf": extra,
        "leaf_hash": digest,
        "proof": proof,
        "tree_size": size,
        "checkpoint": note,
    }
