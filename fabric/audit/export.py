"""The lines of an audit export: what `fabric.audit.verify` reads, and a stranger can check without us.

One JSON object a line: a header, the entries in order, and last the signed checkpoint of the log as it is, which is the same
for everybody, with a signed note of its own that seals the bytes of all lines before it. A full export has every leaf, so
that the root can be made from them; an account's has its own leaves, each with its inclusion proof. Where an entry
also concerns other accounts, an account's export shows its hash and keeps its content: a bill never tells one customer
about another.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any, Final

FORMAT: Final = "token-fabric-audit"
VERSION: Final = 2
SEAL: Final = "token-fabric-audit-export"


def header_line(*, origin: str, key: str, account_id: str | None) -> bytes:
    """The first line. `key` is the log's verifier key as published."""
    return _line({"format": FORMAT, "version": VERSION, "origin": origin, "key": key, "account": account_id})


def entry_line(seq: int, leaf: bytes, *, proof: Sequence[bytes] | None = None) -> bytes:
    """An entry, with its inclusion proof in an account's export."""
    entry: dict[str, Any] = {"seq": seq, "leaf": base64.b64encode(leaf).decode()}
    return _line(entry if proof is None else entry | {"proof": [node.hex() for node in proof]})


def withheld_line(seq: int, leaf_hash: bytes, *, proof: Sequence[bytes]) -> bytes:
    """An entry that also concerns other accounts: that it is there, and not what it says."""
    return _line({"seq": seq, "leaf_hash": leaf_hash.hex(), "proof": [node.hex() for node in proof]})


def consistency_line(old_size: int, *, proof: Sequence[bytes]) -> bytes:
    """What shows that the tree only grew since `old_size`: for an account's export, whose reader kept a checkpoint."""
    return _line({"consistent_since": old_size, "proof": [node.hex() for node in proof]})


def seal_text(digest: str, *, account_id: str | None, checkpoint: str) -> str:
    """What is signed of an export: whose it is, the SHA-256 of all lines before the last in hex, and the tree that it is of.

    No checkpoint, though it is signed with the same key: its first line names no log, and its second is no size.
    """
    whose = "everybody" if account_id is None else f"account {account_id}"
    return "".join(f"{line}\n" for line in (SEAL, whose, digest, *checkpoint.split("\n")[:3]))


def checkpoint_line(note: str, seal: str) -> bytes:
    """The last line: the signed tree head that everything before leads to, and the signed seal of what is before."""
    return _line({"checkpoint": note, "seal": seal})


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
