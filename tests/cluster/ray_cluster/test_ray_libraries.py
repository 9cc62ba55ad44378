"""What Ray ships as examples, and small programs of its libraries with devices, as they are.

The examples are read from the installed package when a test runs.
"""

import time
from pathlib import Path

import pytest
import ray

from fabric.gate.events import JobKind, LeaseFinished, LeaseOutcome
from fabric.results import read_parcel
from fabric.storage.results import read_result

pytest.importorskip("pyarrow", reason="install the group `strangers`")
pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(500)]

RAY = Path(ray.__file__).parent
WITHIN_S = 400
EXAMPLES = {
    "tune": ("tune/examples/tune_basic_example.py", "--smoke-test"),
    "tune with checkpoints": ("tune/examples/custom_func_checkpointing.py", "--smoke-test"),
    "train": ("train/examples/pytorch/torch_linear_example.py", "--smoke-test"),
}


async def logs_of(world, lease):
    chunks = [chunk async for chunk in world.cluster.logs(lease.job_id, account_id="acme", offsets={})]
    return b"".join(chunk.data for chunk in chunks).decode(errors="replace")


def script_of(world, name, text, *words):
    key = f"example-{time.monotonic_ns()}"
    world.archive.put(key, world.zipped(**{name.replace(".", "__"): text}))
    return {"entrypoint": [name, *words], "working_dir_blob": key}


def example(world, name):
    path, *words = EXAMPLES[name]
    return script_of(world, "example.py", (RAY / path).read_text(), *words)


async def ended(world, lease):
    finished = await world.wait(LeaseFinished, lease.lease_id, within_s=WITHIN_S)
    await world.remove(lease.lease_id)
    return finished


@pytest.mark.parametrize(
    "name", ["train", *(pytest.param(name, marks=pytest.mark.soak) for name in ("tune", "tune with checkpoints"))]
)
async def test_an_example_of_rays_runs_as_it_is(world, name):
    lease = world.lease(example(world, name), kind=JobKind.SCRIPT, shares=(("h1", 2),))
    await world.start(lease)
    finished = await ended(world, lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, (finished.error, await logs_of(world, lease))


def tune_on_devices():
    from ray import tune

    def objective(config):
        import ray

        tune.report({"score": config["x"], "gpus": ray.get_gpu_ids()})

    trainable = tune.with_resources(objective, tune.PlacementGroupFactory([{"CPU": 1, "GPU": 1, "H100": 1}]))
    results = tune.Tuner(trainable, param_space={"x": tune.grid_search([1, 2, 3, 4])}).fit()
    return sorted((found.metrics["score"], len(found.metrics["gpus"])) for found in results)


def train_on_devices():
    import tempfile

    import ray.train
    from ray.train import Checkpoint, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def loop():
        import torch
        import torch.distributed as dist

        total = torch.ones(1)
        dist.all_reduce(total)
        with tempfile.TemporaryDirectory() as folder:
            # Ray keeps metrics that come with a checkpoint.
            ray.train.report({"ranks": total.item()}, checkpoint=Checkpoint.from_directory(folder))
        return dist.get_backend(), total.item()

    scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1, "H100": 1})
    torch_config, run_config = TorchConfig(backend="gloo"), RunConfig(name="run")
    result = TorchTrainer(loop, torch_config=torch_config, scaling_config=scaling, run_config=run_config).fit()
    return *result.return_value, result.metrics["ranks"]


def data_on_devices():
    import ray.data

    class Double:
        def __call__(self, batch):
            batch["gpus"] = [len(ray.get_gpu_ids())] * len(batch["id"])
            batch["id"] = batch["id"] * 2
            return batch

    found = ray.data.range(40).map_batches(Double, num_gpus=1, concurrency=2, batch_size=5).take_all()
    return sum(row["id"] for row in found), {row["gpus"] for row in found}


def rllib_on_devices():
    from ray.rllib.algorithms.ppo import PPOConfig

    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=1, custom_resources_per_env_runner={"H100": 1})
        .training(train_batch_size=200, minibatch_size=50, num_epochs=1)
    )
    algorithm = config.build_algo()
    found = algorithm.train()
    algorithm.stop()
    return found["training_iteration"], found["env_runners"]["num_env_steps_sampled"] >= 200


def joblib_on_ray():
    import joblib
    from ray.util.joblib import register_ray

    register_ray()
    with joblib.parallel_backend("ray", n_jobs=2):
        return joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(5))


def dask_on_ray():
    import dask
    import ray
    from ray.util.dask import ray_dask_get

    ray.init(log_to_driver=False)
    parts = [dask.delayed(pow)(n, 2) for n in range(5)]
    return dask.delayed(sum)(parts).compute(scheduler=ray_dask_get)


WITH_DEVICES = {
    "tune": (tune_on_devices, [(1, 1), (2, 1), (3, 1), (4, 1)]),
    "train": (train_on_devices, ("gloo", 2.0, 2.0)),
    "data": (data_on_devices, (1560, {1})),
    "rllib": (rllib_on_devices, (1, True)),
    "joblib": (joblib_on_ray, [0, 1, 4, 9, 16]),
    "dask": (dask_on_ray, 30),
}


LONG = ("train", "joblib")
"""What others of them do too: an example of Ray's trains, and Dask sends tasks."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in LONG else name for name in WITH_DEVICES]
)
async def test_a_library_of_rays_has_the_leases_devices(world, name):
    if name == "dask":
        pytest.importorskip("dask")
    program, wanted = WITH_DEVICES[name]
    lease = world.lease(world.call(program), kind=JobKind.PROGRAM, shares=(("h1", 2),))
    await world.start(lease)
    finished = await ended(world, lease)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, (finished.error, await logs_of(world, lease))
    assert read_parcel(read_result(world.archive, finished.result_ref)).value() == wanted


def wide_trials():
    from ray import tune

    trainable = tune.with_resources(lambda config: {"score": 1}, {"cpu": 1, "gpu": 2})
    results = tune.Tuner(trainable, param_space={"x": tune.grid_search([1, 2])}).fit()
    if results.errors:
        raise results.errors[0]


def wide_workers():
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    scaling = ScalingConfig(num_workers=3, resources_per_worker={"CPU": 1, "H100": 1})
    TorchTrainer(lambda: None, torch_config=TorchConfig(backend="gloo"), scaling_config=scaling).fit()


@pytest.mark.parametrize("program", [wide_trials, pytest.param(wide_workers, marks=pytest.mark.soak)])
async def test_a_library_that_asks_for_more_than_the_lease_has_never_hangs(world, program):
    lease = world.lease(world.call(program), kind=JobKind.PROGRAM, shares=(("h1", 1),))
    await world.start(lease)
    finished = await ended(world, lease)
    assert finished.outcome is LeaseOutcome.FAILED
    assert "lease, 1 × H100, has" in finished.error, (finished.error, await logs_of(world, lease))
