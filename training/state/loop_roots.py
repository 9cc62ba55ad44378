"""What a loop's body can reach by name: variables of its frame, those of modules that the script's functions read, and cells.

Functions of the script are followed, also those that are methods of what has a name; those of libraries are not. Knows frames
and code, and nothing of what the values are.
"""

import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any, Final

from training.state.object_state import MISSING

_LIBRARIES: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OURS: Final = frozenset({"fabric", "serving", "training"})


@dataclass(slots=True)
class Root:
    """Something that the loop's body can name."""

    label: str
    name: str
    scope: dict[str, Any] | None = None
    """None = it is a variable of the frame."""
    cell: Any = None

    def get(self, known: Mapping[str, Any]) -> Any:
        """Its value, and of a method what it is of; `known` are the variables of the frame."""
        value = self._value(known)
        return value.__self__ if isinstance(value, MethodType) else value

    def set(self, known: dict[str, Any], value: Any) -> None:
        """Give it another value."""
        if isinstance(self._value(known), MethodType):
            raise TypeError("it is a method")
        if self.cell is not None:
            self.cell.cell_contents = value
        else:
            (known if self.scope is None else self.scope)[self.name] = value

    def _value(self, known: Mapping[str, Any]) -> Any:
        if self.cell is None:
            return (known if self.scope is None else self.scope).get(self.name, MISSING)
        try:
            return self.cell.cell_contents
        except ValueError:  # nothing is in it
            return MISSING


class Roots:
    """Those of one loop, by how they are called in a checkpoint."""

    def __init__(self, frame: FrameType, known: dict[str, Any], *, without: frozenset[str]) -> None:
        """`without`: variables of the frame that the loop's body writes itself."""
        self._frame, self._known, self._without = frame, known, without
        self._seen: set[int] = set()
        self._waiting: list[Any] = []
        self.found: dict[str, Root] = {}

    def reach(self, names: Iterable[str]) -> dict[str, Root]:
        """What can be reached from these names of the frame."""
        for name in names:
            self._name(name)
        while self._waiting:
            for function in _functions_of(self._waiting.pop()):
                if id(function) not in self._seen:
                    self._seen.add(id(function))
                    self._follow(function)
        return self.found

    def _name(self, name: str) -> None:
        if name in self._known:
            if name not in self._without:
                self._add(Root(name, name))
        elif name in self._frame.f_globals:
            self._add(Root(name, name, self._frame.f_globals))

    def _follow(self, function: FunctionType) -> None:
        scope = function.__globals__
        is_here = scope is self._frame.f_globals
        if not is_here and not is_own(scope):
            return
        prefix = "" if is_here else f"{scope.get('__name__', '')}."
        for name in names_in(function.__code__) & scope.keys():
            if is_here and scope is self._known:
                self._name(name)
            else:
                self._add(Root(f"{prefix}{name}", name, scope))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            root = Root(f"{function.__qualname__}.{name}", name, cell=cell)
            if name in self._known and root.get({}) is self._known[name]:
                self._name(name)
            else:
                self._add(root)

    def _add(self, root: Root) -> None:
        value = root.get(self._known)
        if value is MISSING or isinstance(value, ModuleType) or root.label in self.found:
            return
        self._waiting.append(value)
        if not isinstance(value, FunctionType | BuiltinFunctionType | type):
            self.found[root.label] = root


def is_own(variables: Mapping[str, Any]) -> bool:
    """Whether a module of these variables is the script's, or one that lies beside it."""
    file, name = variables.get("__file__"), str(variables.get("__name__", ""))
    if name.partition(".")[0] in _OURS:
        return False
    return file is None or not (str(file).startswith(_LIBRARIES) or "site-packages" in str(file))


def names_in(code: CodeType) -> set[str]:
    """What code, and code inside of it, may read of its module."""
    return set(code.co_names).union(*(names_in(part) for part in code.co_consts if isinstance(part, CodeType)))


def _functions_of(value: Any) -> list[FunctionType]:
    """The functions that a call of it, or of its methods, may run."""
    if isinstance(value, FunctionType):
        return [value, *_functions_of(getattr(value, "__wrapped__", None))]
    kinds = (value if isinstance(value, type) else type(value)).__mro__
    parts = [part for kind in kinds if kind.__module__ != "builtins" for part in kind.__dict__.values()]
    return [part for part in parts if isinstance(part, FunctionType)]
