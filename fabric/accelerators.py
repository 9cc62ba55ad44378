"""The kinds of accelerators we know: who makes them, which decides whose collectives they speak. Of others nothing is known."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

VENDORS: Final[Mapping[str, str]] = MappingProxyType(
    {"H100": "nvidia", "H200": "nvidia", "A100": "nvidia", "V100": "nvidia", "910B": "huawei", "CPU": "host"}
)


def vendor_of(accelerator: str) -> str:
    """An accelerator we don't know is a vendor of its own."""
    return VENDORS.get(accelerator, accelerator)
