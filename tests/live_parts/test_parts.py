"""Parts of devices on real Ray: nodes that pretend to have them, jobs side by side on one device, and what each is billed."""

import os
import time
from pathlib import Path

import pytest

from fabric import daemon
from fabric.client.client import new_request_id
from fabric.errors import InvalidRequest
from fabric.sdk import connect
from fabric.wire import fabric_pb2 as pb

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
CLUSTER = """
name: parts
ray:
  mode: local
  nodes:
    - {node: shared, accelerator: H100, devices: 1, parts: time-slice.4}
    - {node: instances, accelerator: A100, devices: 7, parts: mig.7.1g.5gb}
payments: sandbox
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    place = tmp_path_factory.mktemp("parts")
    file = place / "cluster.yaml"
    file.write_text(CLUSTER)
    found = daemon.up(file, state_dir=place / "state", any_port=True)
    yield found
    daemon.down(place / "state", now=True)


@pytest.fixture
def acme(running):
    account = f"acme-{new_request_id()[:8]}"
    key = daemon.operator_key(Path(running.state_dir))
    with connect(running.address, key, running.ca, account=account) as fabric:
        opened = pb.OpenAccountRequest(request_id=new_request_id(), account_id=account, name="Acme", plan="starter")
        fabric.client.call(opened, pb.Accepted)
        fabric.top_up("10")
        yield fabric


def stay(seconds):
    began = time.time()
    time.sleep(seconds)
    return began, time.time(), os.environ.get("CUDA_VISIBLE_DEVICES", "")


def shown(fabric, job):
    return fabric.client.call(pb.GetJobRequest(job_id=job.id), pb.Job)


def test_four_quarters_run_side_by_side_on_one_device_and_a_whole_job_after_them(acme):
    jobs = [acme.submit(stay, 20, tokens="0.2", accelerators="H100:1/4") for _ in range(4)]
    whole = acme.submit(stay, 0, tokens="0.2", accelerators="H100:1")
    ran = [job.result(timeout=240) for job in jobs]
    assert max(began for began, _, _ in ran) < min(ended for _, ended, _ in ran), "they ran one after the other"
    assert len({visible for _, _, visible in ran}) == 1, "they were on several devices"
    assert all(tuple(shown(acme, job).fraction) == (1, 4) for job in jobs)
    began, _, _ = whole.result(timeout=240)
    assert began > max(ended for _, ended, _ in ran), "it was on a device with others"


def test_what_a_part_burns_is_its_part(acme):
    job = acme.submit(stay, 10, tokens="0.2", accelerators="H100:1/2")
    began, ended, _ = job.result(timeout=240)
    deadline = time.monotonic() + 60
    while not (found := shown(acme, job)).settled and time.monotonic() < deadline:
        time.sleep(0.5)
    most_uhs = (ended - began + 10) * 1_000_000 / 2
    assert 0 < found.burned_uhs <= most_uhs


def test_seven_instances_of_a_device_take_seven_jobs(acme):
    jobs = [acme.submit(stay, 20, tokens="0.2", accelerators="A100:1/7") for _ in range(7)]
    ran = [job.result(timeout=300) for job in jobs]
    assert max(began for began, _, _ in ran) < min(ended for _, ended, _ in ran)


@pytest.mark.parametrize("asked", ["H100:1/3", "A100:1", "A100:1/2"])
def test_what_no_node_offers_is_refused(acme, asked):
    with pytest.raises(InvalidRequest):
        acme.submit(stay, 0, tokens="0.2", accelerators=asked)
