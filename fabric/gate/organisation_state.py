"""What the gate remembers of organisations: whose wallets and projects are whose, and who may act for them.

All of it is kept for ever, as records and keys name it: a project that was closed, a member that has left.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from fabric.gate.roles import Role
from fabric.units import AccountId


class Standing(StrEnum):
    """How an account stands."""

    OPEN = "open"
    SUSPENDED = "suspended"
    """Its keys look and pay, and do nothing else; its jobs are parked."""
    CLOSING = "closing"
    """For good: what is held still runs out."""
    CLOSED = "closed"


@dataclass(slots=True, kw_only=True)
class Project:
    """Work that one wallet pays for."""

    project: str
    name: str
    wallet: AccountId
    opened_at_us: int
    closed_at_us: int | None = None
    tags: tuple[str, ...] = ()
    """What all its jobs and calls are marked with."""


@dataclass(slots=True, kw_only=True)
class Member:
    """Somebody who may act for an organisation, with keys of its own."""

    member: str
    name: str
    role: Role
    joined_at_us: int
    left_at_us: int | None = None


@dataclass(slots=True, kw_only=True)
class Organisation:
    """A customer with all its wallets. Those that nothing else is known of are not kept: each account is one."""

    organisation: AccountId
    """The account that was its first."""
    wallets: list[AccountId]
    projects: dict[str, Project] = field(default_factory=dict)
    """But for those called like their wallets, which every wallet has."""
    members: dict[str, Member] = field(default_factory=dict)
