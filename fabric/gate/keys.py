"""Whether an API key still counts, and for what: the door looked, but what it saw may be two seconds old."""

from typing import Final

from msgspec.structs import replace

from fabric.charging.tags import inherited
from fabric.gate import refusals
from fabric.gate.account_events import CreateKey
from fabric.gate.core import Core
from fabric.gate.events import JobSpec, Submit
from fabric.gate.instructions import Refusal
from fabric.gate.key_scopes import KeyScope, effective
from fabric.gate.key_scopes import unfit as unfit_scopes
from fabric.gate.organisation_state import Member, Standing
from fabric.gate.roles import OF_MEMBERS, Role, of_scopes
from fabric.gate.state import Key
from fabric.units import AccountId, KeyId

GOOD_MAX: Final = 256
"""Keys of one account that are neither revoked nor expired, where no cap says another number."""
EVER_MAX: Final = 4_096
"""Keys of one account, whatever became of them: what was done with a key is told for ever."""
RATE_MAX: Final = 1_000_000_000
"""Calls of models, or LLM tokens, with one key a minute."""
_JOBS: Final = frozenset((KeyScope.JOBS_OWN, KeyScope.JOBS_ALL, KeyScope.HOST, KeyScope.OPERATOR))
_MODELS: Final = frozenset((KeyScope.MODELS, KeyScope.OPERATOR))


def scopes_of(core: Core, key: Key) -> frozenset[KeyScope]:
    """All that the key may be used for: what it was given, within the role of its member."""
    own, member = given_to(key), _member_of(core, key)
    return own if member is None else own & OF_MEMBERS[member.role]


def given_to(key: Key) -> frozenset[KeyScope]:
    """All that the key was given, whatever its member's role."""
    return effective(
        key.scopes, operator=key.operator, limited=key.limit_uhs is not None, ends=key.expires_at_us is not None
    )


def role_of(core: Core, key: Key) -> Role:
    """Its member's role; of a key of nobody's, that which its scopes come to."""
    member = _member_of(core, key)
    return of_scopes(scopes_of(core, key)) if member is None else member.role


def project_of(key: Key) -> str:
    """What it works for: a project, or that which is called like its account."""
    return key.project or key.account_id


def worked_for(core: Core, key_id: str, *, account_id: AccountId) -> dict[str, str]:
    """Of a record of something that an account pays for: which project it was for, and which member did it. A key is of one
    project and of one member as long as it is known.
    """
    key = core.state.keys.get(KeyId(key_id)) if key_id else None
    if key is None or key.account_id != account_id:
        return {"project": "", "member": ""}
    return {"project": "" if key.project == account_id else key.project, "member": key.member}


def tags_of(core: Core, key: Key) -> tuple[str, ...]:
    """What is done with it is marked with: its project's tags and its own."""
    if not key.project:
        return key.tags
    return inherited(core.state.organisations[organisation_of(core, key)].projects[key.project].tags, key.tags)


def marked(core: Core, event: Submit) -> JobSpec:
    """What a job asks for, with the tags that its key and project give it."""
    key = core.state.keys.get(event.key_id) if event.key_id else None
    given = () if key is None or key.account_id != event.account_id else tags_of(core, key)
    return replace(event.spec, tags=inherited(given, event.spec.tags)) if given else event.spec


def dead(core: Core, key: Key) -> str:
    """The code of why it will never count again, but for its end; "" if it does."""
    if key.revoked:
        return "revoked"
    account = core.state.accounts.get(key.account_id)
    if account is not None and account.standing in (Standing.CLOSING, Standing.CLOSED):
        return "account_closed"
    member = _member_of(core, key)
    if member is not None and member.left_at_us is not None:
        return "member_left"
    organisation = core.state.organisations.get(organisation_of(core, key))
    project = organisation.projects.get(key.project) if organisation is not None and key.project else None
    return "project_closed" if project is not None and project.closed_at_us is not None else ""


def suspended(core: Core, key: Key) -> str:
    """Why its account is suspended; "" if it isn't, or the key is an operator's."""
    account = core.state.accounts.get(key.account_id)
    return account.standing_why if account is not None and account.standing is Standing.SUSPENDED else ""


def _member_of(core: Core, key: Key) -> Member | None:
    if not key.member:
        return None
    return core.state.organisations[organisation_of(core, key)].members[key.member]


def organisation_of(core: Core, key: Key) -> AccountId:
    """Whose it is."""
    account = core.state.accounts.get(key.account_id)
    return (account.organisation if account is not None else None) or key.account_id


def is_operators(core: Core, key_id: KeyId | None) -> bool:
    key = core.state.keys.get(key_id) if key_id else None
    return key is not None and key.operator


