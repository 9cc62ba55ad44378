"""How a job is shown to people: its amounts and rates, and the columns of its tables."""

from typing import Any, Final

from fabric.cli.output import duration, moment, optional, percent, time_of
from fabric.units import PPM, format_ct
from fabric.wire import fabric_pb2 as pb

_SECONDS_PER_HOUR: Final = 3600
_IDLE_SAID_US: Final = 10_000_000


def per_hour(uhs_per_s: int) -> str:
    return format_ct(uhs_per_s * _SECONDS_PER_HOUR, decimals=3)


def per_second(uhs_per_s: int) -> str:
    return format_ct(uhs_per_s, decimals=6)


def why(found: pb.Job) -> str:
    """What the state doesn't say already."""
    return "" if found.reason == found.state else found.reason


def warned(found: pb.Job) -> str:
    """That there is something to see to while the job runs."""
    return "warning: see `fabric job`" if found.warning else ""


def where(found: pb.Job | pb.Cdr | pb.QuoteReply) -> str:
    """`2 × H100`, or `1/4 × H100`."""
    return f"{'/'.join(map(str, found.fraction)) or found.devices} × {found.accelerator}"


def ran(found: pb.Job) -> str:
    """`1: h1 × 2, 12:00:01 to 12:00:09, evicted; 2: …`"""
    return "; ".join(
        f"{stay.attempt}: {', '.join(stay.nodes)} ({stay.accelerator}), {moment(optional(stay, 'started_at_us'))}"
        f" to {moment(optional(stay, 'ended_at_us'))}{f', {stay.ended}' if stay.ended else ''}"
        for stay in found.ran
    )


def utilisation(found: pb.Job) -> str:
    return percent(min(found.utilisation_ppm, PPM)) if found.state == "running" else "–"


def progress(found: pb.Job) -> str:
    """`140/600, loss 0.3127, 210/s, 3 min left`: as much of it as the job tells."""
    if not (found.step or found.steps_total):
        return "–"
    words = [f"{found.step}/{found.steps_total}" if found.steps_total else f"step {found.step}"]
    if found.HasField("loss_micro"):
        words.append(f"loss {found.loss_micro / 1_000_000:.4g}")
    if found.throughput_milli:
        words.append(f"{found.throughput_milli / 1_000:,.4g}/s")
    if found.HasField("eta_us"):
        words.append(f"{duration(found.eta_us)} left")
    return ", ".join(words)


def timers(found: pb.Job) -> str:
    """Where the job says its time goes."""
    told = sorted(found.timers.items(), key=lambda timer: -timer[1])
    return ", ".join(f"{name.replace('_', ' ')} {duration(us)}" for name, us in told if us)


def before(answer: pb.QuoteReply) -> str:
    """`0.12 CT in 3 min for half of 7 runs, at most 0.2 CT in 9 min and 2 attempts for nine in ten`"""
    if not answer.runs:
        return "no job of this name has succeeded yet"
    return (
        f"{format_ct(answer.burned_p50_uhs, round_up=True)} CT in {duration(answer.took_p50_us)} for half of {answer.runs} runs,"
        f" {format_ct(answer.burned_p90_uhs, round_up=True)} CT in {duration(answer.took_p90_us)} and"
        f" {answer.attempts_p90} attempts at most for nine in ten"
    )


def starts(answer: pb.QuoteReply) -> str:
    """`in 4 min for half of such jobs, in 1 h for nine in ten`"""
    if answer.placeable_now:
        return "now"
    if not answer.starts_known:
        return "when devices come free"
    return f"in {duration(answer.starts_p50_us)} for half of such jobs, in {duration(answer.starts_p90_us)} for nine in ten"


def idle(found: pb.Job) -> str:
    """That its devices are idle, what that costs, and what there is against it."""
    idle_us = optional(found, "idle_us")
    if idle_us is None or idle_us < _IDLE_SAID_US:
        return ""
    return (
        f"for {duration(idle_us)}, at {per_hour(found.burn_uhs_per_s)} CT/h: `fabric pause {found.job_id}` stops that;"
        " --auto-park does it by itself"
    )


def saved(found: pb.Job) -> str:
    """The last checkpoint, and the notice that the next one needs."""
    at = optional(found, "saved_at_us")
    if at is None:
        return "–"
    needs = optional(found, "grace_needed_us")
    learned = f"; needs {needs / 1_000_000:.1f} s of notice" if needs is not None else ""
    return f"step {found.saved_step}, {found.saved_bytes:,} bytes, at {time_of(at)}{learned}"


JOB_COLUMNS: Final[dict[str, Any]] = {
    "job": lambda found: found.job_id,
    "name": lambda found: found.name,
    "state": lambda found: found.state,
    "why": lambda found: why(found) or warned(found) or "–",
    "on": where,
    "burned CT": lambda found: format_ct(found.burned_uhs),
    "limit CT": lambda found: format_ct(found.limit_uhs),
    "submitted": lambda found: moment(found.submitted_at_us),
}
TOP_COLUMNS: Final[dict[str, Any]] = {
    "job": lambda found: found.job_id,
    "name": lambda found: found.name,
    "state": lambda found: found.state,
    "on": where,
    "util": utilisation,
    "burn CT/s": lambda found: per_second(found.burn_uhs_per_s),
    "burned CT": lambda found: format_ct(found.burned_uhs),
    "limit CT": lambda found: format_ct(found.limit_uhs),
    "runway": lambda found: duration(optional(found, "runway_us")),
    "progress": progress,
    "why": lambda found: found.reason if found.state != "running" else warned(found),
}
