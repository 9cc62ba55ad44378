"""Whether a function has left a thread behind in its runner, which then serves nobody else and ends with the lease."""

import _thread
import multiprocessing
import threading
import time

import pytest

from fabric.adapters.threads import threads_beside, threads_now


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
