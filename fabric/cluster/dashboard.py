"""Ray's dashboard shows every job of the fabric on its Jobs page: account, tokens held and burned.

Ray has no public way to list a job it doesn't run itself, so this is the only module that uses its job table directly;
a test holds it against the installed Ray.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

import ray
from ray.dashboard.modules.job.common import JobInfo, JobInfoStorageClient, JobStatus

from fabric.gate.views import JobView
from fabric.units import format_ct
from fabric.visible import visible

_AT_ONCE: Final = 500
_STATUS: Final = {
    "running": JobStatus.RUNNING,
    "stopping": JobStatus.RUNNING,
    "succeeded": JobStatus.SUCCEEDED,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.STOPPED,
}
"""Everything else waits: queued, starting, parked."""


class JobsPage:
    """Puts jobs on the page. With thousands of them at work it lags behind rather than take up the gate's time."""

    def __init__(self) -> None:
        address = ray.get_runtime_context().gcs_address
        self._client: Any = JobInfoStorageClient(ray._raylet.GcsClient(address=address))  # noqa: SLF001
        self._waiting: dict[str, JobView] = {}
        """By id, in the order in which they began to wait."""

    async def show(self, jobs: Sequence[JobView]) -> None:
        """Show these as soon as it is their turn: some of those that wait, at every call."""
        self._waiting.update((job.job_id, job) for job in jobs)
        for job_id in tuple(islice(self._waiting, _AT_ONCE)):
            await self._client.put_info(job_id, entry_of(self._waiting[job_id]))
            del self._waiting[job_id]


def told(job: JobView) -> str:
    """A job in a line: "acme · H100×2 · running · held 4.2 CT · burned 1.1 CT"."""
    words = [visible(job.account_id), f"{job.accelerator or 'any'}×{job.devices}", job.state]
    if job.reason:
        words.append(visible(job.reason))
    words += [
        f"held {format_ct(job.held_uhs, round_up=True)} CT",
        f"burned {format_ct(job.burned_uhs, round_up=True)} CT",
    ]
    return " · ".join(words)


def entry_of(job: JobView) -> Any:
    """The job as Ray's table has it."""
    return JobInfo(
        status=_STATUS.get(job.state, JobStatus.PENDING),
        entrypoint=visible(job.name) or job.kind,
        message=told(job),
        start_time=(job.started_at_us or job.submitted_at_us) // 1000,
        end_time=job.ended_at_us // 1000 if job.ended_at_us is not None else None,
        metadata={
            "account": visible(job.account_id),
            "accelerator": f"{job.accelerator}:{job.devices}",
            "tokens_limit": format_ct(job.limit_uhs),
            "tokens_held": format_ct(job.held_uhs, round_up=True),
            "tokens_burned": format_ct(job.burned_uhs, round_up=True),
            "attempts": str(job.attempts),
        },
    )
