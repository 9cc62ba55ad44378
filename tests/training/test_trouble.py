"""What goes wrong in a run ends in a clear state: what was good is kept, what is wrong is named."""

import math
import time

import pytest
import torch

from fabric import context
from fabric.checkpoints import DirectoryStore
from fabric.errors import Conflict, InvalidRequest, JobFailed, Unavailable
from tests.training.workload import Attempts, Script, ended_by, linger, resumed, running, stopped
from training.state import shards

STEPS = 12


@pytest.fixture(scope="module")
def uninterrupted():
    script = Script()
    script.train(STEPS)
    return script.digest()


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_step_kept(attempts, uninterrupted, bad):
    with ended_by(JobFailed, attempts.next()) as ended:
        script = Script()
        run = script.session()
        for step in run.steps(STEPS):
            loss = script.loss(*script.batch()) + (bad if step == 5 else 0)
            run.log(loss=loss)
            script.opt.zero_grad()
            loss.backward()
            script.opt.step()
            script.sched.step()
    assert (ended.error.code, ended.error.facts["step"]) == ("loss_not_finite", 5)
    assert attempts.saves == [5]


def test_weights_that_are_not_finite_never_replace_good_ones(attempts):
    job = attempts.next()
    with ended_by(context.Saved, job):
        script = Script()
        run = script.session(snapshot_every_s=0.0)
        for step in run.steps(STEPS):
            if step == 5:
                time.sleep(0.2)
            if step == 7:
                stopped(job)
                linger()
            (script.loss(*script.batch()) * (math.nan if step == 6 else 1)).backward()
            script.opt.step()
            script.opt.zero_grad()
    assert 5 <= max(attempts.saves) <= 6


def test_a_bug_in_the_script_costs_no_step_that_was_done(attempts, uninterrupted):
    with ended_by(ZeroDivisionError, attempts.next()):
        script = Script()
        with script.session() as run:
            for step in run.steps(STEPS):
                if step == 4:
                    raise ZeroDivisionError
                script.opt.zero_grad()
                loss = script.loss(*script.batch())
                loss.backward()
                script.opt.step()
                script.sched.step()
                script.best |= {"loss": loss.item(), "at": step} if loss.item() < script.best["loss"] else {}
    assert attempts.saves == [4]
    assert resumed(attempts) == (4, uninterrupted)


def test_a_script_that_fails_in_the_middle_of_a_step_it_was_asked_to_stop_in_ends_at_once(attempts, uninterrupted):
    with ended_by(ZeroDivisionError, attempts.next()):
        script = Script()
        run = script.session()
        for step in run.steps(STEPS):
            script.loss(*script.batch()).backward()
            script.opt.step()
            if step == 3:
                stopped(context.current(), seconds_left=3600)
                raise ZeroDivisionError
    assert attempts.saves == []
    assert resumed(attempts) == (0, uninterrupted)


def too_much_for_a_device():
    raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB. GPU 0 has 10.00 GiB")


def too_much_for_the_machine():
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("too_much", "words"),
    [(too_much_for_a_device, "Tried to allocate 20.00 GiB"), (too_much_for_the_machine, "can't allocate memory")],
)
def test_a_device_or_machine_that_is_too_small_is_said_to_be(attempts, too_much, words):
    with ended_by(JobFailed, attempts.next()) as ended:
        script = Script()
        with script.session() as run:
            for step in run.steps(STEPS):
                script.loss(*script.batch()).backward()
                script.opt.step()
                if step == 2:
                    too_much()
    assert ended.error.code == "out_of_memory"
    assert words in ended.error.message
    assert "virtual" in ended.error.message


