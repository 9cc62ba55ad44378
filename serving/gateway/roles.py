"""Who may what over HTTP: one table, a row for each route, with the roles that may ask for it. What isn't in it is for nobody.

Notices of payment providers show no key, and so no role: they are believed only where they are signed.
"""

from typing import Final

from fabric.errors import PermissionDenied
from fabric.gate.roles import Role
from serving.gateway.directory import KeyFacts
from serving.gateway.routes import CREDITS, FOCUS, GENERATION, KEY, ROUTES, Route

_CALLERS: Final = frozenset((Role.OWNER, Role.DEVELOPER))
_LOOKING: Final = frozenset((Role.OWNER, Role.BILLING, Role.DEVELOPER, Role.READ_ONLY))
_ACCOUNT: Final = (CREDITS, KEY, GENERATION, FOCUS)

ROLES: Final[dict[str, frozenset[Role]]] = {
    "/v1/chat/completions": _CALLERS,
    "/v1/chat/completions/batch": _CALLERS,
    "/v1/completions": _CALLERS,
    "/v1/responses": _CALLERS,
    "/v1/messages": _CALLERS,
    "/v1/messages/count_tokens": _CALLERS,
    "/v1/embeddings": _CALLERS,
    "/v2/embed": _CALLERS,
    "/v1/rerank": _CALLERS,
    "/v2/rerank": _CALLERS,
    "/v1/score": _CALLERS,
    "/tokenize": _CALLERS,
    "/detokenize": _CALLERS,
    "/v1/models": _LOOKING,
    "/v1/models/{model}": _LOOKING,
    "/v1/credits": _LOOKING,
    "/v1/key": _LOOKING,
    "/v1/generations/{id}": _LOOKING,
    "/v1/focus/{dataset}": _LOOKING,
}
"""By path."""
WITH_A_KEY: Final = (*ROUTES, *_ACCOUNT)
"""Every route that is answered to a key."""


def check(route: Route, key: KeyFacts) -> None:
    """Refuse a key that is not for this.

    Raises:
        PermissionDenied: `restricted_key`, or `account_suspended` of what costs tokens.
    """
    allowed = ROLES.get(route.path, frozenset())
    if key.role not in allowed:
        others = ", ".join(sorted(allowed)) or "nobody"
        raise PermissionDenied(
            f"key {key.key_id} is of the role {key.role or 'none'}, and {route.method} {route.path} is for {others}: use a key"
            " of one",
            code="restricted_key",
        )
    if key.suspended and allowed is _CALLERS:
        raise PermissionDenied(
            f"account {key.account_id} is suspended ({key.suspended}): its keys look and pay, and nothing else; ask the operator",
            code="account_suspended",
        )
    if allowed is _CALLERS and not key.may_call:
        raise PermissionDenied(
            f"key {key.key_id} is not for calling models: use one with the scope models", code="restricted_key"
        )
