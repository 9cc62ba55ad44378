"""Organisations: whose wallets and projects are whose, and which members may act for them.

An account that nobody has given an organisation is one of its own: one wallet, one project that is called like it, no
members. It is kept as soon as it has more. Which wallet pays is never implicit: a project has one, for ever, and a key has
one project.
"""

from typing import Final

from fabric.charging.tags import DEFAULT_BYTES_MAX, DEFAULTS_MAX, flaw_of
from fabric.gate import keys, refusals
from fabric.gate.account_events import (
    AddMember,
    CloseProject,
    CreateKey,
    CreateProject,
    OpenAccount,
    RemoveMember,
    SetRole,
)
from fabric.gate.caps import Caps
from fabric.gate.core import Core
from fabric.gate.instructions import Accepted, Outcome, Refusal
from fabric.gate.key_scopes import KeyScope
from fabric.gate.organisation_state import Member, Organisation, Project
from fabric.gate.roles import OF_MEMBERS, Role
from fabric.gate.state import Key
from fabric.units import AccountId, KeyId

NAME_MAX: Final = 64
TITLE_MAX: Final = 100


def of(core: Core, account_id: AccountId) -> Organisation:
    """Whose the account is; to be looked at only."""
    account = core.state.accounts[account_id]
    found = core.state.organisations.get(account.organisation or account_id)
    return found or Organisation(organisation=account_id, wallets=[account_id])


def no_wallet(core: Core, event: OpenAccount) -> Refusal | None:
    """Why no such account can be opened for that organisation; None if one can."""
    if event.organisation and event.organisation not in core.state.accounts:
        return refusals.not_found("account", event.organisation)
    if any(event.account_id in each.projects for each in core.state.organisations.values()):
        return refusals.conflict(f"a project is called {event.account_id!r}: choose another id", code="project_exists")
    return None


def give(core: Core, account_id: AccountId, organisation: AccountId) -> None:
    """The account, which is new, is one more wallet of that organisation."""
    found = _kept(core, organisation)
    found.wallets.append(account_id)
    core.state.accounts[account_id].organisation = found.organisation


def create_project(core: Core, event: CreateProject) -> Outcome:
    if refusal := _unknown(core, event.account_id) or may_not(
        core, event.by_key, event.account_id, OF_MEMBERS[Role.OWNER]
    ):
        return refusal
    found = of(core, event.account_id)
    if event.wallet not in found.wallets:
        return refusals.invalid(
            f"project {event.project!r} needs a wallet of its organisation: choose of {', '.join(found.wallets)}",
            code="unknown_wallet",
            wallet=event.wallet,
        )
    if refusal := bad_name("a project", event.project) or bad_tags(event.tags):
        return refusal
    if event.project in found.projects or AccountId(event.project) in core.state.accounts:
        return refusals.conflict(
            f"there is a project or an account {event.project!r} already: choose another name", code="project_exists"
        )
    most = (core.state.caps or Caps()).projects
    if sum(1 for each in found.projects.values() if each.closed_at_us is None) >= most:
        return refusals.conflict(
            f"the organisation has {most} projects that are open, which is all it may have: close some (`fabric projects close`),"
            " or ask the operator for more (limits.projects)",
            code="too_many_projects",
            limit=most,
        )
    _kept(core, event.account_id).projects[event.project] = Project(
        project=event.project,
        name=event.name[:TITLE_MAX] or event.project,
        wallet=event.wallet,
        opened_at_us=core.now_us,
        tags=event.tags,
    )
    return Accepted()


def _too_many_members(core: Core, account_id: AccountId) -> Refusal | None:
    most = (core.state.caps or Caps()).members
    if sum(1 for each in of(core, account_id).members.values() if each.left_at_us is None) < most:
        return None
    return refusals.conflict(
        f"the organisation has {most} members, which is all it may have: remove some (`fabric members remove`), or ask the"
        " operator for more (limits.members)",
        code="too_many_members",
        limit=most,
    )


def close_project(core: Core, event: CloseProject) -> Outcome:
    if refusal := _unknown(core, event.account_id) or may_not(
        core, event.by_key, event.account_id, OF_MEMBERS[Role.OWNER]
    ):
        return refusal
    project = of(core, event.account_id).projects.get(event.project)
    if project is None:
        return refusals.not_found("project", event.project)
    if project.closed_at_us is None:
        project.closed_at_us = core.now_us
    return Accepted()


def add_member(core: Core, event: AddMember) -> Outcome:
    if refusal := _unknown(core, event.account_id) or _bad_role(event.role):
        return refusal
    if refusal := may_not(core, event.by_key, event.account_id, OF_MEMBERS[event.role]):
        return refusal
    refusal = bad_name("a member", event.member) or _too_many_members(core, event.account_id)
    before = of(core, event.account_id).members.get(event.member)
    if before is not None and before.left_at_us is None:
        return refusals.conflict(
            f"{event.member!r} is a member already, as {before.role.value}: change that with `fabric members role`",
            code="member_exists",
        )
    if before is not None:
        return refusals.conflict(
            f"{event.member!r} was a member and has left, and whose records are whose is kept: choose another name",
            code="member_left",
        )
    if refusal:
        return refusal
    _kept(core, event.account_id).members[event.member] = Member(
        member=event.member,
        name=event.name[:TITLE_MAX] or event.member,
        role=event.role,
        joined_at_us=core.now_us,
    )
    return Accepted()


