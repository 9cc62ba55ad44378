"""A runner serves its account again after a function that left nothing in it, and after no other; it says so when it is asked.

Each is a runner without Ray, in a process of its own, which its function may spoil.
"""

import asyncio
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from fabric.gate.events import JobKind, LeaseOutcome
from fabric.sdk.functions import pickle_call
from fabric.storage.archive import DirectoryArchive
from fabric.worker import runner as runner_module
from fabric.worker.channel import Line
from fabric.worker.payload import inlined
from fabric.worker.rank_order import ARE_YOU_CLEAN, CLEAN, LEFT_SOMETHING, Order, decode_end, encode_order
from fabric.worker.runner import Runner
from tests.worker.leases import lease_of

ADDRESS = "127.0.0.1"


def nothing():
    pass


def fails():
    raise ValueError("no")


def leaves_a_thread():
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def has_an_empty_place():
    here = Path.cwd()
    rooms = [here, Path.home(), Path(os.environ["TMPDIR"])]
    assert [list(room.iterdir()) for room in rooms] == [[], [], []]
    assert here.parent.parent.name == os.environ["FABRIC_JOB_ID"] + ".1"
    for room in rooms:
        (room / "left").write_text("")


def order_of(at, function, folder, kind):
    job = f"job-{at}"
    call = {"inline": inlined(pickle_call(function, (), {}))}
    told = call if kind is JobKind.FUNCTION else {"entrypoint": ["true"]}
    lease = lease_of(job, lease_id=f"{job}.1", kind=kind, payload=json.dumps(told))
    return Order(lease=lease, rank=0, master_addr=ADDRESS, master_port=1, work_dir=str(folder / "work"))


async def _said(functions, folder, kind):
    runner_module._devices = tuple
    runner_module.ray.util.get_node_ip_address = lambda: ADDRESS
    runner = Runner(archive=DirectoryArchive(folder / "archive"), placement_group_id="", bundle=0)
    line = await Line.open((await runner.seat()).line)
    said = [("before any", await line.ask(ARE_YOU_CLEAN))]
    for at, function in enumerate(functions):
        end = decode_end(await line.ask(encode_order(order_of(at, function, folder, kind))))
        words = await line.ask(ARE_YOU_CLEAN), await line.ask(ARE_YOU_CLEAN)
        assert words[0] == words[1], "the same when it is asked again"
        said.append((end.outcome, words[0]))
    return said


def said_of(functions, folder, kind=JobKind.FUNCTION):
    return asyncio.run(_said(functions, folder, kind))


@pytest.fixture
def said(tmp_path):
    def of(*functions, kind=JobKind.FUNCTION):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(said_of, (functions, Path(tmp_path), kind))

    return of


def test_after_functions_that_leave_nothing_it_is_clean_each_time(said):
    done, failed = LeaseOutcome.SUCCEEDED, LeaseOutcome.FAILED
    assert said(nothing, fails, nothing)[1:] == [(done, CLEAN), (failed, CLEAN), (done, CLEAN)]


def test_after_one_that_leaves_something_it_is_not(said):
    assert said(nothing, leaves_a_thread)[1:] == [
        (LeaseOutcome.SUCCEEDED, CLEAN),
        (LeaseOutcome.SUCCEEDED, LEFT_SOMETHING),
    ]


def test_after_a_program_of_its_own_no_other_runs_there(said):
    assert said(None, kind=JobKind.SCRIPT)[1:] == [(LeaseOutcome.SUCCEEDED, LEFT_SOMETHING)]


def test_each_function_has_an_empty_place_of_its_own_attempt_whatever_the_last_one_left_in_its(said):
    assert set(said(*[has_an_empty_place] * 4)[1:]) == {(LeaseOutcome.SUCCEEDED, CLEAN)}
