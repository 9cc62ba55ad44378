"""The second promise on a real cluster: evicted by reserved demand, nothing lost, resumed on whatever there is."""

import re
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fabric.client.client import new_request_id
from fabric.errors import Conflict
from fabric.units import UHS_PER_CT
from fabric.wire import fabric_pb2 as pb
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
    others = [acme.submit(hold, 600, tokens="2", accelerators="H100:3")]
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
        r"(?:WAITING \d+ s → )?RUNNING on 2 × H100 → EVICTED at step (\d+), durable in (\d+) m?s, 0 steps lost"
        r"(?:, [\d.]+ CT burned after the last save)? → WAITING \d+ m?s → RESUMED on 4 × A100, first step in \d+ m?s → SUCCEEDED",
        info.timeline,
    )
    assert told, info.timeline
    assert info.saved_step >= int(told[1])
    assert info.grace_needed_us > 0
    assert settled(train).burned_uhs > 0


@contextmanager
def stays_short(acme):
    """Inside, jobs may be asked to leave however short they have run: with the operator's key, and for all of this fabric."""

    def say(**more):
        acme.client.call(pb.SetPolicyRequest(request_id=new_request_id(), **more), pb.Policy)

    say(changes_json='{"run_min": 0}')
    try:
        yield
    finally:
        say(as_filed=True)


def test_an_elastic_gang_grows_back_in_the_middle_of_its_training_and_ends_with_the_same_weights(
    acme, uninterrupted, tmp_path
):
    hurry = tmp_path / "hurry"
    with stays_short(acme):
        other = acme.submit(hold, 600, tokens="2", accelerators="A100:3")
        wait_for_state(other, "running")
        train = acme.submit(
            "train_small.py", STEPS, "1", str(hurry), working_dir=HERE, tokens="1", accelerators="A100:1-4",
            preload="torch",
        )  # fmt: skip
        assert wait_until(train, lambda info: info.step >= 2).devices == 1
        other.cancel()
        settled(other)
        while train.info().attempts == 1:  # until what it has run is worth a start
            with suppress(Conflict):
                train.save_now()
            time.sleep(1)
        hurry.touch()
        assert train.wait(timeout=120) == "succeeded"
    assert digest_in("".join(train.logs())) == uninterrupted
    told = re.search(
        r"RUNNING on 1 × A100.* → RESIZED at step (\d+), durable in \d+ m?s, 0 steps lost.* → RESUMED on 4 × A100, first",
        train.info().timeline,
    )
    assert told, train.info().timeline
    assert 2 <= int(told[1]) < STEPS
    settled(train)
    assert sorted(record.devices for record in acme.usage(job_id=train.id)) == [1, 4]


COUNT = """
at=$(cat $FABRIC_CHECKPOINT_DIR/step 2>/dev/null || echo 0); echo from $at
save() { echo $at > $FABRIC_CHECKPOINT_DIR/.new; mv $FABRIC_CHECKPOINT_DIR/.new $FABRIC_CHECKPOINT_DIR/step; }
trap 'save; exit 75' TERM
while [ $at -lt 2000 ]; do sleep 0.02; at=$((at + 1)); [ -e $FABRIC_CHECKPOINT_DIR/stop ] && exit 0; done
"""


def test_any_command_is_paused_saved_resumed_forked_fetched_and_cancelled_with_what_it_has(acme, tmp_path):
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
    fetched = job.checkpoint(tmp_path / "count")
    assert (fetched.step, fetched.is_folder) == (newest.step, True)
    assert int((fetched.path / "step").read_text()) == newest.step
    logs = "".join(job.logs())
    assert f"from {checkpoint.step}\n" in logs
    assert "".join(fork.logs()).startswith(f"from {checkpoint.step}\n")
    assert re.search(rf"PAUSED at step {checkpoint.step}, durable in .*, 0 steps lost", job.info().timeline)


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
    others = [acme.submit(hold, 600, tokens="2", accelerators="H100:3")]
    wait_for_state(others[0], "running")
    job = acme.submit(deaf, 600, tokens="1", accelerators="H100:2", grace=1)
    wait_until(job, lambda info: info.step > 60)
    others.append(acme.submit(hold, 600, tokens="2", accelerators="H100:2", service="inference"))
    wait_for_state(others[1], "running")
    info = wait_until(job, lambda info: info.state == "queued" and not info.lease_id)
    told = re.search(r"EVICTED at step (\d+), (\d+) steps lost, [\d.]+ CT refunded → WAITING", info.timeline)
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


