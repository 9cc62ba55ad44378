"""What a loader of the script's own has besides batches: generators of random numbers of its own, the number of its epoch, and
maybe a word for where it is.

torch's loaders and samplers draw an epoch's order from a generator that they are given, samplers for several ranks from the
number of the epoch, which the script's loop would tell them; datasets and what they transform samples with may have
generators too. Begun anew at a resume they would give the first epoch's samples again, and nobody would see it.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from training.progress import say
from training.state import shards
from training.state.generators import Access, access_to
from training.state.plain import plain, restored

_DEPTH_MAX: Final = 6
_LOOKED_AT_MAX: Final = 1_000
_ITEMS_MAX: Final = 50
"""Of a list or a dict: a pipeline has few parts, and a dataset's samples aren't looked through."""
_PARTS_PASSED: Final = frozenset({"_iterator"})
_CLOSED: Final = (ModuleType, type, str, bytes, int, float)
_FUNCTIONS: Final = (FunctionType, MethodType)
_READ_BY: Final = ("__getitem__", "__getitems__", "__call__", "forward")
"""Methods that make samples."""
_TOLD: Final = ("", "sampler", "batch_sampler", "batch_sampler.sampler", "dataset")
"""Whoever may want to know the number of an epoch, by where it is from the loader on."""


class LoaderState:
    """Of one loader, as it is whenever it is asked."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def capture(self) -> dict[str, Any]:
        """The states of its generators, by where they are, as values that later draws don't change."""
        return {name: plain(read(), name) for name, (read, _) in self.generators()}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Put back what `capture` took; generators that it has no longer are passed over."""
        for name, (_, write) in self.generators():
            if name in states:
                write(restored(states[name]))

    def tell_epoch(self, epoch: int) -> None:
        """Say the number of the epoch that begins, as a script's loop does by `set_epoch`."""
        told: list[Any] = []
        for path in _TOLD:
            part = self._data
            for name in filter(None, path.split(".")):
                part = getattr(part, name, None)
            if callable(getattr(part, "set_epoch", None)) and not any(part is each for each in told):
                told.append(part)
                part.set_epoch(epoch)
                if not path:
                    return  # a loader hands it on

    def generators(self, *, everywhere: bool = False) -> Iterator[tuple[str, Access]]:
        """Those that can be reached from the loader by what its parts have, in the order of their places.

        `everywhere`: those that functions and methods find outside of themselves too, which others may draw from as well.
        """
        seen, waiting = {id(None)}, [("", self._data)]
        while waiting and len(seen) < _LOOKED_AT_MAX:
            place, part = waiting.pop(0)
            if id(part) in seen or isinstance(part, _CLOSED if everywhere else (*_CLOSED, *_FUNCTIONS)):
                continue
            seen.add(id(part))
            if (access := access_to(part)) is not None:
                yield place, access
            elif place.count("/") < _DEPTH_MAX:
                parts = _parts_of(part) + (_outside_of(part) if everywhere else [])
                waiting += [(f"{place}/{name}", value) for name, value in parts]


class Source:
    """Data that may say where they are."""

    def __init__(self, data: Any) -> None:
        self._data, self._is_told = data, False

    def place(self) -> dict[str, Any]:
        """Where the data say they are, copied: what they hand out may go on living. {} = it can't be kept."""
        where = getattr(self._data, "state_dict", None)
        if not callable(where):
            return {}
        try:
            place = {"source": plain(where(), "the data's state_dict()")}
            shards.plan(place)
        except Exception as error:  # noqa: BLE001  # data of anybody's; where it fails they are read past what was seen
            if not self._is_told:
                self._is_told = True
                said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                say(
                    f"the data's state_dict() can't be kept, so a resumed run reads them past what was seen: {said}. Give it "
                    "plain values to go on at once"
                )
            return {}
        return place


def _parts_of(part: Any) -> list[tuple[str, Any]]:
    if isinstance(part, Mapping):
        return [(str(key), part[key]) for key in part] if len(part) <= _ITEMS_MAX else []
    if isinstance(part, list | tuple):
        return [(str(at), value) for at, value in enumerate(part)] if len(part) <= _ITEMS_MAX else []
    own = getattr(part, "__dict__", None)
    return [(name, value) for name, value in own.items() if name not in _PARTS_PASSED] if isinstance(own, dict) else []


def _outside_of(part: Any) -> list[tuple[str, Any]]:
    """What a function's code, or an object's methods, reach that isn't in the object itself."""
    if isinstance(part, MethodType):
        return [("self", part.__self__), ("function", part.__func__)]
    if isinstance(part, partial):
        return [("function", part.func), ("arguments", part.args), ("named", part.keywords)]
    if not isinstance(part, FunctionType):
        methods = ((name, getattr(type(part), name, None)) for name in _READ_BY)
        return [(name, method) for name, method in methods if isinstance(method, FunctionType)]
    cells = [(name, cell.cell_contents) for name, cell in _cells_of(part) if _is_filled(cell)]
    known = [(name, part.__globals__[name]) for name in part.__code__.co_names if name in part.__globals__]
    return [
        *cells,
        *((name, value) for name, value in known if access_to(value) is not None or isinstance(value, _FUNCTIONS)),
    ]


def _cells_of(function: FunctionType) -> list[tuple[str, Any]]:
    return list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
