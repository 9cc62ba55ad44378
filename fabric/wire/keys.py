"""API keys as they cross the network: `fab_<key id>_<secret>`.

The secret is 256 random bits, made where the key will be used; everybody else only ever sees its sha256.
"""

import hashlib
import re
import secrets
from typing import Final, NamedTuple

_KEY: Final = re.compile(r"fab_([A-Za-z0-9-]{1,64})_([A-Za-z0-9-]{32,128})", re.ASCII)
SECRET_BYTES: Final = 32


class ApiKey(NamedTuple):
    """A key in two parts. Only the id may be shown."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"ApiKey(key_id={self.key_id!r}, secret=...)"


def make_secret() -> str:
    """A new secret."""
    return secrets.token_hex(SECRET_BYTES)


def hash_secret(secret: str) -> str:
    """What is kept of a secret. It has 256 bits of its own, so a slow hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def format_key(key_id: str, secret: str) -> str:
    """The key as its owner keeps it."""
    return f"fab_{key_id}_{secret}"


def parse_key(text: str) -> ApiKey | None:
    """The parts of a key, or None if it isn't one."""
    match = _KEY.fullmatch(text.strip())
    return ApiKey(match[1], match[2]) if match else None


def key_id_of(account: str, request_id: str) -> str:
    """A key's id: the same for a repeated request."""
    return "k" + hashlib.sha256(f"key/{account}/{request_id}".encode()).hexdigest()[:15]
