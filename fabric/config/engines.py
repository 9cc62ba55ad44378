"""Which engines there are, by name, and which of them serves a model from where: looked up, not imported."""

import importlib.util
import pkgutil
from typing import Final

DEFAULT: Final = "vllm"
_ROOM: Final = "serving"
_FOLDER: Final = "engines"
_NONE: Final = frozenset({"parts", "port"})
_OF_SERVERS: Final = frozenset({"http"})
"""Those that ask a server which is there already."""
_SCHEMES: Final = ("http://", "https://")


def names() -> tuple[str, ...]:
    """As `serving.engines.port` has them."""
    found = importlib.util.find_spec(_ROOM)
    roots = found.submodule_search_locations if found is not None else None
    folders = [f"{root}/{_FOLDER}" for root in roots or ()]
    return tuple(sorted(each.name for each in pkgutil.iter_modules(folders) if each.name not in _NONE))


def is_url(source: str) -> bool:
    """Whether a model's source is a server, and nothing that is loaded."""
    return source.startswith(_SCHEMES)


def flaw_of(engine: str, source: str) -> str:
    """What is wrong with an engine for a model that comes from there; "" = nothing."""
    if engine not in names():
        return f"there is no engine {engine[:100]!r}: choose of {', '.join(names())}"
    if engine in _OF_SERVERS and not is_url(source):
        return (
            f"the engine {engine} asks a server: its source is a URL such as http://10.0.0.7:8000, not {source[:200]!r}"
        )
    if engine not in _OF_SERVERS and is_url(source):
        return f"{source[:200]!r} is a server, which the engine {engine} doesn't load: choose engine http"
    return ""
