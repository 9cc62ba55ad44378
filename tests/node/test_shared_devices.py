# ruff: noqa: N801, N802  # a fake has the names of what it stands for
"""A device that several leases share: each pays for what its own processes used, and in full where nobody can tell."""

import os
from types import SimpleNamespace

import pytest

from fabric.node.agent import NodeAgent, Watch
from fabric.node.meters import GaugeMeter
from fabric.node.meters.nvidia import NvmlGauge

S = 1_000_000
OWN, OTHER = 101, 202


class Clock:
    us = 0

    def __call__(self):
        return self.us


class Gauge:
    """One device, of which the driver tells what each process used."""

    names = ("0",)

    def __init__(self, used):
        self.used = used

    def __call__(self):
        return {"0": 90}

    def name_of(self, said):
        return said if said == "0" else None

    def by_process(self, name, since_us):
        if isinstance(self.used, Exception):
            raise self.used
        return None if self.used is None else (self.used, since_us + 1)


def read(gauge, members, *, device="0", seconds=10):
    clock = Clock()
    meter = GaugeMeter(gauge, period_s=0, clock_us=clock)
    meter.attach("l", devices=(device,), roots=(OWN,), shared=True)
    clock.us += seconds * S
    return meter.read("l", members=members), meter.is_estimated("l")


def test_only_its_own_processes_count():
    assert read(Gauge({OWN: 20, OTHER: 70}), (OWN,)) == (2 * S, False)
    assert read(Gauge({OWN: 20, OTHER: 70}), (OWN, OTHER)) == (9 * S, False)


def test_a_process_that_used_nothing_used_nothing():
    assert read(Gauge({}), (OWN,)) == (0, False)


def test_without_a_look_at_processes_its_roots_count():
    assert read(Gauge({OWN: 30, OTHER: 70}), None) == (3 * S, False)


@pytest.mark.parametrize("used", [None, OSError("no driver"), ValueError("nonsense")])
def test_where_nobody_can_tell_all_of_it_counts_as_estimated(used):
    assert read(Gauge(used), (OWN,)) == (10 * S, True)


def test_a_device_that_nobody_knows_counts_in_full():
    assert read(Gauge({OWN: 1}), (OWN,), device="any:0") == (10 * S, True)


def test_a_gauge_that_tells_no_processes_counts_in_full():
    assert read(lambda: {"0": 10}, (OWN,)) == (10 * S, True)


class Driver:
    """As much of NVML as is asked of one whole GPU."""

    class NVMLError(Exception):
        pass

    class NVMLError_NotFound(NVMLError):
        pass

    def __init__(self, samples, *, busy=0):
        self.samples, self.busy = samples, busy

    def nvmlInit(self):
        pass

    def nvmlDeviceGetCount(self):
        return 1

    def nvmlDeviceGetHandleByIndex(self, at):
        return at

    def nvmlDeviceGetUUID(self, handle):
        return "GPU-1"

    def nvmlDeviceGetMigMode(self, handle):
        return (0, 0)

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=self.busy)

    def nvmlDeviceGetProcessUtilization(self, handle, since_us):
        if isinstance(self.samples, Exception):
            raise self.samples
        return [one for one in self.samples if one.timeStamp > since_us]


def sample(pid, percent, at):
    return SimpleNamespace(pid=pid, smUtil=percent, timeStamp=at)


def test_nvidias_samples_are_means_by_process_since_the_last_look():
    gauge = NvmlGauge(Driver([sample(OWN, 20, 5), sample(OWN, 40, 6), sample(OTHER, 50, 6), sample(OWN, 90, 9)]))
    assert gauge.by_process("0", 0) == ({OWN: 50, OTHER: 50}, 9)
    assert gauge.by_process("0", 6) == ({OWN: 90}, 9)
    assert gauge.by_process("no such", 0) is None


def test_a_driver_that_names_no_process_is_believed_only_of_a_gpu_that_is_idle():
    nothing = Driver.NVMLError_NotFound()
    assert NvmlGauge(Driver(nothing)).by_process("0", 7) == ({}, 7)
    assert NvmlGauge(Driver(nothing, busy=40)).by_process("0", 7) is None
    assert NvmlGauge(Driver(Driver.NVMLError())).by_process("0", 7) is None


class Fixed:
    """A meter that says what it is told to."""

    def __init__(self, busy_us):
        self.busy_us = busy_us

    def attach(self, lease_id, *, devices, roots, shared=False):
        self.shared = shared

    def read(self, lease_id, *, members=None):
        return self.busy_us

    def is_estimated(self, lease_id):
        return False

    def detach(self, lease_id):
        pass


@pytest.mark.parametrize(("used_us", "busy_us"), [(100, 400), (0, 0)])
async def test_use_of_a_part_is_told_as_use_of_that_part(used_us, busy_us, monkeypatch):
    """Of a quarter, a tenth of the device is four tenths; never more than all of it."""
    agent = NodeAgent(meter="cpu", archive=None)
    agent._meter = Fixed(used_us)
    await agent.attach(Watch(lease_id="l", devices=("0",), roots=(os.getpid(),), shared=(1, 4)))
    assert agent._meter.shared
    (cut,) = await agent.samples({})
    assert cut.busy_us == min(busy_us, cut.window_us)
    agent._meter.busy_us = 10**15
    (cut,) = await agent.samples({"l": cut.seq})
    assert cut.busy_us == cut.window_us
