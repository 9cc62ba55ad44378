"""How full a cluster of different nodes gets: pods that stay, one after the other, until none fits any more (the protocol of FGD).

A workload is shuffled by a seed and filled up with copies of its own pods until they ask for 130 % of all devices. Each is
placed where its packer says, or passed over for good. Counted is the part of the devices that is given away; fractions of
a device count as what they are. Knows nothing of time.
"""

import csv
import gzip
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from fabric.errors import InvalidRequest

WHOLE: Final = 1000
"""Parts of one device."""
ARRIVED: Final = 1.3


class Pod(msgspec.Struct, frozen=True, gc=False):
    """What one pod asks for."""

    cpu: int
    """Thousandths of a core."""
    memory: int
    """MiB."""
    devices: int
    parts: int
    """Of each of its devices; less than 1000 only where it has one."""
    types: frozenset[str]
    """() = any."""

    @property
    def asked(self) -> int:
        """Parts of devices, all together."""
        return self.devices * self.parts


@dataclass(slots=True, eq=False)
class Machine:
    """A node, and what is free on it."""

    at: int
    kind: str
    cpu: int
    memory: int
    parts: list[int]
    """What is free of each device."""
    whole: int = 0
    """Devices that are wholly free."""
    free: int = 0
    """Parts that are free, of all devices together."""
    fullest: int = 0
    """The most that is free of one device."""
    pods: int = 0
    """How many have been put here."""

    def __post_init__(self) -> None:
        self._count()

    def takes(self, pod: Pod) -> bool:
        """Whether the pod fits."""
        if pod.cpu > self.cpu or pod.memory > self.memory or (pod.types and self.kind not in pod.types):
            return False
        if not pod.devices:
            return True
        return self.whole >= pod.devices if pod.parts == WHOLE else self.fullest >= pod.parts

    def put(self, pod: Pod, parts: list[int] | None = None) -> None:
        """The pod is here from now on. `parts` is what is free of each device then; else a part of one is taken where it fits
        most tightly.
        """
        self.cpu -= pod.cpu
        self.memory -= pod.memory
        self.pods += 1
        if pod.devices:
            self.parts = after(self.parts, pod) if parts is None else parts
            self._count()

    def _count(self) -> None:
        self.whole, self.free = self.parts.count(WHOLE), sum(self.parts)
        self.fullest = max(self.parts, default=0)


Choice = tuple[Machine, list[int] | None]
"""A machine, and what is free of each of its devices then; None = the tightest that is enough is taken."""
Packer = Callable[[Pod, list[Machine], random.Random], Choice | None]
"""Chooses a machine for a pod, of those that take it."""


def after(parts: list[int], pod: Pod) -> list[int]:
    """What is free of each device once the pod is there."""
    left = parts[:]
    if pod.parts == WHOLE:
        for _ in range(pod.devices):
            left.remove(WHOLE)
            left.append(0)
    else:
        tightest = min(part for part in left if part >= pod.parts)
        left[left.index(tightest)] -= pod.parts
    return left


def best_fit(pod: Pod, machines: list[Machine], rng: random.Random) -> Choice | None:
    """The machine that has least left then: half its cores, half its devices, each of the largest that there is."""
    best, found = 1 << 62, None
    del rng
    for machine in machines:
        if machine.takes(pod):
            left = (machine.cpu - pod.cpu) * _PER_CPU + (machine.free - pod.asked) * _PER_PART
            if left < best:
                best, found = left, machine
    return None if found is None else (found, None)


_PER_CPU: Final = 8 * WHOLE
_PER_PART: Final = 128_000
"""So that a machine of 128 cores and one of 8 devices count alike."""


def inflated(pods: list[Pod], wanted: int, rng: random.Random) -> list[Pod]:
    """The pods in another order, and copies of some behind them, until they ask for so many parts together."""
    found = pods[:]
    rng.shuffle(found)
    asked = sum(pod.asked for pod in found)
    while asked < wanted:
        pod = rng.choice(pods)
        found.append(pod)
        asked += pod.asked
    return found


def allocated(
    machines: Iterable[Machine], pods: list[Pod], packer: Packer, *, seed: int, arrived: float = ARRIVED
) -> float:
    """Percent of all devices that are given away once so much of them has been asked for."""
    rng = random.Random(seed)
    here = [Machine(each.at, each.kind, each.cpu, each.memory, each.parts[:]) for each in machines]
    total = sum(len(each.parts) for each in here) * WHOLE
    given = 0
    for pod in inflated(pods, int(total * arrived), rng):
        choice = packer(pod, here, rng)
        if choice is not None:
            choice[0].put(pod, choice[1])
            given += pod.asked
    return given / total * 100


def read_machines(path: Path) -> list[Machine]:
    """Nodes of openb: `sn,cpu_milli,memory_mib,gpu,model`."""
    return [
        Machine(at, row["model"], int(row["cpu_milli"]), int(row["memory_mib"]), [WHOLE] * int(row["gpu"]))
        for at, row in enumerate(_rows(path, needs="model"))
    ]


def read_pods(path: Path) -> list[Pod]:
    """Pods of openb: `name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,...`."""
    return [
        Pod(
            int(row["cpu_milli"]),
            int(row["memory_mib"]),
            int(row["num_gpu"]),
            int(row["gpu_milli"]) if int(row["num_gpu"]) == 1 else WHOLE,
            frozenset(row["gpu_spec"].split("|")) if row.get("gpu_spec") else frozenset(),
        )
        for row in _rows(path, needs="gpu_milli")
    ]


def _rows(path: Path, *, needs: str) -> list[Mapping[str, str]]:
    data = path.read_bytes()
    rows: list[Mapping[str, str]] = list(
        csv.DictReader((gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines())
    )
    if not rows or needs not in rows[0]:
        raise InvalidRequest(f"{path} has no column {needs!r}: it is no table of openb", code="trace_unknown")
    return rows
