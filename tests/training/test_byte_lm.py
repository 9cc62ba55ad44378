"""The demo's work: it learns, it is the same every time, and neither stops nor the number of devices change anything."""

import json
import os
import subprocess
import sys
import threading

import pytest

from fabric.system.ports import free_port
from tests.training.workload import Attempts
from training.demo import byte_lm
from training.demo.byte_lm import Windows

STEPS = 6


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Outside the fabric a run's curves are drawn where it is started."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return byte_lm.train(steps=STEPS, directory=tmp_path_factory.mktemp("uninterrupted"))


def test_it_learns_and_says_how_much(uninterrupted):
    assert uninterrupted["steps"] == STEPS
    assert 100_000 <= uninterrupted["parameters"] <= 300_000
    assert uninterrupted["bits_per_byte_before"] == pytest.approx(8.0, abs=0.1)
    assert uninterrupted["bits_per_byte_after"] < uninterrupted["bits_per_byte_before"] - 0.5


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.3])
def test_a_run_stopped_at_any_instant_and_resumed_ends_with_the_same_weights(tmp_path, uninterrupted, after_s):
    attempts = Attempts(tmp_path / "kept")

    def work(job):
        wish = threading.Timer(after_s, job.ask_to_stop, ("evicted",), {"seconds_left": 60})
        if attempts.count == 1:
            wish.start()
        return byte_lm.train(steps=STEPS)

    resumed = attempts.run(work)
    assert attempts.count == 2
    for fact in ("weights_sha256", "bits_per_byte_before", "bits_per_byte_after", "steps"):
        assert resumed[fact] == uninterrupted[fact]


def test_a_finished_run_that_is_started_again_does_nothing_more(tmp_path, uninterrupted, monkeypatch):
    byte_lm.train(steps=STEPS, directory=tmp_path / "kept")
    monkeypatch.setattr("training.state.vault._of_directories", {})  # in another process
    again = byte_lm.train(steps=STEPS, directory=tmp_path / "kept")
    assert (again["resumed_at_step"], again["weights_sha256"]) == (STEPS, uninterrupted["weights_sha256"])


def test_two_ranks_share_the_work_and_reach_the_same_weights(tmp_path, uninterrupted):
    gang = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "training.demo.byte_lm", str(STEPS)]
    ranks = [
        subprocess.Popen(command, env={**gang, "RANK": str(rank)}, stdout=subprocess.PIPE, cwd=tmp_path)
        for rank in range(2)
    ]
    said = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert [each["ranks"] for each in said] == [2, 2]
    assert {each["weights_sha256"] for each in said} == {uninterrupted["weights_sha256"]}


def test_another_seed_gives_other_weights(tmp_path, uninterrupted):
    other = byte_lm.train(steps=STEPS, seed=1, directory=tmp_path)
    assert other["weights_sha256"] != uninterrupted["weights_sha256"]


def test_a_slow_source_changes_the_time_and_not_the_weights(tmp_path, uninterrupted):
    waiting = byte_lm.train(steps=STEPS, wait_ratio=0.5, directory=tmp_path)
    assert waiting["weights_sha256"] == uninterrupted["weights_sha256"]
    assert waiting["waited_s"] > 0


@pytest.mark.parametrize("wait_ratio", [-0.1, 1.0])
def test_waiting_all_of_the_time_is_refused(wait_ratio):
    with pytest.raises(ValueError, match="less than 1"):
        byte_lm.train(steps=1, wait_ratio=wait_ratio)


def test_windows_are_decided_by_seed_and_number_alone():
    assert Windows(seed=1)[5].equal(Windows(seed=1)[5])
    assert not Windows(seed=1)[5].equal(Windows(seed=2)[5])
    assert Windows(seed=1)[5].shape == (byte_lm.CONTEXT + 1,)
