"""What an API key may be used for, in words. Which call needs which of them is the door's table (`fabric.api.grpc_server`).

A key without words of its own has those that it always had, but for a key with a limit or an end: what nobody gave it, it
hasn't.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class KeyScope(StrEnum):
    """One thing that a key may be used for."""

    READ = "read"
    """Look at everything of the account: all jobs with their logs and results, keys, usage, statements, exports."""
    JOBS_OWN = "jobs:own"
    """Submit jobs, and see, change and end those that were submitted with this key."""
    JOBS_ALL = "jobs:all"
    """Submit jobs, and see, change and end all of the account's."""
    MODELS = "models"
    """Call language models."""
    MONEY = "money"
    """Top up, buy bundles, subscribe and unsubscribe; see what was spent."""
    HOLDS = "holds"
    """Hold tokens and settle them, as a gateway of one's own does."""
    KEYS = "keys"
    """Make keys that may do no more than this one, and revoke such."""
    OPERATOR = "operator"
    """Everything, for every customer."""
    OPERATOR_BILLING = "operator:billing"
    """The operator's, for accounts and their money: open, grant, refund, suspend, close; see all of it."""
    OPERATOR_SUPPORT = "operator:support"
    """The operator's, for customers in trouble: see everything of theirs, and end, pause and resume their jobs."""
    OPERATOR_AUDITOR = "operator:auditor"
    """The operator's, for looking at everybody's books, and changing nothing."""
    GATEWAY = "gateway"
    """A process of the operator's: look keys up, see who serves which model, report how long the lines are."""
    REPLICA = "replica"
    """A process of the operator's: hold and settle tokens for calls of language models."""
    HOST = "serving-host"
    """A process of the operator's: lease devices for replicas, report how they are."""


OF_CUSTOMERS: Final = frozenset(
    (
        KeyScope.READ,
        KeyScope.JOBS_OWN,
        KeyScope.JOBS_ALL,
        KeyScope.MODELS,
        KeyScope.MONEY,
        KeyScope.HOLDS,
        KeyScope.KEYS,
    )
)
OF_PROCESSES: Final = frozenset((KeyScope.GATEWAY, KeyScope.REPLICA, KeyScope.HOST))
WITH_A_DESK: Final[dict[KeyScope, frozenset[KeyScope]]] = {
    KeyScope.OPERATOR_BILLING: frozenset((KeyScope.READ, KeyScope.MONEY)),
    KeyScope.OPERATOR_SUPPORT: frozenset((KeyScope.READ, KeyScope.JOBS_ALL)),
    KeyScope.OPERATOR_AUDITOR: frozenset((KeyScope.READ,)),
}
"""The operator's people, but for those who may do everything, and what of a customer's each is good for."""
BEYOND_A_LIMIT: Final = frozenset((KeyScope.HOLDS, KeyScope.KEYS))
"""What is held or made with them would not count against the key's limit."""
BEYOND_AN_END: Final = frozenset((KeyScope.HOLDS,))
_LIMITED: Final = frozenset((KeyScope.JOBS_OWN, KeyScope.MODELS))
_ENDING: Final = frozenset((KeyScope.READ, KeyScope.JOBS_ALL, KeyScope.MODELS))


def effective(given: Iterable[KeyScope], *, operator: bool, limited: bool, ends: bool) -> frozenset[KeyScope]:
    """What a key may be used for: what it was given, or else what such keys have."""
    if own := frozenset(given):
        return own.union(*(WITH_A_DESK.get(scope, frozenset()) for scope in own))
    if operator:
        return frozenset((KeyScope.OPERATOR,))
    if limited:
        return _LIMITED
    return _ENDING if ends else OF_CUSTOMERS


def unfit(scopes: frozenset[KeyScope], *, operator: bool, limited: bool, ends: bool) -> str:
    """Why no key like this can have these scopes; "" if it can."""
    others = scopes - (OF_PROCESSES | WITH_A_DESK.keys() | {KeyScope.OPERATOR} if operator else OF_CUSTOMERS)
    if others:
        whose = "an operator's" if operator else "a customer's"
        return f"{_named(others)} can't be given to {whose} key"
    if operator and len(scopes) > 1:
        return "an operator's key has one role: make a key for each"
    if limited and (beyond := scopes & BEYOND_A_LIMIT):
        return f"a key with a limit can't have {_named(beyond)}: what is done with it would not count against the limit"
    if ends and (beyond := scopes & BEYOND_AN_END):
        return f"a key with an end can't have {_named(beyond)}: what is held would outlive it"
    return ""


def _named(scopes: Iterable[KeyScope]) -> str:
    return ", ".join(sorted(scope.value for scope in scopes))
