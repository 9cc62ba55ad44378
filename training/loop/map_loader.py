"""A `DataLoader` over data with an index, which goes on at any batch without reading those before it.

Its sampler says what each batch is made of, so to pass over batches it is asked for their indices alone. Where reading a batch
draws random numbers, the batches after it would be others, so the generators of who reads are put back to what they were: this
process's, or its workers' (`training.loop.worker_states`). The last batch passed is read in any case and compared with what it was, as
data may hold a count or a generator that nobody sees; then all are read again.
"""

import copy
import ctypes
import hashlib
import multiprocessing
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any, Final, Self

import numpy as np
import torch
from torch.utils.data import DataLoader, MapDataPipe, get_worker_info
from torch.utils.data.dataloader import _DatasetKind

from fabric.errors import Conflict
from training.loop.loader_state import LoaderState
from training.loop.worker_states import WorkerStates
from training.progress import say
from training.state import randomness

NOTHING: Final = 0
"""What a batch drew when it was read."""
GLOBAL: Final = 1
"""From the process's own generators."""
OTHER: Final = 2
"""From others."""
_BYTES: Final = 2 * 1024
"""So much of a tensor is looked at."""
_DEPTH_MAX: Final = 8
_ITEMS_MAX: Final = 2_000
_TWISTER_BYTES: Final = 624 * 4 + 4
"""Of numpy's own generator: its numbers, and its place among them."""
_LOOKS: Final = 8
"""So many batches of an epoch are watched while their samples are chosen."""
_END: Final = object()
_said: Final[set[str]] = set()
_PARTS_MAX: Final = 100
"""Of a state; what has more are numbers alone."""


