"""Signed checkpoints: a tree head that its signer can't take back.

The text is a C2SP tlog-checkpoint (origin, size, root in base64, a line each) in a C2SP signed note: an empty line, then
"— <key name> <base64(key id ‖ Ed25519 signature)>". The key id is the first 4 bytes of
SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key). Witnesses may add lines of their own. Knows no files: keys are bytes here.
"""

import base64
import binascii
from hashlib import sha256
from typing import Final, NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519: Final = b"\x01"
_SIGNED_BY: Final = "\u2014 "
_KEY_ID_BYTES: Final = 4
_CHECKPOINT_LINES: Final = 3


class NoteError(ValueError):
    """The text is no checkpoint that this key signed; the message says why."""


class Checkpoint(NamedTuple):
    """What a note seals: so many leaves of this log hash to this root."""

    origin: str
    size: int
    root: bytes
    more: tuple[str, ...] = ()
    """Extension lines: what else the signer says with it."""

    def text(self) -> str:
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.more)
        return "".join(f"{line}\n" for line in lines)


class Verifier:
    """The public half of a log's key, under the name it signs with."""

    __slots__ = ("_key", "key_id", "name", "public_bytes")

    def __init__(self, name: str, public_bytes: bytes) -> None:
        """Check a key name and 32 bytes.

        Raises:
            ValueError: a name that is empty, or has a space or a plus in it; or bytes that are no Ed25519 key.
        """
        if not name or "+" in name or any(char.isspace() for char in name):
            raise ValueError(f"{name!r} can't name a key: use a host and path such as 'fabric.example/lab', no '+'")
        self._key = Ed25519PublicKey.from_public_bytes(public_bytes)
        self.name = name
        self.public_bytes = public_bytes
        self.key_id = sha256(name.encode() + b"\n" + _ED25519 + public_bytes).digest()[:_KEY_ID_BYTES]

    @classmethod
    def parse(cls, text: str) -> Self:
        """A key from its published form, `<name>+<key id>+<base64(0x01 ‖ public key)>`."""
        try:
            name, key_id, encoded = text.strip().split("+", 2)
            key = base64.b64decode(encoded, validate=True)
            verifier = cls(name, key[1:])
        except ValueError as error:
            raise ValueError(f"{text!r} is no verifier key: want <name>+<key id>+<base64>") from error
        if key[:1] != _ED25519 or verifier.key_id.hex() != key_id:
            raise ValueError(f"{text!r} names key {key_id}, but hashes to {verifier.key_id.hex()}")
        return verifier

    def __str__(self) -> str:
        encoded = base64.b64encode(_ED25519 + self.public_bytes).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def open(self, note: str) -> str:
        """The text that this key signed.

        Raises:
            NoteError: no line by this key, or one whose signature is wrong.
        """
        text, empty_line, signatures = note.rpartition("\n\n")
        if not empty_line or not signatures.endswith("\n"):
            raise NoteError("the note has no signatures: it must end in an empty line and '— name signature' lines")
        text += "\n"
        for line in signatures[:-1].split("\n"):
            name, signature = _signature_of(line)
            if name != self.name or signature[:_KEY_ID_BYTES] != self.key_id:
                continue
            try:
                self._key.verify(signature[_KEY_ID_BYTES:], text.encode())
            except InvalidSignature as error:
                raise NoteError(f"the signature by {self.name} is wrong: the note was changed, or forged") from error
            return text
        raise NoteError(f"{self.name} (key {self.key_id.hex()}) has not signed this note")

    def checkpoint(self, note: str) -> Checkpoint:
        """The checkpoint that this key signed.

        Raises:
            NoteError: not signed by this key, or not a checkpoint.
        """
        return parse_checkpoint(self.open(note))


class Signer:
    """The private half: 32 bytes that whoever keeps the log keeps secret."""

    __slots__ = ("_key", "verifier")

    def __init__(self, name: str, private_bytes: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private_bytes)
        self.verifier = Verifier(name, self._key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """The note of a text, which must end in a newline."""
        if not text.endswith("\n"):
            raise ValueError("the text of a note ends in a newline")
        signature = base64.b64encode(self.verifier.key_id + self._key.sign(text.encode())).decode()
        return f"{text}\n{_SIGNED_BY}{self.verifier.name} {signature}\n"

    def checkpoint(self, *, size: int, root: bytes, more: tuple[str, ...] = ()) -> str:
        """The signed note of a tree head, with the key's name as the log's origin."""
        return self.sign(Checkpoint(self.verifier.name, size, root, more).text())


def new_private_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes_raw()


def parse_checkpoint(text: str) -> Checkpoint:
    """A checkpoint from a note's text."""
    lines = text.split("\n")
    if len(lines) <= _CHECKPOINT_LINES or not lines[0]:
        raise NoteError("a checkpoint has three lines: origin, tree size, root hash in base64")
    origin, size, root, *more = lines[:-1]
    if not (size.isascii() and size.isdecimal()) or str(int(size)) != size:
        raise NoteError(f"{size!r} is no tree size: want a plain decimal without leading zeros")
    try:
        digest = base64.b64decode(root, validate=True)
    except binascii.Error as error:
        raise NoteError(f"{root!r} is no root hash in base64") from error
    if len(digest) != sha256().digest_size:
        raise NoteError(f"a root hash has 32 bytes, not {len(digest)}")
    return Checkpoint(origin, int(size), digest, tuple(more))


def _signature_of(line: str) -> tuple[str, bytes]:
    name, space, encoded = line.removeprefix(_SIGNED_BY).partition(" ")
    if not line.startswith(_SIGNED_BY) or not space:
        raise NoteError(f"{line!r} is no signature line: want '— name signature'")
    try:
        return name, base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise NoteError(f"{line!r} has a signature that is not base64") from error
