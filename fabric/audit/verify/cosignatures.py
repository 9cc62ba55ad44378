"""Cosignatures (C2SP tlog-cosignature): that a witness has seen a log grow to a checkpoint, by Ed25519 or ML-DSA-44."""

import base64

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .notes import public_key
from .report import Wrong, require
from .strict_json import INT64

ED25519, ML_DSA_44 = b"\x04", b"\x06"
_STAMP_BYTES = 12  # the key's id, and when it was cosigned, in seconds


def witness_key(key: str) -> tuple[str, bytes, bytes, bytes]:
    """Name, id, kind and key of a witness's published key, `<name>+<id>+<base64(kind ‖ key)>`.

    Raises:
        ValueError, Wrong: it is none, or of a kind that can't be verified here.
    """
    kind = base64.b64decode(key.split("+", 2)[2], validate=True)[:1]
    name, key_id, public = public_key(key, kind)
    require(kind in (ED25519, ML_DSA_44), f"{name} is no key of a witness: it has the kind {kind.hex() or 'none'}")
    _checker(kind, public)
    return name, key_id, kind, public


def signed_message(text: str, at_s: int) -> bytes:
    """What an Ed25519 cosignature signs of a checkpoint: its text as it stands, with its last newline."""
    return f"cosignature/v1\ntime {at_s}\n{text}".encode()


def cosigned_at(note: str, key: str) -> int | None:
    """When a witness has cosigned a checkpoint, in seconds since the epoch; None = it has not.

    Lines of keys that share its name alone are not its.

    Raises:
        Wrong: a cosignature of its key is wrong.
    """
    name, key_id, kind, public = witness_key(key)
    text, _, signatures = note.rpartition("\n\n")
    for line in signatures.split("\n"):
        if not line.startswith(f"\u2014 {name} "):
            continue
        blob = base64.b64decode(line.rpartition(" ")[2], validate=True)
        if blob[:4] != key_id:
            continue
        at_s = int.from_bytes(blob[4:_STAMP_BYTES], "big")
        message = signed_message(f"{text}\n", at_s) if kind == ED25519 else _subtree_message(name, at_s, text)
        try:
            require(at_s in INT64, f"the cosignature of the checkpoint by {name} is of no time")
            _checker(kind, public).verify(blob[_STAMP_BYTES:], message)
        except InvalidSignature:
            raise Wrong(f"the cosignature of the checkpoint by {name} is wrong: it was changed or forged") from None
        return at_s
    return None


def _subtree_message(name: str, at_s: int, text: str) -> bytes:
    """What an ML-DSA-44 cosignature signs: the tree that the checkpoint is of, from its first entry on."""
    origin, size, root, *_ = text.split("\n")
    names = [len(each).to_bytes(1, "big") + each for each in (name.encode(), origin.encode())]
    ends = (0).to_bytes(8, "big") + int(size).to_bytes(8, "big")
    return b"subtree/v1\n\0" + names[0] + at_s.to_bytes(8, "big") + names[1] + ends + base64.b64decode(root)


def _checker(kind: bytes, public: bytes) -> "Ed25519PublicKey | MLDSA44PublicKey":  # type: ignore[name-defined]  # noqa: F821
    """Raises Wrong where an ML-DSA-44 key can't be used: `cryptography` has it since 47, over OpenSSL 3.5 or newer."""
    if kind == ED25519:
        return Ed25519PublicKey.from_public_bytes(public)
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey  # noqa: PLC0415 - newer ones have it

        return MLDSA44PublicKey.from_public_bytes(public)
    except (ImportError, UnsupportedAlgorithm):
        raise Wrong("ML-DSA-44 can't be verified here: it takes a newer `cryptography`", "no_policy") from None
