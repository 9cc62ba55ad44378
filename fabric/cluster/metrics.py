"""The fabric's figures in Ray's metrics. Labels are tiers, services, types and states: never accounts or jobs."""

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from ray.util.metrics import Counter, Gauge, Histogram

from fabric.charging.served import Served
from fabric.enforcement.health import Health
from fabric.gate.views import JobView

_UHS_PER_CT: Final = 3.6e9
_JOB_TAGS: Final = ("accelerator", "kind", "tier")
_CALL_TAGS: Final = ("model", "tier")
_COMMIT_BOUNDS_MS: Final = [0.5, 1, 2, 5, 10, 20, 50, 100, 500]


class _Labels(NamedTuple):
    """What a figure about a job is told apart by, as `_JOB_TAGS` names it."""

    accelerator: str
    kind: str
    tier: str


class Metrics:
    """Told what happens, it keeps Ray's counters. Only inside a process that Ray runs or is connected to."""

    def __init__(self) -> None:
        self._held = Gauge("fabric_tokens_held", "Tokens held for jobs.", tag_keys=_JOB_TAGS)
        self._burned = Counter("fabric_tokens_burned", "Tokens burned by jobs.", tag_keys=_JOB_TAGS)
        self._jobs = Gauge("fabric_jobs", "Jobs by state.", tag_keys=("state",))
        self._leases = Gauge("fabric_leases", "Leases that hold devices.")
        self._decisions = Counter("fabric_decisions", "Events the gate has decided.", tag_keys=("outcome",))
        self._commit_ms = Histogram(
            "fabric_commit_ms", "From handing events in to their durable answers.", boundaries=_COMMIT_BOUNDS_MS
        )
        self._unreadable = Gauge(
            "fabric_devices_unreadable",
            "Devices whose use can't be read: charged as estimated, and not sold.",
            tag_keys=("accelerator",),
        )
        self._unleased = Counter("fabric_unleased_removed", "Unleased uses of accelerators that were removed.")
        self._looks_failed = Gauge(
            "fabric_unleased_failures", "Tables and items that could not be had when unleased use was looked for."
        )
        self._stuck = Gauge(
            "fabric_devices_stuck", "Devices that Ray holds for nobody: not sold until their node is new."
        )
        self._calls = Counter("fabric_calls", "Calls of language models.", tag_keys=_CALL_TAGS)
        self._llm_tokens = Counter("fabric_llm_tokens", "Tokens of language models.", tag_keys=(*_CALL_TAGS, "kind"))
        self._call_tokens = Counter("fabric_call_tokens_burned", "Tokens burned by calls.", tag_keys=_CALL_TAGS)
        self._written_off = Counter(
            "fabric_call_tokens_written_off", "Tokens that calls used and nothing covered.", tag_keys=_CALL_TAGS
        )
        self._open_usage = Gauge("fabric_open_usage", "Calls that could not be charged and wait for an operator.")
        self._notices = {
            "behind": Gauge("fabric_notices_behind", "Entries of the journal that nobody was told of yet."),
            "waiting": Gauge("fabric_notices_waiting", "Notices that wait for being delivered."),
            "failing": Gauge("fabric_notice_endpoints_failing", "Endpoints that nothing arrives at now."),
            "ended": Gauge("fabric_notice_endpoints_ended", "Endpoints that answered 410 Gone."),
        }
        self._served: dict[tuple[str, str], Served] = {}
        self._known: dict[str, JobView] = {}
        self._burned_uhs: dict[str, int] = {}
        self._shown: set[_Labels] = set()
        self._unreadable_kinds: set[str] = set()

    def jobs(self, jobs: Sequence[JobView]) -> None:
        """Jobs that changed; one that is settled will not change again, and is forgotten."""
        for job in jobs:
            fresh_uhs = job.burned_uhs - self._burned_uhs.get(job.job_id, 0)
            if fresh_uhs > 0:
                self._burned.inc(fresh_uhs / _UHS_PER_CT, tags=_tags(_labels(job)))
            self._burned_uhs[job.job_id] = max(job.burned_uhs, self._burned_uhs.get(job.job_id, 0))
            self._known[job.job_id] = job
        self._show()

    def calls(self, served: Mapping[tuple[str, str], Served]) -> None:
        """What calls by model and plan have come to, ever: as many of each as the operator offers. A counter has all that
        the journal has, so that whoever restarts the gate loses no call, and counts none twice.
        """
        for (model, tier), total in served.items():
            each = total.since(self._served.get((model, tier), Served()))
            self._served[model, tier] = total
            if each.calls <= 0:
                continue
            tags = {"model": model, "tier": tier}
            self._calls.inc(each.calls, tags=tags)
            kinds = {
                "prompt": each.prompt_tokens - each.cached_tokens,
                "cached": each.cached_tokens,
                "completion": each.completion_tokens,
            }
            for kind, count in kinds.items():
                if count:
                    self._llm_tokens.inc(count, tags={**tags, "kind": kind})
            if each.charged_uhs:
                self._call_tokens.inc(each.charged_uhs / _UHS_PER_CT, tags=tags)
            if each.written_off_uhs:
                self._written_off.inc(each.written_off_uhs / _UHS_PER_CT, tags=tags)

    def open_usage(self, count: int) -> None:
        """Calls that were used, and are neither charged nor written off: for an operator to close."""
        self._open_usage.set(count)

    def notices(self, behind: int, waiting: int, failing: int, ended: int) -> None:
        """How far those are who tell accounts of things."""
        for name, count in (("behind", behind), ("waiting", waiting), ("failing", failing), ("ended", ended)):
            self._notices[name].set(count)

    def leases(self, count: int) -> None:
        self._leases.set(count)

    def unreadable(self, found: Sequence[tuple[str, int]]) -> None:
        """By node: the type of its devices, and how many of them can't be read."""
        counts: Tally[str] = Tally(dict.fromkeys(self._unreadable_kinds, 0))
        for kind, count in found:
            counts[kind] += count
        for kind, count in counts.items():
            self._unreadable.set(count, tags={"accelerator": kind})
        self._unreadable_kinds.update(counts)

    def decided(self, outcomes: Mapping[str, int]) -> None:
        """So many events were accepted, refused, ..."""
        for outcome, count in outcomes.items():
            self._decisions.inc(count, tags={"outcome": outcome})

    def committed(self, milliseconds: float) -> None:
        self._commit_ms.observe(milliseconds)

    def removed_unleased(self, count: int) -> None:
        if count:
            self._unleased.inc(count)

    def looked(self, health: Health) -> None:
        """How the looks for unleased use go: failures since the gate's start, and devices that are held for nobody."""
        self._looks_failed.set(health.failures)
        self._stuck.set(sum(health.stuck.values()))

    def _show(self) -> None:
        held: Tally[_Labels] = Tally(dict.fromkeys(self._shown, 0))
        for job in self._known.values():
            held[_labels(job)] += job.held_uhs
        for labels, uhs in held.items():
            self._held.set(uhs / _UHS_PER_CT, tags=_tags(labels))
        self._shown.update(held)
        states = Tally(job.state for job in self._known.values())
        for state in ("queued", "starting", "running", "stopping", "parked", "succeeded", "failed", "cancelled"):
            self._jobs.set(states[state], tags={"state": state})
        for job_id in [job_id for job_id, job in self._known.items() if job.settled and job.ended_at_us is not None]:
            del self._known[job_id], self._burned_uhs[job_id]


def _labels(job: JobView) -> _Labels:
    return _Labels(job.accelerator.partition("|")[0] or "any", job.kind, job.tier)


def _tags(labels: _Labels) -> dict[str, str]:
    return labels._asdict()
