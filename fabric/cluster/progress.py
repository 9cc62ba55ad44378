"""The newest word of every job on its progress. In memory only: a job that goes on tells again, and the journal needs none."""

from typing import Any, Final

import msgspec

from fabric.cluster.validation import text
from fabric.gate.views import JobView
from fabric.progress import TIMERS, WARNING_CHARS_MAX, Progress
from fabric.units import INT64_MAX

_REMEMBERED_MAX: Final = 4_096
_FIELDS: Final = ("steps_total", "loss_micro", "throughput_milli", "eta_us", "timers")


class Newest:
    """By job; whoever has not told anything for longest is forgotten first."""

    def __init__(self) -> None:
        self._by_job: dict[str, Progress] = {}

    def note(self, job_id: str, said: object) -> None:
        """What a runner said, if it makes sense: the process is its tenant's own."""
        try:
            told = _fit(msgspec.convert(msgspec.to_builtins(said), Progress))
        except (TypeError, ValueError, RecursionError):
            return
        self._by_job.pop(job_id, None)
        self._by_job[job_id] = told
        if len(self._by_job) > _REMEMBERED_MAX:
            del self._by_job[next(iter(self._by_job))]

    def step_of(self, job_id: str) -> int:
        """The last step it told of; 0 if it told none."""
        told = self._by_job.get(job_id)
        return 0 if told is None else told.step

    def shown(self, view: JobView) -> JobView:
        """The job's view with what it tells of itself. What lies ahead is told only of a job that runs."""
        told = self._by_job.get(view.job_id)
        if told is None:
            return view
        facts: dict[str, Any] = {name: getattr(told, name) for name in _FIELDS}
        if view.state not in ("running", "stopping"):
            facts |= {"eta_us": None, "throughput_milli": 0}
        else:
            facts["warning"] = told.warning
        return msgspec.structs.replace(view, step=max(told.step, view.step), **facts)


def _fit(said: Progress) -> Progress:
    """What there is a place for in what is shown, and no more: it is kept for each job, and one word that fits nowhere would
    spoil the list that it stands in.
    """
    return Progress(
        step=max(0, _number(said.step)),
        steps_total=_number(said.steps_total),
        loss_micro=None if said.loss_micro is None else _number(said.loss_micro),
        throughput_milli=_number(said.throughput_milli),
        eta_us=None if said.eta_us is None else _number(said.eta_us),
        timers={name: _number(said.timers[name]) for name in TIMERS if name in said.timers},
        warning=text(said.warning[:WARNING_CHARS_MAX]),
    )


def _number(said: int) -> int:
    return max(-INT64_MAX, min(said, INT64_MAX))
