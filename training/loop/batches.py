"""Batches that a loader of the script's own makes, taken as they come, one a step.

To go on, its epoch is begun with the random numbers it had, those of its own generators too. Then the batches that were seen are
passed over: the data say where they are (`state_dict`), or the loader passes over them (`training.loop.map_loader`), or they are read.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from training.loop.loader_state import LoaderState, Source
from training.loop.map_loader import MapLoader, dataset_changed
from training.loop.portions import Portion
from training.state import randomness
from training.state.plain import restored

_END: Final = object()


class Batches:
    """Batches from a loader of the script's own, one a step."""

    is_seeded = False

    def __init__(self, data: Iterable[Any], *, epochs: int | None) -> None:
        self._data, self._epochs = data, epochs
        self._epoch, self._given, self._random_at_start = 0, 0, randomness.capture()
        self._source, self._own, self._map = Source(data), LoaderState(data), MapLoader.of(data)
        self._own_at_start = self._own.capture()
        try:
            self.steps_total = None if epochs is None else epochs * len(data)  # type: ignore[arg-type]  # asked, not known
        except TypeError:
            self.steps_total = None

    def portions(self, step: int, cursor: dict[str, Any]) -> Iterator[Portion]:
        """Batches from the one after the cursor's on, epoch after epoch; an empty cursor is the beginning."""
        self._epoch, self._given = int(cursor.get("epoch", 0)), int(cursor.get("given", 0))
        source = self._reopened(cursor) if cursor else self._begun()
        while True:
            batch = next(source, _END)
            if batch is _END:
                if self._given == 0 or (self._epochs is not None and self._epoch + 1 >= self._epochs):
                    return
                self._epoch, self._given = self._epoch + 1, 0
                source = self._begun()
                continue
            self._given += 1
            yield Portion(step, 0, 1, 1, 1, True, batch)  # noqa: FBT003  # the last of its step
            step += 1

    def cursor(self) -> dict[str, Any]:
        """Where the data are after the batch given last: epoch, batches of it, and the loader's own random numbers."""
        return (
            {"epoch": self._epoch, "given": self._given, "random": self._random_at_start}
            | (self._map.place() if self._map is not None else {})
            | ({"own": self._own_at_start} if self._own_at_start else {})
            | self._source.place()
        )

    def _begun(self) -> Iterator[Any]:
        self._begin()
        if self._map is not None:
            return self._map.begin()
        if getattr(self._data, "persistent_workers", False):  # their random numbers would go on from epochs long past
            vars(self._data)["_iterator"] = None  # each epoch begins with new ones, whether it is resumed or not
        return iter(self._data)

    def _begin(self) -> None:
        """An epoch begins, with the random numbers there are."""
        if self._epochs != 1:
            self._own.tell_epoch(self._epoch)
        self._random_at_start, self._own_at_start = randomness.capture(), self._own.capture()

    def _reopened(self, cursor: dict[str, Any]) -> Iterator[Any]:
        """The epoch that was under way, at the batch after the last one seen; generators end as they are now."""
        now = randomness.capture()
        if "source" in cursor and hasattr(self._data, "load_state_dict"):
            self._data.load_state_dict(restored(cursor["source"]))
            source = iter(self._data)
        else:
            source = self._passed_over(cursor) or self._read_again(cursor)
        randomness.restore(now)
        return source

    def _passed_over(self, cursor: dict[str, Any]) -> Iterator[Any] | None:
        """What is left of the epoch without reading what was seen, if the loader allows it."""
        if self._map is None or "last" not in cursor:
            return None
        self._put_back(cursor)
        self._begin()
        return self._map.resumed(cursor, given=self._given)

    def _read_again(self, cursor: dict[str, Any]) -> Iterator[Any]:
        self._put_back(cursor)
        source = self._begun()
        passed = sum(1 for _ in islice(source, self._given))
        if passed < self._given:
            raise dataset_changed(self._given, passed)
        if self._map is not None:
            self._map.compare(cursor)
        return source

    def _put_back(self, cursor: dict[str, Any]) -> None:
        """The random numbers with which the epoch began."""
        randomness.restore(cursor["random"])
        self._own.restore(cursor.get("own", {}))
