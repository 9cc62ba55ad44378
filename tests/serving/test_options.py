"""How an engine is started: what its operator says, and what is good where nothing is said."""

from itertools import pairwise
from pathlib import Path

import pytest

from serving.engines.parts.options import arguments

ENABLED = ("--enable-lora",)
CASES = [
    ((), {}),
    (("--max-num-seqs", "4"), {}),
    (ENABLED, {"--max-loras": "4", "--max-cpu-loras": "16"}),
    ((*ENABLED, "--max-loras", "64"), {"--max-loras": "64", "--max-cpu-loras": "64"}),
    ((*ENABLED, "--max-cpu-loras", "2"), {"--max-loras": "2", "--max-cpu-loras": "2"}),
    (("--max-loras", "1", *ENABLED, "--max-cpu-loras", "3"), {"--max-loras": "1", "--max-cpu-loras": "3"}),
]


@pytest.mark.parametrize(("more", "expected"), CASES)
def test_an_engine_with_adapters_has_several_at_once_and_more_at_hand(more, expected):
    argv = arguments(Path("/m"), name="m", max_context=None, kv_bytes=None, on_cpu=False, more=more)
    found = {name: argv[at + 1] for at, name in enumerate(argv) if name in {"--max-loras", "--max-cpu-loras"}}
    assert found == expected
    assert all(argv.count(name) == 1 for name in found)


@pytest.mark.parametrize(("devices", "on_cpu", "over"), [(1, False, None), (4, False, "4"), (4, True, None)])
def test_a_model_is_spread_over_all_devices_of_its_lease(devices, on_cpu, over):
    """On a CPU they are simulated, and there is one."""
    argv = arguments(Path("/m"), name="m", max_context=None, kv_bytes=None, on_cpu=on_cpu, devices=devices)
    said = dict(pairwise(argv))
    assert said.get("--tensor-parallel-size") == over
    assert (said.get("--distributed-executor-backend") == "mp") is (over is not None)
