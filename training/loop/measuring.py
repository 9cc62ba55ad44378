"""Measuring a model amid its training without leaving a trace in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from training.state import randomness


@contextmanager
def untouched(modules: Sequence[Any]) -> Iterator[None]:
    """Modules are in `eval` mode and torch keeps no gradients inside; modes and random numbers are put back after it."""
    import torch  # noqa: PLC0415  # not loaded for jobs that train nothing

    states, modes = randomness.capture(), [(module, module.training) for module in modules]
    for module, _ in modes:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.train(was_training)
        randomness.restore(states)
