"""How a function ends once it was told to stop, and what that counts as."""

import asyncio
import os
import signal
import time

import pytest

from fabric.gate.events import LeaseOutcome
from tests.worker.test_zygote import call, runner, until, zygote

__all__ = ["runner", "zygote"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


def exits(*_):
    raise SystemExit(3)


def raises(*_):
    raise ValueError("told to stop")


def leaves_at_once(*_):
    os._exit(1)


def ends_by_the_signal(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("handler", [exits, raises, leaves_at_once, ends_by_the_signal, signal.default_int_handler])
async def test_a_function_that_ends_at_its_notice_has_not_failed(runner, handler):
    """As with scripts: once it was told to stop, how it ends is for the notice's sake. It goes on when there is room."""

    def work():
        signal.signal(signal.SIGTERM, handler)
        print("up", flush=True)
        while True:
            time.sleep(1)

    stage = await runner.begin(call(work))
    ended = asyncio.create_task(asyncio.to_thread(stage.fork.perform, stage))
    await until(lambda: stage.log_file.exists() and stage.log_file.read_text())
    stage.ask_to_stop("evicted", seconds_left=10, save=True)
    end = await ended
    assert end.outcome is LeaseOutcome.INTERRUPTED, end.error


async def test_a_function_that_fails_and_did_not_hear_its_notice_has_failed(runner):
    def work():
        print("up", flush=True)
        time.sleep(0.5)
        raise ValueError("by itself")

    stage = await runner.begin(call(work))
    ended = asyncio.create_task(asyncio.to_thread(stage.fork.perform, stage))
    await until(lambda: stage.log_file.exists() and stage.log_file.read_text())
    stage.ask_to_stop("evicted", seconds_left=10, save=True)
    end = await ended
    assert end.outcome is LeaseOutcome.FAILED
    assert "by itself" in end.error
