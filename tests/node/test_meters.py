# ruff: noqa: N802  # a fake has the names of what it stands for
"""Meters count what devices did, and no more than they could have done."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from fabric.node.meters import CpuMeter, GaugeMeter
from fabric.node.meters.ascend import AscendGauge, parse_npu_smi
from fabric.node.meters.nvidia import NvmlGauge
from fabric.system.processes import LEASE_VARIABLE, end_all, tree_of
from tests.bench.bench_burn import errors

NPU_SMI = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc2                 Version: 24.1.rc2                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.6        40                0    / 0             |
| 0                         | 0000:C1:00.0  | 87          0    / 0          3162 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 91.2        39                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3162 / 65536         |
+===========================+===============+====================================================+
| 10    910B3               | Alarm         | 91.2        39                0    / 0             |
| 0                         | 0000:02:00.0  | 100         0    / 0          3162 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 1234          | python                   | 60000                   |
+===========================+===============+====================================================+
"""


SPIN = "import time\nwhile time.process_time()<0.4: pass"
"""Uses that much of a processor, however long a busy machine takes to give it."""


class FakeTime:
    def __init__(self):
        self.us = 0

    def __call__(self):
        return self.us


def test_npu_smi_is_read_npu_by_npu():
    assert parse_npu_smi(NPU_SMI) == {"0": 87, "1": 0, "10": 100}
    assert AscendGauge(lambda: NPU_SMI)()["10"] == 100


def test_output_without_npus_has_none():
    assert parse_npu_smi("") == {}
    assert parse_npu_smi("npu-smi: command not found") == {}


def test_a_gauge_is_integrated_over_the_lease_and_its_devices_only():
    clock, percents = FakeTime(), {"0": 50, "1": 100, "2": 100}
    meter = GaugeMeter(lambda: percents, period_s=0, clock_us=clock)
    meter.attach("l", devices=("0", "1"), roots=())
    clock.us = 1_000_000
    assert meter.read("l") == 1_500_000
    percents["0"] = 0
    clock.us = 1_500_000
    meter.sample()
    clock.us = 2_000_000
    assert meter.read("l") == 1_000_000
    meter.detach("l")
    assert meter.read("l") == 0


class FakeNvml:
    class NVMLError(Exception):
        pass

    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_SM_UTIL = 2

    def __init__(self, *, gpm):
        self.gpm = gpm
        self.freed = 0

    def nvmlInit(self): ...
    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=10 * (handle + 1))

    def nvmlGpmQueryDeviceSupport(self, handle):
        if self.gpm is None:
            raise self.NVMLError
        return SimpleNamespace(isSupportedDevice=self.gpm)

    def nvmlGpmSampleAlloc(self):
        return object()

    def nvmlGpmSampleGet(self, handle, sample): ...
    def nvmlGpmSampleFree(self, sample):
        self.freed += 1

    def c_nvmlGpmMetricsGet_t(self):
        return SimpleNamespace(metrics=[SimpleNamespace(metricId=0, value=0.0)])

    def nvmlGpmMetricsGet(self, wanted):
        assert wanted.metrics[0].metricId == self.NVML_GPM_METRIC_SM_UTIL
        wanted.metrics[0].value = 64.6


@pytest.mark.parametrize("gpm", [False, None])
def test_nvidia_without_gpm_is_read_by_its_utilisation(gpm):
    assert NvmlGauge(FakeNvml(gpm=gpm))() == {"0": 10, "1": 20}


def test_nothing_is_gained_by_being_idle_only_when_somebody_looks():
    """Without GPM the driver's own samples count, all of them since the last look."""

    class Sampling(FakeNvml):
        NVML_GPU_UTILIZATION_SAMPLES = 1
        taken = ()

        def nvmlDeviceGetSamples(self, handle, kind, since):
            found = [sample for sample in self.taken if sample.timeStamp > since]
            if not found:
                raise self.NVMLError
            return 0, found

        def nvmlDeviceGetUtilizationRates(self, handle):
            return SimpleNamespace(gpu=0)

    def samples(*percents, begin):
        values = [SimpleNamespace(uiVal=percent) for percent in percents]
        return tuple(SimpleNamespace(timeStamp=begin + at, sampleValue=each) for at, each in enumerate(values))

    nvml = Sampling(gpm=False)
    gauge = NvmlGauge(nvml)
    nvml.taken = samples(100, 100, begin=1)
    assert gauge()["0"] == 0, "of the time before the first look nobody is charged"
    nvml.taken = samples(100, 90, 80, 0, begin=3)
    assert gauge()["0"] == 68
    assert gauge()["0"] == 0, "no new sample: what it says now"


def test_nvidia_with_gpm_is_read_between_two_samples():
    nvml = FakeNvml(gpm=True)
    gauge = NvmlGauge(nvml)
    assert gauge() == {"0": 10, "1": 20}
    assert gauge() == {"0": 65, "1": 65}
    assert nvml.freed == 2


def spinning(seconds, *, then="", env=None):
    code = f"import time; e=time.monotonic()+{seconds}\nwhile time.monotonic()<e: pass\n{then}"
    return subprocess.Popen([sys.executable, "-S", "-c", code], env={**os.environ, **(env or {})})


def test_a_busy_process_counts_nearly_all_the_time_and_never_more():
    with spinning(20) as process:
        meter = CpuMeter()
        meter.attach("l", devices=("0",), roots=(process.pid,))
        began = time.monotonic_ns()
        time.sleep(1.0)
        busy_us = meter.read("l")
        window_us = (time.monotonic_ns() - began) // 1000
        process.kill()
    assert 0.8 * window_us <= busy_us <= window_us + 10_000


def test_more_processes_than_devices_count_as_the_devices():
    with spinning(20) as one, spinning(20) as two:
        meter = CpuMeter()
        meter.attach("l", devices=("0",), roots=(one.pid, two.pid))
        began = time.monotonic_ns()
        time.sleep(0.5)
        assert meter.read("l") <= (time.monotonic_ns() - began) // 1000
        one.kill()
        two.kill()


def test_children_that_came_and_went_between_two_readings_are_counted():
    code = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-S', '-c', {SPIN!r}])\nprint('done', flush=True)\ntime.sleep(30)"
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE) as parent:
        meter = CpuMeter()
        meter.attach("l", devices=("0", "1"), roots=(parent.pid,))
        assert parent.stdout.readline() == b"done\n"
        busy_us = meter.read("l")
        parent.kill()
    assert busy_us > 300_000


def test_a_process_that_left_the_tree_is_found_by_the_lease_it_carries():
    with subprocess.Popen(["setsid", "sleep", "60"], env={**os.environ, LEASE_VARIABLE: "stray.1"}) as stray:
        assert _eventually(lambda: tree_of((), lease_id="stray.1") == [stray.pid])
        assert tree_of((), lease_id="stray") == []
        assert end_all((), lease_id="stray.1")
        stray.wait()


def test_a_lease_that_is_not_attached_uses_nothing():
    assert CpuMeter().read("nobody") == 0
    CpuMeter().detach("nobody")


def _eventually(claim):
    for _ in range(200):
        if claim():
            return True
        time.sleep(0.01)
    return False


def test_beside_hogs_a_job_is_metered_by_what_it_wanted_and_not_by_what_it_got():
    """The mean of a few readings; `bench_burn.py` shows the tail, which on a busy machine is that of the truth itself."""
    ours, theirs = errors(hogs=3, windows=1)
    assert sum(ours) / len(ours) <= 0.03, ours
    assert sum(ours) < sum(theirs)
