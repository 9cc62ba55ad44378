"""What a session promises a plain loop: it is saved wherever it is, it resumes, and what goes wrong is said clearly."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fabric import context
from fabric.worker import execution
from tests.training.workload import Attempts, Script, ended_by, linger, resumed, running, stopped
from training import session
from training.session_loop import LOSS_EVERY_VARIABLE

STEPS = 12
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def uninterrupted():
    script = Script()
    script.train(STEPS)
    return script.digest()


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


def test_outside_the_fabric_a_loop_runs_as_it_is_and_keeps_nothing(tmp_path, monkeypatch, uninterrupted):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    script = Script()
    run = script.train(STEPS)
    assert (run.done, run.resumed_at, script.digest()) == (STEPS, 0, uninterrupted)
    assert signal.getsignal(signal.SIGTERM) is before
    assert list(tmp_path.iterdir()) == []
    assert [thread.name for thread in threading.enumerate() if thread.name == "fabric-session"] == []


def test_a_finished_run_is_kept_and_has_nothing_left_to_do(attempts, uninterrupted):
    with running(attempts.next()):
        Script().train(STEPS)
    assert attempts.saves == [STEPS]
    assert resumed(attempts) == (STEPS, uninterrupted)
    assert attempts.saves == [STEPS]


@pytest.mark.parametrize("reason", ["evicted", "out_of_tokens", "drained", "time_limit", "limit_reached", "paused"])
def test_whatever_the_reason_the_step_before_is_saved(attempts, uninterrupted, reason):
    job = attempts.next()
    with ended_by(context.Saved, job):
        Script().train(STEPS, each=lambda step: step == 4 and stopped(job, reason=reason))
    (saved,) = attempts.saves
    assert saved in {4, 5}
    assert resumed(attempts) == (saved, uninterrupted)


def test_a_run_that_waits_for_data_is_saved_and_ended_where_it_waits(attempts, uninterrupted):
    def waits(step):
        if step == 5:
            stopped(job)
            linger()

    job = attempts.next()
    with ended_by(context.Saved, job):
        Script().train(STEPS, each=waits)
    assert resumed(attempts) == (5, uninterrupted)


def test_a_run_in_its_forward_pass_is_saved_at_the_boundary_before(attempts, uninterrupted):
    job = attempts.next()
    with ended_by(context.Saved, job):
        script = Script()

        def in_forward(*_forward):
            if script.sched.last_epoch == 3:
                stopped(job)
                linger()

        script.model[2].register_forward_hook(in_forward)
        script.train(STEPS)
    assert resumed(attempts) == (3, uninterrupted)


def test_a_run_in_its_evaluation_is_saved_with_the_step_it_had_done(attempts):
    job = attempts.next()
    with ended_by(context.Saved, job):
        script = Script()
        run = script.session()
        for step in run.steps(STEPS):
            script.loss(*script.batch()).backward()
            script.opt.step()
            with run.evaluation():
                assert not script.model.training
                if step == 2:
                    stopped(job)
                    linger()
    assert attempts.saves == [3]


def test_an_evaluation_leaves_no_trace_in_the_training():
    def trained(*, evaluates):
        script = Script()
        run = script.session()
        for _ in run.steps(STEPS):
            script.opt.zero_grad()
            script.loss(*script.batch()).backward()
            script.opt.step()
            if evaluates:
                with run.evaluation():
                    script.loss(*script.batch())
        return script.digest()

    assert trained(evaluates=True) == trained(evaluates=False)


def test_what_a_body_changed_before_its_step_is_not_in_the_checkpoint(attempts):
    def trained(job):
        script = Script()
        run = script.session()
        for step in run.steps(STEPS):
            for group in script.opt.param_groups:
                group["lr"] *= 0.9
            loss = script.loss(*script.batch())  # moves the running means of the normalisation
            if job is not None and step == 4 and attempts.count == 1:
                stopped(job)
                linger()
            script.opt.zero_grad()
            loss.backward()
            script.opt.step()
        return script.opt.param_groups[0]["lr"], script.digest()

    whole = trained(None)
    assert attempts.run(trained) == whole
    assert attempts.saves == [4, STEPS]


def test_a_step_that_is_half_done_is_waited_for(attempts, uninterrupted):
    job = attempts.next()
    with ended_by(context.Saved, job):
        script = Script()

        def after_optimizer(*_step):
            if script.sched.last_epoch == 6:
                stopped(job)
                time.sleep(0.05)

        script.opt.register_step_post_hook(after_optimizer)
        script.train(STEPS)
    assert resumed(attempts) == (7, uninterrupted)


def test_a_step_that_is_not_over_in_time_leaves_the_checkpoint_before(attempts, uninterrupted, capsys):
    job = attempts.next()
    with ended_by(context.Saved, job):
        script = Script()
        run = script.session()
        for step in run.steps(STEPS):
            script.loss(*script.batch()).backward()
            script.opt.step()
            if step == 3:
                stopped(job, seconds_left=0.05)
                linger()
    assert attempts.saves == []
    assert "the step was not over" in capsys.readouterr().err
    assert resumed(attempts) == (0, uninterrupted)


def test_who_is_cancelled_without_a_wish_to_save_is_not_saved(attempts):
    job = attempts.next()
    with ended_by(context.Saved, job):
        Script().train(STEPS, each=lambda step: step == 4 and job.ask_to_stop("cancelled", seconds_left=30, save=False))
    assert attempts.saves == []


def test_an_attempt_that_is_stopped_before_it_begins_saves_nothing_new(attempts, uninterrupted):
    job = attempts.next()
    with ended_by(context.Saved, job):
        Script().train(STEPS, each=lambda step: step == 4 and stopped(job))
    kept = list(attempts.saves)
    job = attempts.next()
    stopped(job)
    with ended_by(context.Saved, job):
        Script().train(STEPS)
    assert attempts.saves == kept
    assert resumed(attempts)[1] == uninterrupted


def test_a_checkpoint_is_taken_when_somebody_wants_one_and_the_run_goes_on(attempts):
    with running(attempts.next()) as job:

        def asks(step):
            if step == 3:
                job.ask_to_save()
                for _ in range(400):
                    time.sleep(0.005)
                    if attempts.saves:
                        break

        run = Script().train(STEPS, each=asks)
    assert attempts.saves == [3, STEPS]
    assert run.done == STEPS


def test_snapshots_are_taken_while_training_goes_on_and_cover_a_sudden_end(attempts):
    class Lost(BaseException):
        """The machine, without a word."""

    def each(step):
        time.sleep(0.01)
        if len(attempts.saves) == 3:
            raise Lost

    with ended_by(Lost, attempts.next()):
        Script().train(10_000, each=each, snapshot_every_s=0.01)
    assert all(step < 100 for step in attempts.saves)


def test_a_loop_without_an_optimizer_is_kept_at_the_end_of_its_bodies(attempts):
    def work(job):
        counts = {"seen": 0}
        run = session(extra={"counts": counts})
        for step in run.steps(30):
            counts["seen"] += 1
            if step in {3, 11} and attempts.count <= 2:
                stopped(job)
                time.sleep(0.02)
        return counts

    assert attempts.run(work) == {"seen": 30}


def test_gradients_that_are_collected_over_steps_are_collected_again(attempts):
    def trained(job, stops):
        script = Script()
        run = script.session()
        for step in run.steps(STEPS):
            if step in stops:
                stopped(job)
                time.sleep(0.3)
            script.loss(*script.batch()).backward()
            if step % 3 == 2:
                script.opt.step()
                script.opt.zero_grad()
        return script.digest()

    whole = trained(None, {})
    assert attempts.run(lambda job: trained(job, {1: {4}, 2: {7}}.get(attempts.count, ()))) == whole


PLAIN = """
import sys, time, math
sys.path.insert(0, {root!r})
from tests.training.workload import Script
script = Script()
def each(step):
    print(step, flush=True)
    if step == 6 and {waits}:
        time.sleep(30)
script.train({steps}, each=each, directory={folder!r})
print("digest", script.digest())
"""


def started(folder, *, waits):
    code = PLAIN.format(root=str(ROOT), folder=str(folder), steps=STEPS, waits=waits)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FABRIC_GRACE_S": "20"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


def test_a_script_with_a_directory_saves_at_the_signal_and_goes_on_when_it_is_started_again(tmp_path, uninterrupted):
    first = started(tmp_path, waits=True)
    for line in first.stdout:
        if line == "6\n":
            first.send_signal(signal.SIGTERM)
            break
    assert first.wait(60) == 75
    first.stdout.close()
    second = started(tmp_path, waits=False)
    said = second.communicate(timeout=120)[0].split()
    assert said == [*map(str, range(6, STEPS)), "digest", uninterrupted]


def test_a_run_goes_by_how_often_its_pool_was_found_to_take_devices_away(monkeypatch):
    assert LOSS_EVERY_VARIABLE == execution.LOSS_EVERY_VARIABLE, "what the runner says is what the session reads"
    monkeypatch.setenv(execution.LOSS_EVERY_VARIABLE, "60")
    assert Script().session()._loop.watch._loss_every_s == 60
