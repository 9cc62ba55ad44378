"""Generators of random numbers that aren't the process's own: torch's, Python's and numpy's, whoever holds them."""

import random
import sys
from collections.abc import Callable
from typing import Any

Access = tuple[Callable[[], Any], Callable[[Any], None]]


def access_to(value: Any) -> Access | None:
    """How a generator's state is read and written; None if it is no generator."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if isinstance(value, random.Random):
        return value.getstate, lambda state: value.setstate((state[0], tuple(state[1]), state[2]))
    if numpy is not None and isinstance(value, numpy.random.Generator):
        bits = value.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if numpy is not None and isinstance(value, numpy.random.RandomState):
        return lambda: value.get_state(legacy=True), lambda state: value.set_state(tuple(state))
    return None