def unusable(core: Core, key_id: KeyId, *, account_id: AccountId) -> Refusal | None:
    """Why this key can do nothing for the account; None if it can."""
    key = core.state.keys.get(key_id)
    if key is None or not (key.operator or is_of(core, key, account_id)):
        return refusals.not_found("key", key_id)
    if not key.operator and key.account_id != account_id:
        return refusals.restricted_key(
            f"what is done with key {key_id!r} {key.account_id} pays, and no other wallet: use a key of a project that"
            f" {account_id} pays for",
            key_id,
        )
    if why := dead(core, key):
        return refusals.dead_key(why, key_id)
    if key.expires_at_us is not None and key.expires_at_us <= core.now_us:
        return refusals.unusable_key("expired", key_id, "make another one")
    return None


def no_jobs(core: Core, key_id: KeyId, *, account_id: AccountId) -> Refusal | None:
    """Why no job can be submitted with this key; None if one can."""
    return unusable(core, key_id, account_id=account_id) or _lacks(
        core, core.state.keys[key_id], _JOBS, "submitting jobs"
    )


def no_models(core: Core, key_id: KeyId, *, account_id: AccountId) -> Refusal | None:
    """Why no model can be called with this key; None if one can."""
    return unusable(core, key_id, account_id=account_id) or _lacks(
        core, core.state.keys[key_id], _MODELS, "calling models"
    )


def _lacks(core: Core, key: Key, needed: frozenset[KeyScope], what: str) -> Refusal | None:
    if scopes_of(core, key) & needed:
        return None
    return refusals.restricted_key(f"key {key.key_id!r} is not for {what}: use one that is", key.key_id)


def unfit(event: CreateKey) -> Refusal | None:
    """What is wrong with a key that has these scopes; None if nothing is."""
    scopes = frozenset(event.scopes)
    limited, ends = is_limited(event), event.expires_at_us is not None
    if why := unfit_scopes(scopes, operator=event.operator, limited=limited, ends=ends):
        return refusals.invalid(why, code="invalid_scope")
    if not (0 <= event.requests_per_min <= RATE_MAX and 0 <= event.tokens_per_min <= RATE_MAX):
        return refusals.invalid(
            f"a key may have 0 (no limit) to {RATE_MAX} calls and tokens a minute", code="invalid_rate"
        )
    return None


def is_limited(event: CreateKey) -> bool:
    """Whether a limit of its own can keep the new key from spending."""
    return event.limit_uhs is not None or any(each.hard for each in event.limits)


def given(event: CreateKey) -> tuple[KeyScope, ...]:
    """The scopes that the new key keeps: those of a key whose limits reset don't follow from `limit_uhs`."""
    if event.scopes or event.limit_uhs is not None or not is_limited(event):
        return event.scopes
    own = effective((), operator=event.operator, limited=True, ends=event.expires_at_us is not None)
    return tuple(scope for scope in KeyScope if scope in own)


def may_not_make(core: Core, event: CreateKey) -> Refusal | None:
    """Why whoever asks for a key can't make this one: it must count, be for making keys, and make none stronger."""
    if event.made_with is None:
        return None
    maker = core.state.keys.get(event.made_with)
    if maker is None or not (maker.operator or is_of(core, maker, event.account_id)):
        return refusals.not_found("key", event.made_with)
    if refusal := unusable(core, event.made_with, account_id=maker.account_id):
        return refusal
    own = scopes_of(core, maker)
    if KeyScope.OPERATOR in own:
        return None
    if KeyScope.KEYS not in own or maker.limit_uhs is not None or event.operator:
        return refusals.restricted_key(
            f"key {maker.key_id!r} can't make such keys: use one that may, and that has no limit", maker.key_id
        )
    return _of_others(core, maker, event) or _stronger(core, maker, event)


def is_of(core: Core, key: Key, account_id: AccountId) -> bool:
    """Whether the account is the key's, or another of its organisation's."""
    account = core.state.accounts.get(account_id)
    return account is not None and (account.organisation or account_id) == organisation_of(core, key)


def _of_others(core: Core, maker: Key, event: CreateKey) -> Refusal | None:
    """Who isn't an owner makes keys of its own project, for itself."""
    same = event.account_id == maker.account_id and (event.project or event.account_id) == project_of(maker)
    if (same and event.member == maker.member) or role_of(core, maker) is Role.OWNER:
        return None
    whose = f" and of {maker.member}" if maker.member else ""
    return refusals.restricted_key(
        f"key {maker.key_id!r} can only make keys of project {project_of(maker)}{whose}: ask an owner", maker.key_id
    )


def _stronger(core: Core, maker: Key, event: CreateKey) -> Refusal | None:
    """What the new key could do that its maker can't; None if there is nothing."""
    limited, ends = is_limited(event), event.expires_at_us is not None
    wanted = effective(event.scopes, operator=False, limited=limited, ends=ends)
    if event.member:
        organisation = core.state.organisations[organisation_of(core, maker)]
        wanted &= OF_MEMBERS[organisation.members[event.member].role]
    if more := wanted - scopes_of(core, maker):
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
    most = GOOD_MAX if core.state.caps is None else core.state.caps.keys
    if good >= most:
        return refusals.conflict(
            f"the account has {good} keys that are good, which is all it may have: revoke some (`fabric keys revoke`), or ask the"
            " operator for more (limits.keys)",
            code="too_many_keys",
            limit=most,
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
