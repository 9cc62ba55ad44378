"""The whole product through its doors: real Ray, real journal, real processes that are really killed."""

import json
import os
import signal
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from fabric.audit.verify import verify_export
from fabric.errors import InsufficientTokens, JobFailed, NotFound, UnknownAccelerator
from fabric.sdk import Fabric
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb

SETTLES_S = 60


def settled(job, timeout_s=SETTLES_S):
    """The job's cost once it is final."""
    deadline = time.monotonic() + timeout_s
    while not (cost := job.cost()).settled:
        assert time.monotonic() < deadline, f"{job.id} is {job.state} and not settled"
        time.sleep(0.1)
    return cost


def wait_for_state(job, state, timeout_s=SETTLES_S):
    deadline = time.monotonic() + timeout_s
    while job.state != state:
        assert time.monotonic() < deadline, f"{job.id} is {job.state} ({job.info().reason}), not {state}"
        time.sleep(0.05)


def verified(fabric: Fabric, running):
    lines = fabric.client.fetch(pb.ExportRequest()).decode().splitlines()
    report = verify_export(lines, trusted_key=running.verifier_key)
    assert report.ok, report.problem
    return report


def busy_for(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "done"


def count_and_save(steps, step_s):
    from fabric import context

    job = context.current()
    at = int(job.load() or b"0")
    began = at
    while at < steps:
        if job.stop_requested:
            job.save(str(at).encode(), step=at)
            job.park()
        busy_for(step_s)
        at += 1
    return {"steps": at, "resumed_at": began, "attempt": job.attempt}


def test_a_function_runs_only_on_held_tokens_and_its_result_comes_back(acme, running):
    job = acme.submit(pow, 2, 10, tokens="0.1", accelerators="H100:1")
    assert job.result(timeout=60) == 1024
    cost = settled(job)
    assert cost.held_uhs == 0
    assert 0 <= cost.burned_uhs <= UHS_PER_CT // 10
    balance = acme.balance()
    assert balance.held_uhs == 0
    assert balance.free_uhs == 10 * UHS_PER_CT - cost.burned_uhs
    (record,) = acme.usage(job_id=job.id)
    assert (record.accelerator, record.devices, record.charged_uhs) == ("H100", 1, cost.burned_uhs)
    verified(acme, running)


def test_a_job_that_the_account_cannot_cover_is_refused_with_number_limit_and_remedy(acme):
    with pytest.raises(InsufficientTokens, match=r"needs 25 tokens, 10 free: top up 15 or lower tokens= to 10"):
        acme.submit(pow, 2, 10, tokens="25", accelerators="H100:1")
    assert acme.balance().free_uhs == 10 * UHS_PER_CT


def test_an_unknown_accelerator_is_named_with_those_that_exist(acme):
    with pytest.raises(UnknownAccelerator, match="H100"):
        acme.submit(pow, 2, 10, tokens="1", accelerators="B300:1")


def test_a_failing_function_shows_its_own_exception(acme):
    def fail():
        raise ZeroDivisionError("of the tenant's own making")

    job = acme.submit(fail, tokens="0.1", accelerators="H100:1")
    with pytest.raises(JobFailed, match="of the tenant's own making"):
        job.result(timeout=60)
    settled(job)
    assert acme.balance().held_uhs == 0


def test_a_job_at_its_limit_is_saved_parked_and_goes_on_with_a_raised_limit(acme, running):
    # Busy on its one device, it is asked to save after some 6 s, with a second and a half left: a fifth of its limit.
    job = acme.submit(count_and_save, 90, 0.1, tokens="0.0026", accelerators="H100:1", grace=5)
    wait_for_state(job, "parked")
    cost = settled_parked(job)
    assert job.info().reason == "limit_reached"
    assert cost.burned_uhs <= UHS_PER_CT * 26 // 10_000
    assert acme.balance().held_uhs == 0
    job.raise_limit("0.05")
    result = job.result(timeout=90)
    assert result["steps"] == 90
    assert result["resumed_at"] > 0
    assert result["attempt"] == 2
    burned_uhs = settled(job).burned_uhs
    assert sum(record.charged_uhs for record in acme.usage(job_id=job.id)) == burned_uhs
    verified(acme, running)


def settled_parked(job, timeout_s=SETTLES_S):
    """The cost once nothing of the attempt is left: its hold is closed."""
    deadline = time.monotonic() + timeout_s
    while (cost := job.cost()).held_uhs:
        assert time.monotonic() < deadline, f"{job.id} still holds tokens"
        time.sleep(0.1)
    return cost


def test_killing_the_gate_in_the_middle_of_a_job_loses_neither_work_nor_tokens(acme, running):
    job = acme.submit(busy_for, 12, tokens="0.1", accelerators="H100:1")
    wait_for_state(job, "running")
    time.sleep(2)
    os.kill(gate_pid(running), signal.SIGKILL)
    assert job.result(timeout=90) == "done"
    cost = settled(job)
    assert job.info().attempts == 1
    (record,) = acme.usage(job_id=job.id)
    assert record.charged_uhs == cost.burned_uhs > 0
    assert acme.balance().free_uhs == 10 * UHS_PER_CT - cost.burned_uhs
    verified(acme, running)


def gate_pid(running, *, must=True):
    for process in psutil.Process(running.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::Gatehouse"):
                return process.pid
    assert not must, "no gate is running"
    return None


def test_a_cancelled_job_is_charged_for_what_it_ran_and_no_more(acme):
    job = acme.submit(busy_for, 300, tokens="0.5", accelerators="H100:1", grace=1)
    wait_for_state(job, "running")
    job.cancel()
    cost = settled(job)
    assert job.state == "cancelled"
    assert cost.burned_uhs < UHS_PER_CT // 10
    assert acme.balance().free_uhs == 10 * UHS_PER_CT - cost.burned_uhs


def test_a_ray_programs_own_tasks_run_inside_its_lease(acme):
    def program():
        import ray

        @ray.remote(num_gpus=1)
        def where():
            return ray.get_runtime_context().get_placement_group_id(), ray.get_runtime_context().get_node_id()

        here = ray.get_runtime_context().get_placement_group_id()
        return here, ray.get([where.remote(), where.remote()])

    job = acme.submit(program, tokens="0.2", accelerators="H100:2", ray_program=True)
    lease, tasks = job.result(timeout=90)
    assert lease
    assert {group for group, _ in tasks} == {lease}
    settled(job)


def test_what_a_job_prints_is_kept_after_its_end(acme):
    def speak():
        print("here I am")

    job = acme.submit(speak, tokens="0.1", accelerators="A100:1")
    job.result(timeout=60)
    settled(job)
    assert "here I am" in "".join(job.logs())


def test_rays_dashboard_shows_each_jobs_account_and_tokens(acme, running):
    job = acme.submit(pow, 2, 5, tokens="0.1", accelerators="H100:1", name="on-the-page")
    job.result(timeout=60)
    settled(job)
    account = acme.balance().account_id
    deadline = time.monotonic() + 20
    while True:
        token = Path(running.ray_token).read_text()
        asked = urllib.request.Request(f"{running.dashboard}/api/jobs/", headers={"authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked) as answer:
            pages = [page for page in json.load(answer) if page["submission_id"] == job.id]
        if pages and "burned" in (pages[0]["message"] or ""):
            break
        assert time.monotonic() < deadline, f"not on the dashboard: {pages}"
        time.sleep(0.5)
    assert account in pages[0]["message"]


def test_an_unknown_job_is_not_found(acme):
    with pytest.raises(NotFound):
        acme.job("job-of-nobody").info()
