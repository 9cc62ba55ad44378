"""Signed notes and the checkpoints in them (C2SP signed-note, tlog-checkpoint): who signed what."""

import base64
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .report import Wrong, require
from .strict_json import INT64

_SIGNATURE = b"\x01"


def size_of(note: str) -> int:
    """How many entries a checkpoint seals, by its own word.

    Raises:
        Wrong: it is no checkpoint.
    """
    lines = note.split("\n")
    sized = len(lines) > 4 and lines[1].isascii() and lines[1].isdecimal() and int(lines[1]) in INT64  # noqa: PLR2004
    require(sized, "this is no checkpoint: `fabric audit checkpoint FILE` writes one", "no_checkpoint")
    return int(lines[1])


def opened(note: str, *, key: str, origin: str) -> tuple[int, bytes]:
    """Size and root of a checkpoint, if the key signed it for this origin."""
    said, size, root, *_ = signed(note, key=key, what="checkpoint").split("\n")
    require(said == origin, f"the checkpoint is of another log, {said}")
    return int(size), base64.b64decode(root)


def public_key(key: str, kind: bytes) -> tuple[str, bytes, bytes]:
    """Name, id and Ed25519 key of a published key, `<name>+<id>+<base64(kind ‖ key)>`."""
    name, key_id, encoded = key.split("+", 2)
    public = base64.b64decode(encoded, validate=True)
    digest = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    require(digest.hex() == key_id and public[:1] == kind, "the key is malformed: it does not hash to its id")
    return name, digest, public[1:]


def signed(note: str, *, key: str, what: str) -> str:
    """The text of a note, without its last newline, if the key signed it."""
    name, digest, public = public_key(key, _SIGNATURE)
    text, _, signatures = note.rpartition("\n\n")
    mine = [line for line in signatures.split("\n")[:-1] if line.startswith(f"\u2014 {name} ")]
    require(len(mine) == 1, f"the {what} has no signature by {name}")
    signature = base64.b64decode(mine[0].rpartition(" ")[2], validate=True)
    whole = f"\u2014 {name} {base64.b64encode(signature).decode()}" == mine[0]
    require(whole and signature[:4] == digest, f"the {what} was signed with another key")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature[4:], f"{text}\n".encode())
    except InvalidSignature:
        raise Wrong(f"the signature of the {what} is wrong: it was changed or forged") from None
    return text
