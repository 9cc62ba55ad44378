"""Meters: how much of its devices' time a lease uses, read by the platform and never by the tenant.

Three real ones behind one protocol. `NvmlGauge` and `AscendGauge` read the device's own utilisation, which a
`GaugeMeter` integrates at several hertz, so that short bursts between two reads count. `CpuMeter` is the stand-in where
there is no accelerator: what the lease's processes ran or waited to run on the machine's cores (waiting for a core counts,
or a busy neighbour would make a job look idle). Nothing here knows prices, leases' owners or Ray.
"""

import importlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, Protocol

from fabric.adapters.processes import CpuUsage, cpu_of, tree_of

_NPU_HEAD = re.compile(r"\|\s*(\d+)\s+\S+\s*\|\s*\S+\s*\|\s*[\d.]+\s+\d+")
_NPU_CHIP = re.compile(r"\|\s*\d+\s*(?:\d+\s*)?\|\s*[0-9A-Fa-f:.]+\s*\|\s*(\d+)\s")
_PERCENT: Final = 100
_NOTHING: Final = CpuUsage({}, 0, 0)


class Meter(Protocol):
    """Counts device time in use. One lease may be read by one caller only."""

    def attach(self, lease_id: str, *, devices: Sequence[str], roots: Sequence[int]) -> None:
        """Begin: `devices` as the node numbers them, `roots` the processes the lease's work descends from."""

    def read(self, lease_id: str, *, members: Sequence[int] | None = None) -> int:
        """Device-µs in use since `attach` or the last `read`; 0 for a lease that isn't attached.

        `members` are the lease's processes, where the caller has looked for them a moment ago.
        """

    def detach(self, lease_id: str) -> None:
        """End; fine if it isn't attached."""


Gauge = Callable[[], Mapping[str, int]]
"""Reads the utilisation of every device of the node, in percent, by the device's number."""


class GaugeMeter:
    """Integrates a utilisation gauge. Between two readings a device counts with the later one."""

    def __init__(self, gauge: Gauge, *, period_s: float = 0.2, clock_us: Callable[[], int] | None = None) -> None:
        self._gauge = gauge
        self._clock_us = clock_us or _monotonic_us
        self._busy_us: dict[str, float] = {}
        self._read_at_us = self._clock_us()
        self._leases: dict[str, tuple[Sequence[str], float]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        if period_s > 0:
            threading.Thread(target=self._watch, args=(period_s,), name="fabric-gauge", daemon=True).start()

    def attach(self, lease_id: str, *, devices: Sequence[str], roots: Sequence[int]) -> None:
        del roots
        self.sample()
        self._leases[lease_id] = (tuple(devices), self._sum(devices))

    def read(self, lease_id: str, *, members: Sequence[int] | None = None) -> int:  # noqa: ARG002 - a gauge needs none
        if lease_id not in self._leases:
            return 0
        self.sample()
        devices, before = self._leases[lease_id]
        now = self._sum(devices)
        self._leases[lease_id] = (devices, before + int(now - before))
        return int(now - before)

    def detach(self, lease_id: str) -> None:
        self._leases.pop(lease_id, None)

    def sample(self) -> None:
        """Read the gauge once and add what it says about the time since the last reading."""
        with self._lock:
            percents = self._gauge()
            now_us = self._clock_us()
            elapsed_us = now_us - self._read_at_us
            self._read_at_us = now_us
            for device, percent in percents.items():
                self._busy_us[device] = self._busy_us.get(device, 0.0) + elapsed_us * min(percent, _PERCENT) / _PERCENT

    def close(self) -> None:
        self._closed.set()

    def _sum(self, devices: Sequence[str]) -> float:
        return sum(self._busy_us.get(device, 0.0) for device in devices)

    def _watch(self, period_s: float) -> None:
        while not self._closed.wait(period_s):
            self.sample()


class NvmlGauge:
    """NVIDIA: the share of time the multiprocessors were busy between two readings (GPM, Hopper and later); else the mean of
    all samples the driver took since the last reading, so that nothing is gained by being idle when somebody looks.
    """

    def __init__(self, nvml: Any = None) -> None:
        if nvml is None:
            nvml = importlib.import_module("pynvml")  # only where there is a driver
        self._nvml = nvml
        nvml.nvmlInit()
        self._handles = {str(i): nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())}
        self._last: dict[str, Any] = {}
        self._seen_us: dict[str, int] = {}

    def __call__(self) -> dict[str, int]:
        return {device: self._percent(device, handle) for device, handle in self._handles.items()}

    def _percent(self, device: str, handle: Any) -> int:
        try:
            return self._percent_by_gpm(device, handle)
        except self._nvml.NVMLError:
            return self._percent_by_samples(device, handle)

    def _percent_by_samples(self, device: str, handle: Any) -> int:
        """The mean of what the driver sampled (several times a second, kept by it) since we last asked."""
        nvml, seen_us = self._nvml, self._seen_us.get(device, 0)
        fresh: list[Any] = []
        with suppress(nvml.NVMLError, AttributeError):
            _, samples = nvml.nvmlDeviceGetSamples(handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, seen_us)
            fresh = [sample for sample in samples if sample.timeStamp > seen_us]
            self._seen_us[device] = max((sample.timeStamp for sample in fresh), default=seen_us)
        if seen_us and fresh:
            mean: int = round(sum(sample.sampleValue.uiVal for sample in fresh) / len(fresh))
            return mean
        return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    def _percent_by_gpm(self, device: str, handle: Any) -> int:
        nvml = self._nvml
        if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            return self._percent_by_samples(device, handle)
        sample = nvml.nvmlGpmSampleAlloc()
        nvml.nvmlGpmSampleGet(handle, sample)
        before, self._last[device] = self._last.get(device), sample
        if before is None:
            return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        wanted = nvml.c_nvmlGpmMetricsGet_t()
        wanted.version = nvml.NVML_GPM_METRICS_GET_VERSION
        wanted.numMetrics = 1
        wanted.sample1, wanted.sample2 = before, sample
        wanted.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
        nvml.nvmlGpmMetricsGet(wanted)
        nvml.nvmlGpmSampleFree(before)
        return round(float(wanted.metrics[0].value))


