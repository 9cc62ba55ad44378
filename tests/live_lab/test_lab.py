"""A fabric that joins what is there by its addresses: Ray, PostgreSQL and S3, as on an operator's own machines."""

import asyncio
import os
import random
import signal
import time
import urllib.request
from pathlib import Path

import asyncpg
import psutil

from fabric.audit.verify import verify_export
from fabric.checkpoints import Checkpoints, DirectoryStore
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb

WAITS_S = 60
MUCH = 2**21
"""Bytes of a result: more than travels beside the archive."""
SECRET = b"very-secret"
PAGES = ("api/v0/actors?detail=1", "api/v0/tasks?detail=1", "api/v0/runtime_envs", "api/jobs/")


def busy_for(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "done"


def much_after(seconds, size):
    busy_for(seconds)
    return bytes(size)


def saves(size):
    from fabric import context

    context.current().save(random.Random(7).randbytes(size), step=7)
    return "done"


def wait_until(true):
    deadline = time.monotonic() + WAITS_S
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def settled(job):
    wait_until(lambda: job.cost().settled)
    return job.cost()


def assert_billed(fabric, job):
    """Settled, nothing held any more, charged once for what it burned, and provably so."""
    cost = settled(job)
    (record,) = fabric.usage(job_id=job.id)
    assert record.charged_uhs == cost.burned_uhs > 0
    balance = fabric.balance()
    assert (balance.held_uhs, balance.free_uhs) == (0, 10 * UHS_PER_CT - cost.burned_uhs)


def test_a_job_runs_where_everything_is_known_by_its_address(lab, bucket, postgres_server):
    with lab.customer("acme") as fabric:
        job = fabric.submit(much_after, 2, MUCH, tokens="0.1", accelerators="H100:1")
        assert job.result(timeout=WAITS_S) == bytes(MUCH)
        assert_billed(fabric, job)
        lines = fabric.client.fetch(pb.ExportRequest()).decode().splitlines()
    report = verify_export(lines, trusted_key=lab.up_as["verifier_key"])
    assert report.ok, report.problem
    assert any(job.id in each.key and each.size > MUCH for each in bucket.objects.filter(Prefix="archive/"))

    async def entries():
        connection = await asyncpg.connect(postgres_server.dsn)
        try:
            return await connection.fetchval("SELECT size FROM fabric_journal.head")
        finally:
            await connection.close()

    assert asyncio.run(entries()) > 5


def test_a_customer_fetches_what_a_job_saved(lab, tmp_path):
    with lab.customer("fetches") as fabric:
        job = fabric.submit(saves, 5 * MUCH, tokens="0.1", accelerators="H100:1")
        assert job.result(timeout=WAITS_S) == "done"
        assert job.checkpoint(tmp_path / "run").step == 7
    _, shards = Checkpoints(DirectoryStore(tmp_path / "run"), prefix="session").load()
    assert list(shards.values()) == [random.Random(7).randbytes(5 * MUCH)]


def test_the_gate_and_its_jobs_outlive_the_door(lab):
    (gate,) = lab.gates()
    with lab.customer("outlives") as fabric:
        job_id = fabric.submit(busy_for, 8, tokens="0.1", accelerators="H100:1").id
        wait_until(lambda: fabric.job(job_id).state == "running")
    assert lab.run("down") == {"name": "lab", "stopped": True, "gate": "running", "unsettled_calls": 0}
    assert "no fabric is up" in lab.run("down", code=5)["error"]["message"]
    assert lab.gates() == [gate]
    lab.up()
    assert lab.gates() == [gate]
    with lab.connect("outlives") as fabric:
        job = fabric.job(job_id)
        assert job.result(timeout=WAITS_S) == "done"
        assert_billed(fabric, job)


def test_a_killed_gate_comes_back_with_its_secrets_and_its_job_is_billed_once(lab):
    with lab.customer("killed") as fabric:
        job = fabric.submit(busy_for, 8, tokens="0.1", accelerators="910B:1")
        wait_until(lambda: job.state == "running")
        (gate,) = lab.gates()
        os.kill(gate, signal.SIGKILL)
        assert job.result(timeout=WAITS_S) == "done"
        assert job.info().attempts == 1
        assert_billed(fabric, job)
    assert lab.gates() != [gate]


def test_a_gate_is_stopped_only_when_asked_and_the_next_one_finds_its_jobs(lab):
    with lab.customer("upgraded") as fabric:
        job_id = fabric.submit(busy_for, 12, tokens="0.1", accelerators="H100:1").id
        wait_until(lambda: fabric.job(job_id).state == "running")
    assert lab.run("down", "--gate")["gate"] == "stopped"
    assert lab.gates() == []
    lab.up()
    with lab.connect("upgraded") as fabric:
        job = fabric.job(job_id)
        assert job.result(timeout=WAITS_S) == "done"
        assert job.info().attempts == 1
        assert_billed(fabric, job)


def test_a_door_with_another_signing_key_is_not_let_in_front_of_this_gate(lab):
    other = lab.run("up", "--config", lab.config(), "--state-dir", lab.place / "stranger", code=6)["error"]
    assert other["code"] == "other_gate"
    assert "another signing key" in other["message"]
    assert "fabric down --gate" in other["message"]


def test_a_door_with_another_archive_is_not_let_in_front_of_this_gate(lab):
    config = lab.config(prefix="other")
    with config.open("a") as file:
        file.write(f"signing_key: {lab.place / 'state' / 'signing.key'}\n")
    other = lab.run("up", "--config", config, "--state-dir", lab.place / "other", code=6)["error"]
    assert other["code"] == "other_gate"
    assert "another archive" in other["message"]
    assert "fabric down --gate" in other["message"]


def test_a_gate_is_not_started_on_a_damaged_journal_and_none_is_left_behind(lab):
    place = lab.place / "damaged"
    place.mkdir()
    (place / "journal.sqlite").write_bytes(b"SQLite format 3\0" + bytes(5_000))
    config = lab.place / "damaged.yaml"
    config.write_text(
        "name: damaged\nray: {mode: join, address: '${RAY_ADDRESS}', namespace: other}\nrpc: {listen: '127.0.0.1:0'}\n"
    )
    gates = lab.gates()
    error = lab.run("up", "--config", config, "--state-dir", place, code=1)["error"]
    assert error["code"] == "journal_corrupt"
    assert "Remedy: " in error["message"]
    wait_until(lambda: lab.gates() == gates)


def test_no_secret_is_where_others_look(lab):
    rays = psutil.Process(lab.cluster.pid).children(recursive=True)
    assert any(process.name().startswith("ray::Gatehouse") for process in rays)
    for process in rays:
        shown = Path(f"/proc/{process.pid}/environ").read_bytes() + " ".join(process.cmdline()).encode()
        assert SECRET not in shown, process.name()
    for page in PAGES:
        shown = {"authorization": f"Bearer {lab.ray_token.read_text()}"}
        with urllib.request.urlopen(urllib.request.Request(f"{lab.dashboard}/{page}", headers=shown)) as answer:
            assert SECRET not in answer.read(), page
    logs = list(Path(lab.session).rglob("*.*"))
    assert len(logs) > 10
    for file in [*logs, *(lab.place / "state").rglob("*")]:
        assert not file.is_file() or SECRET not in file.read_bytes(), file
    with lab.connect("acme") as fabric:
        assert SECRET not in fabric.client.fetch(pb.ExportRequest())
