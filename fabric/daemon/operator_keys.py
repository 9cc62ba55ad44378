"""The keys that `fabric up` makes: the operator's own, and one for each kind of its processes.

The operator's own may do everything and is made once. A process has a key that may do what it needs and nothing else. It
is made anew at every start, and what stood in its file before is good until the next start: a replica that was left
running may still settle with it. Older ones are revoked.
"""

import os
import uuid
from pathlib import Path
from typing import Any

from fabric.api.gate_port import GatePort
from fabric.gate.account_events import CreateKey, RevokeKey
from fabric.gate.key_scopes import KeyScope
from fabric.gate.questions import KeyOf, KeysOf
from fabric.server import gate_handle
from fabric.units import AccountId, KeyId
from fabric.wire.keys import format_key, hash_secret, key_id_of, make_secret, parse_key


async def ensure_root(port: GatePort, operator: AccountId, *, file: Path) -> None:
    """The operator's own key, unless the one in the file is known."""
    known = _id_in(file)
    if known is None or await port.ask(KeyOf(key_id=known)) is None:
        await _make(port, operator, file=file, name="made at the first start")


async def renew(port: GatePort, operator: AccountId, *, role: KeyScope, file: Path) -> None:
    """A new key for a kind of process; the one before stays good, those before that are revoked."""
    before = _id_in(file)
    made = await _make(port, operator, file=file, name=f"of every {role.value}", role=role)
    keys: Any = await port.ask(KeysOf(account_id=operator))
    for key in keys:
        if key.operator and key.scopes == (role.value,) and not key.revoked and key.key_id not in (made, before):
            await gate_handle.decide(port, RevokeKey(key_id=KeyId(key.key_id), account_id=operator))


async def _make(port: GatePort, operator: AccountId, *, file: Path, name: str, role: KeyScope | None = None) -> KeyId:
    secret, request_id = make_secret(), uuid.uuid4().hex
    key_id = KeyId(key_id_of(operator, request_id))
    await gate_handle.decide(
        port,
        CreateKey(
            key_id=key_id,
            account_id=operator,
            secret_sha256=hash_secret(secret),
            name=name,
            operator=True,
            scopes=() if role is None else (role,),
            request_id=request_id,
        ),
    )
    _keep(file, format_key(key_id, secret))
    return key_id


def _id_in(file: Path) -> KeyId | None:
    found = parse_key(file.read_text()) if file.exists() else None
    return None if found is None else KeyId(found.key_id)


def _keep(file: Path, key: str) -> None:
    """Readable by nobody else at any moment, and never half of it."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as out:
        out.write(key + "\n")
    draft.replace(file)
