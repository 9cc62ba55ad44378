"""The signals of a job's processes are as a shell starts them, whatever the process has set that they come from.

A runner is a process of Ray's, which blocks SIGINT in all that it starts, and has a handler for SIGTERM that a child would
inherit: it raises an exception where the interpreter looks next, which a child that has just begun to wait never does.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PLAIN: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def unblocked() -> Iterator[None]:
    """Inside, this thread blocks no signal; nor does what it starts."""
    before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def own_in_children() -> None:
    """From now on children that are forked from this process, other than their own children, have signals of their own."""
    here, before = os.getpid(), threading.local()

    def hold() -> None:
        """Until then a signal waits: one that came between would be heard by nobody."""
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

    def begin() -> None:
        is_own = os.getppid() == here
        if is_own:
            begin_anew()
        signal.pthread_sigmask(signal.SIG_SETMASK, () if is_own else before.mask)

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=begin)


def begin_anew() -> None:
    """What each signal does in a new interpreter. Called by its main thread."""
    for number in _PLAIN:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
