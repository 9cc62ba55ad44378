"""Programs with a Ray of their own: all that it can do stays within the lease, and works as it does anywhere."""

import json
import textwrap

import pytest

from fabric.gate.events import JobKind, LeaseFinished, LeaseOutcome
from fabric.results import read_parcel
from fabric.storage.results import read_result
from fabric.system.processes import seen_of

pytestmark = [pytest.mark.ray, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]


async def run(world, function, *args, devices=2, within_s=120):
    lease = world.lease(world.call(function, *args), kind=JobKind.PROGRAM, shares=(("h1", devices),))
    await world.start(lease)
    finished = await world.wait(LeaseFinished, lease.lease_id, within_s=within_s)
    await world.remove(lease.lease_id)
    return finished


async def value_of(world, function, *args, **options):
    finished = await run(world, function, *args, **options)
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    return read_parcel(read_result(world.archive, finished.result_ref)).value()


def everywhere():
    """Starts what holds a device in all ways in which a task or an actor may be placed; where each was."""
    import os

    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

    @ray.remote(num_gpus=1, num_cpus=0)
    def where():
        return ray.get_gpu_ids(), os.environ["FABRIC_LEASE_ID"], ray.get_runtime_context().gcs_address

    @ray.remote(num_gpus=1, num_cpus=0)
    class Actor:
        def where(self):
            return ray.get_gpu_ids(), os.environ["FABRIC_LEASE_ID"], ray.get_runtime_context().gcs_address

    ray.init(namespace="mine")
    group = placement_group([{"GPU": 1}] * 2, strategy="SPREAD")
    ray.get(group.ready())
    in_group = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=1)
    found = {"a group of its own": ray.get(where.options(scheduling_strategy=in_group).remote())}
    remove_placement_group(group)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    for name, options in (
        ("plain", {}),
        ("spread", {"scheduling_strategy": "SPREAD"}),
        ("default", {"scheduling_strategy": "DEFAULT"}),
        ("node", {"scheduling_strategy": here}),
        ("by its type", {"num_gpus": 0, "resources": {"H100": 1}}),
        ("by Ray's word for its type", {"accelerator_type": "H100"}),
        ("with a variable", {"runtime_env": {"env_vars": {"A": "b"}}}),
    ):
        found[name] = ray.get(where.options(**options).remote())
    for name, options in (
        ("actor", {}),
        ("detached", {"name": "kept", "lifetime": "detached", "max_restarts": -1}),
        ("elsewhere", {"name": "other", "namespace": "elsewhere", "lifetime": "detached"}),
    ):
        actor = Actor.options(**options).remote()
        found[name] = ray.get(actor.where.remote())
        ray.kill(actor)
    return os.environ["FABRIC_LEASE_ID"], os.environ["FABRIC_DEVICES"], found, ray.cluster_resources()


async def test_whatever_a_program_starts_and_wherever_holds_its_leases_devices(world):
    lease_id, devices, found, resources = await value_of(world, everywhere)
    assert len(found) == 11
    for name, (gpus, lease, _) in found.items():
        assert lease == lease_id, name
        assert set(gpus) <= set(devices.split(",")), name
    assert {address for _, _, address in found.values()} != {world.local.address}
    assert (resources["GPU"], resources["H100"]) == (2, 2)


def in_rays_words():
    """What programs do with `ray.init` and what it returns."""
    import ray

    found = {"before": ray.is_initialized()}
    first = ray.init(num_cpus=3, runtime_env={"env_vars": {"MINE": "1"}}, log_to_driver=False)
    found["address"] = first.address_info["gcs_address"] == ray.get_runtime_context().gcs_address
    found["dashboard"] = isinstance(first.dashboard_url, str)
    found["cpus"] = ray.cluster_resources()["CPU"]
    found["free"] = ray.available_resources()["GPU"]
    found["nodes"] = [node["Alive"] for node in ray.nodes()]
    found["variable"] = ray.get(ray.remote(lambda: __import__("os").environ["MINE"]).remote())
    try:
        ray.init()
    except RuntimeError as error:
        found["twice"] = "ray.init twice" in str(error)
    found["again"] = ray.init(ignore_reinit_error=True).address_info["gcs_address"] == first.address_info["gcs_address"]
    ray.shutdown()
    found["after"] = ray.is_initialized()
    with ray.init(address="auto") as context:
        found["auto"] = ray.cluster_resources()["GPU"]
        found["with"] = context.address_info["node_id"] != ""
    found["closed"] = ray.is_initialized()
    found["by itself"] = ray.get(ray.remote(lambda: 7).remote())
    return found


async def test_ray_init_is_what_it_is_elsewhere(world):
    assert await value_of(world, in_rays_words) == {
        "before": False, "address": True, "dashboard": True, "cpus": 3, "free": 2, "nodes": [True], "variable": "1",
        "twice": True, "again": True, "after": False, "auto": 2, "with": True, "closed": False, "by itself": 7,
    }  # fmt: skip


