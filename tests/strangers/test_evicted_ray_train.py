"""Scripts of Ray Train's that nobody wrote for the fabric are evicted again and again, and go on where they were.

No line of them is changed: storage, name and the way to go on come from the job.
"""

import random
import textwrap

import pytest
import torch

from fabric.gate.events import LeaseOutcome
from tests.strangers import launch, launchers
from tests.worker.programs import Machine

pytest.importorskip("pyarrow", reason="install the group `strangers`")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
FEW, MANY = 2, 20
ROUNDS = 10
"""How many runs are made for so many evictions, at most: one is short, and a worker's line comes to the log a while later."""


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.close()


def begin(machine, text):
    return machine.begin("python", "train.py", files={"train.py": textwrap.dedent(text)}, env=launchers.AT_ONCE)


def same(found, expected):
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@pytest.mark.parametrize("evictions", [FEW, pytest.param(MANY, marks=pytest.mark.soak)])
def test_a_run_of_ray_train_is_evicted_and_ends_the_same(tmp_path, evictions):
    """The same bits, each line once, each report once: also in the result that Ray gives."""
    seed = launch.seed()
    result, lines, _ = launchers.evicted(
        "ray train", tmp_path / "whole", evictions=0, steps=0, dice=random.Random(seed)
    )
    expected, count = torch.load(result, weights_only=True), 0
    for round_ in range(ROUNDS):
        found, said, times = launchers.evicted(
            "ray train",
            tmp_path / str(round_),
            evictions=evictions - count,
            steps=len(lines),
            dice=random.Random(seed + round_),
        )
        assert same(torch.load(found, weights_only=True), expected), f"seed {seed}, round {round_}"
        assert said == lines, f"seed {seed}, round {round_}"
        count += times
        if count >= evictions:
            return
    raise AssertionError(f"only {count} evictions")


def test_a_run_of_ray_train_changes_no_line():
    assert launchers.lines_changed("ray train") == 0


SELDOM = """
    import json, os, tempfile, time

    import ray.train
    from ray.train import Checkpoint, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop():
        found, at = ray.train.get_checkpoint(), 0
        if found:
            with found.as_directory() as folder:
                at = int(open(os.path.join(folder, "at")).read())
        print("began at", at)
        for step in range(at, 100_000):
            if step >= 40 and at:
                return
            time.sleep(0.05)
            print("did", step)
            if ray.train.get_preemption_info():
                with tempfile.TemporaryDirectory() as folder:
                    open(os.path.join(folder, "at"), "w").write(str(step + 1))
                    ray.train.report({"step": step + 1}, checkpoint=Checkpoint.from_directory(folder))

    ray.init(num_cpus=4, include_dashboard=False)
    TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=2)).fit()
"""


def test_a_script_that_asks_for_rays_preemptions_saves_at_the_notice(machine):
    attempt = begin(machine, SELDOM)
    attempt.until("did 41")
    end, log = attempt.stop()
    assert end.outcome is LeaseOutcome.SAVED, (end, log)
    assert "0 steps lost" in log
    assert attempt.stage.context.progress.step > 41
    end, log = begin(machine, SELDOM).ended()
    assert (end.outcome, f"began at {attempt.stage.context.progress.step}" in log) == (LeaseOutcome.SUCCEEDED, True), (
        log
    )


PHASES = """
    import os, sys, tempfile, time

    import ray.train
    from ray.train import Checkpoint, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop(config):
        found, at = ray.train.get_checkpoint(), 0
        if found:
            with found.as_directory() as folder:
                at = int(open(os.path.join(folder, "at")).read())
        print(config["phase"], "began at", at)
        for step in range(at, 3):
            with tempfile.TemporaryDirectory() as folder:
                open(os.path.join(folder, "at"), "w").write(str(step + 1))
                ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(folder))

    ray.init(num_cpus=4, include_dashboard=False)
    shared = RunConfig(storage_path=os.path.expanduser("~/mine"))
    for phase in ("first", "second"):
        TorchTrainer(loop, train_loop_config={"phase": phase}, run_config=shared).fit()
    print("all phases done", flush=True)
    time.sleep(3600 if not os.path.exists(os.environ["FABRIC_CHECKPOINT_DIR"] + "/again") else 0)
"""


def test_a_notice_after_the_last_run_ends_the_script_as_any_and_both_runs_are_kept(machine):
    """It is at other things then, and nothing in it would hear the notice."""
    attempt = begin(machine, PHASES)
    attempt.until("all phases done")
    assert "goes with this attempt" in attempt.log
    (attempt.stage.folder / "checkpoint" / "again").touch()
    end, log = attempt.stop()
    assert (end.outcome, "committed" in end.error) == (LeaseOutcome.INTERRUPTED, True), (end, log)
    end, log = begin(machine, PHASES).ended()
    assert end.outcome is LeaseOutcome.SUCCEEDED, (end, log)
    assert "first began at 3" in log
    assert "second began at 3" in log
