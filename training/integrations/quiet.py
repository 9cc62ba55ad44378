"""Calls of transformers without its progress bars and its report of what it has loaded: what is wrong is said by who calls."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from training.state import randomness


@contextmanager
def quietly() -> Iterator[None]:
    """Also the random numbers are as they were: transformers draws some for weights that it then replaces."""
    import transformers  # noqa: F401, PLC0415  # takes seconds, and only who exports or imports has it

    logging: Any = sys.modules["transformers"].utils.logging
    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    drawn = randomness.capture()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
        randomness.restore(drawn)
