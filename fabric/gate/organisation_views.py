"""What the gate shows of organisations and their keys."""

import msgspec

from fabric.gate.limit_views import LimitView


class ProjectView(msgspec.Struct, frozen=True, kw_only=True):
    """Work that one wallet pays for."""

    project: str
    name: str
    wallet: str
    tags: tuple[str, ...] = ()
    """What all its jobs and calls are marked with."""
    opened_at_us: int
    closed_at_us: int | None = None
    keys: int = 0
    """That still count."""


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who may act for an organisation."""

    member: str
    name: str
    role: str
    joined_at_us: int
    left_at_us: int | None = None
    keys: int = 0
    """That still count."""


class OrganisationView(msgspec.Struct, frozen=True, kw_only=True):
    """A customer with all its wallets."""

    organisation: str
    """The account that was its first."""
    wallets: tuple[str, ...]
    projects: tuple[ProjectView, ...]
    """Those called like their wallets first, then in the order they were made; closed ones too."""
    members: tuple[MemberView, ...]
    """In the order they joined; those who have left, too."""


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    key_id: str
    account_id: str
    secret_sha256: str
    name: str
    operator: bool
    limit_uhs: int | None
    spent_uhs: int
    requests_per_min: int = 0
    tokens_per_min: int = 0
    expires_at_us: int | None
    revoked: bool
    scopes: tuple[str, ...] = ()
    """All that it may be used for."""
    held_uhs: int = 0
    limits: tuple[LimitView, ...] = ()
    """Those that reset."""
    role: str = ""
    """owner | billing | developer | read-only | admin | operator-billing | support | auditor | gateway | replica | agent"""
    project: str = ""
    member: str = ""
    """"" = it is nobody's."""
    dead: str = ""
    """Why it will never count again: revoked | account_closed | member_left | project_closed; "" = it does, but for its end."""
    suspended: str = ""
    """Why its account is suspended: it can look and pay, and nothing else; "" = it isn't."""
    organisation: str = ""
    wallets: tuple[str, ...] = ()
    """The accounts of its organisation, where those are several."""
    tags: tuple[str, ...] = ()
    """What all jobs and calls with it are marked with, its project's among them."""
