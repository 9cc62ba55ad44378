"""What a log asks of a witness: an old size, a proof that the tree only grew since, and the checkpoint. Read and written."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from fabric.audit.verify import size_of
from fabric.audit.verify.report import Wrong
from fabric.audit.verify.strict_json import INT64

BODY_BYTES = 64 * 1024
"""A checkpoint with dozens of signatures, and the longest proof."""
PROOF_LINES = 63
HASH_BYTES = 32


@dataclass(frozen=True)
class Asked:
    """A request to cosign."""

    old: int
    proof: tuple[bytes, ...]
    note: str
    """The checkpoint, with all its signatures."""
    text: str
    """What they sign."""
    origin: str
    size: int
    root: bytes


def written(old: int, proof: Sequence[bytes], note: str) -> bytes:
    """The body of a request."""
    lines = [f"old {old}", *(base64.b64encode(node).decode() for node in proof), "", note]
    return "\n".join(lines).encode()


def read(body: bytes) -> Asked:
    """A request from its body.

    Raises:
        ValueError: it is none; the message says why.
    """
    head, _, note = body.decode().partition("\n\n")
    first, *lines = head.split("\n")
    word, _, digits = first.partition(" ")
    plain = digits.isascii() and digits.isdecimal() and len(digits) < HASH_BYTES
    old = int(digits) if plain else 0
    if word != "old" or not plain or str(old) != digits or old not in INT64:
        raise ValueError("the first line is not `old` and the size of an older tree")
    if len(lines) > PROOF_LINES:
        raise ValueError(f"a proof has {PROOF_LINES} lines at most")
    text, _, signatures = note.rpartition("\n\n")
    try:
        size = size_of(note)
    except Wrong:
        raise ValueError("after the proof and an empty line comes no checkpoint") from None
    origin, digits, root, *_ = text.split("\n")
    if not origin or not note.endswith("\n") or not signatures or str(size) != digits:
        raise ValueError("after the proof and an empty line comes no checkpoint that somebody signed")
    return Asked(old, tuple(map(_hash, lines)), note, f"{text}\n", origin, size, _hash(root))


def _hash(line: str) -> bytes:
    found = base64.b64decode(line, validate=True)
    if len(found) != HASH_BYTES:
        raise ValueError(f"a hash has {HASH_BYTES} bytes, not {len(found)}")
    return found
