"""The buffers of a module, copied at every boundary: a forward pass changes them, and may be under way when a save comes.

There are hundreds in a model with normalisations, of some numbers each, so what a copy costs is finding them. Those that lie
on the host in one row are laid end to end by one call, as long as they are the same tensors as before; the rest is copied beside each
other. Copies are taken into memory that is used again.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, methodcaller, ne
from typing import Any, Final

from training.state.plain import clone, is_plain

_IN_ROWS: Final = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16"})
"""What torch lays end to end wherever it runs."""
_values: Final = methodcaller("values")
_about: Final = attrgetter("shape", "dtype", "device")


class Buffers:
    """Those of one module that its `state_dict()` has."""

    def __init__(self, module: Any) -> None:
        """Find and copy them."""
        self._module = module
        self._seen: list[Any] = []
        self._in_rows, self._in_rest = list[int](), list[int]()
        self._rows, self._rest = list[_Row](), _Rest([])
        self._look_up()

    def copied(self) -> Mapping[str, Any]:
        """What they hold now, by name; until this is called again, when whoever reads the copy must be done with it."""
        with sys.modules["torch"].no_grad():
            now = list(chain.from_iterable(map(_values, self._dicts)))
            if len(now) != len(self._seen):  # one was added, or taken away
                self._look_up()
            elif (
                not all(map(is_, now, self._seen)) or not all(row.copy() for row in self._rows) or not self._rest.copy()
            ):
                self._replace(now)
            if self._rest.are_made_anew:
                self._copies = self._by_name()
        return self._copies

    def _look_up(self) -> None:
        """Find them: a module's own list of them is made by walking through all of it."""
        self._dicts, self._names = list[Any](), list[str | None]()
        for prefix, part in self._module.named_modules(remove_duplicate=False):
            own, left_out = part._buffers, part._non_persistent_buffers_set  # noqa: SLF001  # there is no other way to them
            if keys := list(own.keys()):
                self._dicts.append(own)
                self._names += [None if key in left_out else f"{prefix}.{key}" if prefix else key for key in keys]
        self._replaced = set[int]()
        self._lay_out(list(chain.from_iterable(map(_values, self._dicts))))

    def _replace(self, now: list[Any]) -> None:
        """Copy them where some are other tensors than before, or have other memory."""
        replaced = {at for at, (own, seen) in enumerate(zip(now, self._seen, strict=True)) if own is not seen}
        if replaced and replaced.isdisjoint(self._in_rows) and all(row.copy() for row in self._rows):
            self._seen = now
            self._rest.follow([now[at] for at in self._in_rest])
            self._copies = self._by_name()
            return
        in_rows = chain(*(row.are_moved() for row in self._rows))
        self._replaced |= replaced | {at for at, is_moved in zip(self._in_rows, in_rows, strict=True) if is_moved}
        self._lay_out(now)

    def _lay_out(self, now: list[Any]) -> None:
        """Copy them into new memory. What was replaced is most likely replaced again, and would have a row laid anew."""
        kinds: dict[Any, list[int]] = {}
        for at, own in enumerate(now):
            if at not in self._replaced and self._names[at] is not None and _is_in_row(own):
                kinds.setdefault((own.dtype, own.dim()), []).append(at)
        self._seen = now
        self._in_rows = [at for of_kind in kinds.values() for at in of_kind]
        kept = {at for at, name in enumerate(self._names) if name is not None}
        self._in_rest = sorted(kept - set(self._in_rows))
        self._rows = [_Row([now[at] for at in of_kind]) for of_kind in kinds.values()]
        self._rest = _Rest([now[at] for at in self._in_rest])
        self._copies = self._by_name()

    def _by_name(self) -> dict[str, Any]:
        places = chain(self._in_rows, self._in_rest)
        copies = chain(*(row.copies for row in self._rows), self._rest.copies)
        return {str(self._names[at]): copy for at, copy in zip(places, copies, strict=True) if copy is not None}


class _Row:
    """Buffers of one type on the host, all of one dimension or all of none, whose copies lie end to end."""

    def __init__(self, buffers: Sequence[Any]) -> None:
        """Copy them."""
        torch = sys.modules["torch"]
        self._own, self._address_of, self._cat = buffers, torch.Tensor.data_ptr, torch.cat
        self._addresses, self._length = list(map(self._address_of, buffers)), sum(own.numel() for own in buffers)
        self._lines = buffers if buffers[0].dim() else [own.detach().reshape(1) for own in buffers]
        self._row = torch.cat([own.detach() for own in self._lines])
        self.copies = self._row.split([own.numel() for own in buffers]) if buffers[0].dim() else self._row.unbind()
        """The part of the row that is the copy of each."""

    def copy(self) -> bool:
        """Copy them all again; False if a script gave them other memory, or the row was made where nobody may write into it later."""
        if list(map(self._address_of, self._own)) != self._addresses:
            return False
        try:
            self._cat(self._lines, out=self._row)
        except RuntimeError:
            return False
        return bool(self._row.numel() == self._length)

    def are_moved(self) -> list[bool]:
        """Of each whether it was given other memory."""
        return list(map(ne, map(self._address_of, self._own), self._addresses))


class _Rest:
    """Buffers of any kind, None where there is none; each has a copy of its own."""

    def __init__(self, buffers: Sequence[Any]) -> None:
        """Copy them."""
        self.copies: list[Any] = [None] * len(buffers)
        self.follow(buffers)

    def follow(self, buffers: Sequence[Any]) -> None:
        """Copy these, and from now on; into the copies of those before where they are alike."""
        self._own = buffers
        pairs = zip(self.copies, buffers, strict=True)
        self.copies = [copy if _are_alike(copy, own) else None if own is None else clone(own) for copy, own in pairs]
        self._odd = [at for at, own in enumerate(buffers) if own is not None and not is_plain(own)]
        dense = [at for at, own in enumerate(buffers) if own is not None and is_plain(own)]
        self._from, self._into = [buffers[at] for at in dense], [self.copies[at] for at in dense]
        self._about = list(map(_about, self._into))
        self.copy()

    @property
    def are_made_anew(self) -> bool:
        """Whether some copies are others each time."""
        return bool(self._odd)

    def copy(self) -> bool:
        """Copy them all again; False as of a row."""
        if list(map(_about, self._from)) != self._about:
            return False
        try:
            if self._from:
                sys.modules["torch"]._foreach_copy_(self._into, self._from)  # one launch on a device
        except RuntimeError:
            return False
        for at in self._odd:
            self.copies[at] = clone(self._own[at])
        return True


def _are_alike(copy: Any, own: Any) -> bool:
    """Whether the one can be copied into the other."""
    if copy is None or own is None or not is_plain(copy) or not is_plain(own):
        return False
    return bool(copy.shape == own.shape and copy.dtype == own.dtype and copy.device == own.device)


def _is_in_row(own: Any) -> bool:
    if own is None or not is_plain(own) or own.device.type != "cpu":
        return False
    return own.dim() <= 1 and own.is_contiguous() and str(own.dtype).removeprefix("torch.") in _IN_ROWS
