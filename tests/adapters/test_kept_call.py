"""A function in a process of its own has a folder that outlives its attempts, as a command has."""

import base64
import json
import os
import signal
import threading
import time

import cloudpickle
import pytest

from fabric.adapters.archive import DirectoryArchive
from fabric.adapters.kept_call import perform_beside
from fabric.adapters.processes import end_all
from fabric.adapters.results import read_result
from fabric.adapters.runner import Order, encode_order, stage_of
from fabric.adapters.spawned import Spawned
from fabric.gate.events import JobKind, LeaseOutcome
from fabric.results import read_parcel
from tests.adapters.leases import lease_of

WITHIN_S = 120


class Attempt:
    """One, in a thread of its own as a runner has it."""

    def __init__(self, place, function, *, epoch):
        self.saves, self.end = [], None
        payload = {
            "inline": base64.b64encode(cloudpickle.dumps((function, (), {}))).decode(),
            "env": {"FABRIC_CHECKPOINT_QUIET_S": "0.3", "FABRIC_CHECKPOINT_EVERY_S": "600"},
        }
        self.lease = lease_of(
            "j", lease_id=f"j-{os.getpid()}-{id(place)}.{epoch}", epoch=epoch, kind=JobKind.PROGRAM, payload=json.dumps(payload)
        )  # fmt: skip
        order = Order(
            lease=self.lease, rank=0, master_addr="127.0.0.1", master_port=1, work_dir=str(place.folder / "work")
        )
        self.archive = place.archive
        self.stage = stage_of(
            order, archive=place.archive, devices=("0",), on_saved=lambda step, *_: self.saves.append(step),
            on_report=lambda: None,
        )  # fmt: skip

        def start():
            self.stage.fork = spawned = Spawned.start(self.stage, order=encode_order(order), devices=("0",))
            return spawned

        self._thread = threading.Thread(
            target=lambda: setattr(self, "end", perform_beside(self.stage, start)), daemon=True
        )
        self._thread.start()

    def ended(self):
        self._thread.join(WITHIN_S)
        assert self.end is not None
        return self.end

    def value(self):
        end = self.ended()
        assert end.outcome is LeaseOutcome.SUCCEEDED, end.error
        return read_parcel(read_result(self.archive, end.result_ref)).value()

    def until(self, found):
        deadline = time.monotonic() + WITHIN_S
        while not found():
            assert self.end is None, self.end
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self):
        for pid in self.stage.fork.processes():
            os.kill(pid, signal.SIGKILL)
        return self.ended()


@pytest.fixture
def begin(tmp_path):
    class Place:
        folder, archive = tmp_path, DirectoryArchive(tmp_path / "archive")

    made = []

    def begin(function):
        made.append(Attempt(Place, function, epoch=len(made) + 1))
        return made[-1]

    yield begin
    for attempt in made:
        end_all((), lease_id=attempt.lease.lease_id)


def files():
    folder = os.environ["FABRIC_CHECKPOINT_DIR"]
    return {name: open(os.path.join(folder, name)).read() for name in os.listdir(folder)}  # noqa: PTH118, PTH123, PTH208


def writes(step):
    def write():
        with open(os.environ["FABRIC_CHECKPOINT_DIR"] + "/step", "w") as file:  # noqa: PTH123
            file.write(str(step))

    return write


def writes_and_stays():
    writes(3)()
    time.sleep(600)


def writes_all_the_time():
    path = os.environ["FABRIC_CHECKPOINT_DIR"] + "/step"
    at = int(open(path).read()) if os.path.exists(path) else 0  # noqa: PTH110, PTH123, SIM115
    while True:
        at += 1
        with open(path + ".new", "w") as file:  # noqa: PTH123
            file.write(str(at))
        os.replace(path + ".new", path)  # noqa: PTH105
        time.sleep(0.05)


def saves_by_the_context():
    from fabric import context

    job = context.current()
    writes(9)()
    seen = job.load()
    job.save(b"own", step=5)
    time.sleep(1.0)
    job.save(b"own", step=6)
    return seen


def test_what_a_function_leaves_in_its_folder_is_there_for_its_next_attempt(begin):
    first = begin(writes(7))
    assert first.ended().outcome is LeaseOutcome.SUCCEEDED, first.end.error
    assert first.saves == [7]
    assert begin(files).value() == {"step": "7"}


def test_a_quiet_folder_is_committed_while_the_function_goes_on(begin):
    first = begin(writes_and_stays)
    first.until(lambda: first.saves == [3])
    assert first.kill().outcome is LeaseOutcome.FAILED
    second = begin(writes_and_stays)
    second.until(lambda: second.stage.fork is not None)
    second.kill()
    assert begin(files).value() == {"step": "3"}


def test_a_function_that_writes_all_the_time_is_committed_before_its_end(begin):
    first = begin(writes_all_the_time)
    step = first.stage.folder / "checkpoint" / "step"
    first.until(lambda: step.exists() and int(step.read_text() or 0) > 20)
    assert first.saves == []
    first.stage.ask_to_stop("evicted", seconds_left=6, save=True)
    first.until(lambda: first.saves)
    first.kill()
    kept = first.saves[-1]
    assert kept > 20
    assert begin(files).value() == {"step": str(kept)}


def test_a_checkpoint_of_it_is_made_when_one_is_asked_for(begin):
    first = begin(writes_all_the_time)
    step = first.stage.folder / "checkpoint" / "step"
    first.until(step.exists)
    first.stage.ask_to_save()
    first.until(lambda: first.saves)
    first.kill()


def test_a_function_that_saves_by_itself_is_not_kept_from_it_by_its_folder(begin):
    first = begin(saves_by_the_context)
    assert first.value() is None
    second = begin(saves_by_the_context)
    assert second.value() == b"own"
    assert (first.saves, second.saves) == ([5, 6], [5, 6])


def test_a_function_that_fails_commits_nothing_of_its_last_moment(begin):
    def fails():
        writes(9)()
        raise ValueError("no")

    first = begin(fails)
    assert first.ended().outcome is LeaseOutcome.FAILED
    assert first.saves == []
