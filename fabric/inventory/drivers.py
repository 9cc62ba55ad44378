"""Whose the drivers of a Ray cluster are: a lease's, or somebody's who is no job of ours.

A job's processes have Ray's token, so any of them can connect as a driver of its own, and start actors and tasks beside its
lease, which may be detached and outlive it. Such a driver is known while it runs: its process is counted to a lease; and
when it has ended, by what the agent of its machine remembers of such processes. What one has left that nobody has seen run is
nobody's on a cluster of our own, where no others come and go; on somebody else's cluster it is left alone.
"""

from collections.abc import Container, Mapping
from typing import Protocol

from fabric.inventory.ray_tables import JobRow
from fabric.system.processes import is_there


class Had(Protocol):
    """Asks the agent of a machine which of these processes, that were there at that time, were a lease's; None = it doesn't
    say.
    """

    def __call__(self, address: str, asked: Mapping[int, float]) -> Container[int] | None: ...


def nobody_says(address: str, asked: Mapping[int, float]) -> Container[int] | None:  # noqa: ARG001 - as `Had` has it
    """Where there is no agent to ask."""
    return None


class Drivers:
    """Remembers between looks what was found."""

    def __init__(self, *, own_cluster: bool) -> None:
        """Nobody is known yet.

        Args:
            own_cluster: whether it is ours, and so all on this machine.
        """
        self._own = own_cluster
        self._of_leases: set[str] = set()
        self._seen: set[str] = set()
        """Seen to run once, beside all leases."""
        self._others: set[str] = set()
        """Seen twice: whoever has asked in between whose its process is, has asked while it ran."""
        self._asked: set[str] = set()
        """Over, and nothing that an agent remembers."""

    def is_a_leases(self, job_id: str) -> bool:
        return job_id in self._of_leases

    def judge(
        self,
        job_ids: set[str],
        rows: Mapping[str, JobRow],
        *,
        claimed: Mapping[str, Container[int]],
        had: Had = nobody_says,
    ) -> None:
        """Look at these Ray jobs. Blocks where `had` does.

        Args:
            job_ids: theirs.
            rows: as Ray has them, asked after `claimed` was.
            claimed: by machine, the processes that an agent counts to a lease.
            had: asked once of a driver that is over.
        """
        self._of_leases &= rows.keys() | job_ids
        self._others &= rows.keys()
        self._asked &= rows.keys()
        over = []
        seen, self._seen = self._seen, set()
        for job_id in job_ids - self._of_leases:
            row = rows.get(job_id)
            if row is None or row.is_over or (self._own and not is_there(row.driver_pid)):
                if self._own and job_id not in self._others:
                    self._of_leases.add(job_id)
                elif row is not None and not self._own and job_id not in self._asked:
                    over.append(row)
            elif row.driver_pid in claimed.get(row.driver_address, ()):
                self._of_leases.add(job_id)
            elif row.driver_address in claimed:
                self._seen.add(job_id)
                if job_id in seen:
                    self._others.add(job_id)
        self._judge_over(over, had)

    def _judge_over(self, over: list[JobRow], had: Had) -> None:
        for address in dict.fromkeys(row.driver_address for row in over):
            here = [row for row in over if row.driver_address == address]
            found = had(address, {row.driver_pid: row.started_at_s for row in here})
            if found is not None:
                self._of_leases |= {row.id for row in here if row.driver_pid in found}
                self._asked |= {row.id for row in here if row.driver_pid not in found}
