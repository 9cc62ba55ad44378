"""What a job starts over Ray ends with its lease: detached actors, and tasks and actors outside of its placement group."""

import asyncio
import itertools
import os
import time

import pytest
import ray

from fabric.gate.events import JobKind, LeaseFinished, LeaseOutcome

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module")]


def detached(name, told, *, outside, forged):
    """A job that leaves an actor behind which keeps a core busy."""
    import os
    import threading
    import time
    from pathlib import Path

    import ray

    class Leech:
        def begin(self, told):
            Path(told).write_text(str(os.getpid()))

            def burn():
                while True:
                    time.sleep(0.001)

            threading.Thread(target=burn, daemon=True).start()
            return os.getpid()

    options = {"name": name, "lifetime": "detached", "num_cpus": 0, "max_restarts": -1, "namespace": "leeches"}
    if outside:
        options["scheduling_strategy"] = "DEFAULT"
    if forged:
        options["runtime_env"] = {"env_vars": {"FABRIC_LEASE_ID": "another.1"}}
    leech = ray.remote(Leech).options(**options).remote()
    return ray.get(leech.begin.remote(told))


WAYS = list(itertools.product([JobKind.FUNCTION, JobKind.PROGRAM], [False, True], [False, True]))
SHORT = [(JobKind.FUNCTION, False, True), (JobKind.PROGRAM, True, True)]


@pytest.mark.parametrize(
    ("kind", "outside", "forged"),
    [*SHORT, *(pytest.param(*way, marks=pytest.mark.soak) for way in WAYS if way not in SHORT)],
)
async def test_a_detached_actor_of_a_job_ends_with_its_lease(world, tmp_path, kind, outside, forged):
    """In its group or outside of it, with the mark of its lease or another's."""
    name = f"leech-{os.getpid()}-{time.monotonic_ns()}"
    payload = world.call(detached, name, str(tmp_path / "told"), outside=outside, forged=forged)
    finished, _ = await world.run(world.lease(payload, kind=kind))
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    deadline = time.monotonic() + 40
    while is_alive(name):
        assert time.monotonic() < deadline, "the actor has outlived its lease"
        await world.cluster.reconcile([])
        await asyncio.sleep(0.5)
    await asyncio.sleep(1)
    assert not is_alive(name), "Ray has started it again"


def is_alive(name):
    try:
        return bool(ray.get_actor(name, namespace="leeches"))
    except ValueError:
        return False


def drives(address, token_file, told, *, stays_s, name="driven"):
    """A job that connects to the fabric's own Ray, as a driver beside its lease, and leaves an actor behind."""
    import subprocess
    import sys
    import textwrap
    from pathlib import Path

    program = textwrap.dedent(f"""
        import os, time
        for name in [name for name in os.environ if name.startswith(("RAY_", "FABRIC_"))]:
            del os.environ[name]
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH={token_file!r})
        import ray
        ray.init(address={address!r}, namespace="leeches", log_to_driver=False)

        @ray.remote(num_cpus=0)
        class Leech:
            pass

        leech = Leech.options(name={name!r}, lifetime="detached").remote()
        ray.get(leech.__ray_ready__.remote())
        open({told!r}, "w").write("begun")
        time.sleep({stays_s})
        os._exit(0)
    """)
    subprocess.run([sys.executable, "-c", program], check=True)
    return Path(told).read_text()


async def test_what_a_driver_of_a_jobs_own_leaves_behind_is_ended(world, tmp_path):
    token_file, told = os.environ["RAY_AUTH_TOKEN_PATH"], tmp_path / "told"
    lease = world.lease(world.call(drives, world.local.address, token_file, str(told), stays_s=8))
    await world.start(lease)
    deadline = time.monotonic() + 120
    while not any(isinstance(e, LeaseFinished) and e.lease_id == lease.lease_id for e in world.events):
        assert time.monotonic() < deadline, "the job doesn't end"
        await world.cluster.reconcile([world.view(lease)])
        await asyncio.sleep(0.5)
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    await world.remove(lease.lease_id)
    assert told.read_text() == "begun"
    while is_alive("driven"):
        assert time.monotonic() < deadline, "the actor has outlived its lease"
        await world.cluster.reconcile([])
        await asyncio.sleep(0.5)


async def test_what_a_driver_that_no_look_saw_has_left_is_ended(world, tmp_path):
    """The cluster is somebody else's: what others leave on it is left alone, so it must be known whose the driver was."""
    token_file, told = os.environ["RAY_AUTH_TOKEN_PATH"], tmp_path / "told"
    lease = world.lease(world.call(drives, world.local.address, token_file, str(told), stays_s=1, name="left"))
    await world.start(lease)
    finished = await world.wait(LeaseFinished, lease.lease_id, within_s=120)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    await world.remove(lease.lease_id)
    assert is_alive("left")
    deadline = time.monotonic() + 60
    while is_alive("left"):
        assert time.monotonic() < deadline, "the actor has outlived its lease"
        await world.cluster.reconcile([])
        await asyncio.sleep(0.5)


async def test_an_actor_outside_of_its_group_is_metered_to_the_lease_while_that_runs(world, tmp_path):
    def burns():
        import time

        import ray

        @ray.remote(num_cpus=0, scheduling_strategy="DEFAULT")
        class Burner:
            def burn(self):
                until = time.monotonic() + 4
                while time.monotonic() < until:
                    pass

        ray.get(Burner.remote().burn.remote())

    lease = world.lease(world.call(burns))
    await world.run(lease)
    _, busy_us, _ = world.metered(lease.lease_id)
    assert busy_us > 2_000_000


async def test_what_is_ours_is_never_taken_for_a_runaway(world):
    lease = world.lease(world.call(time.sleep, 6))
    await world.start(lease)
    for _ in range(3):
        report = await world.cluster.reconcile([world.view(lease)])
        assert report.unleased == ()
        await asyncio.sleep(0.5)
    finished = await world.wait(LeaseFinished, lease.lease_id)
    assert finished.outcome is LeaseOutcome.SUCCEEDED
    await world.remove(lease.lease_id)
