"""What a node says of how its devices are divided: one word, as a label and in a cluster file.

`time-slice.4`: each device may be had whole, or in four equal parts that share it. `mig.7.1g.10gb`: what Ray counts as devices are
instances, seven of a device, of that profile, and each is as many sevenths as its profile says. `vnpu.4.vir05_1c_16g`: the
same of Ascend, as many equal parts as are said.
"""

import re
from typing import Final, NamedTuple

from fabric.units import FRACTION_MAX, Fraction, lowest

PARTS_LABEL: Final = "fabric.io/parts"
KINDS: Final = ("time-slice", "mig", "vnpu")
MIG_SLICES: Final = 7
_WORD: Final = re.compile(r"(time-slice|mig|vnpu)\.([1-9]\d{0,3})(?:\.([A-Za-z0-9][A-Za-z0-9._+-]{0,40}))?", re.ASCII)
_PROFILE: Final = re.compile(r"([1-7])g\b", re.ASCII)
HOW: Final = (
    "time-slice.4 (each device whole, or in four parts), mig.7.1g.10gb (instances, seven of a device, of that profile) or"
    " vnpu.4.vir05_1c_16g"
)


class Parts(NamedTuple):
    """How a node's devices are divided."""

    kind: str
    units: int = 1
    """A device may be had whole, or in so many units."""
    fraction: Fraction | None = None
    """What is counted as devices are such parts of devices."""
    division: str = ""
    """As people see it."""


WHOLE: Final = Parts("")


def parts_of(word: str) -> Parts | None:
    """What the word says; None if it says nothing of that kind."""
    match = _WORD.fullmatch(word)
    if match is None or not 1 < int(match[2]) <= FRACTION_MAX:
        return None
    kind, count, profile = match[1], int(match[2]), match[3] or ""
    division = f"{kind} {profile}".strip()
    if kind == "time-slice":
        return Parts(kind, units=count, division=division)
    slices = _PROFILE.match(profile) if kind == "mig" else None
    if slices is None:
        return Parts(kind, fraction=(1, count), division=division)
    if int(slices[1]) * count > MIG_SLICES or int(slices[1]) == MIG_SLICES:
        return None
    return Parts(kind, fraction=lowest(int(slices[1]), MIG_SLICES), division=division)


def is_instance(device: str) -> bool:
    """Whether a device's name is that of an instance of one: `MIG-<uuid>`, or `0:3` where it has no other."""
    return device.upper().startswith("MIG-") or ":" in device
