"""A fabric that is stopped with a job on it, and started again from the same state directory."""

import re
import time

from fabric import daemon
from fabric.client.client import new_request_id
from fabric.sdk import connect
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb

STARTS_S = 90
CONFIG = "name: small\nray: {mode: local, nodes: [{node: n, accelerator: H100, devices: 2}]}\n"


def save_when_asked(steps, step_s):
    from fabric import context

    job = context.current()
    at = began = int(job.load() or b"0")
    while at < steps:
        time.sleep(step_s)
        at += 1
        if job.stop_requested:
            job.save(str(at).encode(), step=at)
            job.park()
    return {"steps": at, "resumed_at": began}


def wait_until(true, *, within_s):
    deadline = time.monotonic() + within_s
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_what_runs_when_the_fabric_goes_down_is_asked_to_save_and_goes_on_when_it_is_up_again(tmp_path):
    place = tmp_path / "state"
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG)
    first = daemon.up(config, state_dir=place, any_port=True)
    try:
        with connect(first.address, daemon.operator_key(place), first.ca, account="acme") as fabric:
            opened = pb.OpenAccountRequest(request_id=new_request_id(), account_id="acme", name="Acme", plan="starter")
            fabric.client.call(opened, pb.Accepted)
            fabric.top_up("10")
            job = fabric.submit(save_when_asked, 40, 0.1, tokens="0.2", accelerators="H100:1")
            wait_until(lambda: job.cost().burned_uhs > 0, within_s=STARTS_S)
            job_id = job.id
    finally:
        said = []
        daemon.down(place, say=said.append)
    assert daemon.running(place) is None
    assert said
    assert "saving what runs: 1 left" in said[0]

    second = daemon.up(config, state_dir=place, any_port=True)
    try:
        assert second.verifier_key == first.verifier_key
        with connect(second.address, daemon.operator_key(place), second.ca, account="acme") as fabric:
            job = fabric.job(job_id)
            result = job.result(timeout=STARTS_S)
            assert result["steps"] == 40
            assert result["resumed_at"] > 0
            told = rf"RUNNING on 1 × H100 → FABRIC DOWN at step {result['resumed_at']}, durable in .* → RESUMED on 1 × H100"
            assert re.search(told, job.timeline), job.timeline
            cost = wait_until(lambda: job.cost() if job.cost().settled else None, within_s=STARTS_S)
            records = fabric.usage(job_id=job_id)
            assert sum(record.charged_uhs for record in records) == cost.burned_uhs
            assert fabric.balance().free_uhs == 10 * UHS_PER_CT - cost.burned_uhs
    finally:
        daemon.down(place)