def test_a_gang_of_two_kinds_trains_as_islands_and_goes_on_after_a_pause(acme):
    """Eight devices of one kind there are not: six H100 of two pools and two A100 are two islands."""
    job = acme.submit(
        "train_islands.py", "0.02", working_dir=HERE, tokens="2", accelerators=["H100:8", "A100:8"], mix="islands",
        preload="torch",
    )  # fmt: skip
    info = wait_until(job, lambda info: info.step >= 10)
    assert (info.accelerator, info.devices) == ("H100+A100", 8)
    assert sorted(info.nodes) == ["a100-spot", "h100-reserved", "h100-spot"]
    job.pause()
    info = wait_until(job, lambda info: info.state == "parked" and not info.lease_id)
    assert info.saved_step >= 10
    job.resume()
    assert job.wait(timeout=120) == "succeeded"
    log = "".join(job.logs())
    assert log.count("EXPERIMENTAL: mix=islands: 2 islands (2 on H100, 1 on A100)") == 2, "once an attempt"
    ends = dict(re.findall(r"rank (\d) on \w+ saw \d+ and ends with (\w+)", log))
    assert len(ends) == 3
    assert len(set(ends.values())) == 1, log
    assert re.search(r"RUNNING on 6 × H100 \+ 2 × A100 → PAUSED at step \d+", job.info().timeline)
    settled(job)
    for record in acme.usage(job_id=job.id):
        assert (record.accelerator, record.devices) == ("H100+A100", 8)
        assert 750_000 < record.weight_ppm < 1_000_000, "the mean of eight devices, of which two weigh less"


def test_a_job_on_a_node_that_is_drained_is_saved_and_goes_on_elsewhere_with_the_same_weights(acme, uninterrupted):
    job = acme.submit(
        "train_small.py", STEPS, "0.03", working_dir=HERE, tokens="1", accelerators=["910B:2", "A100:2"],
        preload="torch",
    )  # fmt: skip
    info = wait_until(job, lambda info: info.step >= 20)
    assert list(info.nodes) == ["ascend-spot"]
    acme.client.call(
        pb.DrainNodeRequest(node_id="ascend-spot", grace_us=20_000_000), pb.Accepted
    )  # with the operator's key
    assert job.wait(timeout=120) == "succeeded"
    info = job.info()
    assert re.search(r"DRAINED at step \d+, durable in \d+ m?s, 0 steps lost[^→]* → WAITING", info.timeline)
    assert (info.attempts, list(info.nodes) or ["a100-spot"], info.accelerator) == (2, ["a100-spot"], "A100")
    assert digest_in("".join(job.logs())) == uninterrupted


HUNGRY = """
import os, signal, sys, time
import torch
from fabric import context
from training import session

model = torch.nn.Linear(4, 4)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
for step in session(model=model, opt=opt, snapshot_every_s=0.01).steps(40):
    model(torch.ones(4)).sum().backward()
    opt.step()
    time.sleep(0.02)
    if step == 25 and context.current().attempt == 1:
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when the machine's memory is used up
print("ended from", context.current().attempt)
"""


def test_a_rank_that_the_kernel_kills_for_memory_is_told_as_that_and_resumes_if_its_owner_wants_it_tried_again(
    acme, tmp_path
):
    (tmp_path / "hungry.py").write_text(HUNGRY)
    used_up = tmp_path / "used_up"
    once, twice = (
        acme.submit(
            ["hungry.py", str(used_up)],
            working_dir=tmp_path,
            tokens="0.5",
            accelerators="A100:1",
            preload="torch",
            max_retries=retries,
        )
        for retries in (0, 1)
    )
    wait_until(once, lambda info: once.checkpoints())
    used_up.touch()
    assert once.wait(timeout=120) == "failed"
    assert re.search(
        r"SIGKILL, exit code 137 \(out of memory, most likely: this machine has \d+ GiB .* max_retries",
        once.info().error,
    )
    assert once.checkpoints()[0].step > 0, "what it had saved is kept, and can be forked"
    assert twice.wait(timeout=120) == "succeeded"
    assert "ended from 2" in "".join(twice.logs())
    assert twice.info().attempts == 2