class AscendGauge:
    """Huawei Ascend: AICore utilisation as `npu-smi info` prints it, one call for all NPUs of the node."""

    def __init__(self, run: Callable[[], str] | None = None) -> None:
        self._run = run or _npu_smi

    def __call__(self) -> dict[str, int]:
        return parse_npu_smi(self._run())


def parse_npu_smi(printed: str) -> dict[str, int]:
    """AICore percent by NPU number, from the table of `npu-smi info`: two lines an NPU, the second with the figure."""
    percents: dict[str, int] = {}
    npu = ""
    for line in printed.splitlines():
        if npu and (chip := _NPU_CHIP.match(line)):
            percents[npu] = int(chip[1])
            npu = ""
        elif head := _NPU_HEAD.match(line):
            npu = head[1]
    return percents


class CpuMeter:
    """The stand-in: run and run-queue-wait time of the lease's process tree, at most its devices × the time passed.

    Counters are remembered per process, also of a runner that waits for its next lease: what it did since it was last
    looked at belongs to the lease that is attached next, so a job shorter than a tick is counted in full.
    """

    def __init__(self, *, clock_us: Callable[[], int] | None = None) -> None:
        self._clock_us = clock_us or _monotonic_us
        self._leases: dict[str, _CpuLease] = {}
        self._seen: dict[int, CpuUsage] = {}

    def attach(self, lease_id: str, *, devices: Sequence[str], roots: Sequence[int]) -> None:
        if lease_id in self._leases:
            return
        for pid in roots:
            if pid not in self._seen and (usage := cpu_of(pid)) is not None:
                self._seen[pid] = usage
        self._leases[lease_id] = _CpuLease(count=max(1, len(devices)), roots=tuple(roots), read_at_us=self._clock_us())

    def read(self, lease_id: str, *, members: Sequence[int] | None = None) -> int:
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0
        now_us = self._clock_us()
        pids = tree_of(lease.roots, lease_id=lease_id) if members is None else members
        used_us = self._used(lease, pids) + lease.carried_us
        limit_us = lease.count * (now_us - lease.read_at_us)
        lease.read_at_us = now_us
        # A counter may be a scheduler tick ahead of the clock; that much is carried on, more than that is a real excess.
        lease.carried_us = min(max(0, used_us - limit_us), 10_000)
        return max(0, min(used_us, limit_us))

    def detach(self, lease_id: str) -> None:
        lease = self._leases.pop(lease_id, None)
        for pid in lease.born if lease else ():
            self._seen.pop(pid, None)

    def _used(self, lease: "_CpuLease", pids: Sequence[int]) -> int:
        """What the tree used since the last look, those that ended in between included by their parent's account."""
        used_us = 0
        usages = {pid: usage for pid in pids if (usage := cpu_of(pid)) is not None}
        for pid in lease.born - usages.keys():
            lease.ended_us += self._seen.pop(pid, _NOTHING).ran_us
        lease.born = usages.keys() - set(lease.roots)
        for pid, usage in usages.items():
            before = self._seen.get(pid, _NOTHING)
            used_us += _between(before, usage) + self._ended(lease, usage.children_us - before.children_us)
            self._seen[pid] = usage
        return used_us

    def _ended(self, lease: "_CpuLease", fresh_us: int) -> int:
        """Of what children used that were reaped since the last look: the part that was not counted while they lived."""
        counted_us = min(max(0, fresh_us), lease.ended_us)
        lease.ended_us -= counted_us
        return max(0, fresh_us) - counted_us


def _between(before: CpuUsage, now: CpuUsage) -> int:
    """What a process used between two readings. Threads that ended are missing from the first sum, waiting from the
    second: the larger is nearer the truth.
    """
    known = before.threads_us
    lived_us = sum(us - known[tid] if us >= known.get(tid, us + 1) else us for tid, us in now.threads_us.items())
    return max(lived_us, now.ran_us - before.ran_us, 0)


class _CpuLease:
    def __init__(self, *, count: int, roots: tuple[int, ...], read_at_us: int) -> None:
        self.count = count
        self.roots = roots
        self.read_at_us = read_at_us
        self.carried_us = 0
        self.born: set[int] = set()
        self.ended_us = 0


def open_meter(kind: Literal["auto", "nvml", "ascend", "cpu"]) -> Meter:
    """The meter asked for; auto takes what the machine has."""
    if kind == "nvml" or (kind == "auto" and _has_nvml()):
        return GaugeMeter(NvmlGauge())
    if kind == "ascend" or (kind == "auto" and shutil.which("npu-smi")):
        return GaugeMeter(AscendGauge(), period_s=1.0)
    return CpuMeter()


def _has_nvml() -> bool:
    try:
        return bool(NvmlGauge()())
    except Exception:  # noqa: BLE001  # no library, no driver, no device: NVML has an error class for each
        return False


def _npu_smi() -> str:
    command = [shutil.which("npu-smi") or "npu-smi", "info"]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout  # noqa: S603


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
