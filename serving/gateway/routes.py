"""What is served at all. Everything that is not in this list is 404, whatever the engine has there.

The engine's application has more routes than its public ones: `/invocations`, which bypasses its own key check, docs,
metrics, tuning and development routes, and `GET /v1/responses/{id}`, which knows no tenants. None of them passes.
"""

from typing import Final, Literal, NamedTuple

from serving.gateway.refusals import UnknownRoute, WrongMethod

Surface = Literal[
    "chat",
    "completions",
    "responses",
    "anthropic",
    "embeddings",
    "embed",
    "rerank",
    "score",
    "tokens",
    "models",
    "account",
    "payments",
]


class Route(NamedTuple):
    """One thing that can be asked for."""

    method: str
    path: str
    surface: Surface
    metered: bool
    """Whether the engine works for it: it waits its turn, and it costs tokens."""
    streams: bool = False
    """Whether `stream: true` is answered with events."""
    last: bytes = b""
    """What is in the last event of a stream that ended well."""
    ends: bytes = b""
    """A second last event that also ends a stream well."""


_POSTS: Final = (
    Route("POST", "/v1/chat/completions", "chat", metered=True, streams=True, last=b"data: [DONE]"),
    Route("POST", "/v1/chat/completions/batch", "chat", metered=True),
    Route("POST", "/v1/completions", "completions", metered=True, streams=True, last=b"data: [DONE]"),
    Route(
        "POST", "/v1/responses", "responses", metered=True, streams=True,
        last=b"event: response.completed", ends=b"event: response.incomplete",
    ),
    Route("POST", "/v1/messages", "anthropic", metered=True, streams=True, last=b"event: message_stop"),
    Route("POST", "/v1/messages/count_tokens", "anthropic", metered=False),
    Route("POST", "/v1/embeddings", "embeddings", metered=True),
    Route("POST", "/v2/embed", "embed", metered=True),
    Route("POST", "/v1/rerank", "rerank", metered=True),
    Route("POST", "/v2/rerank", "rerank", metered=True),
    Route("POST", "/v1/score", "score", metered=True),
    Route("POST", "/tokenize", "tokens", metered=False),
    Route("POST", "/detokenize", "tokens", metered=False),
)  # fmt: skip
_MODELS: Final = Route("GET", "/v1/models", "models", metered=False)
_MODEL: Final = Route("GET", "/v1/models/{model}", "models", metered=False)
CREDITS: Final = Route("GET", "/v1/credits", "account", metered=False)
KEY: Final = Route("GET", "/v1/key", "account", metered=False)
FOCUS: Final = Route("GET", "/v1/focus/{dataset}", "account", metered=False)
GENERATION: Final = Route("GET", "/v1/generations/{id}", "account", metered=False)
ROUTES: Final = (*_POSTS, _MODELS, _MODEL)
"""What replicas serve; the gateway itself the rest."""
_BY_PATH: Final = {route.path: route for route in (*_POSTS, _MODELS, CREDITS, KEY)}
_BY_PATH["/v1/generation"] = GENERATION
PAYMENTS: Final = Route("POST", "/payments/{provider}", "payments", metered=False)
"""Notices of providers of payments: they show no key, and are believed only where they are signed."""
_PAYMENTS_PREFIX: Final = "/payments/"
_GENERATION_PREFIX: Final = "/v1/generations/"
_MODEL_PREFIX: Final = "/v1/models/"
_FOCUS_PREFIX: Final = "/v1/focus/"


def route_of(method: str, path: str) -> tuple[Route, str]:
    """What is asked for, and of which model or call where the path says so.

    Raises:
        UnknownRoute: nothing is served there.
        WrongMethod: something is, but not by this method.
    """
    route, named = _BY_PATH.get(path), ""
    if route is None and path.startswith(_MODEL_PREFIX) and len(path) > len(_MODEL_PREFIX):
        route, named = _MODEL, path.removeprefix(_MODEL_PREFIX)
    if route is None and path.startswith(_GENERATION_PREFIX):
        route, named = GENERATION, path.removeprefix(_GENERATION_PREFIX)
    if route is None and path.startswith(_FOCUS_PREFIX) and len(path) > len(_FOCUS_PREFIX):
        route, named = FOCUS, path.removeprefix(_FOCUS_PREFIX)
    if route is None and path.startswith(_PAYMENTS_PREFIX) and len(path) > len(_PAYMENTS_PREFIX):
        route, named = PAYMENTS, path.removeprefix(_PAYMENTS_PREFIX)
    if route is None:
        raise UnknownRoute(f"nothing is served at {path[:100]}: see GET /v1/models, POST /v1/chat/completions")
    if method != route.method and not (method == "HEAD" and route.method == "GET"):
        raise WrongMethod(f"{route.path} answers {route.method}, not {method[:20]}", allow=route.method)
    return route, named
