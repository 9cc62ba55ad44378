"""What a call is marked with: `X-Fabric-Tags: team=red,app=search`, OpenAI's `metadata`, and what its key and project give it.

Looked at before the call waits for its turn. `metadata` goes on to the engine as it is: where a surface gives it back, it does.
"""

from collections.abc import Mapping
from typing import Final

from fabric.charging.tags import flaw_of, inherited
from fabric.errors import InvalidRequest
from serving.calls import TAGS
from serving.gateway.bodies import Body
from serving.gateway.routes import Route

HEADER: Final = TAGS.encode()
_WITH_METADATA: Final = frozenset({"chat", "completions", "responses", "embeddings"})
"""As OpenAI has it: up to 16 pairs of texts. Anthropic's is of another kind: it names a user."""
_SHOWN: Final = 80


def tags_of(headers: Mapping[bytes, bytes], body: Body, route: Route, *, given: tuple[str, ...]) -> tuple[str, ...]:
    """All that a call is marked with; of one name the header's counts before the metadata's, and that before the key's.

    Args:
        headers: the request's.
        body: the request's.
        route: what it is.
        given: by its key and project.

    Raises:
        InvalidRequest: `invalid_tags`: it isn't of that form, or too much.
    """
    said = headers.get(HEADER, b"")
    named = _in_header(said.decode("latin-1")) if said else ()
    metadata = _in_metadata(body.get("metadata")) if "metadata" in body and route.surface in _WITH_METADATA else ()
    own = inherited(metadata, named) if metadata else named
    if flaw := flaw_of(own):
        raise _unfit(flaw, "X-Fabric-Tags" if named else "metadata")
    return inherited(given, own)


def _in_header(said: str) -> tuple[str, ...]:
    if not said.isascii():
        raise _unfit("they have characters that aren't ASCII: send these in `metadata`", "X-Fabric-Tags")
    tags = tuple(part.strip() for part in said.split(","))
    if bad := next((tag for tag in tags if "=" not in tag or tag.startswith("=")), None):
        raise _unfit(f"{bad[:_SHOWN]!r} is no pair: write X-Fabric-Tags: team=red,app=search", "X-Fabric-Tags")
    if "" in tags or len(set(tags)) < len(tags):
        raise _unfit("one is empty, or there twice: write X-Fabric-Tags: team=red,app=search", "X-Fabric-Tags")
    return tags


def _in_metadata(metadata: object) -> tuple[str, ...]:
    if metadata is None:
        return ()
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _unfit('`metadata` is an object of texts, such as {"team": "red"}', "metadata")
    if bad := next((name for name in metadata if "=" in name), None):
        raise _unfit(f"the name {bad[:_SHOWN]!r} has a '=': leave it out", "metadata")
    return tuple(f"{name}={value}" for name, value in metadata.items())


def _unfit(why: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"the call can't be marked so: {why}", code="invalid_tags", param=param)
