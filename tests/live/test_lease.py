"""A client's own Ray tasks and actors inside a lease, and what holds a device without one."""

import re
import time
import traceback
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from fabric.cluster.local import token_from
from fabric.units import UHS_PER_CT

GONE_S = 15
SETTLES_S = 20
NEVER_S = 3
"""Ray leaves a task without a place waiting: how long to watch that it does not run."""


@pytest.fixture(scope="module")
def driver(running):
    """This process as a client of the cluster, with its token."""
    with token_from(Path(running.ray_token)):
        ray.init(address=running.ray_address, log_to_driver=False, logging_level="error", configure_logging=False)
        yield
        ray.shutdown()


def settled(job):
    for _ in job.events(timeout=SETTLES_S):
        pass
    cost = job.cost()
    assert cost.settled, f"{job.id} is not settled"
    return cost


def test_a_clients_own_tasks_and_actors_run_in_its_lease_and_are_metered_and_settled(acme, driver):
    @ray.remote
    def busy(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
        context = ray.get_runtime_context()
        return context.get_placement_group_id(), context.get_node_id()

    @ray.remote
    class Counter:
        def __init__(self):
            self.count = 0

        def add(self):
            self.count += 1
            return self.count, ray.get_runtime_context().get_placement_group_id()

    with acme.lease(tokens="0.1", accelerators="H100:2", timeout=60) as lease:
        assert acme.balance().held_uhs > 0
        options = lease.options(devices=1)
        counter = Counter.options(**options).remote()
        group, node = ray.get(busy.options(**options).remote(2.5), timeout=60)
        assert ray.get(counter.add.remote(), timeout=60) == (1, group)
        table = placement_group_table()[group]
        assert set(table["bundles_to_node_id"].values()) == {node}
    cost = settled(lease.job)
    assert lease.job.state == "succeeded"
    assert cost.burned_uhs > 2_000_000, "two and a half busy seconds of one device"
    assert acme.balance().held_uhs == 0
    assert acme.balance().free_uhs == 10 * UHS_PER_CT - cost.burned_uhs
    (record,) = acme.usage(job_id=lease.job.id)
    assert (record.devices, record.charged_uhs) == (2, cost.burned_uhs)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(counter.add.remote(), timeout=30)
    late = busy.options(**options).remote(0)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(late, timeout=NEVER_S)
    ray.cancel(late, force=True)


def test_a_programs_own_actors_hold_devices_of_its_lease(acme):
    def program():
        import ray

        @ray.remote(num_gpus=1)
        class Worker:
            def where(self):
                return ray.get_runtime_context().get_placement_group_id()

        workers = [Worker.remote() for _ in range(2)]
        return ray.get_runtime_context().get_placement_group_id(), ray.get([w.where.remote() for w in workers])

    job = acme.submit(program, tokens="0.2", accelerators="H100:2", ray_program=True)
    lease, groups = job.result(timeout=60)
    assert lease
    assert groups == [lease, lease]
    settled(job)


def sweep():
    from ray import tune

    trainable = tune.with_resources(lambda config: {"score": config["x"]}, {"cpu": 1, "gpu": 1})
    tune.Tuner(trainable, param_space={"x": tune.grid_search([1, 2])}).fit()


def train():
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    TorchTrainer(lambda: None, scaling_config=ScalingConfig(num_workers=2)).fit()


def data():
    import ray.data

    class Same:
        def __call__(self, batch):
            return batch

    ray.data.range(10).map_batches(Same, num_gpus=1, concurrency=1, batch_size=5).take_all()


def actor():
    @ray.remote(num_gpus=1)
    class Worker:
        pass

    Worker.remote()


@pytest.mark.parametrize("program", [sweep, train, data, actor, lambda: placement_group([{"GPU": 1}])])
def test_what_would_run_beside_a_clients_lease_is_refused_with_the_remedy(acme, driver, program):
    with acme.lease(tokens="0.1", accelerators="H100:1", timeout=60) as lease:
        before = set(placement_group_table())
        with pytest.raises(Exception) as caught:  # noqa: PT011  # a library may have something to say itself, and then ours
            program()
        said = "".join(traceback.format_exception(caught.value))
        assert re.search(rf"would run outside of lease {lease.job.id}.*submit the whole program", said), said
        assert set(placement_group_table()) == before
    settled(lease.job)


def test_a_foreign_placement_group_with_a_device_is_removed_and_a_leased_job_is_not_touched(acme, driver):
    def patient(seconds):
        time.sleep(seconds)
        return "done"

    job = acme.submit(patient, 8, tokens="0.2", accelerators="H100:1")
    foreign = placement_group([{"GPU": 1, "CPU": 1}], name="stowaway")
    assert foreign.wait(timeout_seconds=30)
    deadline = time.monotonic() + GONE_S
    while placement_group_table(foreign)["state"] != "REMOVED":
        assert time.monotonic() < deadline, "a placement group without a lease still holds a device"
        time.sleep(0.2)
    assert job.result(timeout=60) == "done"
    assert settled(job).burned_uhs > 0
    assert job.info().attempts == 1


def test_what_runs_in_a_lease_whose_tokens_end_gets_an_error_that_says_so(acme, driver):
    """Ray alone would try it again in the placement group that is gone, for ever."""

    @ray.remote(max_retries=-1)
    def forever(at):
        time.sleep(1_000)

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Worker:
        def forever(self):
            time.sleep(1_000)

    lease = acme.lease(tokens="0.006", accelerators="H100:2", timeout=60)
    lease.open()
    options = lease.options(devices=1)
    worker = Worker.options(**options).remote()
    running = [worker.forever.remote(), *(forever.options(**options).remote(at) for at in range(3))]
    for reference in running:
        with pytest.raises(ray.exceptions.RayError, match=rf"lease {lease.job.id} .*(limit reached|tokens)"):
            ray.get(reference, timeout=120)
    with pytest.raises(ray.exceptions.RayError, match="is over"):
        ray.get(forever.options(**options).remote(9), timeout=30)
    lease.close()
    settled(lease.job)
