"""The stand-in where devices are simulated, or declared to have no counter: the processors' time is taken for theirs.

What the lease's processes ran, or waited to run, on the machine's cores: waiting for a core counts, or a busy neighbour would
make a job look idle.
"""

from collections.abc import Callable, Sequence
from typing import Final

from fabric.node.meters.meter import monotonic_us
from fabric.system.processes import CpuUsage, cpu_of, tree_of

_NOTHING: Final = CpuUsage({}, 0, 0)


class CpuMeter:
    """The stand-in: run and run-queue-wait time of the lease's process tree, at most its devices × the time passed.

    Counters are remembered per process, also of a runner that waits for its next lease: what it did since it was last
    looked at belongs to the lease that is attached next, so a job shorter than a tick is counted in full.
    """

    def __init__(self, *, clock_us: Callable[[], int] | None = None) -> None:
        self._clock_us = clock_us or monotonic_us
        self._leases: dict[str, _CpuLease] = {}
        self._seen: dict[int, CpuUsage] = {}

    def attach(self, lease_id: str, *, devices: Sequence[str], roots: Sequence[int], shared: bool = False) -> None:
        del shared  # what it counts is of the lease's processes alone
        if lease_id in self._leases:
            return
        for pid in roots:
            if pid not in self._seen and (usage := cpu_of(pid)) is not None:
                self._seen[pid] = usage
        self._leases[lease_id] = _CpuLease(count=max(1, len(devices)), roots=tuple(roots), read_at_us=self._clock_us())

    def read(self, lease_id: str, *, members: Sequence[int] | None = None) -> int:
        lease = self._leases.get(lease_id)
        if lease is None:
            return 0
        now_us = self._clock_us()
        pids = tree_of(lease.roots, lease_id=lease_id) if members is None else members
        used_us = self._used(lease, pids) + lease.carried_us
        limit_us = lease.count * (now_us - lease.read_at_us)
        lease.read_at_us = now_us
        # A counter may be a scheduler tick ahead of the clock; that much is carried on, more than that is a real excess.
        lease.carried_us = min(max(0, used_us - limit_us), 10_000)
        return max(0, min(used_us, limit_us))

    def is_estimated(self, lease_id: str) -> bool:  # noqa: ARG002 - the kernel always tells
        return False

    def readable(self, devices: Sequence[str] | None = None) -> None:
        """The devices are numbers, or said to have no counter."""

    def detach(self, lease_id: str) -> None:
        lease = self._leases.pop(lease_id, None)
        for pid in lease.born if lease else ():
            self._seen.pop(pid, None)

    def _used(self, lease: "_CpuLease", pids: Sequence[int]) -> int:
        """What the tree used since the last look, those that ended in between included by their parent's account."""
        used_us = 0
        usages = {pid: usage for pid in pids if (usage := cpu_of(pid)) is not None}
        for pid in lease.born - usages.keys():
            lease.ended_us += self._seen.pop(pid, _NOTHING).ran_us
        lease.born = usages.keys() - set(lease.roots)
        for pid, usage in usages.items():
            before = self._seen.get(pid, _NOTHING)
            used_us += _between(before, usage) + self._ended(lease, usage.children_us - before.children_us)
            self._seen[pid] = usage
        return used_us

    def _ended(self, lease: "_CpuLease", fresh_us: int) -> int:
        """Of what children used that were reaped since the last look: the part that was not counted while they lived."""
        counted_us = min(max(0, fresh_us), lease.ended_us)
        lease.ended_us -= counted_us
        return max(0, fresh_us) - counted_us


def _between(before: CpuUsage, now: CpuUsage) -> int:
    """What a process used between two readings. Threads that ended are missing from the first sum, waiting from the
    second: the larger is nearer the truth.
    """
    known = before.threads_us
    lived_us = sum(us - known[tid] if us >= known.get(tid, us + 1) else us for tid, us in now.threads_us.items())
    return max(lived_us, now.ran_us - before.ran_us, 0)


class _CpuLease:
    def __init__(self, *, count: int, roots: tuple[int, ...], read_at_us: int) -> None:
        self.count = count
        self.roots = roots
        self.read_at_us = read_at_us
        self.carried_us = 0
        self.born: set[int] = set()
        self.ended_us = 0
