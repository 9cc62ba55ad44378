"""NVIDIA's counters: which devices there are, by whatever name somebody calls them, and how busy each one is.

A device is a whole GPU, or a MIG instance of one that is divided. Names are those that `CUDA_VISIBLE_DEVICES` takes: an
index, `GPU-<uuid>` or the beginning of one, `MIG-<uuid>`, and `MIG-GPU-<uuid>/<gpu instance>/<compute instance>` of older
drivers. A device that can't be read is missing from a reading; it is never told as idle.
"""

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

_LOOK_AGAIN_S: Final = 10.0
_PERCENT: Final = 100
_OLD_MIG_PARTS: Final = 3


class Device(NamedTuple):
    """What can be leased of NVIDIA's."""

    handle: Any
    """None = the driver doesn't hand it out."""
    uuid: str = ""
    gpu: Any = None
    """Of a MIG instance: the GPU that it is a part of."""
    gpu_uuid: str = ""
    instance: int | None = None
    compute: int | None = None


class NvmlGauge:
    """Reads the share of time that the multiprocessors were busy between two readings (GPM, Hopper and later, MIG too); else
    the mean of all samples the driver took since the last reading, so that nothing is gained by being idle when somebody
    looks.
    """

    def __init__(self, nvml: Any = None, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        if nvml is None:
            nvml = importlib.import_module("pynvml")  # only where there is a driver
        self._nvml = nvml
        self._clock_s = clock_s
        self._devices: dict[str, Device] = {}
        self._last: dict[str, Any] = {}
        self._seen_us: dict[str, int] = {}
        self._looked_s = 0.0
        self._look()

    def __call__(self) -> dict[str, int]:
        """Percent by device, without those that can't be read."""
        found = {
            name: percent for name, at in self._devices.items() if (percent := self._percent(name, at)) is not None
        }
        if len(found) < len(self._devices) and self._clock_s() - self._looked_s >= _LOOK_AGAIN_S:
            with suppress(self._nvml.NVMLError):
                self._look()
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """All devices, those that can't be read too: the index of a whole GPU, the UUID of a MIG instance."""
        return tuple(self._devices)

    def name_of(self, said: str) -> str | None:
        """The one device that is meant; None if it is none of these, or might be several."""
        word = said.strip().lower()
        if word.isascii() and word.isdecimal():
            name = str(int(word))
            return name if name in self._devices and self._devices[name].instance is None else None
        if word.startswith("mig-gpu-"):
            found = list(self._by_instance(word.removeprefix("mig-")))
        elif word.startswith(("mig-", "gpu-")) and word[4:]:
            found = [name for name, device in self._devices.items() if device.uuid.lower().startswith(word)]
        else:
            return None
        return found[0] if len(found) == 1 else None

    def by_process(self, name: str, since_us: int) -> tuple[dict[int, int], int] | None:
        """What each process used of a whole GPU since then, in percent: the mean of the driver's samples of it. None where it
        can't be told: of an instance, and where something uses the GPU and the driver names no process.
        """
        nvml, device = self._nvml, self._devices.get(name)
        if device is None or device.handle is None or device.instance is not None:
            return None
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(device.handle, since_us)
        except nvml.NVMLError as error:
            if not isinstance(error, getattr(nvml, "NVMLError_NotFound", ())):
                return None
            samples = ()
        found: dict[int, list[int]] = {}
        for sample in samples:
            found.setdefault(int(sample.pid), []).append(int(sample.smUtil))
        if not found and int(nvml.nvmlDeviceGetUtilizationRates(device.handle).gpu):
            return None
        newest_us = max((int(sample.timeStamp) for sample in samples), default=since_us)
        return {pid: round(sum(each) / len(each)) for pid, each in found.items()}, newest_us

    def _by_instance(self, word: str) -> Iterator[str]:
        """`gpu-<uuid>/<gpu instance>/<compute instance>`"""
        parts = word.split("/")
        if len(parts) != _OLD_MIG_PARTS:
            return
        for name, device in self._devices.items():
            same = (str(device.instance), str(device.compute)) == (parts[1], parts[2])
            if same and device.gpu_uuid.lower().startswith(parts[0]):
                yield name

    def _look(self) -> None:
        """Find the devices anew: a driver that was started again has other handles."""
        nvml = self._nvml
        self._looked_s = self._clock_s()
        nvml.nvmlInit()
        found: dict[str, Device] = {}
        for at in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(at)
            except nvml.NVMLError:
                found[str(at)] = Device(handle=None)
                continue
            uuid = self._uuid(handle)
            if not self._is_divided(handle):
                found[str(at)] = Device(handle=handle, uuid=uuid)
                continue
            for number, part in enumerate(self._parts(handle)):
                device = self._part(part, handle, uuid)
                found[device.uuid or f"{at}:{number}"] = device
        self._devices, self._last, self._seen_us = found, {}, {}

    def _uuid(self, handle: Any) -> str:
        try:
            said = self._nvml.nvmlDeviceGetUUID(handle)
        except (self._nvml.NVMLError, AttributeError):
            return ""
        return said.decode() if isinstance(said, bytes) else str(said)

    def _is_divided(self, handle: Any) -> bool:
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(handle)[0])
        except (self._nvml.NVMLError, AttributeError):
            return False

    def _parts(self, handle: Any) -> Iterator[Any]:
        for at in range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with suppress(self._nvml.NVMLError):  # there are gaps
                yield self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, at)

    def _part(self, part: Any, gpu: Any, gpu_uuid: str) -> Device:
        nvml, uuid = self._nvml, self._uuid(part)
        try:
            instance, compute = nvml.nvmlDeviceGetGpuInstanceId(part), nvml.nvmlDeviceGetComputeInstanceId(part)
        except nvml.NVMLError:
            return Device(handle=None, uuid=uuid, gpu_uuid=gpu_uuid, instance=-1)
        return Device(handle=part, uuid=uuid, gpu=gpu, gpu_uuid=gpu_uuid, instance=instance, compute=compute)

    def _percent(self, name: str, device: Device) -> int | None:
        """None if it can't be read now."""
        if device.handle is None:
            return None
        ways = (self._by_gpm,) if device.instance is not None else (self._by_gpm, self._by_samples)
        for way in ways:
            with suppress(self._nvml.NVMLError, AttributeError, ValueError, OverflowError):
                percent = way(name, device)
                if percent is not None and percent >= 0:
                    return min(percent, _PERCENT)
        return None

    def _by_samples(self, name: str, device: Device) -> int:
        """The mean of what the driver sampled (several times a second, kept by it) since we last asked."""
        nvml, seen_us = self._nvml, self._seen_us.get(name, 0)
        fresh: list[Any] = []
        with suppress(nvml.NVMLError, AttributeError):
            _, samples = nvml.nvmlDeviceGetSamples(device.handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, seen_us)
            fresh = [sample for sample in samples if sample.timeStamp > seen_us]
            self._seen_us[name] = max((sample.timeStamp for sample in fresh), default=seen_us)
        if seen_us and fresh:
            mean: int = round(sum(sample.sampleValue.uiVal for sample in fresh) / len(fresh))
            return mean
        return int(nvml.nvmlDeviceGetUtilizationRates(device.handle).gpu)

    def _by_gpm(self, name: str, device: Device) -> int | None:
        """None where there is no such counter, or nothing yet to compare with."""
        nvml = self._nvml
        if not nvml.nvmlGpmQueryDeviceSupport(device.handle if device.gpu is None else device.gpu).isSupportedDevice:
            return None
        before, now = self._last.pop(name, None), nvml.nvmlGpmSampleAlloc()
        try:
            if device.gpu is None:
                nvml.nvmlGpmSampleGet(device.handle, now)
            else:
                nvml.nvmlGpmMigSampleGet(device.gpu, device.instance, now)
            self._last[name] = now
            if before is not None:
                return self._between(before, now)
        finally:
            for sample in (before, *([] if name in self._last else [now])):
                if sample is not None:
                    nvml.nvmlGpmSampleFree(sample)
        return None

    def _between(self, before: Any, now: Any) -> int:
        nvml = self._nvml
        wanted = nvml.c_nvmlGpmMetricsGet_t()
        wanted.version = nvml.NVML_GPM_METRICS_GET_VERSION
        wanted.numMetrics = 1
        wanted.sample1, wanted.sample2 = before, now
        wanted.metrics[0].metricId = nvml.NVML_GPM_METRIC_SM_UTIL
        nvml.nvmlGpmMetricsGet(wanted)
        if getattr(wanted.metrics[0], "nvmlReturn", 0):
            raise ValueError("the counter says that it counted nothing")
        return round(float(wanted.metrics[0].value))
