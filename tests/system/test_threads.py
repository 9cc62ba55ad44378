"""Whether a function has left a thread behind in its runner, which then serves nobody else and ends with the lease."""

import _thread
import ctypes
import multiprocessing
import threading
import time

import pytest

from fabric.system.threads import as_many_as, threads_beside, threads_now


def by_threading(work):
    threading.Thread(target=work, daemon=True).start()


def below_threading(work):
    _thread.start_new_thread(work, ())


@pytest.mark.parametrize("start", [by_threading, below_threading])
def test_a_thread_that_a_function_leaves_is_found_however_it_was_started(start):
    before = threads_now()
    assert not threads_beside(before)
    runs, over = threading.Event(), threading.Event()

    def work():
        runs.set()
        over.wait()

    start(work)
    assert runs.wait(30)
    try:
        assert threads_beside(before)
    finally:
        over.set()


def a_thread_that_runs_no_python_is_found():
    before = threads_now()
    lock = _thread.allocate_lock()
    lock.acquire()
    _thread.start_new_thread(lock.acquire, (True, 60.0))
    try:
        while threads_now().started == before.started:
            time.sleep(0.001)
        assert threads_beside(before)
    finally:
        lock.release()


def test_a_thread_that_runs_no_python_is_found_too():
    """In a process of its own: of this one, threads of other tests may end meanwhile."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(a_thread_that_runs_no_python_is_found)


def one_more_thread_is_counted():
    before = threads_now()
    assert as_many_as(before)
    over = threading.Event()
    threading.Thread(target=over.wait, daemon=True).start()
    assert not as_many_as(before)
    ctypes.CDLL("libpthread.so.0").pthread_create(
        ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(ctypes.CDLL(None).sleep, ctypes.c_void_p), ctypes.c_void_p(60)
    )
    over.set()
    while threads_now().started > before.started:
        time.sleep(0.001)
    assert not as_many_as(before)


def test_one_more_thread_is_counted_whether_it_is_pythons_or_cs():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(one_more_thread_is_counted)
