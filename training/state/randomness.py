"""The generators that a process draws from, taken and put back together: Python's, numpy's and torch's.

A library that the process never imported has not been drawn from, so it is left alone; nothing is imported here. Device
generators are kept by device number and are not portable between kinds of device: what must be the same everywhere draws
the seeds of `training.loop.virtual`, one per (run, step, virtual rank).
"""

import ctypes
import random
import struct
import sys
from collections.abc import Mapping
from typing import Any, Final


def capture() -> dict[str, Any]:
    """All states, as values that later draws don't change; about 20 µs on a CPU, and 40 more where numpy was drawn from."""
    states: dict[str, Any] = {"python": random.getstate()}
    if (numpy := sys.modules.get("numpy")) is not None:
        states["numpy"] = _numpys.state(numpy)
    if (torch := sys.modules.get("torch")) is not None:
        states["torch"] = torch.default_generator.get_state()
        if torch.cuda.is_initialized():
            states["cuda"] = torch.cuda.get_rng_state_all()
    return states


class _Numpys:
    """Numpy's state, which it makes number by number: that of before is still true where the memory it was made of is the same.

    That are the bits of its generator, whose place numpy tells, and one drawn normal number that may wait for its turn, whose place
    is found out. Where either is not as it is known to be, the state is made each time.
    """

    def __init__(self) -> None:
        self._memory, self._state = b"", ()
        self._normal_at: int | None = None
        """Where in numpy's object the number waits; 0 = it was not found."""

    def state(self, numpy: Any) -> Any:
        """As `numpy.random.get_state(legacy=True)`."""
        before = self._now(numpy)
        if before and before == self._memory:
            return self._state
        state = numpy.random.get_state(legacy=True)
        self._memory, self._state = b"", ()
        if before and before == self._now(numpy) and before.startswith(state[1].tobytes()):
            self._memory, self._state = before, state
        return state

    def _now(self, numpy: Any) -> bytes:
        """What the state is made of; b"" = it isn't known where that lies."""
        if self._normal_at is None:
            self._normal_at = _found_normal(numpy)
        own = getattr(numpy.random.get_state, "__self__", None)
        generator: Any = getattr(numpy.random, "get_bit_generator", lambda: None)()
        is_known = generator is not None and type(generator).__name__ == "MT19937"
        if not (self._normal_at and is_known and type(own) is numpy.random.RandomState):
            return b""
        bits = ctypes.string_at(generator.ctypes.state_address, _BITS_BYTES)
        return bits + ctypes.string_at(id(own) + self._normal_at, _NORMAL.size)


def _found_normal(numpy: Any) -> int:
    """Where an object of numpy's has the number that waits, and whether one does; 0 = not where it is looked for."""
    own = numpy.random.RandomState(1)
    size = type(own).__basicsize__
    own.standard_normal()
    (*_, is_waiting, waiting) = own.get_state(legacy=True)
    at = ctypes.string_at(id(own), size).find(_NORMAL.pack(is_waiting, waiting))
    own.standard_normal()
    is_gone = at > 0 and ctypes.string_at(id(own), size).startswith(_NORMAL.pack(0, 0.0), at)
    return at if is_waiting and is_gone else 0


_BITS_BYTES: Final = 624 * 4 + ctypes.sizeof(ctypes.c_int)
"""The numbers of a Mersenne twister, and at which of them it is."""
_NORMAL: Final = struct.Struct("@id")
_numpys: Final = _Numpys()


def restore(states: Mapping[str, Any]) -> None:
    """Put back what `capture` took. Device states that this machine has no device for are passed over."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in states and (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.set_state(tuple(states["numpy"]))
    if "torch" in states and (torch := sys.modules.get("torch")) is not None:
        torch.set_rng_state(states["torch"])
        if torch.cuda.is_available():
            for device, state in enumerate(states.get("cuda", ())[: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(state, device)
