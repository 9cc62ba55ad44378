"""Whether an API key still counts: the door looked, but what it saw may be two seconds old."""

from fabric.gate import refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Refusal
from fabric.gate.state import Key
from fabric.units import AccountId, KeyId


def unusable(core: Core, key_id: KeyId, *, account_id: AccountId) -> Refusal | None:
    """Why this key can do nothing for the account; None if it can."""
    key = core.state.keys.get(key_id)
    if key is None or not (key.operator or key.account_id == account_id):
        return refusals.not_found("key", key_id)
    if key.revoked:
        return refusals.unusable_key("revoked", key_id, "use another one")
    if key.expires_at_us is not None and key.expires_at_us <= core.now_us:
        return refusals.unusable_key("expired", key_id, "make another one")
    return None


def left_uhs(key: Key) -> int | None:
    """What the key's own limit leaves, never less than 0; None if it has none."""
    return None if key.limit_uhs is None else max(0, key.limit_uhs - key.spent_uhs - key.held_uhs)


def holds(core: Core, key_id: str, delta_uhs: int) -> None:
    """A client's hold that counts against a key holds so much more, or less."""
    key = core.state.keys.get(KeyId(key_id)) if key_id else None
    if key is not None:
        key.held_uhs += delta_uhs


def spends(core: Core, key_id: str, *, account_id: AccountId, amount_uhs: int) -> None:
    """So much was used with a key of the account."""
    key = core.state.keys.get(KeyId(key_id)) if key_id else None
    if key is not None and key.account_id == account_id:
        key.spent_uhs += amount_uhs


def let_lapse(core: Core) -> None:
    """What lapsed holds held no longer counts against their keys."""
    for hold in core.book.take_lapsed():
        holds(core, hold.key_id, -hold.lapsed_uhs)