def set_role(core: Core, event: SetRole) -> Outcome:
    member = _member(core, event.account_id, event.member)
    if isinstance(member, Refusal):
        return member
    needed = OF_MEMBERS[member.role] | OF_MEMBERS.get(event.role, frozenset())
    if refusal := _bad_role(event.role) or may_not(core, event.by_key, event.account_id, needed):
        return refusal
    if event.role is not Role.OWNER and (refusal := _last_owner(core, event.account_id, member)):
        return refusal
    member.role = event.role
    return Accepted()


def remove_member(core: Core, event: RemoveMember) -> Outcome:
    member = _member(core, event.account_id, event.member)
    if isinstance(member, Refusal):
        return member
    if refusal := may_not(core, event.by_key, event.account_id, OF_MEMBERS[member.role]):
        return refusal
    if refusal := _last_owner(core, event.account_id, member):
        return refusal
    member.left_at_us = core.now_us
    return Accepted()


def no_key(core: Core, event: CreateKey) -> Refusal | None:
    """Why there can be no such key of that project and member; None if there can."""
    found = of(core, event.account_id)
    if event.operator and (event.project or event.member):
        return refusals.invalid("an operator's key is of no project and no member: leave them out", code="invalid_key")
    if event.project and event.project != event.account_id:
        project = found.projects.get(event.project)
        if project is None:
            return refusals.not_found("project", event.project)
        if project.wallet != event.account_id:
            return refusals.invalid(
                f"project {event.project!r} is paid by {project.wallet}, not by {event.account_id}: make its key there",
                code="wrong_wallet",
                wallet=project.wallet,
            )
        if project.closed_at_us is not None:
            return refusals.conflict(f"project {event.project!r} is closed: choose another", code="project_closed")
    if event.member:
        member = found.members.get(event.member)
        if member is None or member.left_at_us is not None:
            return refusals.not_found("member", event.member)
    return None


def bad_name(what: str, text: str) -> Refusal | None:
    """Why nothing can be called so; None if it can."""
    if 0 < len(text) <= NAME_MAX and all(char.isascii() and (char.isalnum() or char in "-_.@+") for char in text):
        return None
    return refusals.invalid(
        f"{text[:NAME_MAX]!r} can't name {what}: use 1 to {NAME_MAX} of A-Z, a-z, 0-9 and '-_.@+'", code="invalid_name"
    )


def bad_tags(tags: tuple[str, ...]) -> Refusal | None:
    """Why no key and no project can have these; None if one can."""
    flaw = flaw_of(tags, most=DEFAULTS_MAX, bytes_max=DEFAULT_BYTES_MAX)
    return refusals.invalid(f"its jobs and calls can't be marked so: {flaw}", code="invalid_tags") if flaw else None


def _kept(core: Core, account_id: AccountId) -> Organisation:
    found = of(core, account_id)
    return core.state.organisations.setdefault(found.organisation, found)


def _unknown(core: Core, account_id: AccountId) -> Refusal | None:
    return None if account_id in core.state.accounts else refusals.not_found("account", account_id)


def _member(core: Core, account_id: AccountId, name: str) -> Member | Refusal:
    if refusal := _unknown(core, account_id):
        return refusal
    member = of(core, account_id).members.get(name)
    return refusals.not_found("member", name) if member is None or member.left_at_us is not None else member


def _bad_role(role: Role) -> Refusal | None:
    if role in OF_MEMBERS:
        return None
    known = ", ".join(OF_MEMBERS)
    return refusals.invalid(f"a member can't be {role.value}: choose of {known}", code="invalid_role")


def may_not(core: Core, by_key: KeyId | None, account_id: AccountId, needed: frozenset[KeyScope]) -> Refusal | None:
    """Why whoever asks can't do this: it must be good for making keys, have no limit, and be no weaker than what it gives."""
    if by_key is None:
        return None
    key = core.state.keys.get(by_key)
    if key is None or not (key.operator or key.account_id in of(core, account_id).wallets):
        return refusals.not_found("key", by_key)
    if refusal := keys.unusable(core, by_key, account_id=key.account_id):
        return refusal
    own = keys.scopes_of(core, key)
    if KeyScope.OPERATOR in own or key.operator:
        return None
    if KeyScope.KEYS in own and key.limit_uhs is None and own >= needed and _is_owners(core, key):
        return None
    return refusals.restricted_key(f"key {by_key!r} can't do this: use an owner's that may do everything", by_key)


def _is_owners(core: Core, key: Key) -> bool:
    return keys.role_of(core, key) is Role.OWNER


def _last_owner(core: Core, account_id: AccountId, member: Member) -> Refusal | None:
    """An organisation that has owners keeps one."""
    members = of(core, account_id).members.values()
    owners = [each for each in members if each.role is Role.OWNER and each.left_at_us is None]
    if owners != [member]:
        return None
    return refusals.conflict(
        f"{member.member!r} is the last owner: make another member an owner first (`fabric members role`)",
        code="last_owner",
    )
