"""How a job is shown to people: its amounts and rates, and the columns of its tables."""

from typing import Any, Final

from fabric.cli.output import duration, moment, optional, percent
from fabric.units import PPM, format_ct
from fabric.wire import fabric_pb2 as pb

_SECONDS_PER_HOUR: Final = 3600


def per_hour(uhs_per_s: int) -> str:
    return format_ct(uhs_per_s * _SECONDS_PER_HOUR, decimals=3)


def per_second(uhs_per_s: int) -> str:
    return format_ct(uhs_per_s, decimals=6)


def why(found: pb.Job) -> str:
    """What the state doesn't say already."""
    return "" if found.reason == found.state else found.reason


def where(found: pb.Job) -> str:
    return f"{found.devices} × {found.accelerator}"


def utilisation(found: pb.Job) -> str:
    return percent(min(found.utilisation_ppm, PPM)) if found.state == "running" else "–"


JOB_COLUMNS: Final[dict[str, Any]] = {
    "job": lambda found: found.job_id,
    "name": lambda found: found.name,
    "state": lambda found: found.state,
    "why": lambda found: why(found) or "–",
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
    "why": lambda found: found.reason if found.state != "running" else "",
}
