"""Huawei Ascend's counters, as `npu-smi info` prints them: AICore utilisation, one call for all NPUs of the node.

Names are those that `ASCEND_RT_VISIBLE_DEVICES` takes: the number of the device, which is that of the NPU where an NPU has one
chip, and the physical id that the table tells where it has several. A device whose figure isn't one is missing from a
reading; it is never told as idle.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Final, NamedTuple

_HEAD: Final = re.compile(r"\|\s*(\d+)\s+\S+\s*\|\s*\S+\s*\|")
_CHIP: Final = re.compile(r"\|\s*(\d+)(?:\s+(\d+))?\s*\|\s*[0-9A-Fa-f:.]+\s*\|\s*(\S+)\s")
_PROCESSES: Final = re.compile(r"\|\s*NPU\s+Chip\s*\|\s*Process id", re.IGNORECASE)
_TIMEOUT_S: Final = 10
_PERCENT: Final = 100


class Row(NamedTuple):
    """One chip."""

    npu: str
    chip: str
    physical: str | None
    percent: int | None


class AscendGauge:
    """Reads all NPUs at once."""

    def __init__(self, run: Callable[[], str] | None = None) -> None:
        self._run = run or _npu_smi
        self._names: dict[str, None] = {}

    def __call__(self) -> dict[str, int]:
        """Percent by device, without those that can't be read."""
        found = devices(self._run())
        self._names.update(dict.fromkeys(found))
        return {name: percent for name, percent in found.items() if percent is not None}

    @property
    def names(self) -> tuple[str, ...]:
        """All devices that were ever listed."""
        return tuple(self._names)

    def name_of(self, said: str) -> str | None:
        """The one device that is meant; None if it is none of these."""
        word = said.strip()
        if not (word.isascii() and word.isdecimal()):
            return None
        name = str(int(word))
        return name if name in self._names else None


def parse_npu_smi(printed: str) -> dict[str, int]:
    """AICore percent by device, of those that have one."""
    return {name: percent for name, percent in devices(printed).items() if percent is not None}


def devices(printed: str) -> dict[str, int | None]:
    """By device, from the table of `npu-smi info`: two lines a chip, the second with the figure."""
    rows = list(_rows(printed))
    chips: dict[str, int] = {}
    for row in rows:
        chips[row.npu] = chips.get(row.npu, 0) + 1
    found: dict[str, int | None] = {}
    for row in rows:
        if row.physical is not None:
            found[row.physical] = row.percent
        elif chips[row.npu] == 1:
            found[row.npu] = row.percent
        else:
            found[f"{row.npu}:{row.chip}"] = row.percent
    return found


def _rows(printed: str) -> list[Row]:
    rows, npu = [], ""
    for line in printed.splitlines():
        if _PROCESSES.match(line):
            break
        if npu and (chip := _CHIP.match(line)):
            said = chip[3]
            percent = int(said) if said.isascii() and said.isdecimal() and int(said) <= _PERCENT else None
            rows.append(Row(npu=npu, chip=chip[1], physical=chip[2], percent=percent))
            npu = ""
        elif head := _HEAD.match(line):
            npu = head[1]
    return rows


def _npu_smi() -> str:
    command = [shutil.which("npu-smi") or "npu-smi", "info"]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True).stdout  # noqa: S603
