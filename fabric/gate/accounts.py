"""What accounts, their organisations and their keys are told, each to the module that decides it."""

from typing import assert_never

from fabric.gate import closing, keys, limit_setting, organisations, refusals, treasury
from fabric.gate.account_events import (
    AddMember,
    AnyAccountEvent,
    CloseAccount,
    CloseProject,
    CreateKey,
    CreateProject,
    OpenAccount,
    RemoveMember,
    ResumeAccount,
    RevokeKey,
    SetRole,
    SuspendAccount,
)
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome
from fabric.gate.state import Key


def decide(core: Core, event: AnyAccountEvent) -> Outcome:  # noqa: C901, PLR0911 - a case each
    match event:
        case OpenAccount():
            return treasury.open_account(core, event)
        case CreateKey():
            return _create_key(core, event)
        case RevokeKey():
            return _revoke_key(core, event)
        case CreateProject():
            return organisations.create_project(core, event)
        case CloseProject():
            return organisations.close_project(core, event)
        case AddMember():
            return organisations.add_member(core, event)
        case SetRole():
            return organisations.set_role(core, event)
        case RemoveMember():
            return organisations.remove_member(core, event)
        case SuspendAccount():
            return closing.suspend(core, event)
        case ResumeAccount():
            return closing.resume(core, event)
        case CloseAccount():
            return closing.close(core, event)
        case _:
            assert_never(event)


def _create_key(core: Core, event: CreateKey) -> Outcome:
    if event.account_id not in core.state.accounts:
        return refusals.not_found("account", event.account_id)
    if not event.key_id:
        return refusals.invalid("a key needs an id: name one", code="invalid_key_id")
    refusal = keys.unfit(event) or organisations.bad_tags(event.tags)
    refusal = refusal or organisations.no_key(core, event) or keys.may_not_make(core, event)
    if refusal := refusal or keys.too_many(core, event):
        return refusal
    if event.key_id in core.state.keys:
        return refusals.conflict(f"there is a key {event.key_id!r} already", code="key_exists")
    refusal = None if event.limit_uhs is None else refusals.bad_amount("a key's limit is", event.limit_uhs)
    if refusal := refusal or limit_setting.unfit(core, event):
        return refusal
    limit_setting.made(core, event.key_id, event.limits)
    core.keep_key(
        Key(
            key_id=event.key_id,
            account_id=event.account_id,
            secret_sha256=event.secret_sha256,
            name=event.name,
            operator=event.operator,
            limit_uhs=event.limit_uhs,
            requests_per_min=event.requests_per_min,
            tokens_per_min=event.tokens_per_min,
            expires_at_us=event.expires_at_us,
            scopes=keys.given(event),
            project="" if event.project == event.account_id else event.project,
            member=event.member,
            tags=event.tags,
        )
    )
    return Accepted()


def _revoke_key(core: Core, event: RevokeKey) -> Outcome:
    key = core.state.keys.get(event.key_id)
    if key is None or not (event.account_id is None or keys.is_of(core, key, event.account_id)):
        return refusals.not_found("key", event.key_id)
    key.revoked = True
    return Accepted()
