"""Which meter a node has: the one that is asked for, or what the machine has."""

import shutil
from typing import Final, Literal, NamedTuple

from fabric.node.meters.amd import AmdGauge
from fabric.node.meters.ascend import AscendGauge
from fabric.node.meters.cpu import CpuMeter
from fabric.node.meters.meter import GaugeMeter, LateGauge, Meter
from fabric.node.meters.nvidia import NvmlGauge

MeterKind = Literal["auto", "nvml", "ascend", "amd", "cpu"]


class Vendor(NamedTuple):
    """Whose counters are read, and how."""

    kind: MeterKind
    title: str
    gauge: type[NvmlGauge] | type[AscendGauge] | type[AmdGauge]
    tool: str
    """The vendor's own command, where it is installed."""
    lists: tuple[str, ...]
    """Its arguments for one line a device."""
    period_s: float = 0.2
    """How often it is read: a gauge that starts a process costs more."""


VENDORS: Final = (
    Vendor("nvml", "NVIDIA", NvmlGauge, "nvidia-smi", ("--query-gpu=name", "--format=csv,noheader")),
    Vendor("ascend", "Ascend", AscendGauge, "npu-smi", ("info", "-l"), period_s=1.0),
    Vendor("amd", "AMD", AmdGauge, "rocm-smi", ("--showproductname", "--csv")),
)


def open_meter(kind: MeterKind) -> Meter:
    """The meter asked for; auto takes what the machine has. Only where `cpu` is asked for, because the devices are numbers
    or have no counter, is the processors' time taken for theirs: where a counter is missing that should be there, nothing
    can be read.
    """
    if kind == "cpu":
        return CpuMeter()
    asked = [vendor for vendor in VENDORS if kind in (vendor.kind, "auto")]
    there = [vendor for vendor in asked if shutil.which(vendor.tool)] if kind == "auto" else asked
    period_s = max((vendor.period_s for vendor in there), default=min(vendor.period_s for vendor in asked))
    return GaugeMeter(LateGauge([vendor.gauge for vendor in asked]), period_s=period_s)
