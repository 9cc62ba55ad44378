"""A program of somebody else's on the cluster: takes a device without a lease, in one of several ways, and lives on."""

import os
import signal
import sys
import time
from contextlib import suppress

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@ray.remote(num_gpus=1, num_cpus=0)
class Hog:
    def here(self):
        return os.getpid()


@ray.remote(num_gpus=1, num_cpus=0, max_retries=-1)
def hog(told):
    with open(told, "a") as out:  # noqa: PTH123 - as a customer would
        out.write("x")
    time.sleep(1000)


@ray.remote(num_gpus=1, num_cpus=0)
def still(told):
    with open(told, "a") as out:  # noqa: PTH123
        out.write("x")
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_for(told):
    until = time.monotonic() + 10  # what it is in may have been removed before it began
    while time.monotonic() < until and not (os.path.exists(told) and os.path.getsize(told)):  # noqa: PTH110, PTH202
        time.sleep(0.02)


def actor(_, **options):
    made = Hog.options(**options).remote()
    ray.get(made.here.remote())
    return made


def task(told, **options):
    made = hog.options(**options).remote(told)
    wait_for(told)
    return made


def stopped(told):
    made = still.remote(told)
    wait_for(told)
    return made


def group(_, *, lifetime=None):
    made = placement_group([{"GPU": 1, "CPU": 1}], lifetime=lifetime, name="own", strategy="SPREAD")
    ray.get(made.ready())
    return made


def in_group(told):
    made = group(told)
    return made, task(told, num_cpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(made))


def groups_in_a_loop(told):
    group(told)
    print("holds", flush=True)
    while True:
        made = placement_group([{"GPU": 2}])
        made.wait(5)
        remove_placement_group(made)


WAYS = {
    "actor": actor,
    "restartable actor": lambda told: actor(told, max_restarts=-1, max_task_retries=-1),
    "detached actor of another namespace": lambda told: actor(
        told, name=f"hog-{os.getpid()}", namespace="elsewhere", lifetime="detached", max_restarts=-1
    ),
    "spread actor": lambda told: actor(told, scheduling_strategy="SPREAD"),
    "task with retries": task,
    "task of a type's resource": lambda told: task(told, num_gpus=0, resources={"A100": 1}),
    "task that stands still": stopped,
    "placement group": group,
    "detached placement group": lambda told: group(told, lifetime="detached"),
    "task in a placement group": in_group,
    "placement groups in a loop": groups_in_a_loop,
}


if __name__ == "__main__":
    address, way, told = sys.argv[1:]
    ray.init(address=address, namespace="squat", log_to_driver=False, logging_level="error", configure_logging=False)
    with suppress(ray.exceptions.RayError):  # it may be ended before it has seen that it began
        kept = WAYS[way](told)
    print("holds", flush=True)
    time.sleep(1000)
