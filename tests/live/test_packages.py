"""Packages of a job's own: installed by the lease's processes, paid for, ended with it, there for the next job."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from fabric.errors import InvalidRequest, JobFailed
from tests.live.test_house import settled

SETUP = """
import os, subprocess, sys, time
from pathlib import Path
from setuptools import setup

here = Path({place!r})
if sys.argv[1] not in ("egg_info", "dist_info"):
    (here / "installs").open("a").write("x")
    subprocess.Popen([sys.executable, "-c", "import time\\ntime.sleep({sleeps})"], start_new_session=True, env={{}},
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + {busy}
    while time.monotonic() < until:
        pass
setup(name="parcel", version="1.0", py_modules=["parcel"])
"""
OPTIONS = ["--no-build-isolation", "--no-deps", "--no-index"]


def package(place, *, busy=0, sleeps=0):
    folder = place / "parcel"
    folder.mkdir()
    (folder / "setup.py").write_text(SETUP.format(place=str(place), busy=busy, sleeps=sleeps))
    (folder / "parcel.py").write_text("VALUE = 7\n")
    return {"pip": {"packages": [str(folder)], "pip_install_options": OPTIONS}}


def daemons(sleeps):
    return [each for each in psutil.process_iter() if f"time.sleep({sleeps})" in " ".join(_words(each))]


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def value():
    import parcel

    import fabric

    return parcel.VALUE, fabric.__name__, sys.prefix


def test_what_a_job_installs_is_paid_for_and_ends_with_it_and_is_there_for_the_next(acme, tmp_path):
    sleeps = 86_400 + int(time.time()) % 1_000
    wanted = package(tmp_path, busy=6, sleeps=sleeps)
    job = acme.submit(value, tokens="0.3", accelerators="H100:1", runtime_env=wanted)
    assert job.result(timeout=180)[0] == 7
    cost = settled(job)
    (record,) = acme.usage(job_id=job.id)
    assert record.busy_us > 4_000_000
    assert cost.burned_uhs > 4_000_000
    assert (tmp_path / "installs").read_text().startswith("x")
    assert daemons(sleeps) == []
    installs = (tmp_path / "installs").read_text()
    again = acme.submit(value, tokens="0.3", accelerators="H100:1", runtime_env=wanted)
    assert again.result(timeout=120)[0] == 7
    assert (tmp_path / "installs").read_text() == installs
    assert settled(again).burned_uhs < cost.burned_uhs


def test_packages_that_cannot_be_had_end_the_job_with_the_reason_and_it_burns_nothing(acme):
    missing = {"pip": {"packages": ["no-such-package-here"], "pip_install_options": ["--no-index"]}}
    job = acme.submit(value, tokens="0.1", accelerators="A100:1", runtime_env=missing)
    with pytest.raises(JobFailed, match="runtime_env_failed: no-such-package-here can't be had"):
        job.result(timeout=120)
    assert settled(job).burned_uhs == 0
    assert acme.usage(job_id=job.id) == []


def test_packages_that_cannot_be_built_fail_the_job_and_say_why(acme, tmp_path):
    (tmp_path / "setup.py").write_text("raise SystemExit('it can not be built')")
    broken = {"pip": {"packages": [str(tmp_path)], "pip_install_options": OPTIONS}}
    job = acme.submit(value, tokens="0.1", accelerators="A100:1", runtime_env=broken)
    with pytest.raises(JobFailed, match="runtime_env_failed"):
        job.result(timeout=120)
    settled(job)
    assert "it can not be built" in "".join(job.logs())


def test_a_gang_on_several_nodes_of_one_machine_installs_once_and_copies_nothing(acme, tmp_path):
    """Nodes that share a folder don't get into each other's way."""
    wanted = package(tmp_path)
    job = acme.submit(
        ["python", "-c", "import parcel, sys, torch; print(parcel.VALUE, sys.prefix)"], tokens="2",
        accelerators=["H100:6", "A100:6"], mix="same-vendor", runtime_env=wanted,
    )  # fmt: skip
    job.result(timeout=240)
    said = {line for line in "".join(job.logs()).splitlines() if line.startswith("7 ")}
    settled(job)
    assert len(said) == 1
    (line,) = said
    folder = Path(line.split()[1])
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < 2**20
    assert (tmp_path / "installs").read_text().count("x") <= 3, "setup.py runs a few times to install once"


def test_a_job_that_is_cancelled_while_it_installs_ends(acme, tmp_path):
    job = acme.submit(value, tokens="0.3", accelerators="A100:1", runtime_env=package(tmp_path, busy=600), grace=1)
    deadline = time.monotonic() + 90
    while not (tmp_path / "installs").exists():
        assert time.monotonic() < deadline, "nothing is installed"
        time.sleep(0.1)
    job.cancel()
    settled(job)
    assert job.state == "cancelled"
    assert [each for each in psutil.process_iter() if str(tmp_path) in " ".join(_words(each))] == []


def test_ray_is_never_asked_to_install(acme):
    with pytest.raises(InvalidRequest, match="use pip or uv"):
        acme.submit(value, tokens="0.1", accelerators="A100:1", runtime_env={"conda": {"dependencies": ["pip"]}})

    def nested():
        import ray

        @ray.remote(num_cpus=0)
        def task():
            return 1

        return ray.get(task.options(runtime_env={"pip": ["emoji"]}).remote())

    job = acme.submit(nested, tokens="0.1", accelerators="A100:1", ray_program=True)
    with pytest.raises(JobFailed, match="whole job"):
        job.result(timeout=120)
    settled(job)


def test_a_ray_programs_tasks_have_the_jobs_packages(acme, tmp_path):
    def program():
        import ray

        @ray.remote(num_gpus=1)
        def task():
            import parcel

            return parcel.VALUE

        return ray.get(task.remote())

    job = acme.submit(program, tokens="0.3", accelerators="H100:1", runtime_env=package(tmp_path), ray_program=True)
    assert job.result(timeout=180) == 7
    settled(job)


def test_a_job_cannot_have_ray_install_or_run_anything_beside_its_lease(acme, tmp_path):
    """Past what its own process is told: a driver of its own asks Ray's agent, and Ray's jobs API, which has its token."""
    sleeps = 86_400 + int(time.time()) % 1_000 + 1_000
    wanted = package(tmp_path, sleeps=sleeps)
    marker = 86_400 + int(time.time()) % 1_000 + 3_000

    def attack(wanted, marker):
        import subprocess
        import sys

        import ray

        gcs = ray.get_runtime_context().gcs_address
        code = (
            "import json, sys, ray\n"
            "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='error', configure_logging=False)\n"
            "task = ray.remote(num_cpus=0)(lambda: 1).options(runtime_env=json.loads(sys.argv[2]))\n"
            "print(ray.get(task.remote(), timeout=60))\n"
        )
        api = (
            "import sys, time, ray\n"
            "from ray.job_submission import JobSubmissionClient\n"
            "client = JobSubmissionClient('http://' + sys.argv[2])\n"
            "client.submit_job(entrypoint=sys.argv[3])\n"
            "time.sleep(20)\n"
        )
        import json

        dashboard = ray._private.worker.get_dashboard_url()
        found = []
        for script, given in ((code, [json.dumps(wanted)]), (api, [dashboard, f"sleep {marker}"])):
            done = subprocess.run(
                [sys.executable, "-c", script, gcs, *given], capture_output=True, text=True, check=False
            )
            found.append((done.returncode, done.stdout, done.stderr[-300:]))
        return found

    job = acme.submit(attack, wanted, marker, tokens="0.3", accelerators="A100:1")
    (installed, said, _), (_, _, trouble) = job.result(timeout=200)
    settled(job)
    assert (installed != 0, said) == (True, "")
    deadline = time.monotonic() + 60
    while daemons(sleeps) or [each for each in psutil.process_iter() if f"sleep {marker}" in " ".join(_words(each))]:
        assert time.monotonic() < deadline, f"something goes on beside the lease {trouble}"
        time.sleep(0.5)
