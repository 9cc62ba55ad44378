"""The generators of a loader's workers, as each of them was after any of its last batches: noted in memory that all share.

A worker begins an epoch with a seed and draws from there on, so that its next numbers depend on all that it has read. With the
states that it had, another worker goes on in its place. Only what a process draws from by itself is kept (Python's, numpy's and
torch's for the CPU), as numbers.
"""

import ctypes
import multiprocessing
import struct
from typing import Any, Final

import msgspec
import numpy as np
import torch

from training.state import randomness

_SLOT_BYTES: Final = 16 * 1024
_HEAD: Final = struct.Struct("<QI")
_MORE: Final = 4
"""Batches of a worker that are remembered beside those that it may read ahead."""
_TWISTER: Final = "MT19937"


class WorkerStates:
    """Of all workers of one epoch. A worker notes, and the process that it works for asks."""

    def __init__(self, workers: int, *, ahead: int, first: int = 0, begins_with: list[bytes] | None = None) -> None:
        """Make room.

        Args:
            workers: how many there are.
            ahead: batches that a worker may read before they are asked for.
            first: batches that each of them has read in an earlier attempt.
            begins_with: the states that they had after those; None = as torch seeds them.
        """
        self.workers = workers
        self._slots, self._first, self._begins_with = ahead + _MORE, first, begins_with
        self._memory = multiprocessing.RawArray(ctypes.c_char, workers * self._slots * _SLOT_BYTES)

    def begin(self, worker: int) -> None:
        """For a worker, before its first batch."""
        if self._begins_with is not None:
            randomness.restore(_decoded(self._begins_with[worker]))
        self.note(worker, 0)

    def note(self, worker: int, done: int) -> bool:
        """For a worker that has done so many batches of this attempt; whether all that it draws from can be kept."""
        data = _encoded()
        if data is None or len(data) > _SLOT_BYTES - _HEAD.size:
            return False
        view, start = self._at(worker, self._first + done)
        _HEAD.pack_into(view, start, 0, 0)
        view[start + _HEAD.size : start + _HEAD.size + len(data)] = data
        _HEAD.pack_into(view, start, self._first + done + 1, len(data))
        return True

    def after(self, done: int) -> list[bytes] | None:
        """Each worker's state when it had done so many batches of the epoch; None if one's isn't there any more."""
        found = []
        for worker in range(self.workers):
            view, start = self._at(worker, done)
            number, size = _HEAD.unpack_from(view, start)
            data = bytes(view[start + _HEAD.size : start + _HEAD.size + size])
            if number != done + 1 or _HEAD.unpack_from(view, start) != (number, size):
                return None
            found.append(data)
        return found

    def _at(self, worker: int, done: int) -> tuple[memoryview, int]:
        return memoryview(self._memory).cast("B"), (worker * self._slots + done % self._slots) * _SLOT_BYTES


def _encoded() -> bytes | None:
    states = randomness.capture()
    numpys = states.get("numpy")
    if "cuda" in states or not isinstance(numpys, tuple) or numpys[0] != _TWISTER:
        return None
    version, numbers, gauss = states["python"]
    _, keys, *rest = numpys
    return msgspec.msgpack.encode([version, numbers, gauss, keys.tobytes(), rest, states["torch"].numpy().tobytes()])


def _decoded(data: bytes) -> dict[str, Any]:
    version, numbers, gauss, keys, rest, torchs = msgspec.msgpack.decode(data)
    return {
        "python": (version, tuple(numbers), gauss),
        "numpy": (_TWISTER, np.frombuffer(keys, np.uint32).copy(), *rest),
        "torch": torch.frombuffer(bytearray(torchs), dtype=torch.uint8),
    }
