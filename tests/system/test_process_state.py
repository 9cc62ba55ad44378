"""What a function leaves in its runner beside a result is found, and such a runner serves no other lease.

Each is tried in a process of its own, as a job's function is: in a thread that is not the main one.
"""

import _thread
import ctypes
import gc
import mmap
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from fabric.system.process_state import HooksWatch, left_in, state_now
from fabric.system.threads import threads_beside, threads_now

KEPT = []
LIBC = ctypes.CDLL(None, use_errno=True)


def native_thread():
    """Started by C, running C: Python has never heard of it."""
    libpthread = ctypes.CDLL("libpthread.so.0")
    libc_sleep = ctypes.cast(LIBC.sleep, ctypes.c_void_p)
    libpthread.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc_sleep, ctypes.c_void_p(600))


def native_thread_that_runs_python():
    kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    KEPT.append(kind(lambda _: time.sleep(600)))
    ctypes.CDLL("libpthread.so.0").pthread_create(ctypes.byref(ctypes.c_ulong()), None, KEPT[-1], None)


def numpys_threads():
    os.environ["OPENBLAS_NUM_THREADS"] = "2"
    import numpy as np

    np.ones((500, 500)) @ np.ones((500, 500))


def python_thread():
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def thread_below_threading():
    _thread.start_new_thread(time.sleep, (600,))


def thread_timer():
    threading.Timer(600, print).start()


def interval_timer():
    signal.setitimer(signal.ITIMER_VIRTUAL, 600)


def kernel_timer():
    timer = ctypes.c_void_p()
    assert LIBC.timer_create(time.CLOCK_MONOTONIC, None, ctypes.byref(timer)) == 0


def c_signal_handler():
    LIBC.signal(signal.SIGUSR2, ctypes.cast(LIBC.abort, ctypes.c_void_p))


def ignored_signal():
    LIBC.signal(signal.SIGUSR2, ctypes.c_void_p(1))


def audit_hook():
    sys.addaudithook(lambda *_: None)


def fork_hook():
    os.register_at_fork(before=lambda: None)


def collection_hook():
    gc.callbacks.append(lambda *_: None)


def trace_hook():
    threading.settrace(lambda *_: None)


def exception_hook():
    sys.excepthook = lambda *_: None


def open_file():
    KEPT.append(tempfile.TemporaryFile())  # noqa: SIM115


def deleted_file():
    KEPT.append(tempfile.NamedTemporaryFile(delete=False))  # noqa: SIM115
    os.unlink(KEPT[-1].name)  # noqa: PTH108


def many_sockets():
    KEPT.extend(socket.socketpair() for _ in range(40))


def mapped_memory():
    KEPT.append(mmap.mmap(-1, 2**30 + 2**28))
    for at in range(0, len(KEPT[-1]), 4096):
        KEPT[-1][at] = 1


def limits():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def umask():
    os.umask(0o123)


def priority():
    os.nice(3)


def processors():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


LEAVES = [
    native_thread, native_thread_that_runs_python, numpys_threads, python_thread, thread_below_threading, thread_timer,
    interval_timer, kernel_timer, c_signal_handler, ignored_signal, audit_hook, fork_hook, collection_hook, trace_hook,
    exception_hook, open_file, deleted_file, many_sockets, mapped_memory, limits, umask, priority,
]  # fmt: skip
if len(os.sched_getaffinity(0)) > 1:
    LEAVES.append(processors)


def nothing():
    return sum(range(1000))


def file_that_is_closed():
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 2**20)


def thread_that_has_ended():
    thread = threading.Thread(target=nothing)
    thread.start()
    thread.join()


def program_that_has_ended():
    subprocess.run(["true"], check=True)


def few_sockets_and_modules():
    import xml.dom.minidom

    KEPT.append((socket.socketpair(), xml))


HARMLESS = [nothing, file_that_is_closed, thread_that_has_ended, program_that_has_ended, few_sockets_and_modules]


def left_by(function):
    """As the runner does it: before its first job, and after a job in a thread of its own."""
    hooks = HooksWatch()
    hooks.watch()
    state, found = state_now(), []
    begin = threading.Event()

    def work():
        begin.wait()
        function()
        found.append(hooks.seen or threads_beside(before) or left_in(state))

    thread = threading.Thread(target=work)
    thread.start()
    before = threads_now()
    begin.set()
    thread.join()
    return found[0]


def tried(function):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(left_by, (function,))


@pytest.mark.parametrize("function", LEAVES, ids=lambda function: function.__name__)
def test_what_would_go_on_or_hold_something_is_found(function):
    if function is numpys_threads and os.cpu_count() == 1:
        pytest.skip("numpy starts no threads on one processor")
    assert tried(function)


@pytest.mark.parametrize("function", HARMLESS, ids=lambda function: function.__name__)
def test_what_is_over_or_harmless_is_no_reason_to_end_a_runner(function):
    assert not tried(function)


def test_a_thread_that_was_there_before_the_job_is_no_reason_and_is_looked_up_once():
    over = threading.Event()
    threading.Thread(target=over.wait, daemon=True).start()
    try:
        before = threads_now()
        assert threads_now(before).tasks == before.tasks
    finally:
        over.set()
