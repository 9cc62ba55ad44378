"""A device that can't be read is never idle: it counts as in use, as estimated, and is told by name. With fakes of drivers."""

import os
import subprocess
import sys

import pytest

from fabric.cluster.cuts import merged
from fabric.node.agent import Cut, NodeAgent, Watch, given_devices
from fabric.node.meters import CpuMeter, GaugeMeter, LateGauge, open_meter
from fabric.node.meters.ascend import AscendGauge, devices
from fabric.node.meters.nvidia import NvmlGauge
from tests.node.fake_nvml import FakeDriver

S = 1_000_000
WHOLE = {"uuid": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "busy": 50}
OTHER = {"uuid": "GPU-8932aaaa-0000-4106-c12f-20bd9faed9f6", "busy": 10}
PARTS = {
    "MIG-1f0a1111-cafe-5f1e-a000-000000000001": (7, 0, 80),
    "MIG-1f0a2222-cafe-5f1e-a000-000000000002": (8, 0, 20),
}
DIVIDED = {"uuid": "GPU-d1d1d1d1-0000-0000-0000-000000000003", "busy": 0, "gpm": True, "parts": PARTS}


class Clock:
    def __init__(self):
        self.us = 0

    def __call__(self):
        return self.us


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gpus():
    """Two GPUs, and one that is divided."""
    return [dict(WHOLE), dict(OTHER), dict(DIVIDED)]


@pytest.fixture
def driver(gpus):
    return FakeDriver(*gpus)


def metered(driver, clock, *devices):
    meter = GaugeMeter(NvmlGauge(driver, clock_s=lambda: clock.us / S), period_s=0, clock_us=clock)
    meter.sample()
    meter.attach("l", devices=devices, roots=())
    return meter


def window(meter, clock, seconds=1):
    clock.us += seconds * S
    return meter.read("l"), meter.is_estimated("l")


@pytest.mark.parametrize(
    ("said", "busy_us"),
    [
        ("0", 0.5 * S),
        (" 1 ", 0.1 * S),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 0.5 * S),
        ("GPU-8932f937", 0.5 * S),
        ("gpu-8932AAAA", 0.1 * S),
        ("MIG-1f0a1111-cafe-5f1e-a000-000000000001", 0.8 * S),
        ("MIG-1f0a2", 0.2 * S),
        ("MIG-GPU-d1d1d1d1-0000-0000-0000-000000000003/8/0", 0.2 * S),
    ],
)
def test_a_device_is_known_by_every_name_that_it_may_be_given(driver, clock, said, busy_us):
    assert window(metered(driver, clock, said), clock) == (busy_us, False)


@pytest.mark.parametrize(
    "said",
    [
        "7",
        "-1",
        "2",
        "GPU-8932",
        "GPU-",
        "GPU-ffff",
        "GPU-d1d1d1d1",
        "MIG-1f0a",
        "MIG-GPU-d1d1d1d1/9/0",
        "NoDevFiles",
        "any:0",
    ],
)
def test_a_name_that_means_no_device_or_might_mean_several_is_not_taken_for_an_idle_one(driver, clock, said):
    assert window(metered(driver, clock, said), clock) == (S, True)


@pytest.mark.parametrize("error", ["NOT_SUPPORTED", "GPU_IS_LOST", "NO_PERMISSION", "UNINITIALIZED", "UNKNOWN"])
def test_a_counter_that_fails_counts_as_in_use_and_as_estimated_for_as_long_as_it_does(driver, gpus, clock, error):
    meter = metered(driver, clock, "0", "1")
    assert window(meter, clock) == (0.6 * S, False)
    gpus[1]["busy"] = error
    assert window(meter, clock) == (1.5 * S, True)
    assert meter.readable()[1] == ("1",)
    gpus[1]["busy"] = 10
    assert window(meter, clock) == (0.6 * S, False)
    assert meter.readable(["0", "1"]) == (("0", "1"), ())


def test_a_gpu_that_the_driver_hides_is_one_that_can_not_be_read(clock):
    driver = FakeDriver(dict(WHOLE), {**OTHER, "hidden": True})
    meter = metered(driver, clock, "1")
    assert window(meter, clock) == (S, True)
    assert meter.readable() == (("0",), ("1",))


def test_a_part_of_a_gpu_without_a_counter_of_its_own_can_not_be_read(clock):
    driver = FakeDriver({**DIVIDED, "gpm": False})
    assert window(metered(driver, clock, *PARTS), clock) == (2 * S, True)


def test_a_driver_that_goes_away_and_comes_back_is_found_again(driver, gpus, clock):
    meter = metered(driver, clock, "0")
    gpus[0]["busy"] = "UNINITIALIZED"
    assert window(meter, clock, 20) == (20 * S, True)
    gpus[0]["busy"] = 50
    assert window(meter, clock) == (0.5 * S, False)
    assert driver.starts == 2


def test_a_reading_keeps_one_sample_of_each_device_and_no_more(driver, gpus, clock):
    meter = metered(driver, clock, *PARTS)
    for busy in (80, "GPU_IS_LOST", 80, 80):
        gpus[2]["parts"] = {uuid: (gi, ci, busy) for uuid, (gi, ci, _) in PARTS.items()}
        window(meter, clock)
    assert driver.samples == len(PARTS)


