"""Whether a function needs a Ray of its own, found by reading its code and what it refers to. Nothing is run.

It does where it uses Ray's libraries, placement groups, or devices for what it starts, or asks what there is. A function that starts a few tasks
without devices doesn't.
"""

import functools
import sys
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any, Final

from fabric.imports import stated_by
from fabric.sdk.project import is_local

_PACKAGE: Final = "ray"
_NEEDS_OWN: Final = frozenset({
    "tune", "train", "data", "rllib", "placement_group", "num_gpus", "accelerator_type", "joblib", "register_ray", "dask",
    "ray_dask_get", "ActorPool", "collective", "NPU", "cluster_resources", "available_resources", "nodes",
})  # fmt: skip
"""Words that a program with Ray has in it if it needs more than a runner's."""
_LOOKED_AT_MAX: Final = 2_000


def needs_own_ray(job: Any) -> bool:
    """Whether a callable, or a function of the same project that it calls by name, uses Ray in such a way."""
    waiting, seen = [job], set[int]()
    uses, words = False, set[str]()
    while waiting and len(seen) < _LOOKED_AT_MAX:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if _is_rays(found):
            uses = True
            words |= {name for name, value in (getattr(found, "_default_options", None) or {}).items() if value}
            found = getattr(found, "_function", None)
        for code, namespace in _codes(found):
            uses = uses or any(_top(name) == _PACKAGE for name in code.co_names)
            words |= _words(code)
            waiting += [namespace[name] for name in (*code.co_names, *code.co_freevars) if name in namespace]
            waiting += [sys.modules[name] for name in code.co_names if name in sys.modules]
        if isinstance(found, ModuleType) and _is_of_a_project(found):
            waiting += list(vars(found).values())
        if uses and words & _NEEDS_OWN:
            return True
    return False


def _words(code: CodeType) -> set[str]:
    """Names, the parts of dotted ones, and the keywords of calls."""
    names = {part for name in code.co_names for part in name.split(".")}
    keywords = {word for const in code.co_consts if isinstance(const, tuple) for word in const if isinstance(word, str)}
    return names | keywords | {const for const in code.co_consts if isinstance(const, str) and const in _NEEDS_OWN}


def _codes(found: Any) -> Iterator[tuple[CodeType, dict[str, Any]]]:
    """The code of a callable, that which is nested in it, and what its names may mean."""
    while isinstance(found, functools.partial):
        found = found.func
    found = getattr(found, "__func__", found)
    if isinstance(found, type):
        members = [getattr(each, "__func__", each) for each in vars(found).values()]
    elif hasattr(found, "__code__"):
        members = [found]
    else:
        members = [getattr(type(found), "__call__", None)]  # noqa: B004  # its code is wanted
    for member in members:
        code = getattr(member, "__code__", None)
        if not isinstance(code, CodeType):
            continue
        namespace = dict(getattr(member, "__globals__", {}))
        for name, cell in zip(code.co_freevars, getattr(member, "__closure__", None) or (), strict=False):
            try:
                namespace[name] = cell.cell_contents
            except ValueError:
                continue
        for each in _nested(code):
            yield each, {**namespace, **{name: namespace[name] for name in each.co_freevars if name in namespace}}


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _nested(const)


def _is_rays(found: Any) -> bool:
    """Whether it is Ray, a part of it, or made by it: a remote function, an actor's class."""
    if isinstance(found, ModuleType):
        return _top(found.__name__) == _PACKAGE
    return _top(getattr(type(found), "__module__", "") or "") == _PACKAGE or (
        isinstance(found, type) and _top(getattr(found, "__module__", "") or "") == _PACKAGE
    )


def _is_of_a_project(module: ModuleType) -> bool:
    file = stated_by(module, "__file__") or ""
    return bool(file) and is_local(module.__name__, file)


def _top(name: Any) -> str:
    return str(name).partition(".")[0]
