"""The second promise on a real cluster: evicted by reserved demand, nothing lost, resumed on whatever there is."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fabric.units import UHS_PER_CT
from tests.live.test_house import settled, wait_for_state

HERE = Path(__file__).parent
STEPS = 150


def digest_in(log):
    return re.search(r"digest (\w+)", log)[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights that the script ends with where nobody interrupts it."""
    command = [sys.executable, HERE / "train_small.py", str(STEPS), "0"]
    done = subprocess.run(
        command, cwd=tmp_path_factory.mktemp("plain"), capture_output=True, text=True, check=True, timeout=120
    )
    return digest_in(done.stdout)


def wait_until(job, what, within_s=90):
    deadline = time.monotonic() + within_s
    while not what(info := job.info()):
        assert time.monotonic() < deadline, (
            f"{job.id} is {info.state} ({info.reason}), step {info.step}: {info.timeline}"
        )
        time.sleep(0.1)
    return info


def hold(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        from fabric import context

        if context.current().wait_for_stop(0.1):
            return


def test_reserved_demand_evicts_training_which_resumes_on_another_type_and_count_with_the_same_weights(
    acme, uninterrupted
):
    others = [acme.submit(hold, 600, tokens="2", accelerators="H100:3", preemptible=False)]
    wait_for_state(others[0], "running")
    train = acme.submit(
        "train_small.py",
        STEPS,
        "0.05",
        working_dir=HERE,
        tokens="1",
        accelerators=["H100:2-4", "A100:2-4"],
    )
    info = wait_until(train, lambda info: info.step >= 20)
    assert (info.accelerator, info.devices, list(info.nodes)) == ("H100", 2, ["h100-reserved"])
    assert (info.steps_total, info.HasField("loss_micro")) == (STEPS, True)
    others.append(acme.submit(hold, 600, tokens="2", accelerators="H100:2", service="inference"))
    wait_for_state(others[1], "running")
    assert train.wait(timeout=120) == "succeeded"
    for other in others:
        other.cancel()
    assert digest_in("".join(train.logs())) == uninterrupted
    info = train.info()
    assert (info.attempts, info.accelerator, info.devices) == (2, "A100", 4)
    told = re.fullmatch(
        r"(?:WAITING \d+ s → )?RUNNING on 2 × H100 → EVICTED at step (\d+), durable in (\d+) m?s, 0 steps and"
        r" [\d.]+ CT lost → WAITING \d+ m?s → RESUMED on 4 × A100 → SUCCEEDED",
        info.timeline,
    )
    assert told, info.timeline
    assert info.saved_step >= int(told[1])
    assert info.grace_needed_us > 0
    assert settled(train).burned_uhs > 0


COUNT = """
at=$(cat $FABRIC_CHECKPOINT_DIR/step 2>/dev/null || echo 0); echo from $at
save() { echo $at > $FABRIC_CHECKPOINT_DIR/.new; mv $FABRIC_CHECKPOINT_DIR/.new $FABRIC_CHECKPOINT_DIR/step; }
trap 'save; exit 75' TERM
while [ $at -lt 2000 ]; do sleep 0.02; at=$((at + 1)); [ -e $FABRIC_CHECKPOINT_DIR/stop ] && exit 0; done
"""


def test_any_command_is_paused_saved_resumed_forked_and_cancelled_with_what_it_has(acme):
    job = acme.submit(["sh", "-c", COUNT], tokens="1", accelerators="any", name="count")
    wait_for_state(job, "running")
    time.sleep(1)
    job.pause()
    wait_for_state(job, "parked")
    (checkpoint,) = job.checkpoints()
    assert checkpoint.step > 0
    fork = job.fork()
    job.resume()
    wait_until(job, lambda info: info.state == "running" and info.attempts == 2)
    time.sleep(0.5)
    job.cancel(save=True)
    assert job.wait(timeout=60) == "cancelled"
    newest = job.checkpoints()[0]
    assert newest.step > checkpoint.step
    wait_until(fork, lambda info: info.state == "running")
    time.sleep(0.5)
    fork.cancel()
    assert fork.wait(timeout=60) == "cancelled"
    assert [found.step for found in fork.checkpoints()] == [checkpoint.step], "nobody wanted what it had since"
    logs = "".join(job.logs())
    assert f"from {checkpoint.step}\n" in logs
    assert "".join(fork.logs()).startswith(f"from {checkpoint.step}\n")
    assert re.search(rf"PAUSED at step {checkpoint.step}, durable in .*, 0 steps and", job.info().timeline)


def deaf(seconds):
    from fabric import context

    job = context.current()
    until = time.monotonic() + seconds
    step = 0
    while time.monotonic() < until:
        step += 1
        job.report(step=step)
        if step == 20:
            job.save(b"20", step=20)
        while time.monotonic() < until and time.monotonic() % 0.05 > 0.01:
            pass
        time.sleep(0.01)


def test_a_worker_that_ignores_the_notice_is_ended_at_its_deadline_and_pays_to_its_last_durable_step(acme):
    others = [acme.submit(hold, 600, tokens="2", accelerators="H100:3", preemptible=False)]
    wait_for_state(others[0], "running")
    job = acme.submit(deaf, 600, tokens="1", accelerators="H100:2", grace=1)
    wait_until(job, lambda info: info.step > 60)
    others.append(acme.submit(hold, 600, tokens="2", accelerators="H100:2", service="inference"))
    wait_for_state(others[1], "running")
    info = wait_until(job, lambda info: info.state == "queued" and not info.lease_id)
    told = re.search(r"EVICTED at step (\d+), (\d+) steps and ([\d.]+) CT lost → WAITING", info.timeline)
    assert told, info.timeline
    assert int(told[1]) - int(told[2]) == 20
    (record,) = acme.usage(job_id=job.id)
    assert record.ended == "lost"
    assert record.refunded_uhs > 0
    assert record.charged_uhs == info.burned_uhs
    job.cancel()
    for other in others:
        other.cancel()
    for each in (job, *others):
        settled(each)
    spent_uhs = 10 * UHS_PER_CT - acme.balance().free_uhs
    records = acme.usage()
    assert spent_uhs == sum(record.charged_uhs for record in records), "the ledger says what the records say"
    for record in records:
        counted = sum(band.devices_us for band in record.bands)
        assert counted == record.devices * (record.metered_us - record.estimated_us), (
            "and those what the meters counted"
        )


def test_what_one_job_fetched_the_next_one_finds(acme, tmp_path):
    (tmp_path / "shard").write_bytes(b"x" * 100_000)
    address = f"file://{tmp_path}/shard"

    def read(address):
        from fabric import context

        job = context.current()
        return len(job.fetch(address).read_bytes()), job.progress.timers.get("staging_saved", 0)

    for at in range(2):
        job = acme.submit(read, address, tokens="0.1", accelerators="H100:1", data={f"file://{tmp_path}/": 100_000})
        size, saved_us = job.result(timeout=60)
        assert (size, saved_us > 0) == (100_000, at == 1)