# -- Ascend ----------------------------------------------------------------------------------------------------------------

HEAD = "| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|\n"
BROKEN = f"""{HEAD}\
| 0     910B3               | OK            | 93.6        40                0    / 0             |
| 0                         | 0000:C1:00.0  | 87          0    / 0          3162 / 65536         |
| 1     910B3               | Critical      | NA          NA                NA   / NA            |
| 0                         | 0000:01:00.0  | NA          0    / 0          3162 / 65536         |
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
| 0       0                 | 1234          | 99                       | 60000                   |
"""
TWO_CHIPS = f"""{HEAD}\
| 0     Ascend910           | OK            | 171.2       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 12          0    / 0          3162 / 65536         |
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 34          0    / 0          3162 / 65536         |
"""
NAMELESS = TWO_CHIPS.replace("| 0     0   ", "| 0         ").replace("| 1     1   ", "| 1         ")


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        (BROKEN, {"0": 87, "1": None}),
        (TWO_CHIPS, {"0": 12, "1": 34}),
        (NAMELESS, {"0:0": 12, "0:1": 34}),
        ("npu-smi: command not found", {}),
    ],
    ids=["one is broken", "two chips an NPU", "two chips without ids", "no tool"],
)
def test_what_npu_smi_says_of_each_device(printed, found):
    assert devices(printed) == found


def test_an_npu_without_a_figure_counts_as_in_use(clock):
    printed = [BROKEN]
    meter = GaugeMeter(AscendGauge(lambda: printed[0]), period_s=0, clock_us=clock)
    meter.attach("l", devices=("0", "1"), roots=())
    assert window(meter, clock) == (1.87 * S, True)
    assert meter.readable() == (("0",), ("1",))
    printed[0] = BROKEN.replace("| NA          0", "| 13          0")
    assert window(meter, clock) == (1.0 * S, False)


def test_a_tool_that_fails_makes_nothing_idle(clock):
    def run():
        raise subprocess.TimeoutExpired("npu-smi", 10)

    meter = GaugeMeter(AscendGauge(run), period_s=0, clock_us=clock)
    meter.attach("l", devices=("0",), roots=())
    assert window(meter, clock) == (S, True)


# -- which meter ---------------------------------------------------------------------------------------------------------------


def test_a_node_without_counters_is_metered_by_its_processors_only_where_that_is_declared():
    """This machine has no accelerator: whatever a node of it says it has, nobody can read it."""
    assert isinstance(open_meter("cpu"), CpuMeter)
    meter = open_meter("auto")
    assert isinstance(meter, GaugeMeter)
    meter.close()
    assert meter.readable(["0", "1"]) == ((), ("0", "1"))


def test_a_driver_that_comes_up_late_is_found(driver, clock):
    away = [True]

    def nvml():
        if away[0]:
            raise driver.error("DRIVER_NOT_LOADED")
        return NvmlGauge(driver)

    gauge = LateGauge([nvml], clock_s=lambda: clock.us / S)
    assert (gauge(), gauge.names, gauge.name_of("0")) == ({}, (), None)
    away[0] = False
    assert gauge() == {}, "not every time that somebody looks"
    clock.us += 11 * S
    assert set(gauge()) == {"0", "1", *PARTS}


# -- the agent ---------------------------------------------------------------------------------------------------------------


async def test_an_agent_marks_what_it_could_not_read(driver, gpus, clock, monkeypatch):
    agent = NodeAgent(meter="cpu", archive=None)
    agent._meter = GaugeMeter(NvmlGauge(driver), period_s=0)
    agent._given = ("GPU-8932f937", "GPU-8932aaaa")
    await agent.attach(Watch(lease_id="l", devices=("GPU-8932f937",), roots=()))
    (cut,) = await agent.samples({})
    assert not cut.estimated
    gpus[0]["busy"] = "GPU_IS_LOST"
    (cut,) = await agent.samples({"l": 1})
    assert cut.estimated
    sight = await agent.sight()
    assert (sight.readable, sight.unreadable) == (("GPU-8932aaaa",), ("GPU-8932f937",))
    assert (await NodeAgent(meter="cpu", archive=None).sight()).declared


def test_one_machine_that_could_not_read_makes_the_whole_sample_an_estimate():
    seen = [
        Cut(lease_id="l", seq=1, window_us=9, busy_us=4),
        Cut(lease_id="l", seq=1, window_us=9, busy_us=9, estimated=True),
    ]
    assert [(sample.busy_us, sample.estimated) for sample in merged(seen)] == [(13, True)]
    assert [sample.estimated for sample in merged(seen[:1])] == [False]


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937, MIG-1f0a1"}, ("GPU-8932f937", "MIG-1f0a1")),
        ({"ASCEND_RT_VISIBLE_DEVICES": "4,5"}, ("4", "5")),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({}, None),
    ],
)
def test_the_devices_of_a_node_are_those_that_its_own_process_was_told(variables, given):
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    environment = {"PATH": os.environ["PATH"], **variables}
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    with subprocess.Popen([sys.executable, "-S", "-c", code], **options) as process:
        process.stdout.readline()
        assert given_devices(process.pid) == given
        process.stdin.close()
