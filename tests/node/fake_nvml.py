# ruff: noqa: N802  # a fake has the names of what it stands for
"""A driver of NVIDIA's that isn't there: whole GPUs and divided ones, with the error types of the real binding."""

from types import SimpleNamespace

import pytest


class FakeDriver:
    """GPUs by index; what is said of one may be changed while somebody reads it.

    A GPU is a dict: `uuid`, `busy` (percent, or the exception that reading it raises), `gpm` (whether it has the counter
    that MIG instances can be read by), `parts` (of a divided one: uuid → (gpu instance, compute instance, busy)).
    """

    NVML_GPM_METRICS_GET_VERSION = 1
    NVML_GPM_METRIC_SM_UTIL = 2
    NVML_GPU_UTILIZATION_SAMPLES = 1

    def __init__(self, *gpus):
        self.binding = pytest.importorskip("pynvml")
        self.NVMLError = self.binding.NVMLError
        self.gpus = gpus
        self.starts, self.samples = 0, 0

    def error(self, name):
        return self.binding.NVMLError(getattr(self.binding, f"NVML_ERROR_{name}"))

    def nvmlInit(self):
        self.starts += 1

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        if "hidden" in self.gpus[index]:
            raise self.error("NO_PERMISSION")
        return SimpleNamespace(gpu=self.gpus[index], uuid=self.gpus[index]["uuid"])

    def nvmlDeviceGetUUID(self, handle):
        return handle.uuid

    def nvmlDeviceGetMigMode(self, handle):
        if "parts" not in handle.gpu:
            raise self.error("NOT_SUPPORTED")
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, at):
        parts = list(handle.gpu["parts"].items())
        if at >= len(parts):
            raise self.error("NOT_FOUND")
        uuid, (instance, compute, _) = parts[at]
        return SimpleNamespace(gpu=handle.gpu, uuid=uuid, instance=instance, compute=compute)

    def nvmlDeviceGetGpuInstanceId(self, part):
        return part.instance

    def nvmlDeviceGetComputeInstanceId(self, part):
        return part.compute

    def nvmlDeviceGetSamples(self, handle, kind, since):
        raise self.error("NOT_FOUND")

    def nvmlDeviceGetUtilizationRates(self, handle):
        if "parts" in handle.gpu:
            raise self.error("NOT_SUPPORTED")
        return SimpleNamespace(gpu=self.told(handle.gpu["busy"]))

    def nvmlGpmQueryDeviceSupport(self, handle):
        return SimpleNamespace(isSupportedDevice=handle.gpu.get("gpm", False))

    def nvmlGpmSampleAlloc(self):
        self.samples += 1
        return SimpleNamespace(busy=None)

    def nvmlGpmSampleGet(self, handle, sample):
        sample.busy = self.told(handle.gpu["busy"])

    def nvmlGpmMigSampleGet(self, handle, instance, sample):
        (found,) = [busy for gi, _, busy in handle.gpu["parts"].values() if gi == instance]
        sample.busy = self.told(found)

    def nvmlGpmSampleFree(self, sample):
        self.samples -= 1

    def c_nvmlGpmMetricsGet_t(self):
        return SimpleNamespace(metrics=[SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0)])

    def nvmlGpmMetricsGet(self, wanted):
        wanted.metrics[0].value = float(wanted.sample2.busy)

    def told(self, busy):
        if isinstance(busy, str):
            raise self.error(busy)
        return busy
