"""Which samples a step sees: every sample exactly once an epoch, in an order that only the seed decides.

A run's order is one line of positions over all epochs; a step takes the next `global_batch` of them and V virtual ranks
share them (`training.loop.virtual`). So the cursor is a number, the count of finished steps, whatever a loader had read ahead,
and any gang of any size goes on from it. Datasets with an index are read at any place; one that can only be read from its
start is read past what was seen, unless it says where it is (`state_dict`). Batches that a loader of the script's own
makes are taken as they come (`training.loop.batches`).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

import torch
from torch.utils.data import DataLoader, default_collate

from fabric.errors import Conflict, InvalidRequest
from training.loop.batches import Batches
from training.loop.loader_state import LoaderState, Source
from training.loop.portions import Portion
from training.loop.virtual import Micro, VirtualRanks, reseed
from training.progress import say
from training.state.plain import restored

_EPOCH_SEED_BITS: Final = 63
Share = Callable[[int, int], range]
"""Which of a step's micro-batches are this process's: from the step and how many it has."""


class Feed(Protocol):
    """Where a run's batches come from."""

    steps_total: int | None
    """None = nobody knows how many there will be."""
    is_seeded: bool
    """Whether random numbers belong to (step, virtual rank), or go on from step to step."""

    def portions(self, step: int, cursor: dict[str, Any]) -> Iterator[Portion]:
        """All portions from this step on; `cursor` is what `cursor()` said at that boundary, {} at the start."""

    def cursor(self) -> dict[str, Any]:
        """Where it is at the boundary after the step whose last portion was given out."""


@dataclass(frozen=True, slots=True)
class Permutation:
    """In which order a run sees `count` samples, over all epochs; position p is in epoch p // count."""

    count: int
    shuffle: bool
    seed: int

    def indices(self, start: int, stop: int) -> list[int]:
        """The samples at these positions. A shuffled epoch takes 8 bytes a sample while it lasts."""
        found: list[int] = []
        while start < stop:
            epoch, first = divmod(start, self.count)
            last = min(self.count, first + stop - start)
            found += self._epoch(epoch)[first:last].tolist() if self.shuffle else range(first, last)
            start += last - first
        return found

    def _epoch(self, epoch: int) -> Any:
        key = (self.count, self.seed, epoch)
        if key not in _shuffled:
            digest = hashlib.sha256(f"{self.seed}/epoch/{epoch}".encode()).digest()
            dice = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> (64 - _EPOCH_SEED_BITS))
            while len(_shuffled) > 1:  # a batch may lie in two epochs
                _shuffled.pop(next(iter(_shuffled)))
            _shuffled[key] = torch.randperm(self.count, generator=dice)
        return _shuffled[key]


_shuffled: Final[dict[tuple[int, int, int], Any]] = {}


def feed_of(
    data: Any,
    ranks: VirtualRanks | None,
    *,
    share: Share | None = None,
    epochs: int | None = 1,
    shuffle: bool = True,
    collate: Callable[[list[Any]], Any] | None = None,
    workers: int = 0,
) -> Feed:
    """The feed for a dataset.

    Args:
        data: with `__getitem__` and `__len__`; or an iterable of samples; or, without `ranks`, an iterable of batches.
        ranks: how a step is shared; None = `data` gives batches.
        share: which micro-batches of a step are this process's; None = all.
        epochs: how often all of it is seen; None = until the script stops.
        shuffle: for a dataset with an index.
        collate: makes a batch of a list of samples; None = torch's own way.
        workers: processes that read ahead, for a dataset with an index.

    Raises:
        InvalidRequest: `dataset_unusable`.
    """
    has_index = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if ranks is None:
        if not isinstance(data, Iterable):
            raise _unusable(data, "without global_batch it must be an iterable of batches, such as a DataLoader")
        return Batches(data, epochs=epochs)
    share = share or (lambda _step, parts: range(parts))
    collate = partial(_collated, collate or default_collate)
    if drawn := LoaderState(data).capture():
        say(
            f"the data draw random numbers of their own ({', '.join(drawn)[:200]}): a resumed run goes on with these only where "
            "extra= names their generators; what they draw from torch, numpy and random is the same in any attempt"
        )
    if has_index:
        if len(data) == 0:
            raise _unusable(data, "it is empty")
        order = Permutation(count=len(data), shuffle=shuffle, seed=ranks.seed)
        return Indexed(data, ranks, share, order, epochs=epochs, collate=collate, workers=workers)
    if isinstance(data, Iterable):
        return Streamed(data, ranks, share, epochs=epochs, collate=collate)
    raise _unusable(data, "it has neither an index (__getitem__ and __len__) nor can it be iterated over")


