"""Who it was that can't leave its process, by the name under which the caller knows it, and what to do instead."""

import functools
import inspect
import io
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

_DEPTH: Final = 6
_WIDTH: Final = 100
_FILES: Final = ("TextIOWrapper", "BufferedReader", "BufferedWriter", "BufferedRandom", "FileIO")
_STREAMS: Final = ("generator", "async_generator", "map", "filter", "zip", "enumerate")
_SHELLS: Final = ("InteractiveShell", "ZMQInteractiveShell", "TerminalInteractiveShell")
_REMEDIES: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("lock", "RLock", "Condition", "Semaphore", "Event", "local"), "create it inside the function"),
    (("socket", "SSLSocket", "Connection", "Channel"), "connect inside the function"),
    (_FILES, "pass its path and open it inside the function, or pass what was read from it"),
    (_STREAMS, "pass what it yields as a list, or make it inside the function"),
    (
        ("coroutine", "Task", "Future"),
        "pass the function and its arguments, as in submit(f, x), and not what f(x) gives",
    ),
    (_SHELLS, "IPython's magics and its `!` don't run in a job: use subprocess"),
    (("ObjectRef", "BaseID"), "pass its value, ray.get(x)"),
    (("ActorHandle",), "make the actor inside the function"),
    (("Tensor", "Parameter"), "pass x.cpu(), and move it to the job's device inside the function"),
)
_WHOLE_ONLY: Final = frozenset({"StructMeta", "DeclarativeMeta", "DeclarativeAttributeIntercept", "ModelBase"})
"""Metaclasses, of msgspec, SQLAlchemy and Django, for which a class without its fields is none."""
_ELSE: Final = "create it inside the function, or pass what it is made from"


class Unsendable(Exception):
    """It could be pickled, and would be something else there."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


def refuse_unsendable(value: object) -> None:
    """What a pickler would take, and what is of no use elsewhere.

    Raises:
        Unsendable: an open file, a tensor on a device of this machine, an object or an actor of its Ray cluster.
    """
    if isinstance(value, io.TextIOWrapper) and value not in (sys.stdout, sys.stderr):
        raise Unsendable("an open file is this machine's")
    ray = sys.modules.get("ray")
    if ray is not None and isinstance(value, (ray.ObjectRef, ray.actor.ActorHandle)):
        raise Unsendable("it is of this program's own Ray cluster")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
        device = str(getattr(getattr(value, "device", None), "type", "cpu"))
        if device not in {"cpu", "meta"}:
            raise Unsendable(f"it lies on this machine's {device}")


def refuse_unmakeable(kind: type) -> None:
    """A class that would go by value, and can't be made anew from its parts.

    Raises:
        Unsendable: its metaclass wants all of it at once.
    """
    if {each.__name__ for each in inspect.getmro(type(kind))} & _WHOLE_ONLY:
        raise Unsendable(f"a class of {type(kind).__module__.partition('.')[0]} is made in one piece")


def remedy_for(culprit: object) -> str:
    if isinstance(culprit, type):
        return f"define {culprit.__qualname__} in a module of your own, beside the script, and import it: that goes along as a file"
    kinds = {kind.__name__ for kind in type(culprit).__mro__}
    if isinstance(culprit, types.MethodType):
        kinds |= {kind.__name__ for kind in type(culprit.__self__).__mro__}
    return next((remedy for names, remedy in _REMEDIES if not kinds.isdisjoint(names)), _ELSE)


def culprit_of(
    function: Callable[..., object],
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    goes: Callable[[object], bool],
) -> tuple[str, object]:
    """The innermost thing that doesn't go, and its name as the caller would call it."""
    for title, value in _suspects(function, args, kwargs):
        if not goes(value):
            path, culprit = _innermost(value, goes, depth=_DEPTH, seen=set())
            name = f"{title}{path}"
            return f"{name} ({type(culprit).__name__})", culprit
    return f"the function {getattr(function, '__qualname__', function)!r}", function


def heaviest(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[str, int]:
    """The largest part of a call and about how many bytes it has."""
    sizes = [(title, _weight(value)) for title, value in _suspects(function, args, kwargs)]
    return max(sizes, key=lambda pair: pair[1], default=("the function", 0))


def _weight(value: object, depth: int = 3) -> int:
    known = getattr(value, "nbytes", None)
    own = known if isinstance(known, int) else sys.getsizeof(value)
    if depth and isinstance(value, list | tuple | dict):
        inner = list(value.values() if isinstance(value, dict) else value)
        own += sum(_weight(each, depth - 1) for each in inner[:_WIDTH]) * max(1, len(inner) // _WIDTH)
    return own


def _suspects(
    function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]
) -> Iterator[tuple[str, object]]:
    yield from ((f"argument {index}", value) for index, value in enumerate(args))
    yield from ((f"argument {name}=", value) for name, value in kwargs.items())
    yield from _parts_of_call(function)


def _parts_of_call(function: object) -> Iterator[tuple[str, object]]:
    """What a callable carries, under full names."""
    if isinstance(function, functools.partial):
        yield from ((f"argument {index} of the partial", value) for index, value in enumerate(function.args))
        yield from ((f"argument {name}= of the partial", value) for name, value in function.keywords.items())
        yield from _parts_of_call(function.func)
    elif isinstance(function, types.MethodType):
        yield f"the object of the method {function.__func__.__qualname__}", function.__self__
        yield from _parts_of_call(function.__func__)
    elif isinstance(function, types.FunctionType):
        yield from ((f"variable {name!r} of {function.__qualname__}", value) for name, value in _variables(function))
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        yield from ((f"a default of {function.__qualname__}", value) for value in defaults)
    elif not isinstance(function, type):
        yield "the object that is called", function


def _variables(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    try:
        found = inspect.getclosurevars(function)
    except (TypeError, ValueError):
        return
    yield from found.nonlocals.items()
    yield from found.globals.items()


def _innermost(value: object, goes: Callable[[object], bool], *, depth: int, seen: set[int]) -> tuple[str, object]:
    if depth == 0 or id(value) in seen or remedy_for(value) is not _ELSE:
        return "", value
    seen.add(id(value))
    for count, (step, child) in enumerate(_children(value)):
        if count >= _WIDTH:
            break
        if id(child) not in seen and not goes(child):
            path, culprit = _innermost(child, goes, depth=depth - 1, seen=seen)
            return step + path, culprit
    return "", value


def _children(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r:.40}]", child) for key, child in list(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    elif isinstance(value, types.FunctionType):
        yield from ((f", its variable {name!r}", child) for name, child in _variables(value))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, functools.partial):
        yield from ((f" {title}", child) for title, child in _parts_of_call(value))
    elif isinstance(value, type):
        yield from ((f", its base {base.__qualname__}", base) for base in value.__bases__)
    elif not isinstance(value, types.ModuleType):
        yield ", its class", type(value)
        yield from ((f".{name}", child) for name, child in list(getattr(value, "__dict__", {}).items()))
