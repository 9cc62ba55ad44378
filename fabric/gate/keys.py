"""Whether an API key still counts: the door looked, but what it saw may be two seconds old."""

from fabric.gate import refusals
from fabric.gate.core import Core
from fabric.gate.instructions import Refusal
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
