"""Which functions have a Ray of their own without being told to: those that could not run without."""

import functools

import pytest

from fabric.sdk.ray_use import needs_own_ray

ray = pytest.importorskip("ray")


@ray.remote(num_gpus=1)
def on_a_device():
    return 1


def calls_it():
    return ray.get(on_a_device.remote())


def sweeps():
    from ray import tune

    return tune


def groups():
    import ray

    return ray.util.placement_group([{"GPU": 1}])


def nested():
    def inner():
        import ray

        return ray.remote(num_gpus=1)

    return inner


def through_another():
    return sweeps()


class Called:
    def __call__(self):
        return sweeps()


def with_a_cell():
    task = on_a_device

    def inner():
        return ray.get(task.remote())

    return inner


def looks_around():
    from ray.util import list_named_actors

    return list_named_actors(all_namespaces=True)


def plain_tasks():
    import ray

    return ray.get(ray.remote(lambda: 1).remote())


def no_ray(train, num_gpus=1):
    return {"num_gpus": num_gpus, "train": train}


def asks_its_context():
    import fabric
    from fabric import context

    return fabric, context.current().stop_requested


def sizes_itself():
    return int(ray.cluster_resources().get("GPU", 0))


NEEDS = [
    sizes_itself,
    calls_it,
    sweeps,
    groups,
    nested,
    through_another,
    Called(),
    with_a_cell(),
    functools.partial(sweeps),
]


@pytest.mark.parametrize("job", NEEDS, ids=lambda job: getattr(job, "__name__", type(job).__name__))
def test_a_function_that_needs_a_ray_of_its_own_is_known_by_its_code(job):
    assert needs_own_ray(job)


@pytest.mark.parametrize("job", [looks_around, plain_tasks, no_ray, asks_its_context, len, str, print])
def test_other_functions_are_left_in_their_runners(job):
    assert not needs_own_ray(job)