def too_much(way):
    """Asks for more than the lease has."""
    import ray
    from ray.util.placement_group import placement_group

    @ray.remote(num_gpus=2)
    class Wide:
        def here(self):
            return True

    @ray.remote(num_gpus=1)
    def outer():
        ray.get(Wide.remote().here.remote())

    match way:
        case "init":
            ray.init(num_gpus=2)
        case "other cluster":
            ray.init(address="10.1.2.3:6379")
        case "actor":
            ray.get(Wide.remote().here.remote())
        case "group":
            ray.get(placement_group([{"GPU": 1}, {"GPU": 1}]).ready())
        case "nested":
            ray.get(outer.remote())


@pytest.mark.parametrize("way", ["init", "actor", "group", "nested"])
async def test_what_can_never_fit_is_refused_with_request_and_lease(world, way):
    finished = await run(world, too_much, way, devices=1)
    assert finished.outcome is LeaseOutcome.FAILED
    assert "lease, 1 × H100, has 1 GPU" in finished.error, finished.error
    assert "submit the job with more" in finished.error


async def test_another_clusters_address_is_refused_with_the_remedy(world):
    finished = await run(world, too_much, "other cluster", devices=1)
    assert "call ray.init() without an address" in finished.error


def with_libraries():
    """What is built of tasks and actors, of Ray's own."""
    import asyncio
    import time

    import ray
    from ray.util import ActorPool
    from ray.util.multiprocessing import Pool
    from ray.util.queue import Queue

    ray.init(log_to_driver=False)
    found = {}

    @ray.remote
    class Square:
        def of(self, number):
            return number * number

    found["pool of actors"] = list(
        ActorPool([Square.remote(), Square.remote()]).map(lambda a, n: a.of.remote(n), range(4))
    )
    queue = Queue()
    queue.put("word")
    found["queue"] = queue.get()
    with Pool(2) as pool:
        found["pool"] = pool.map(abs, [-1, -2])

    @ray.remote
    class Slow:
        async def wait(self, number):
            await asyncio.sleep(0.2)
            return number

    slow = Slow.options(max_concurrency=4, name="slow").remote()
    found["async"] = sorted(ray.get([slow.wait.remote(n) for n in range(4)]))
    found["named"] = ray.get(ray.get_actor("slow").wait.remote(5))

    @ray.remote
    def streamed(count):
        for number in range(count):  # noqa: UP028  # Ray sends nothing into what is yielded from
            yield number

    found["generator"] = [ray.get(each) for each in streamed.remote(3)]

    @ray.remote
    def outer(depth):
        return depth if depth == 0 else ray.get(outer.options(num_cpus=0).remote(depth - 1)) + 1

    found["nested"] = ray.get(outer.remote(3))

    @ray.remote
    def asleep():
        time.sleep(1_000)

    late = asleep.remote()
    ready, waiting = ray.wait([late, ray.put(1)], num_returns=1, timeout=20)
    found["wait"] = (len(ready), len(waiting))
    ray.cancel(late, force=True)
    try:
        ray.get(late)
    except ray.exceptions.RayError as error:
        found["cancelled"] = type(error).__name__
    blocks = [ray.put(bytes(30 * 2**20)) for _ in range(8)]
    found["spilled"] = sum(len(ray.get(block)) for block in blocks) // 2**20
    return found


async def test_what_is_built_on_ray_works_in_a_lease(world):
    found = await value_of(world, with_libraries)
    assert found.pop("cancelled") in {"TaskCancelledError", "WorkerCrashedError"}
    assert found == {
        "pool of actors": [0, 1, 4, 9], "queue": "word", "pool": [1, 2], "async": [0, 1, 2, 3], "named": 5,
        "generator": [0, 1, 2], "nested": 3, "wait": (1, 1), "spilled": 240,
    }  # fmt: skip


async def test_a_scripts_tasks_and_actors_import_the_modules_of_its_working_directory(world):
    script = """
        import json, ray
        from app.deep import VALUE
        import beside

        @ray.remote(num_gpus=1)
        def task():
            import app.deep, beside
            return app.deep.VALUE + beside.VALUE

        @ray.remote
        class Actor:
            def value(self):
                return beside.of(task)

        ray.init(log_to_driver=False)
        print(json.dumps([ray.get(task.remote()), ray.get(Actor.remote().value.remote())]))
    """
    world.archive.put(
        "modules",
        world.zipped(
            main__py=textwrap.dedent(script),
            beside__py="import ray\nVALUE = 2\ndef of(task):\n    return ray.get(task.remote())\n",
            **{"app/deep__py": "VALUE = 40\n"},
        ),
    )
    payload = {"entrypoint": "main.py", "working_dir_blob": "modules"}
    for kind in (JobKind.SCRIPT, JobKind.PROGRAM):
        lease = world.lease(payload, kind=kind)
        finished, _ = await world.run(lease)
        chunks = [c async for c in world.cluster.logs(lease.job_id, account_id="acme", offsets={})]
        said = b"".join(chunk.data for chunk in chunks).decode()
        assert finished.outcome is LeaseOutcome.SUCCEEDED, said
        assert json.loads(said.splitlines()[-1]) == [42, 42]


