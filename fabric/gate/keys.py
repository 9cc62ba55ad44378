"""Whether an API key still counts, and for what: the door looked, but what it saw may be two seconds old."""

from typing import Final

from fabric.gate import refusals
from fabric.gate.account_events import CreateKey
from fabric.gate.core import Core
from fabric.gate.instructions import Refusal
from fabric.gate.key_scopes import KeyScope, effective
from fabric.gate.key_scopes import unfit as unfit_scopes
from fabric.gate.state import Key
from fabric.units import AccountId, KeyId

GOOD_MAX: Final = 256
"""Keys of one account that are neither revoked nor expired."""
EVER_MAX: Final = 4_096
"""Keys of one account, whatever became of them: what was done with a key is told for ever."""
RATE_MAX: Final = 1_000_000_000
"""Calls of models, or LLM tokens, with one key a minute."""
_JOBS: Final = frozenset((KeyScope.JOBS_OWN, KeyScope.JOBS_ALL, KeyScope.HOST, KeyScope.OPERATOR))
_MODELS: Final = frozenset((KeyScope.MODELS, KeyScope.OPERATOR))


def scopes_of(key: Key) -> frozenset[KeyScope]:
    """All that the key may be used for."""
    return effective(
        key.scopes, operator=key.operator, limited=key.limit_uhs is not None, ends=key.expires_at_us is not None
    )


def is_operators(core: Core, key_id: KeyId | None) -> bool:
    key = core.state.keys.get(key_id) if key_id else None
    return key is not None and key.operator


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


def no_jobs(core: Core, key_id: KeyId, *, account_id: AccountId) -> Refusal | None:
    """Why no job can be submitted with this key; None if one can."""
    return unusable(core, key_id, account_id=account_id) or _lacks(core.state.keys[key_id], _JOBS, "submitting jobs")


def no_models(core: Core, key_id: KeyId, *, account_id: AccountId) -> Refusal | None:
    """Why no model can be called with this key; None if one can."""
    return unusable(core, key_id, account_id=account_id) or _lacks(core.state.keys[key_id], _MODELS, "calling models")


def _lacks(key: Key, needed: frozenset[KeyScope], what: str) -> Refusal | None:
    if scopes_of(key) & needed:
        return None
    return refusals.restricted_key(f"key {key.key_id!r} is not for {what}: use one that is", key.key_id)


def unfit(event: CreateKey) -> Refusal | None:
    """What is wrong with a key that has these scopes; None if nothing is."""
    scopes = frozenset(event.scopes)
    limited, ends = event.limit_uhs is not None, event.expires_at_us is not None
    if why := unfit_scopes(scopes, operator=event.operator, limited=limited, ends=ends):
        return refusals.invalid(why, code="invalid_scope")
    if not (0 <= event.requests_per_min <= RATE_MAX and 0 <= event.tokens_per_min <= RATE_MAX):
        return refusals.invalid(
            f"a key may have 0 (no limit) to {RATE_MAX} calls and tokens a minute", code="invalid_rate"
        )
    return None


def may_not_make(core: Core, event: CreateKey) -> Refusal | None:
    """Why whoever asks for a key can't make this one: it must count, be for making keys, and make none stronger."""
    if event.made_with is None:
        return None
    if refusal := unusable(core, event.made_with, account_id=event.account_id):
        return refusal
    maker = core.state.keys[event.made_with]
    own = scopes_of(maker)
    if KeyScope.OPERATOR in own:
        return None
    if KeyScope.KEYS not in own or maker.limit_uhs is not None or event.operator:
        return refusals.restricted_key(
            f"key {maker.key_id!r} can't make such keys: use one that may, and that has no limit", maker.key_id
        )
    return _stronger(maker, event)


def _stronger(maker: Key, event: CreateKey) -> Refusal | None:
    """What the new key could do that its maker can't; None if there is nothing."""
    limited, ends = event.limit_uhs is not None, event.expires_at_us is not None
    if more := effective(event.scopes, operator=False, limited=limited, ends=ends) - scopes_of(maker):
        names = ", ".join(sorted(scope.value for scope in more))
        return refusals.restricted_key(
            f"key {maker.key_id!r} can't make one that may do more than itself ({names}): name the new key's scopes",
            maker.key_id,
        )
    end_us = maker.expires_at_us
    if end_us is not None and (event.expires_at_us is None or event.expires_at_us > end_us):
        return refusals.restricted_key(
            f"key {maker.key_id!r} can't make one that is good for longer than itself: name an earlier end",
            maker.key_id,
        )
    return None


def too_many(core: Core, event: CreateKey) -> Refusal | None:
    """Why the account can't have one more; operators' keys are not counted."""
    if event.operator:
        return None
    own = [key for key in core.keys_of.get(event.account_id, ()) if not key.operator]
    good = sum(1 for key in own if not (key.revoked or (key.expires_at_us or core.now_us + 1) <= core.now_us))
    if good >= GOOD_MAX:
        return refusals.conflict(
            f"the account has {good} keys that are good, which is all it may have: revoke some (`fabric keys revoke`)",
            code="too_many_keys",
            limit=GOOD_MAX,
        )
    if len(own) >= EVER_MAX:
        return refusals.conflict(
            f"the account has made {len(own)} keys, which is all it may: ask the operator for another account",
            code="too_many_keys",
            limit=EVER_MAX,
        )
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


def let_go(core: Core) -> None:
    """What was set aside for lapsed holds, and is free again, no longer counts against their keys."""
    for hold in core.book.take_given_up():
        holds(core, hold.key_id, -hold.lapsed_uhs)
