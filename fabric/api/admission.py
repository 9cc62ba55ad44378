"""Whether a caller may ask for a call at all: by its role, its scopes, and how its account stands."""

from fabric.api.keys import Caller
from fabric.errors import PermissionDenied
from fabric.gate.key_scopes import OF_CUSTOMERS, KeyScope
from fabric.gate.roles import Role


def check(caller: Caller, *, roles: frozenset[Role], scopes: frozenset[KeyScope], suspended: bool) -> None:
    """Refuse a call.

    Args:
        caller: who asks.
        roles: that may ask for it.
        scopes: of which a customer's key needs one.
        suspended: whether a key of a suspended account may.

    Raises:
        PermissionDenied: `operator_only`, `restricted_key` or `account_suspended`.
    """
    if caller.role not in roles or not (caller.operator or scopes & caller.scopes):
        raise _not_for_this(caller, roles, scopes)
    if caller.suspended and not (suspended or caller.operator):
        raise PermissionDenied(
            f"account {caller.home} is suspended ({caller.suspended}): its keys look and pay, and nothing else; ask the operator",
            code="account_suspended",
        )


def _not_for_this(caller: Caller, roles: frozenset[Role], scopes: frozenset[KeyScope]) -> PermissionDenied:
    if scopes.isdisjoint(OF_CUSTOMERS) and not caller.operator:
        return PermissionDenied("this is the operator's: use an operator key", code="operator_only")
    if caller.role not in roles:
        others = ", ".join(sorted(roles))
        return PermissionDenied(
            f"this key is of the role {caller.role}, and this is for {others}: use a key of one",
            code="restricted_key",
            key_id=caller.key_id,
        )
    has, needed = (", ".join(sorted(each)) for each in (caller.scopes, scopes & OF_CUSTOMERS))
    whose = f"use one that has {needed}" if needed else "use the operator's own"
    return PermissionDenied(
        f"this key is for {has}, not for this: {whose}", code="restricted_key", key_id=caller.key_id
    )
