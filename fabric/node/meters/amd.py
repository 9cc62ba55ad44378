"""AMD's counters, as its kernel driver shows them: no library is needed, and no tool.

Each node of the KFD's topology that has compute units is a device, in the order in which ROCm numbers them; its render node
leads to the PCI device, whose `gpu_busy_percent` is the share of the last moments in which the shader engines were busy. Names
are those that `ROCR_VISIBLE_DEVICES` and `HIP_VISIBLE_DEVICES` take: an index, or `GPU-<unique id>`. A device that can't be
read is missing from a reading; it is never told as idle. Written from the driver's documentation, and not run on a device yet.
"""

from pathlib import Path
from typing import Final

_PERCENT: Final = 100
_SYS: Final = Path("/sys/class")


class AmdGauge:
    """Reads all devices at once."""

    def __init__(self, sys_class: Path = _SYS) -> None:
        self._sys = sys_class
        self._names: dict[str, str] = {}
        """By index, its unique id in hexadecimal, "" where it has none."""

    def __call__(self) -> dict[str, int]:
        """Percent by device, without those that can't be read."""
        found = {}
        for index, known in enumerate(self._devices()):
            self._names[str(index)] = _hexadecimal(known.get("unique_id", "0"))
            percent = self._percent(known.get("drm_render_minor", ""))
            if percent is not None:
                found[str(index)] = percent
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """All devices that were ever there, by their index."""
        return tuple(self._names)

    def name_of(self, said: str) -> str | None:
        """The one device that is meant; None if it is none of these."""
        word = said.strip().lower()
        if word.isascii() and word.isdecimal():
            name = str(int(word))
            return name if name in self._names else None
        unique = word.removeprefix("gpu-") if word.startswith("gpu-") else ""
        return next((name for name, of in self._names.items() if unique and of == unique), None)

    def _devices(self) -> list[dict[str, str]]:
        """What the driver says of each, in ROCm's order."""
        nodes = [path for path in (self._sys / "kfd/kfd/topology/nodes").glob("*") if path.name.isdecimal()]
        said = [_properties(path / "properties") for path in sorted(nodes, key=lambda path: int(path.name))]
        return [each for each in said if each.get("simd_count", "0") != "0"]

    def _percent(self, minor: str) -> int | None:
        try:
            said = (self._sys / f"drm/renderD{minor}/device/gpu_busy_percent").read_text().strip()
        except OSError:
            return None
        return int(said) if said.isascii() and said.isdecimal() and int(said) <= _PERCENT else None


def _properties(file: Path) -> dict[str, str]:
    """`name value` a line; none where it can't be read."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(" ") for line in lines)}


def _hexadecimal(unique_id: str) -> str:
    return f"{int(unique_id):016x}" if unique_id.isdecimal() and int(unique_id) else ""