class Indexed:
    """A dataset that can be read at any place."""

    is_seeded = True

    def __init__(
        self,
        data: Any,
        ranks: VirtualRanks,
        share: Share,
        order: Permutation,
        *,
        epochs: int | None,
        collate: Callable[[list[Any]], Any],
        workers: int,
    ) -> None:
        self._ranks, self._share, self._order = ranks, share, order
        self._samples = None if epochs is None else epochs * order.count
        self._read = _Reader(data, ranks)
        self._collate, self._workers = collate, workers
        self.steps_total = None if self._samples is None else -(-self._samples // ranks.global_batch)

    def portions(self, step: int, cursor: dict[str, Any]) -> Iterator[Portion]:
        _check_same(cursor, self.cursor())
        places = _Places(self._ranks, self._share, self._order, step, self._samples)
        loader = DataLoader(
            self._read,
            batch_sampler=places,
            collate_fn=self._collate,
            num_workers=self._workers,
            generator=torch.Generator(),
        )
        for place, batch in zip(places.without_indices(), loader, strict=True):
            yield _portion(place.micro, place.step_samples, place.step_portions, is_last=place.is_last, batch=batch)

    def cursor(self) -> dict[str, Any]:
        return {"samples": self._order.count, **_batches_of(self._ranks)}


@dataclass(frozen=True, slots=True)
class _Place:
    micro: Micro
    step_samples: int
    step_portions: int
    is_last: bool
    indices: list[int]


class _Places:
    """The micro-batches of this process from a step on; each may be walked more than once."""

    def __init__(self, ranks: VirtualRanks, share: Share, order: Permutation, step: int, samples: int | None) -> None:
        self._ranks, self._share, self._order, self._step, self._samples = ranks, share, order, step, samples

    def __iter__(self) -> Iterator[_Place]:
        return self._walk(self._order.indices)

    def without_indices(self) -> Iterator[_Place]:
        return self._walk(lambda _start, _stop: [])

    def _walk(self, indices: Callable[[int, int], list[int]]) -> Iterator[_Place]:
        step = self._step
        while self._samples is None or step * self._ranks.global_batch < self._samples:
            left = None if self._samples is None else self._samples - step * self._ranks.global_batch
            size = self._ranks.global_batch if left is None else min(left, self._ranks.global_batch)
            micros, parts = shared(self._ranks, self._share, step, size)
            for micro in micros:
                yield _Place(micro, size, parts, micro is micros[-1], indices(micro.start, micro.stop))
            step += 1


class _Reader:
    """Reads the samples of a place, with random numbers that belong to it: the same in any worker process."""

    def __init__(self, data: Any, ranks: VirtualRanks) -> None:
        self._data, self._ranks = data, ranks

    def __getitems__(self, place: _Place) -> Any:  # torch's name for reading many at once
        reseed(self._ranks.seed_of(place.micro.step, -1 - place.micro.vrank))
        many = getattr(self._data, "__getitems__", None)
        return many(place.indices) if many is not None else [self._data[index] for index in place.indices]

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        return self._data[index]


class Streamed:
    """Samples that come in an order of their own, nobody knows how many."""

    is_seeded = True
    steps_total: int | None = None

    def __init__(
        self,
        data: Iterable[Any],
        ranks: VirtualRanks,
        share: Share,
        *,
        epochs: int | None,
        collate: Callable[[list[Any]], Any],
    ) -> None:
        self._data, self._ranks, self._share, self._collate = data, ranks, share, collate
        self._epochs = epochs
        self._epoch, self._seen, self._source = 0, 0, Source(data)

    def portions(self, step: int, cursor: dict[str, Any]) -> Iterator[Portion]:
        _check_same(cursor, _batches_of(self._ranks))
        self._epoch, self._seen = int(cursor.get("epoch", 0)), int(cursor.get("seen", 0))
        source: Iterator[Any] | None = self._opened(cursor)
        while self._epochs is None or self._epoch < self._epochs:
            source = source or iter(self._data)
            reseed(self._ranks.seed_of(step, -1))
            samples = list(islice(source, self._ranks.global_batch))
            if not samples and self._seen == 0:
                return
            self._seen += len(samples)
            if len(samples) < self._ranks.global_batch:  # it has ended, and its own state says so from here on
                self._epoch, self._seen, source = self._epoch + 1, 0, None
            if samples:
                yield from self._shared(step, samples)
                step += 1

    def cursor(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "seen": self._seen} | _batches_of(self._ranks) | self._source.place()

    def _opened(self, cursor: dict[str, Any]) -> Iterator[Any]:
        if "source" in cursor and hasattr(self._data, "load_state_dict"):
            self._data.load_state_dict(restored(cursor["source"]))
            return iter(self._data)
        source = iter(self._data)
        passed = sum(1 for _ in islice(source, self._seen))
        if passed < self._seen:
            raise Conflict(
                f"{self._seen} samples of this epoch were seen, but the dataset now ends after {passed}: it must give the "
                "same samples in the same order, or say where it is by state_dict() and load_state_dict()",
                code="dataset_changed",
            )
        return source

    def _shared(self, step: int, samples: Sequence[Any]) -> Iterator[Portion]:
        first = step * self._ranks.global_batch
        micros, parts = shared(self._ranks, self._share, step, len(samples))
        for micro in micros:
            batch = self._collate(list(samples[micro.start - first : micro.stop - first]))
            yield _portion(micro, len(samples), parts, is_last=micro is micros[-1], batch=batch)


def _batches_of(ranks: VirtualRanks) -> dict[str, Any]:
    """What makes the batches of a run those that they are, besides its data: the same in all attempts, on any gang."""
    return {"global_batch": ranks.global_batch, "seed": ranks.seed}


def _check_same(cursor: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if cursor.get(name, value) != value:
            raise Conflict(
                f"the checkpoint's data had {name} {cursor[name]}, this run's have {value}: samples would be seen twice or "
                "never, or in other steps. Use the same, or begin in another directory",
                code="checkpoint_of_another_run",
                name=name,
            )


def shared(ranks: VirtualRanks, share: Share, step: int, size: int) -> tuple[list[Micro], int]:
    """The micro-batches of this process in a step of `size` samples, and how many the step has.

    Who has none, at the end of the data, is given an empty one, to take part in the step's end.
    """
    micros = micros_of(ranks, range(ranks.count), step, size)
    mine = share(step, len(micros))
    return micros[mine.start : mine.stop] or [Micro(step, 0, 0, 0)], len(micros)


def micros_of(ranks: VirtualRanks, block: range, step: int, size: int) -> list[Micro]:
    """The micro-batches of `block` in a step of `size` samples; those without a sample are left out."""
    first = step * ranks.global_batch
    edges = [(size * vrank // ranks.count, size * (vrank + 1) // ranks.count) for vrank in block]
    return [
        Micro(step, vrank, first + start, first + stop)
        for vrank, (start, stop) in zip(block, edges, strict=True)
        if stop > start
    ]


def _collated(collate: Callable[[list[Any]], Any], samples: list[Any]) -> Any:
    return collate(samples) if samples else None


def _portion(micro: Micro, step_samples: int, parts: int, *, is_last: bool, batch: Any) -> Portion:
    return Portion(micro.step, micro.vrank, micro.samples, step_samples, parts, is_last, batch)


def _unusable(data: Any, why: str) -> InvalidRequest:
    return InvalidRequest(f"{type(data).__qualname__} can't be trained on: {why}", code="dataset_unusable")
