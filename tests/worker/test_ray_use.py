"""What a function may ask Ray for in its runner's process: no device, whatever else a node offers. Without a cluster."""

import pytest

from fabric.errors import InvalidRequest
from fabric.worker import ray_use

NODES = [
    {
        "Resources": {"CPU": 8, "GPU": 4, "B300": 4, "node:10.0.0.7": 1, "scratch": 2, "object_store_memory": 9},
        "Labels": {"ray.io/accelerator-type": "B300"},
    },
    {"Resources": {"CPU": 8}, "Labels": {}},
]


@pytest.fixture(autouse=True)
def nodes(monkeypatch):
    monkeypatch.setattr(ray_use, "_nodes", lambda: NODES)


@pytest.mark.parametrize("name", ["GPU", "NPU", "TPU", "H100", "910B", "B300"])
def test_a_function_that_wants_a_device_beside_its_own_is_told_what_would_help(name):
    with pytest.raises(InvalidRequest, match=f"wants {name}, .* ray_program=True"):
        ray_use._refuse_devices([{"CPU": 1, name: 1}])


@pytest.mark.parametrize("name", ["CPU", "memory", "object_store_memory", "node:10.0.0.7", "scratch"])
def test_a_function_may_ask_for_a_node_or_what_is_no_device(name):
    ray_use._refuse_devices([{name: 0.01, "GPU": 0}])
