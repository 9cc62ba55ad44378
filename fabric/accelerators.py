"""The kinds of accelerators we know: who makes them, which decides whose collectives they speak. Of others nothing is known."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

VENDORS: Final[Mapping[str, str]] = MappingProxyType(
    {"H100": "nvidia", "H200": "nvidia", "A100": "nvidia", "V100": "nvidia", "910B": "huawei", "CPU": "host"}
)
DEVICE_RESOURCES: Final = ("GPU", "NPU")
"""What Ray calls devices, of those that are sold: others have no meter."""
TYPE_LABEL: Final = "ray.io/accelerator-type"
"""Ray's own label of a node's accelerator type."""
_OUR_NAMES: Final = (("Ascend910B", "910B"), ("910B", "910B"), ("H100", "H100"), ("A100", "A100"))
"""Ray tells A100-40G from A100-80G and Ascend910B3 from 910B4: tariffs don't."""
_DEVICES: Final = frozenset({*DEVICE_RESOURCES, "TPU", *VENDORS}) - {"CPU"}
"""What may stand for a device in what is asked of Ray: a node may offer a resource named for its type."""


def devices_in(asked: Mapping[str, float | None], *, types: Collection[str] = ()) -> list[str]:
    """The devices among what is asked of Ray, by name. Whatever else its nodes offer (themselves, a disk) is none.

    Args:
        asked: how much of which resource; nothing counts as not asked.
        types: accelerators that are here, besides those we know.
    """
    return sorted(name for name, amount in asked.items() if amount and (name in _DEVICES or name in types))


def vendor_of(accelerator: str) -> str:
    """An accelerator we don't know is a vendor of its own."""
    return VENDORS.get(accelerator, accelerator)


def type_of(label: str) -> str:
    """Our name of an accelerator type, from Ray's."""
    return next((ours for theirs, ours in _OUR_NAMES if label.startswith(theirs)), label)