def restless(told):
    """Leaves tasks, detached actors and a group behind."""
    import time
    from pathlib import Path

    import ray
    from ray.util.placement_group import placement_group

    @ray.remote(max_restarts=-1, num_cpus=0)
    class Leech:
        def pid(self):
            import os

            return os.getpid()

    @ray.remote(num_cpus=0, max_retries=-1)
    def busy():
        while True:
            time.sleep(0.01)

    ray.init(log_to_driver=False)
    leech = Leech.options(name="leech", lifetime="detached").remote()
    busy.remote()
    placement_group([{"GPU": 1}], lifetime="detached")
    Path(told).write_text(str(ray.get(leech.pid.remote())))
    return True


async def test_what_a_program_leaves_behind_ends_with_its_lease(world, tmp_path):
    assert await value_of(world, restless, str(tmp_path / "told"))
    pid = int((tmp_path / "told").read_text())
    assert seen_of(pid) is None
    assert (await world.cluster.reconcile([])).unleased == ()


def small_tasks():
    """Tasks without a device, for which a function needs no Ray of its own: who ran them."""
    import os

    import ray

    @ray.remote(num_cpus=0)
    def who():
        return os.getpid()

    return ray.get([who.remote() for _ in range(3)])


async def test_no_idle_worker_of_a_functions_tasks_outlives_its_lease(world):
    finished, _ = await world.run(world.lease(world.call(small_tasks)))
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    pids = read_parcel(read_result(world.archive, finished.result_ref)).value()
    assert [pid for pid in pids if seen_of(pid) is not None] == []


async def test_a_function_without_a_ray_of_its_own_is_told_what_helps(world):
    def wants(way):
        import ray

        if way == "init":
            ray.init(runtime_env={"env_vars": {"A": "1"}})
        elif way == "group":
            ray.util.placement_group([{"GPU": 1}])
        elif way != "task":
            getattr(ray, way)()
        else:
            ray.get(ray.remote(num_gpus=1)(lambda: 1).remote())

    for way in ("init", "group", "task", "nodes", "cluster_resources", "available_resources"):
        finished, _ = await world.run(world.lease(world.call(wants, way)))
        assert finished.outcome is LeaseOutcome.FAILED
        assert "ray_program=True" in finished.error


def over_nodes(devices, loses):
    """Holds every device of all of the lease's nodes at once, and runs once; may lose one that isn't its own."""
    import os
    import time

    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    @ray.remote(num_cpus=0)
    class Holder:
        def where(self):
            return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()

        def lose(self, but):
            if ray.get_runtime_context().get_node_id() != but:
                os.kill(os.getppid(), 9)

    ray.init(log_to_driver=False)
    group = placement_group([{"GPU": 1}] * devices, strategy="STRICT_SPREAD")
    ray.get(group.ready())
    holders = [
        Holder.options(num_gpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group, at)).remote()
        for at in range(devices)
    ]
    found = ray.get([holder.where.remote() for holder in holders])
    if loses:
        ray.get([holder.lose.remote(ray.get_runtime_context().get_node_id()) for holder in holders])
        for _ in range(300):  # its worker outlives it for a moment
            ray.get([holder.where.remote() for holder in holders])
            time.sleep(0.1)
    return len({node for node, _ in found}), [len(gpus) for _, gpus in found], ray.cluster_resources()["GPU"]


@pytest.mark.parametrize("loses", [False, pytest.param(True, marks=pytest.mark.soak)])
async def test_a_program_on_several_nodes_runs_once_with_all_of_them(world, loses):
    """It is interrupted where the raylet of another node's ends."""
    lease = world.lease(
        world.call(over_nodes, 2, loses),
        kind=JobKind.PROGRAM,
        shares=(("h1", 1, "H100"), ("a1", 1, "A100")),
        accelerator="H100|A100",
    )
    await world.start(lease)
    finished = await world.wait(LeaseFinished, lease.lease_id, within_s=200)
    await world.remove(lease.lease_id)
    if loses:
        assert (finished.outcome, "ray_ended: " in finished.error) == (LeaseOutcome.INTERRUPTED, True), finished.error
        return
    assert finished.outcome is LeaseOutcome.SUCCEEDED, finished.error
    assert read_parcel(read_result(world.archive, finished.result_ref)).value() == (2, [1, 1], 2)
