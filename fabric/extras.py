"""What a client that is installed alone doesn't have, and which extra of the package brings it."""

import importlib.util
import sys
from typing import Final

from fabric.errors import InvalidRequest

CLUSTER_PYTHON: Final = (3, 11)
"""What all processes of a cluster run: objects travel between them pickled."""
_EXTRA_OF: Final = {"cryptography": "audit", "torch": "train", "stripe": "stripe", "apprise": "chats"}
_OURS: Final = frozenset({"fabric", "training"})


def needed(package: str, *, by: str) -> None:
    """Say so now, if it isn't there.

    Raises:
        InvalidRequest: it isn't (`needs_extra`).
    """
    if importlib.util.find_spec(package) is None:
        raise missing(package, by=by)


def missing(package: str, *, by: str) -> InvalidRequest:
    """What is said where a package is missing, or a room of ours that only a cluster has."""
    top = package if package.startswith("fabric.") else package.partition(".")[0]
    extra = _EXTRA_OF.get(top, "cluster")
    from_where = f"install token-fabric with the extra {extra}, token-fabric[{extra}]"
    if top.startswith(("fabric.", "serving")):
        from_where += ", and the wheel token_fabric_cluster of the same release"
    return InvalidRequest(
        f"{by} needs the package {top}, which a client alone doesn't have: {from_where}",
        code="needs_extra",
        package=top,
        extra=extra,
    )


def is_ours(package: str | None) -> bool:
    """Whether a module that was not found should have been: a mistake of ours, and no missing package, nor a room of ours that
    a client's wheel is without.
    """
    if package is None or package.partition(".")[0] not in _OURS:
        return package is None
    room = ".".join(package.split(".")[:2])
    return importlib.util.find_spec(room) is not None


def check_cluster_python(*, by: str) -> None:
    """Refuse what starts a cluster under another Python than its processes have.

    Raises:
        InvalidRequest: it is another (`wrong_python`).
    """
    if sys.version_info[:2] != CLUSTER_PYTHON:
        raise InvalidRequest(
            f"{by} needs Python {_dotted(CLUSTER_PYTHON)}, and this is {_dotted(sys.version_info[:2])}: a client runs on 3.10 to"
            f" 3.14, a cluster on {_dotted(CLUSTER_PYTHON)} alone; install token-fabric[cluster] there",
            code="wrong_python",
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
