"""Roles: what a person of an organisation, one of the operator's, or a process may do, in words.

A role is a set of scopes, which a key of its member never exceeds. Which call needs which role is the doors' table
(`fabric.api.roles`). A key that is no member's has the role that its scopes come to, so keys from before there were members
are what they were.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from fabric.gate.key_scopes import OF_CUSTOMERS, KeyScope


class Role(StrEnum):
    """What somebody, or a process, is here."""

    OWNER = "owner"
    """Everything of the organisation's: money, jobs, projects, members."""
    BILLING = "billing"
    """See everything, and buy."""
    DEVELOPER = "developer"
    """See everything, run jobs, call models, make keys of one's own."""
    READ_ONLY = "read-only"
    """See everything."""
    ADMIN = "admin"
    """Operator: everything, for every customer."""
    OPERATOR_BILLING = "operator-billing"
    """Operator: accounts and their money."""
    SUPPORT = "support"
    """Operator: see everything of a customer's, and end, pause and resume its jobs."""
    AUDITOR = "auditor"
    """Operator: see all books, and change nothing."""
    GATEWAY = "gateway"
    REPLICA = "replica"
    AGENT = "agent"
    """A process of the operator's that leases devices for replicas."""


OF_MEMBERS: Final[dict[Role, frozenset[KeyScope]]] = {
    Role.READ_ONLY: frozenset((KeyScope.READ,)),
    Role.BILLING: frozenset((KeyScope.READ, KeyScope.MONEY)),
    Role.DEVELOPER: frozenset(
        (
            KeyScope.READ,
            KeyScope.JOBS_OWN,
            KeyScope.JOBS_ALL,
            KeyScope.MODELS,
            KeyScope.HOLDS,
            KeyScope.KEYS,
        )
    ),
    Role.OWNER: OF_CUSTOMERS,
}
"""What keys of a member may have at most, the least first."""
OF_OPERATORS: Final[dict[KeyScope, Role]] = {
    KeyScope.OPERATOR: Role.ADMIN,
    KeyScope.OPERATOR_BILLING: Role.OPERATOR_BILLING,
    KeyScope.OPERATOR_SUPPORT: Role.SUPPORT,
    KeyScope.OPERATOR_AUDITOR: Role.AUDITOR,
    KeyScope.GATEWAY: Role.GATEWAY,
    KeyScope.REPLICA: Role.REPLICA,
    KeyScope.HOST: Role.AGENT,
}
"""The role of an operator's key, by the one scope that it is given."""


def of_scopes(scopes: Iterable[KeyScope]) -> Role:
    """The role that a key of nobody's has: the least that has all it may be used for."""
    own = frozenset(scopes)
    for scope, role in OF_OPERATORS.items():
        if scope in own:
            return role
    return next((role for role, most in OF_MEMBERS.items() if own <= most), Role.OWNER)
