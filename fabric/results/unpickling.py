"""A pickle opened by whoever trusts it, so that a class of the caller's own program is the caller's own.

A class of `__main__` travels by value. In the process that submitted the job cloudpickle finds it again; in a later run of
the same program it would make another one of the same name, for which `isinstance` and `is` are false.
"""

import io
import pickle
import sys
from collections.abc import Iterator
from typing import Any, Final

_CLOUDPICKLE: Final = "cloudpickle.cloudpickle"
_DEPTH: Final = 4
_MAKERS: Final = frozenset({"_make_skeleton_class", "_make_skeleton_enum"})


def unpickled(data: memoryview) -> Any:
    """The value, by running what the pickle says.

    Raises:
        Exception: whatever that raises.
    """
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self._own: list[type] = []

    def find_class(self, module_name: str, global_name: str) -> Any:
        found = super().find_class(module_name, global_name)
        if module_name != _CLOUDPICKLE:
            return found
        if global_name in _MAKERS:
            return lambda *given: self._kept(found(*given))
        if global_name == "_class_setstate":
            return lambda kind, state: kind if kind in self._own else found(kind, state)
        return found

    def _kept(self, made: type) -> type:
        """The program's own class where it has one of the name, else the one that was made."""
        if made.__module__ != "__main__":
            return made
        named = {kind for kind in _classes_in(sys.modules.get("__main__")) if kind.__name__ == made.__name__}
        if made in named or len(named) != 1 or type(own := named.pop()) is not type(made):
            return made
        self._own.append(own)
        return own


def _classes_in(place: Any) -> Iterator[type]:
    """The classes of `__main__`, and those that are defined in them."""
    for found in list(vars(place).values()) if place is not None else ():
        if isinstance(found, type) and found.__module__ == "__main__":
            yield found
            if found is not place and found.__qualname__.count(".") < _DEPTH:
                yield from _classes_in(found)