class MapLoader:
    """One loader of the script's own, as it is iterated over epoch by epoch."""

    def __init__(self, loader: Any) -> None:
        """Use `of`."""
        self._loader = loader
        self._noted: _Noted
        self._given = 0
        self.last: str | None = None
        """Of the batch given out last, what `seen_of` says."""

    @classmethod
    def of(cls, data: Any) -> Self | None:
        """None if it is another loader, or one whose data have generators of their own."""
        kind = type(data)
        if not isinstance(data, DataLoader) or data._dataset_kind != _DatasetKind.Map:  # noqa: SLF001  # what torch asks itself
            return None
        if kind.__iter__ is not DataLoader.__iter__ or kind._get_iterator is not DataLoader._get_iterator:  # noqa: SLF001
            return None
        if isinstance(data.dataset, MapDataPipe) or not getattr(data, "in_order", True):
            return None
        return None if _draw_of_their_own(data.dataset, data.collate_fn, data.worker_init_fn) else cls(data)

    def begin(self, *, passed: int = 0, given: int = 0, begins_with: list[bytes] | None = None) -> Iterator[Any]:
        """An epoch's batches, but for so many of the `given` ones at its beginning; `begins_with`: the workers' states then.

        Raises:
            Conflict: `dataset_changed`: when the first is asked for, and there are not so many.
        """
        loader, self._given, self.last = copy.copy(self._loader), passed, None
        self._noted = _Noted(loader, done=passed // max(1, loader.num_workers), begins_with=begins_with)
        parts = vars(loader)
        sampler = "sampler" if loader.batch_sampler is None else "batch_sampler"
        parts[sampler] = _From(parts[sampler], passed, given, self._noted)
        parts |= {"collate_fn": self._noted, "worker_init_fn": _Begin(loader.worker_init_fn, self._noted)}
        parts["_iterator"] = None
        return self._looked_at(iter(loader))

    def place(self) -> dict[str, Any]:
        """What `resumed` needs to know of the batches given out so far; {} = nothing can be said of them."""
        if self.last is None:
            return {}
        place = {"last": self.last, "drew": self._noted.drew}
        if place["drew"] == GLOBAL and self._loader.num_workers:
            place["workers"] = self._noted.states_after((self._given - 1) // self._loader.num_workers)
        elif place["drew"] == GLOBAL:
            place["before_last"] = self._noted.before
        return {name: value for name, value in place.items() if value is not None}

    def resumed(self, place: Mapping[str, Any], *, given: int) -> Iterator[Any] | None:
        """The batches after so many; None if these must be read again."""
        if not given or not self._is_known(place):
            return None
        workers = max(1, self._loader.num_workers)
        passed = (given - 1) // workers * workers  # so that each worker reads the batches that it would have read
        source = self.begin(passed=passed, given=given, begins_with=place.get("workers"))
        read = sum(1 for _ in islice(source, given - passed - 1))
        if "before_last" in place:
            self._noted.puts_back = place["before_last"]
        read += sum(1 for _ in islice(source, 1))
        if passed + read < given:
            raise dataset_changed(given, passed + read)
        return source if self.last == place["last"] and self._noted.drew != OTHER else None

    def compare(self, place: Mapping[str, Any]) -> None:
        """Say so if the last of the batches that were read again is another one than it was."""
        # what draws from this process's generators draws other numbers when no step draws between two batches
        is_known = self._loader.num_workers > 0 or place.get("drew") == NOTHING
        if is_known and self.last is not None and place.get("last", self.last) != self.last:
            say(
                "the data gave another batch when they were read again up to where they were: samples may be seen twice, never, or "
                "changed otherwise. If a sampler draws, give it a generator of its own; if data count or draw by what they "
                "have read before, give their loader a state_dict() and load_state_dict()"
            )

    def _is_known(self, place: Mapping[str, Any]) -> bool:
        """Whether enough is known of the batches that were given out to pass over them."""
        drew = place.get("drew", OTHER)
        if drew != GLOBAL:
            return bool(drew == NOTHING)
        if self._loader.num_workers:
            return bool(len(place.get("workers", ())) == self._loader.num_workers)
        samplers = (self._loader.batch_sampler, self._loader.sampler)  # others may draw in turn with the data
        return "before_last" in place and all(
            type(each).__module__.startswith("torch.utils.data.") for each in samplers if each is not None
        )

    def _looked_at(self, source: Iterator[Any]) -> Iterator[Any]:
        for batch in source:
            self._given, self.last = self._given + 1, seen_of(batch)
            yield batch


class _From:
    """A sampler from its so manieth batch on."""

    def __init__(self, sampler: Iterable[Any], passed: int, given: int, noted: "_Noted") -> None:
        self._sampler, self._passed, self._given, self._noted = sampler, passed, given, noted

    def __iter__(self) -> Iterator[Any]:
        return self._walk(iter(self._sampler))  # at once, as torch does: it may draw random numbers now

    def _walk(self, indices: Iterator[Any]) -> Iterator[Any]:
        found = sum(1 for _ in islice(indices, self._passed))
        if found < self._passed:
            raise dataset_changed(self._given, found)
        for each in _looked_through(indices, named=type(self._sampler).__qualname__):
            self._noted.begin_here()
            yield each

    def __len__(self) -> int:
        return len(self._sampler)  # type: ignore[arg-type]  # asked of who can say it


def _looked_through(indices: Iterator[Any], *, named: str) -> Iterator[Any]:
    """The indices; it is said early if they are drawn from what the script draws from in between."""
    after: list[Any] | None = None
    for number in count():
        before = _marks() if number < _LOOKS else None
        each = next(indices, _END)
        if each is _END:
            return
        if before is not None:
            drawn_between = after is not None and not _is_same(after, before)
            if not _is_same(after := _marks(), before) and drawn_between and named not in _said:
                _said.add(named)
                say(
                    f"{named}, or what it takes its samples from, draws from the process's random numbers between the script's own"
                    " draws: after an eviction it gives other samples, some of them twice or never. Give it a generator of its"
                    " own, such as torch.Generator() or random.Random(seed)"
                )
        yield each


class _Noted:
    """What makes a batch of samples, and notes whether random numbers were drawn while that was done. Goes to workers too."""

    def __init__(self, loader: Any, *, done: int = 0, begins_with: list[bytes] | None = None) -> None:
        self._collate, self._is_here = loader.collate_fn, loader.num_workers == 0
        self._dataset = loader.dataset if self._is_here else None
        self._own = [read for _, (read, _) in LoaderState(loader).generators()] if self._is_here else []
        self._drew = multiprocessing.RawValue(ctypes.c_int) if loader.num_workers else ctypes.c_int()
        self._workers: WorkerStates | None = None
        if loader.num_workers:
            ahead = loader.prefetch_factor or 2
            self._workers = WorkerStates(loader.num_workers, ahead=ahead, first=done, begins_with=begins_with)
        self._own_before: list[Any] = []
        self._marks: list[Any] | None = None
        self._count = 0
        self.before: dict[str, Any] | None = None
        """The states of the process's generators before the batch that was read last."""
        self.puts_back: Mapping[str, Any] | None = None
        """States that the next batch is read with."""

    @property
    def drew(self) -> int:
        """What was drawn from."""
        return int(self._drew.value)

    def states_after(self, done: int) -> list[bytes] | None:
        """Of the workers, when each had done so many batches of the epoch."""
        return None if self._workers is None else self._workers.after(done)

    def begin_worker(self, worker: int) -> None:
        """For a worker: its first batch is to come."""
        if self._workers is not None:
            self._workers.begin(worker)
        self.begin()

    def begin(self) -> None:
        """A batch is read from here on."""
        drew, self._own_before = self._drew.value, [read() for read in self._own]
        self.before = randomness.capture() if drew == GLOBAL and self._is_here else None
        self._marks = _marks() if drew == NOTHING else None

    def begin_here(self) -> None:
        """The same, if it is this process that reads."""
        if self._is_here:
            if self.puts_back is not None:
                randomness.restore(self.puts_back)
                self.puts_back = None
            self.begin()

    def __call__(self, samples: Any) -> Any:
        batch = self._collate(samples)
        self._count += 1
        if self._drew.value != OTHER:
            self._drew.value = max(self._drew.value, self._drawn())
        about = get_worker_info()
        if self._workers is not None and about is not None:
            if not self._workers.note(about.id, self._count):
                self._drew.value = OTHER
            self.begin()
        return batch

    def _drawn(self) -> int:
        if not _is_same([read() for read in self._own], self._own_before):
            return OTHER
        if (
            self._count & (self._count - 1) == 0
        ):  # data may make generators when they are first read: looked for now and then
            about = get_worker_info()
            if _draw_of_their_own(self._dataset if about is None else about.dataset, self._collate):
                return OTHER
        return NOTHING if self._marks is not None and _is_same(_marks(), self._marks) else GLOBAL


class _Begin:
    """What a worker calls before it reads."""

    def __init__(self, own: Callable[[int], None] | None, noted: _Noted) -> None:
        self._own, self._noted = own, noted

    def __call__(self, worker: int) -> None:
        if self._own is not None:
            self._own(worker)
        self._noted.begin_worker(worker)


def dataset_changed(given: int, found: int) -> Conflict:
    """What to say of an epoch that ends before the place where it was left."""
    return Conflict(
        f"{given} batches of this epoch were seen, but the loader now ends after {found}: it must give "
        "the same batches in the same order, or say where it is by state_dict() and load_state_dict()",
        code="dataset_changed",
    )


def _draw_of_their_own(*parts: Any) -> bool:
    return any(True for part in parts for _ in LoaderState(part).generators(everywhere=True))


def seen_of(batch: Any) -> str | None:
    """What tells a batch from another: a digest of some of it; None if there is something that can't be looked at."""
    whole = hashlib.blake2b(digest_size=16)
    try:
        _look(batch, whole.update, [_ITEMS_MAX], _DEPTH_MAX)
    except (_Opaque, RuntimeError, ValueError, TypeError):
        return None
    return whole.hexdigest()


class _Opaque(Exception):  # it is caught where it is raised
    """Something that can't be looked at."""


def _look(value: Any, take: Callable[[bytes], None], left: list[int], depth: int) -> None:
    left[0] -= 1
    if left[0] < 0:
        return
    if value is None or isinstance(value, str | bytes | int | float | complex):
        take(repr(value).encode())
    elif isinstance(value, torch.Tensor | np.ndarray | np.generic):
        take(f"{value.dtype} {tuple(value.shape)}".encode())
        take(_some_of(value))
    elif depth == 0:
        raise _Opaque
    elif isinstance(value, Mapping):
        for key, item in value.items():
            take(repr(key).encode())
            _look(item, take, left, depth - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _look(item, take, left, depth - 1)
    elif isinstance(own := getattr(value, "__dict__", None), dict) and own:
        _look(own, take, left, depth - 1)
    else:
        raise _Opaque


def _some_of(values: Any) -> bytes:
    """Bytes from all over a tensor or an array."""
    if isinstance(values, torch.Tensor):
        if values.device.type != "cpu" or values.layout != torch.strided or values.is_quantized:
            raise _Opaque
        values = values.detach().resolve_conj().resolve_neg()
        values = values if values.is_contiguous() else values[:1].contiguous()
        values = values.reshape(-1).view(torch.uint8).numpy() if values.numel() else np.empty(0, np.uint8)
    else:
        if values.dtype.hasobject:
            raise _Opaque
        values = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return bytes(np.ascontiguousarray(values[:: max(1, len(values) // _BYTES) | 1]))


def _is_same(one: Any, other: Any) -> bool:
    """Whether two states of generators are."""
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, list | tuple) and len(one) < _PARTS_MAX:
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _marks() -> list[Any]:
    """What changes when the process's generators are drawn from. Ten times as quick as to capture them; numbers that a
    generator has drawn already, and holds back, don't count.
    """
    bits = np.random.get_bit_generator()  # type: ignore[attr-defined]  # it is public, and numpy's stubs don't say so
    marks: list[Any] = [random.getstate(), torch.get_rng_state()]
    exact = isinstance(bits, np.random.MT19937)
    marks.append(ctypes.string_at(bits.ctypes.state_address, _TWISTER_BYTES) if exact else repr(bits.state))
    if torch.cuda.is_initialized():
        marks += torch.cuda.get_rng_state_all()
    return marks
