"""The kinds of accelerators we know: one entry in `KINDS` each. Of others nothing is known but their name.

What a kind costs is its operator's affair (`cluster-configs/tariffs.yaml`); who reads its counters, that of
`fabric.node.meters`.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Kind:
    """One kind of accelerator."""

    name: str
    """As tariffs, nodes and customers call it."""
    vendor: str
    """Who makes it, which decides whose collectives it speaks."""
    resource: str
    """What Ray calls its devices: GPU or NPU."""
    called: str
    """A pattern for what drivers, Ray and people call it: the first word after the maker's, in small letters."""
    watts: int
    """What a board draws at full load, by its maker."""
    speed: float
    """Against an H100, by the makers' dense FP16 figures: what a gang is judged by before it has run."""


KINDS: Final = (
    Kind(name="H100", vendor="nvidia", resource="GPU", called=r"h100", watts=700, speed=1.0),
    Kind(name="H200", vendor="nvidia", resource="GPU", called=r"h200", watts=700, speed=1.0),
    Kind(name="A100", vendor="nvidia", resource="GPU", called=r"a100", watts=400, speed=0.32),
    Kind(name="V100", vendor="nvidia", resource="GPU", called=r"v100", watts=300, speed=0.13),
    Kind(name="MI300X", vendor="amd", resource="GPU", called=r"mi300x", watts=750, speed=1.32),
    Kind(name="910B", vendor="huawei", resource="NPU", called=r"(ascend)?910b\d?|npu", watts=400, speed=0.26),
)
"""Dense FP16: H100 and H200 989 TFLOPS, A100 312, V100 125, MI300X 1307; 910B 512 against 1979 with sparsity."""
DEVICE_RESOURCES: Final = tuple(dict.fromkeys(kind.resource for kind in KINDS))
"""What Ray calls devices, of those that are sold: others have no meter."""
VENDORS: Final[Mapping[str, str]] = MappingProxyType({**{kind.name: kind.vendor for kind in KINDS}, "CPU": "host"})
WATTS_UNKNOWN: Final = 400
REFERENCE_SPEEDS: Final[Mapping[str, float]] = MappingProxyType({kind.name: kind.speed for kind in KINDS})
TYPE_LABEL: Final = "ray.io/accelerator-type"
"""Ray's own label of a node's accelerator type."""
_RESOURCES: Final[Mapping[str, str]] = MappingProxyType({kind.name: kind.resource for kind in KINDS})
_MAKERS: Final = frozenset({"nvidia", "tesla", "huawei", "ascend", "amd", "instinct"})
_DEVICES: Final = frozenset({*DEVICE_RESOURCES, "TPU", *VENDORS}) - {"CPU"}
"""What may stand for a device in what is asked of Ray: a node may offer a resource named for its type."""


def canonical_accelerator(name: str) -> str:
    """The name that tariffs and nodes use, for whatever a driver, Ray or a person calls the type.

    "NVIDIA H100 80GB HBM3" is "H100", "ascend-910b" and Ray's "NPU" are "910B". What is not known comes back as it is.
    """
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word and word not in _MAKERS]
    model = words[0] if words else ""
    return next((kind.name for kind in KINDS if re.fullmatch(kind.called, model, re.ASCII)), name.strip())


def devices_in(asked: Mapping[str, float | None], *, types: Collection[str] = ()) -> list[str]:
    """The devices among what is asked of Ray, by name. Whatever else its nodes offer (themselves, a disk) is none.

    Args:
        asked: how much of which resource; nothing counts as not asked.
        types: accelerators that are here, besides those we know.
    """
    return sorted(name for name, amount in asked.items() if amount and (name in _DEVICES or name in types))


def watts_of(accelerator: str) -> int:
    """What a board of the type draws at full load, by its maker."""
    return next((kind.watts for kind in KINDS if kind.name == accelerator), WATTS_UNKNOWN)


def resource_of(accelerator: str) -> str:
    """What Ray calls its devices; those of a kind that we don't know are GPUs."""
    return _RESOURCES.get(accelerator, "GPU")


def vendor_of(accelerator: str) -> str:
    """An accelerator we don't know is a vendor of its own."""
    return VENDORS.get(accelerator, accelerator)
