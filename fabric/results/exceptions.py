"""Exceptions as pickles that can be opened: with their causes, and however they are made.

An exception of the standard kind is remade from what it is, its arguments and attributes, without its own `__init__`, which
may want other arguments than `args` has and then hides the error behind a `TypeError`. One that says itself how it is made
(`__reduce__`) is believed if that works. What in it can't be pickled is replaced by its repr: an error is told in any case.
"""

import builtins
import io
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import cloudpickle

from fabric.results.parcel import shown

_OWN_WAYS: Final = ("__reduce__", "__reduce_ex__", "__setstate__", "__getstate__")
_FIELDS: Final[dict[type[BaseException], tuple[str, ...]]] = {
    OSError: ("errno", "strerror", "filename", "filename2"),
    ImportError: ("msg", "name", "path"),
    AttributeError: ("name",),
    NameError: ("name",),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
    UnicodeDecodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeEncodeError: ("encoding", "object", "start", "end", "reason"),
    UnicodeTranslateError: ("object", "start", "end", "reason"),
    StopIteration: ("value",),
    SystemExit: ("code",),
}
"""What a built-in exception keeps elsewhere than in its arguments and attributes."""


def pickled(value: Any) -> bytes:
    """A pickle of anything; the exceptions in it, and their causes, can be opened.

    Raises:
        Exception: something in it can't be pickled, as cloudpickle says.
    """
    out = io.BytesIO()
    _Pickler(out, chained=True).dump(value)
    return out.getvalue()


def pickled_error(error: BaseException) -> bytes:
    """A pickle of an exception with its causes, without them where that can't be; nothing if it can't be had at all."""
    for chained in (True, False):
        out = io.BytesIO()
        with suppress(Exception):  # a tenant's own code raises what it likes
            _Pickler(out, chained=chained).dump(error)
            return out.getvalue()
    return b""


def reduced(error: BaseException) -> Any:
    """How a pickler makes an exception anew, as it is: without its causes, and with nothing replaced."""
    made, state = _made_by_itself(error) or ((_remade, (type(error), error.args)), _state_of(error))
    return (*made, (state, [*getattr(error, "__notes__", ())], None, None, False), None, None, _set)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: Any, *, chained: bool) -> None:
        super().__init__(file)
        self._chained = chained

    def reducer_override(self, obj: Any) -> Any:
        return self._reduced(obj) if isinstance(obj, BaseException) else super().reducer_override(obj)

    def _reduced(self, error: BaseException) -> Any:
        made, state = _made_by_itself(error) or (None, None)
        if made is None:
            made = _remade, (type(error), tuple(map(_goes, error.args)))
            state = {name: _goes(value) for name, value in _state_of(error).items()}
        links = (
            (error.__cause__, error.__context__, error.__suppress_context__) if self._chained else (None, None, False)
        )
        return (*made, (state, [*getattr(error, "__notes__", ())], *links), None, None, _set)


def _made_by_itself(error: BaseException) -> tuple[Any, Any] | None:
    """How an exception says that it is made, if it does, and if that makes it."""
    if not any(_is_own(type(error), way) for way in _OWN_WAYS):
        return None
    with suppress(Exception):  # a tenant's own code raises what it likes
        reduced: Any = error.__reduce_ex__(4)
        function, arguments, state = (*reduced, None)[:3]
        _tried((function, arguments, state))
        if function is not type(error) or type(function(*arguments)) is type(error):
            return (function, arguments), state
    return None


def _is_own(kind: type, name: str) -> bool:
    owner = next((each for each in kind.__mro__ if name in vars(each)), object)
    return owner.__module__ != builtins.__name__


def _state_of(error: BaseException) -> dict[str, Any]:
    """What is set on it, after it is remade, by name."""
    fields = [name for kind, names in _FIELDS.items() if isinstance(error, kind) for name in names]
    for kind in type(error).__mro__:
        slots = vars(kind).get("__slots__", ()) if kind.__module__ != builtins.__name__ else ()
        fields.extend((slots,) if isinstance(slots, str) else slots)
    known = {name: getattr(error, name, None) for name in fields}
    return {name: value for name, value in known.items() if value is not None} | vars(error)


def _goes(value: Any) -> Any:
    """The value, or where it can't be pickled what it looks like. Exceptions see to themselves."""
    if isinstance(value, BaseException) or value is None or type(value) in {bool, int, float, str, bytes}:
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(each, BaseException) for each in value):
        return value
    try:
        _tried(value)
    except Exception:  # noqa: BLE001  # a tenant's own code raises what it likes
        return shown(value)
    return value


def _tried(value: Any) -> None:
    _Pickler(io.BytesIO(), chained=False).dump(value)


def _remade(kind: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """An exception of that class with these arguments, without a call of its own code."""
    for base in kind.__mro__:
        if base.__module__ == builtins.__name__ and issubclass(base, BaseException):
            with suppress(TypeError, ValueError):
                made: BaseException = base.__new__(kind, *args)
                made.args = args
                return made
    made = BaseException.__new__(kind)
    made.args = args
    return made


def _set(error: BaseException, given: tuple[Any, list[str], BaseException | None, BaseException | None, bool]) -> None:
    state, notes, cause, context, suppressed = given
    if isinstance(state, Mapping) and not _is_own(type(error), "__setstate__"):
        for name, value in state.items():
            with suppress(Exception):  # a property without a setter
                setattr(error, name, value)
    elif state is not None:
        error.__setstate__(state)
    if notes:
        setattr(error, "__notes__", notes)  # noqa: B010  # as add_note does, which Python 3.10 has not
    error.__cause__, error.__context__, error.__suppress_context__ = cause, context, suppressed
