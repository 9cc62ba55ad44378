"""Meters: how much of its devices' time a lease uses, read by the platform and never by the tenant. A file a vendor."""

from fabric.node.meters.choice import VENDORS, MeterKind, Vendor, open_meter
from fabric.node.meters.cpu import CpuMeter
from fabric.node.meters.meter import Gauge, GaugeMeter, LateGauge, Meter

__all__ = ["VENDORS", "CpuMeter", "Gauge", "GaugeMeter", "LateGauge", "Meter", "MeterKind", "Vendor", "open_meter"]
