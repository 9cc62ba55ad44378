"""FGD: a pod goes where it makes the fewest devices useless for the workload (fragmentation gradient descent, ATC'23).

A device's free part is a fragment for a kind of pod that can't use it: for want of cores, memory or devices on that machine,
of the type, or of a part that is large enough. Fragments count by how common the kind is.
"""

import random
from collections import Counter

from fabric.simulation.packing import WHOLE, Choice, Machine, Pod, after


class Fgd:
    """A packer for one workload. What it has reckoned of a machine stands until that changes."""

    def __init__(self, pods: list[Pod]) -> None:
        counts = Counter(pods)
        self._kinds = [(kind, count / len(pods)) for kind, count in counts.items()]
        self._reckoned: dict[Pod, list[tuple[int, float, list[int] | None]]] = {}
        self._before: dict[int, tuple[int, float]] = {}
        """Of each machine, its fragments, and after how many pods."""

    def __call__(self, pod: Pod, machines: list[Machine], rng: random.Random) -> Choice | None:
        del rng
        known = self._reckoned.setdefault(pod, [(-1, 0.0, None)] * len(machines))
        least, found = float("inf"), None
        for at, machine in enumerate(machines):
            if not machine.takes(pod):
                continue
            count, worse, parts = known[at]
            if count != machine.pods:
                worse, parts = self._reckon(pod, machine)
                known[at] = (machine.pods, worse, parts)
            if worse < least:
                least, found = worse, (machine, parts)
        return found

    def _reckon(self, pod: Pod, machine: Machine) -> tuple[float, list[int] | None]:
        """How many more fragments there would be, and what would be free of each device."""
        count, before = self._before.get(machine.at, (-1, 0.0))
        if count != machine.pods:
            before = self._fragments(machine.kind, machine.cpu, machine.memory, machine.parts)
            self._before[machine.at] = (machine.pods, before)
        options: list[list[int]] = []
        if not pod.devices or pod.parts == WHOLE:
            options.append(after(machine.parts, pod) if pod.devices else machine.parts)
        else:
            for part in sorted({part for part in machine.parts if part >= pod.parts}):
                left = machine.parts[:]
                left[left.index(part)] -= pod.parts
                options.append(left)
        cpu, memory = machine.cpu - pod.cpu, machine.memory - pod.memory
        scored = [(self._fragments(machine.kind, cpu, memory, parts) - before, parts) for parts in options]
        return min(scored, key=lambda each: each[0])

    def _fragments(self, kind: str, cpu: int, memory: int, parts: list[int]) -> float:
        total, whole, most = sum(parts), parts.count(WHOLE), max(parts, default=0)
        found = 0.0
        for pod, share in self._kinds:
            lacks = pod.cpu > cpu or pod.memory > memory or (pod.types and kind not in pod.types) or not pod.devices
            if lacks or (whole < pod.devices if pod.parts == WHOLE else most < pod.parts):
                found += share * total
            else:
                wanted = pod.parts
                found += share * sum([part for part in parts if part < wanted])
        return found