def test_weights_that_change_outside_of_a_step_are_saved_at_the_next_boundary(attempts):
    job = attempts.next()
    with ended_by(context.Saved, job):
        script = Script()
        run = script.session()
        for step in run.steps(STEPS):
            with torch.no_grad():
                script.model[0].weight.mul_(0.5)
            if step == 3:
                stopped(job)
            time.sleep(0.01)
            script.loss(*script.batch()).backward()
            script.opt.step()
            wanted = script.model[0].weight.detach().clone()
    assert len(attempts.saves) == 1
    with running(attempts.next()):
        script = Script()
        script.session()
        assert torch.equal(script.model[0].weight, wanted)


def test_a_full_disk_is_said_and_leaves_what_was_kept(attempts, monkeypatch, capsys):
    job = attempts.next()
    with ended_by(context.Saved, job):
        Script().train(STEPS, each=lambda step: step == 4 and stopped(job))
    kept = attempts.saves[-1]

    def full(*_put, **_options):
        raise Unavailable("the store is full: 0 bytes are free", code="store_full")

    job = attempts.next()
    with ended_by(context.Saved, job):
        monkeypatch.setattr(DirectoryStore, "put", full)
        Script().train(STEPS, each=lambda step: step == 8 and stopped(job))
    monkeypatch.undo()
    assert "the store is full" in capsys.readouterr().err
    assert resumed(attempts)[0] == kept


def test_a_zombie_saves_nothing_over_its_successor(attempts):
    zombie = attempts.next()
    with ended_by(context.Saved, zombie):
        script = Script()

        def each(step):
            if step == 5:
                attempts.next()
                stopped(zombie)

        script.train(STEPS, each=each)
    assert attempts.saves == []


def test_a_job_that_is_killed_while_it_restores_restores_again(attempts, monkeypatch, uninterrupted):
    job = attempts.next()
    with ended_by(context.Saved, job):
        Script().train(STEPS, each=lambda step: step == 4 and stopped(job))
    script = Script()
    monkeypatch.setattr(script.opt, "load_state_dict", lambda state: (_ for _ in ()).throw(KeyboardInterrupt))
    with ended_by(KeyboardInterrupt, attempts.next()):
        script.train(STEPS)
    assert resumed(attempts) == (attempts.saves[0], uninterrupted)


def test_a_checkpoint_of_another_model_is_refused_by_name(attempts):
    with running(attempts.next()):
        Script().train(2)
    with ended_by(Conflict, attempts.next()) as ended:
        Script(width=16).train(2)
    assert ended.error.code == "checkpoint_of_another_run"
    assert "another model" in ended.error.message
    assert "12" in ended.error.message


def test_a_checkpoint_with_other_objects_is_refused_with_both_lists(attempts):
    with running(attempts.next()):
        Script().train(2)
    with ended_by(Conflict, attempts.next()) as ended:
        Script().session(extra={})
    assert (ended.error.facts["unknown"], ended.error.facts["missing"]) == ("best", "")


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"not torch",
        bytes(shards.dump({"format": "fabric-session", "version": 99, "step": 1})),
        bytes(shards.dump([1])),
    ],
)
def test_bytes_that_are_no_state_of_a_session_are_refused(attempts, kept):
    job = attempts.next()
    draft = job.checkpoints.begin(1)
    draft.put("state", kept)
    job.checkpoints.commit(draft)
    with ended_by(Conflict, attempts.next()) as ended:
        Script().session()
    assert ended.error.code == "checkpoint_of_another_kind"


@pytest.mark.parametrize(
    ("extra", "path"),
    [
        ({"tokenizer": object()}, "tokenizer"),
        ({"best": {"model": [1, {"inner": object()}]}}, "best.model[1].inner"),
        ({"best": {("a", object()): 1, object(): 2}}, "best's key"),
    ],
)
def test_state_that_can_not_be_tracked_is_named_before_the_run_begins(extra, path):
    with pytest.raises(InvalidRequest) as raised:
        Script().session(extra=extra)
    assert raised.value.code == "untrackable_state"
    assert path in raised.value.message


def test_one_session_has_one_loop():
    run = Script().session()
    assert list(run.steps(1)) == [0]
    with pytest.raises(InvalidRequest, match="another session"):
        next(run.steps(2))
