"""What `fabric doctor` says of devices whose use can't be read."""

import pytest

from fabric.doctor import Health, dependencies, machine


@pytest.mark.parametrize(
    ("seen", "health", "words"),
    [
        (machine.Counters(readable=("0", "1")), Health.OK, "2 devices can be read"),
        (machine.Counters(readable=("0",), unreadable=("1",)), Health.FAIL, "can't be read: 1"),
        (machine.Counters(why="NvmlGauge: ModuleNotFoundError: pynvml"), Health.FAIL, "none of its devices (NvmlGauge"),
    ],
)
def test_a_device_that_can_not_be_metered_is_told(seen, health, words):
    tools = {"nvidia-smi": "NVIDIA H100, NVIDIA H100", "npu-smi": None}
    (finding,) = machine.check_meters(tools, {"nvidia-smi": seen, "npu-smi": machine.Counters()})
    assert (finding.name, finding.health) == ("NVIDIA counters", health)
    assert words in finding.found
    assert (finding.health is Health.OK) or "not sold" in finding.remedy


def test_nodes_that_are_declared_to_have_no_counters_are_named():
    def node(name, **labels):
        return {"Alive": True, "Labels": {"fabric.io/node": name, **labels}}

    nodes = [node("s1", **{"fabric.io/meter": "cpu"}), node("x1", **{"fabric.io/meter": "none"}), node("h1")]
    odd, declared = dependencies.check_declared(nodes)
    assert (odd.health, declared.health) == (Health.WARN, Health.OK)
    assert "x1=none" in odd.found
    assert declared.found.endswith(": s1")
