"""Ray programs that nobody wrote for the fabric are evicted, and go on where they were.

Each has a Ray of its lease's own below its own processes. The examples are read from the installed package when a test runs.
"""

import random
import re
import signal
import textwrap
from pathlib import Path

import pytest
import ray

from fabric.gate.events import LeaseOutcome
from fabric.worker.stop_notice import standing
from tests.worker.call_attempts import Calls
from tests.worker.programs import Machine

pytest.importorskip("pyarrow", reason="install the group `strangers`")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]

RAY = Path(ray.__file__).parent
AT_ONCE = {"RAY_DEDUP_LOGS": "0", "TUNE_GLOBAL_CHECKPOINT_S": "0"}
"""Ray takes lines that differ by a number for the same one, and Tune notes by itself at most every 10 s how far it is."""
LATE = 2
"""Steps that a trial has done before Tune has noted so."""


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    yield made
    made.close()


def begin(machine, text, *words, env=None):
    return machine.begin("python", "x.py", *words, files={"x.py": text}, env=env)


SWEEP = textwrap.dedent("""
    import json, os, tempfile, time
    from pathlib import Path

    from ray import tune

    FOLDER = os.environ["FABRIC_CHECKPOINT_DIR"]

    def objective(config):
        found, at = tune.get_checkpoint(), 0
        if found:
            with found.as_directory() as folder:
                at = json.loads((Path(folder) / "at").read_text())
        print("trial", config["x"], "from", at, flush=True)
        for step in range(at, 12):
            time.sleep(0.3)
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "at").write_text(json.dumps(step + 1))
                tune.report({"score": config["x"] * step}, checkpoint=tune.Checkpoint.from_directory(folder))
            print("trial", config["x"], "did", step + 1, flush=True)

    trainable = tune.with_resources(objective, {"cpu": 1, "gpu": 1})
    space = {"x": tune.grid_search([1, 2])}
    if tune.Tuner.can_restore(FOLDER + "/run"):
        again = {"resume_unfinished": True, "restart_errored": True}
        tuner = tune.Tuner.restore(FOLDER + "/run", trainable, param_space=space, **again)
    else:
        run = tune.RunConfig(name="run", storage_path=FOLDER)
        tuner = tune.Tuner(trainable, param_space=space, run_config=run)
    results = tuner.fit()
    assert not results.errors, results.errors
    print("best", results.get_best_result("score", "max").metrics["score"])
""")


def sweeps():
    """The same in a function: what it prints its runner has."""
    exec(compile(SWEEP, "sweep", "exec"), {"__name__": "sweep"})
    return "done"


def steps_in(log, what):
    found = re.findall(rf"trial (\d+) {what} (\d+)", log)
    return {trial: max(int(step) for name, step in found if name == trial) for trial, _ in found}


def test_a_sweep_that_writes_all_the_time_goes_on_from_its_checkpoints(machine):
    attempt = begin(machine, SWEEP, env=AT_ONCE)
    attempt.until(lambda: sum(steps_in(attempt.log, "did").values()) >= 6)
    program = attempt.stage.program
    kinds = [each.is_ray for each in standing(program.pid, number=signal.SIGTERM, listening=frozenset())]
    assert (kinds.count(False), kinds.count(True) > 5) == (1, True), "all but the script itself are Ray's"
    end, log = attempt.stop(seconds_left=30)
    assert program.processes() == []
    assert (end.outcome, "committed as it was then" in end.error) == (LeaseOutcome.INTERRUPTED, True), (end.error, log)
    done = steps_in(log, "did")
    end, log = begin(machine, SWEEP, env=AT_ONCE).ended()
    assert end.outcome is LeaseOutcome.SUCCEEDED, (end.error, log)
    assert "best 22" in log
    began = steps_in(log, "from")
    assert all(began[trial] >= step - LATE for trial, step in done.items() if step < 12), (done, began, log)


@pytest.fixture
def calls(tmp_path):
    made = Calls(tmp_path, **AT_ONCE)
    yield made
    made.close()


def test_a_sweep_in_a_function_goes_on_from_its_folder(calls):
    first = calls.begin(sweeps)
    first.until(lambda: sum(steps_in(first.log, "did").values()) >= 6)
    done, saved = steps_in(first.log, "did"), len(first.saves)
    first.stage.ask_to_save()
    first.until(lambda: len(first.saves) > saved)
    first.kill()
    second = calls.begin(sweeps)
    assert second.value() == "done"
    assert "best 22" in second.log
    began = steps_in(second.log, "from")
    assert all(began.get(trial, 12) >= step - LATE for trial, step in done.items()), (done, began, second.log)


@pytest.mark.soak
def test_a_sweep_that_is_cut_before_tune_has_noted_a_trial_begins_anew(calls):
    """Its folder says that there is a sweep, and not of what: without the space that it had, Tune would try one without values."""
    first = calls.begin(sweeps)
    first.until(lambda: first.stage.kept_folder is not None)
    first.until((first.stage.kept_folder / "run" / "tuner.pkl").exists)
    first.stage.ask_to_save()
    first.until(lambda: first.saves)
    first.kill()
    assert steps_in(first.log, "did") == {}, "it was cut too late"
    second = calls.begin(sweeps)
    assert second.value() == "done"
    assert "best 22" in second.log


EXAMPLES = {
    "tune with checkpoints": ("tune/examples/custom_func_checkpointing.py", "--smoke-test"),
    "train": ("train/examples/pytorch/torch_linear_example.py", "--smoke-test"),
}


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.soak) for seed in range(5)])
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_rays_that_is_evicted_at_any_moment_runs_to_its_end(machine, name, seed):
    path, *words = EXAMPLES[name]
    draw, text = random.Random(f"{name} {seed}"), (RAY / path).read_text()
    told = []
    for _ in range(2):
        attempt = begin(machine, text, *words)
        attempt.until(lambda attempt=attempt: attempt.stage.program is not None)
        told.append(draw.uniform(0.0, 25.0))
        attempt.thread.join(told[-1])
        if attempt.end is not None:
            break
        end, log = attempt.stop(seconds_left=20)
        assert end.outcome in {LeaseOutcome.INTERRUPTED, LeaseOutcome.SUCCEEDED}, (told, end.error, log)
        assert attempt.stage.program.processes() == []
    end, log = begin(machine, text, *words).ended()
    assert end.outcome is LeaseOutcome.SUCCEEDED, (told, end.error, log)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
def test_a_sweep_that_is_evicted_again_and_again_loses_no_step_that_it_kept(machine, seed):
    draw, kept, told = random.Random(seed), {}, []
    for _ in range(8):
        attempt = begin(machine, SWEEP, env=AT_ONCE)
        attempt.until(lambda attempt=attempt: attempt.stage.program is not None)
        told.append(draw.uniform(5.0, 25.0))
        attempt.thread.join(told[-1])
        end, log = attempt.ended() if attempt.end is not None else attempt.stop(seconds_left=20)
        began = steps_in(log, "from")
        assert all(began[trial] >= kept.get(trial, 0) - LATE for trial in began if kept.get(trial, 0) < 12), (told, log)
        kept |= {trial: max(step, kept.get(trial, 0)) for trial, step in steps_in(log, "did").items()}
        if end.outcome is LeaseOutcome.SUCCEEDED:
            break
        assert end.outcome is LeaseOutcome.INTERRUPTED, (told, end.error, log)
    else:
        end, log = begin(machine, SWEEP).ended()
    assert (end.outcome, "best 22" in log) == (LeaseOutcome.SUCCEEDED, True), (told, end.error, log)
