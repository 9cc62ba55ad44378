"""A witness's key: it says when a log was seen to have grown to a checkpoint (C2SP tlog-cosignature, Ed25519)."""

import base64
import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fabric.audit.verify.cosignatures import ED25519, signed_message

_ID_BYTES = 4


class Cosigner:
    """32 bytes that the witness keeps secret, under the name that it cosigns with."""

    def __init__(self, name: str, private_bytes: bytes) -> None:
        """Name a key.

        Raises:
            ValueError: a name that is empty, or has a space or a plus in it; or bytes that are no Ed25519 key.
        """
        if not name or "+" in name or not name.isprintable() or any(char.isspace() for char in name):
            raise ValueError(f"{name!r} can't name a witness: use a host and path such as 'witness.example/w1', no '+'")
        self._key = Ed25519PrivateKey.from_private_bytes(private_bytes)
        self.name = name
        public = ED25519 + self._key.public_key().public_bytes_raw()
        self._id = hashlib.sha256(name.encode() + b"\n" + public).digest()[:_ID_BYTES]
        self.key = f"{name}+{self._id.hex()}+{base64.b64encode(public).decode()}"
        """The public half, as it is published."""

    def cosign(self, text: str, *, at_s: int) -> str:
        """The line to add to a checkpoint's note; `text` is what stands before its signatures, with its last newline."""
        signature = self._key.sign(signed_message(text, at_s))
        blob = self._id + at_s.to_bytes(8, "big") + signature
        return f"\u2014 {self.name} {base64.b64encode(blob).decode()}\n"
