"""What the Ray of a lease is started with, and what can never fit into it. Without a cluster."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private import worker

from fabric.errors import Unavailable
from fabric.gate.events import LeaseOutcome
from fabric.system.private_folder import close, make_private
from fabric.system.short_links import unlink_all
from fabric.worker import ray_node
from fabric.worker.execution import refused
from fabric.worker.lease_ray import _Own, fits
from fabric.worker.lease_ray_settings import LOOPBACK, lease_ray, told_ray, variables_for
from fabric.worker.ray_start import why_not

GIB = 2**30


def own_ray(folder, **facts):
    made = {"accelerator": "H100", "kind": "GPU", "devices": 2, "share": 0.5, "memory_bytes": 64 * GIB, "cores": 16}
    return lease_ray(folder=folder, **{**made, **facts})


@pytest.mark.parametrize(
    ("requests", "nodes", "fit"),
    [
        ([{"GPU": 1}], [{"GPU": 1}], True),
        ([{"GPU": 2}], [{"GPU": 1}, {"GPU": 1}], False),
        ([{"GPU": 1}] * 2, [{"GPU": 1}, {"GPU": 1}], True),
        ([{"GPU": 1}] * 3, [{"GPU": 1}, {"GPU": 1}], False),
        ([{"GPU": 0.5}] * 2, [{"GPU": 1}], True),
        ([{"GPU": 0.1}] * 10, [{"GPU": 1}], True),
        ([{"special": 1}], [{"GPU": 1}], False),
        ([{"CPU": 1}, {"GPU": 1, "CPU": 3}], [{"CPU": 1}, {"CPU": 3, "GPU": 1}], True),
        ([], [{"GPU": 1}], True),
    ],
)
def test_what_fits_no_nodes_is_told_from_what_does(requests, nodes, fit):
    assert fits(requests, nodes) is fit


@pytest.mark.parametrize(("nodes", "told"), [(1, "0"), (2, None)])
def test_a_jobs_ray_stays_on_its_machine_where_it_has_one_node(tmp_path, nodes, told):
    """Its metrics ask for no token."""
    own = msgspec.structs.replace(own_ray(tmp_path / "0"), nodes=nodes)
    assert variables_for(own, {LOOPBACK: "0"}).get(LOOPBACK) == told


bundles = st.lists(st.fixed_dictionaries({"GPU": st.integers(0, 4), "CPU": st.integers(0, 4)}), max_size=6)


@given(bundles, st.integers(0, 12), st.integers(0, 12))
def test_on_one_node_all_fits_whose_sum_does(requests, gpus, cpus):
    wanted = sum(each["GPU"] for each in requests) <= gpus and sum(each["CPU"] for each in requests) <= cpus
    assert fits(requests, [{"GPU": gpus, "CPU": cpus}]) is wanted


def test_a_jobs_environment_tells_of_its_own_ray_and_of_no_other(tmp_path):
    own = own_ray(tmp_path / "a" / "0")
    outer = {
        "RAY_ADDRESS": "10.0.0.1:6379",
        "RAY_JOB_ID": "01",
        "RAY_AUTH_TOKEN": "secret",
        "PATH": "/bin",
        "RAY_MINE": "1",
    }
    found = variables_for(own, {**outer, "PYTHONPATH": "/mine"}, given={"RAY_MINE"})
    assert told_ray(found) == own
    assert not {"RAY_ADDRESS", "RAY_JOB_ID", "RAY_AUTH_TOKEN"} & set(found)
    assert (found["PATH"], found["RAY_MINE"]) == ("/bin", "1")
    assert found["PYTHONPATH"].endswith(f"{os.pathsep}/mine")
    assert variables_for(own, found)["PYTHONPATH"] == found["PYTHONPATH"]


def test_the_short_way_to_a_ranks_sessions_goes_with_its_folder(tmp_path):
    rank = make_private(tmp_path / ("x" * 80) / ("y" * 80) / "0")
    folder = Path(own_ray(rank).folder)
    assert len(str(folder)) < 40
    assert folder.is_symlink()
    close(rank)
    assert not folder.is_symlink()


def test_a_link_of_somebody_elses_is_left_alone(tmp_path):
    rank = tmp_path / "a" / "0"
    folder = Path(own_ray(rank).folder)
    folder.unlink()
    folder.mkdir()
    try:
        unlink_all(rank)
        assert folder.is_dir()
    finally:
        folder.rmdir()


def test_cpus_and_store_follow_the_share_of_the_node(tmp_path):
    half, small = own_ray(tmp_path / "0"), own_ray(tmp_path / "1", share=1 / 64, devices=1)
    assert (half.cpus, half.devices) == (8, {"GPU": 2, "H100": 2})
    assert (small.cpus, small.devices) == (4, {"GPU": 1, "H100": 1})
    assert small.store_bytes < half.store_bytes <= 2 * GIB
    for rank in ("0", "1"):
        unlink_all(tmp_path / rank)


SITE = "import sys; sys.own = 'ran'\n"
LOOKS = "import sys; print(sys.own, [each for each in sys.path if 'python_start' in each], 'ray' in sys.modules)"


def test_every_python_of_a_job_starts_as_it_would_and_runs_its_own_sitecustomize(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    variables = variables_for(own_ray(tmp_path / "0"), {**os.environ, "PYTHONPATH": str(tmp_path)})
    done = subprocess.run([sys.executable, "-c", LOOKS], env=variables, capture_output=True, text=True, check=False)
    unlink_all(tmp_path / "0")
    assert done.stdout == "ran [] False\n", done.stderr


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
def test_ray_takes_no_program_its_notice_while_it_starts_or_later(tmp_path, monkeypatch, handler):
    """Ray sets its own handler first, starts for seconds, and exits at the signal: whoever was told then had failed."""
    seen = []

    def init(**_):
        worker.ray._private.utils.set_sigterm_handler(lambda *_: None)
        seen.append(signal.getsignal(signal.SIGTERM))

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    before = signal.signal(signal.SIGTERM, handler)
    try:
        _Own(own_ray(tmp_path / "a" / "0"), init).init(None)
        assert [*seen, signal.getsignal(signal.SIGTERM)] == [handler, handler]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("error", [ChildProcessError("its raylet has ended"), TimeoutError("it has not appeared")])
def test_a_ray_that_does_not_start_is_no_fault_of_the_programs(tmp_path, monkeypatch, error):
    """On a machine that is too busy raylets end while they start: the job is interrupted, and tried again."""

    def fails(_):
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_node, "started", fails)
    own = own_ray(tmp_path / "a" / "0")
    Path(os.path.realpath(own.folder)).mkdir(parents=True)
    with pytest.raises(Unavailable, match="has not started") as raised:
        _Own(own, print).init(None)
    assert refused(raised.value).outcome is LeaseOutcome.INTERRUPTED
    assert why_not(Path(own.folder)) == f"ray_not_started: {raised.value.message}", "a script's end is judged by that"
