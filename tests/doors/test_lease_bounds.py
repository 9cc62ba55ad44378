"""What a process that holds a lease may start over Ray. Without a cluster: what is refused never gets as far as one."""

import sys

import pytest
import ray

from fabric.errors import InvalidRequest
from fabric.sdk import lease_end

GROUPS = sys.modules["ray.util.placement_group"]


@pytest.fixture
def started(monkeypatch):
    """What was really started, while a lease is held."""
    found = []
    monkeypatch.setattr(ray.remote_function.RemoteFunction, "_remote", lambda handle, *_, **__: found.append(handle))
    monkeypatch.setattr(ray.actor.ActorClass, "_remote", lambda handle, *_, **__: found.append(handle))
    for target, name in ((ray.actor.ActorMethod, "_remote"), (ray, "get")):
        monkeypatch.setattr(target, name, getattr(target, name))
    monkeypatch.setattr(GROUPS, "_validate_bundles", GROUPS._validate_bundles)
    monkeypatch.setattr(lease_end, "_is_patched", False)
    monkeypatch.setattr(lease_end, "_leases", {})
    going = lease_end.opened("job-7", "ab" * 18)
    yield found
    going.end("it was closed")


def function():
    pass


def library(name, made):
    made.__module__ = name
    return made


@pytest.mark.parametrize(
    "asked",
    [
        {"num_gpus": 1},
        {"num_gpus": 0.5},
        {"resources": {"910B": 1}},
        {"resources": {"NPU": 2}},
        {"resources": {"TPU": 1}},
    ],
)
@pytest.mark.parametrize("made", [function, type("Worker", (), {})])
def test_what_wants_a_device_goes_into_the_lease_or_is_refused(started, made, asked):
    for start in (ray.remote(made).options(**asked).remote, ray.remote(**asked)(made).remote):
        with pytest.raises(InvalidRequest, match=r"would run outside of lease job-7.*options\(\*\*lease.options\(\)\)"):
            start()
    assert started == []


@pytest.mark.parametrize(
    "name", ["ray.data._internal.execution", "ray.train.v2.controller", "ray.tune.x", "ray.rllib.y", "ray.serve.z"]
)
def test_what_a_library_of_rays_starts_is_refused_also_without_a_device(started, name):
    for made in (library(name, lambda: None), library(name, type("Worker", (), {}))):
        with pytest.raises(InvalidRequest, match="submit the whole program"):
            ray.remote(made).remote()
    assert started == []


def test_who_sees_to_the_places_itself_is_refused_nothing(started):
    lease_end._leases["ab" * 18].bound = False
    for made in (library("ray.serve.z", lambda: None), library("ray.serve.z", type("Worker", (), {}))):
        ray.remote(num_gpus=1)(made).remote()
    assert len(started) == 2


def test_small_things_without_a_device_are_left_alone(started):
    ray.remote(function).remote()
    ray.remote(num_cpus=1, memory=100)(function).remote()
    ray.remote(library("ray.database_of_mine", type("Worker", (), {}))).remote()
    assert len(started) == 3


@pytest.mark.parametrize(
    "asked", [{"node:10.0.0.7": 0.01}, {"scratch": 1}, {"accelerator_type:H100": 0.001}, {"H100": 0}]
)
def test_what_wants_a_place_but_no_device_is_left_alone(started, asked):
    """A node, a licence, a disk: whatever else a cluster's nodes offer is not sold."""
    ray.remote(resources=asked)(function).remote()
    assert len(started) == 1


def test_a_type_that_only_this_cluster_knows_is_a_device_where_the_lease_names_it(started):
    lease_end.opened("job-8", "cd" * 18, types=("B300",))
    with pytest.raises(InvalidRequest, match="function, which wants B300, would run outside"):
        ray.remote(resources={"B300": 1})(function).remote()
    assert started == []


def test_placement_groups_are_refused_while_a_lease_is_held_and_not_afterwards(started):
    with pytest.raises(InvalidRequest, match="a placement group would run outside of lease job-7"):
        GROUPS._validate_bundles([{"CPU": 1}])
    lease_end.opened("job-7", "ab" * 18).end("it was closed")
    GROUPS._validate_bundles([{"CPU": 1}])
    ray.remote(num_gpus=1)(function).remote()
    assert len(started) == 1
