"""What a run tells of itself: how far it is, where its time goes, and its curves, through evictions."""

import math
import struct
import sys
import types

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from fabric import context
from fabric.errors import JobFailed
from tests.training.workload import Attempts, Script, ended_by, running, stopped
from training.loop.trackers import Trackers
from training.progress import Progress
from training.timers import Timers


def events_in(folder):
    """All scalars as (name, step, value), as TensorBoard reads the files."""
    for file in sorted(folder.rglob("events.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)
            at += 12 + length + 4


def logged(job, script, *, stop_at=None, steps=8):
    run = script.session()
    for step in run.steps(steps):
        if step == stop_at:
            stopped(job)
        loss = script.loss(*script.batch())
        script.opt.zero_grad()
        loss.backward()
        script.opt.step()
        run.log(loss=loss, rate=script.sched.get_last_lr()[0])
    return run


def test_a_runs_curve_goes_on_over_its_attempts_and_is_kept_with_its_checkpoints(tmp_path, curves):
    attempts = Attempts(tmp_path / "kept")
    job = attempts.next()
    with ended_by(context.Saved, job):
        logged(job, Script(), stop_at=4)
    with running(attempts.next()) as job:
        logged(job, Script())
    for folder in (curves, tmp_path / "kept" / job.checkpoints.prefix / "tensorboard"):
        drawn = {(name, step) for name, step, _ in events_in(folder)}
        assert drawn == {(name, step) for name in ("loss", "rate") for step in range(8)}
    assert len(list((tmp_path / "kept" / job.checkpoints.prefix / "tensorboard").iterdir())) == 2


def test_a_run_that_logs_nothing_writes_no_curve(tmp_path, curves):
    with running(Attempts(tmp_path / "kept").next()):
        Script().train(4)
    assert not curves.exists()


def test_the_fabric_is_told_step_total_loss_and_where_the_time_goes(tmp_path):
    with running(Attempts(tmp_path / "kept").next()) as job:
        logged(job, Script())
    told = job.progress
    assert (told.step, told.steps_total) == (8, 8)
    assert told.loss_micro > 0
    assert set(told.timers) == {"waiting_data", "collective", "checkpoint", "idle"}


def test_what_is_logged_on_a_device_is_not_fetched_at_every_step():
    class OnDevice:
        """A tensor whose value costs waiting for the device."""

        device = torch.device("cuda")
        fetched = 0

        def detach(self):
            return self

        def clone(self):
            return self

        def __float__(self):
            type(self).fetched += 1
            return 0.5

    drawn = []
    progress = Progress(lambda facts: None, lambda step, values: drawn.append((step, values)), Timers())
    for step in range(5):
        progress.log(step, {"loss": OnDevice()})
    assert OnDevice.fetched == 0
    progress.flush()
    assert drawn == [(step, {"loss": 0.5}) for step in range(5)]


def test_a_devices_loss_that_is_not_finite_is_found_one_step_late_and_its_step_not_kept(tmp_path, monkeypatch):
    class Late(torch.Tensor):
        """A CPU's tensor that says it lies on a device."""

        @property
        def device(self):
            return torch.device("cuda")

    attempts, steps = Attempts(tmp_path), []
    with ended_by(JobFailed, attempts.next()) as ended:
        script = Script()
        run = script.session()
        for step in run.steps(8):
            steps.append(step)
            loss = script.loss(*script.batch()) * (math.nan if step == 4 else 1)
            run._stepping.finite.look(loss.detach().as_subclass(Late), step=step)
            script.opt.zero_grad()
            loss.backward()
            script.opt.step()
    assert (ended.error.code, ended.error.facts["step"]) == ("loss_not_finite", 4)
    assert steps[-1] == 5
    assert [step for step in attempts.saves if step > 4] == []


@pytest.fixture
def weights_and_biases(monkeypatch):
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")
    module.drawn = []

    class Run:
        def log(self, values, *, step):
            if step == 3:
                raise OSError("no network")
            module.drawn.append((step, values))

        def finish(self):
            module.drawn.append("finished")

    def init(**options):
        module.options = options
        return Run()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return module


@pytest.fixture
def mlflow(monkeypatch):
    module = types.ModuleType("mlflow")
    module.__spec__ = types.SimpleNamespace(name="mlflow")
    module.drawn, module.runs = [], []

    class Client:
        def get_experiment_by_name(self, name):
            return types.SimpleNamespace(experiment_id=name) if module.runs else None

        def create_experiment(self, name):
            return name

        def search_runs(self, experiments, *, max_results):
            return module.runs

        def create_run(self, experiment, *, run_name):
            module.runs.append(types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"{experiment}-1")))
            return module.runs[0]

        def log_metric(self, run, name, value, *, step):
            module.drawn.append((run, name, value, step))

        def set_terminated(self, run):
            module.drawn.append((run, "terminated"))

    module.MlflowClient = Client
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:nowhere")
    return module


def test_curves_go_to_weights_and_biases_where_it_is_set_up(curves, weights_and_biases, capsys):
    trackers = Trackers(curves, run="j-1", step=0)
    for step in range(5):
        trackers.scalars(step, {"loss": 0.5})
    trackers.close()
    assert weights_and_biases.options["id"] == "j-1"
    assert weights_and_biases.options["resume"] == "allow"
    assert weights_and_biases.drawn == [(step, {"loss": 0.5}) for step in range(3)]
    assert "left out from step 3 on: no network" in capsys.readouterr().err
    assert [step for _, step, _ in events_in(curves)] == list(range(5))


def test_all_attempts_of_a_job_are_one_run_in_mlflow(curves, mlflow):
    for step in (0, 1):
        trackers = Trackers(curves, run="j-1", step=step)
        trackers.scalars(step, {"loss": 0.5})
        trackers.close()
    assert mlflow.drawn == [
        ("j-1-1", "loss", 0.5, 0), ("j-1-1", "terminated"), ("j-1-1", "loss", 0.5, 1), ("j-1-1", "terminated"),
    ]  # fmt: skip


def test_a_tracker_that_is_installed_but_not_set_up_is_left_alone(curves, weights_and_biases, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    trackers = Trackers(curves, run="j-1", step=0)
    trackers.scalars(0, {"loss": 0.5})
    trackers.close()
    assert weights_and_biases.drawn == []


def test_time_is_told_by_what_it_went_into():
    now = [0.0]
    timers = Timers(clock=lambda: now[0])
    with timers.within("waiting_data"):
        now[0] += 3
    now[0] += 5
    timers.add("checkpoint", 1)
    assert timers.seconds() == {"waiting_data": 3, "checkpoint": 1, "collective": 0, "idle": 0}
    assert (timers.total_s, timers.computing_s) == (8, 4)
