"""What `submit` may be told beyond the few plain things: in groups, or by their own names, and never twice."""

from dataclasses import fields
from typing import get_type_hints

import pytest

import fabric
from fabric.errors import InvalidRequest
from fabric.sdk.options import Limits, More, Resources, merged

COMMAND = ["python", "-c", "print(42)"]
OTHERS = {
    "devices_per_node": 2, "mix": "islands", "ranks": "device", "preload": "torch", "ray_program": True, "data": {"s3://b/": 1},
    "estimate": 60, "time_limit": 600, "grace": 30, "stop_signal": "INT", "auto_park": 300, "max_retries": 2,
    "preemptible": False, "prefer": "soonest",
}  # fmt: skip
"""Of each, something that isn't its default."""


def test_every_field_of_a_group_has_its_own_name_too():
    grouped = {each.name: each.type for group in (Resources, Limits) for each in fields(group)}
    assert set(grouped) == set(More.__annotations__) == set(OTHERS)
    assert {**get_type_hints(Resources), **get_type_hints(Limits)} == get_type_hints(More)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_said_by_its_own_name_is_what_is_said_in_its_group(name):
    group = next(each for each in (Resources, Limits) if name in {one.name for one in fields(each)})
    said = merged(Resources(), Limits(), {name: OTHERS[name]})
    assert group(**{name: OTHERS[name]}) in said
    assert getattr(group(), name) != OTHERS[name]


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_may_be_said_twice(name):
    group = next(each for each in (Resources, Limits) if name in {one.name for one in fields(each)})
    given = [each(**{name: OTHERS[name]}) if each is group else each() for each in (Resources, Limits)]
    with pytest.raises(InvalidRequest, match=f"{name}= is said twice") as caught:
        merged(*given, {name: OTHERS[name]})
    assert caught.value.code == "given_twice"


def test_a_name_that_there_is_not_is_an_error_of_python():
    with pytest.raises(TypeError, match="'graze'"):
        merged(Resources(), Limits(), {"graze": 1})


def test_a_job_that_is_submitted_either_way_is_the_same_job(house):
    with house.fabric(house.acme) as connected:
        apart = connected.submit(COMMAND, tokens=1, grace=30, max_retries=2, devices_per_node=1, request_id="a")
        limits, resources = fabric.Limits(grace=30, max_retries=2), fabric.Resources(devices_per_node=1)
        grouped = connected.submit(COMMAND, tokens=1, limits=limits, resources=resources, request_id="a")
    assert grouped.id == apart.id, "the same request, so the same job"
