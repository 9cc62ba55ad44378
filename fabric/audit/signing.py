"""The file that holds the log's signing key: 32 bytes in base64, readable by its owner alone."""

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import Final

from fabric.audit.checkpoint import new_private_key
from fabric.errors import InvalidConfig

KEY_BYTES: Final = 32
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def load_or_create_key(path: Path) -> bytes:
    """The private key in the file; a new one where there is none.

    Raises:
        InvalidConfig: others may read the file, or it holds no key. It is never replaced: what was signed with the old
            key would no longer verify.
    """
    try:
        return _create(path)
    except FileExistsError:
        return _load(path)


def _create(path: Path) -> bytes:
    """Write to a file of our own and link it into place, so that nobody ever reads half a key."""
    if path.exists():
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = new_private_key()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        draft.unlink()
    return key


def _load(path: Path) -> bytes:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        raise InvalidConfig(
            f"the signing key {path} can be read by others (mode {mode:o}): run chmod 600 on it", file=str(path)
        )
    try:
        key = base64.b64decode(path.read_bytes().strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidConfig(
            f"{path} holds no signing key ({KEY_BYTES} bytes in base64): restore it from a backup, or move it away to"
            " begin with a new key",
            file=str(path),
        )
    return key
