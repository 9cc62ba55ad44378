"""What became of a job, moment by moment, and the line in which it is told.

    RUNNING on 2 × H100 → EVICTED at step 140, durable in 20 ms, 0 steps lost → WAITING 3 s → RESUMED on 3 × A100

Kept with the job, so that a restart forgets nothing of it. Knows neither leases nor the ledger: whoever notes a moment
says what it cost. Of a job with a very long story the beginning and the newest part are kept.
"""

from typing import Final

import msgspec

from fabric.units import CT_DECIMALS, format_ct

KEPT_MAX: Final = 48
"""Moments of one job."""
_STOPS: Final = ("stopping", "lost")
_WAITED_US_MIN: Final = 1_000_000
"""Shorter waits before the first start are not worth a word."""
_MS: Final = 1_000
_S: Final = 1_000_000


class Moment(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One thing that happened to a job. Of what isn't known, or makes no sense here, nothing is said."""

    at_us: int
    what: str
    """waiting | running | resumed | stopping | lost | parked | ended"""
    why: str = ""
    """Of a stop, a park or an end: the reason, as the job's state has it."""
    on: str = ""
    """Of a start: "3 × A100"."""
    step: int | None = None
    durable_us: int | None = None
    """Of a stop: from the notice until its checkpoint was durable."""
    lost_steps: int | None = None
    lost_uhs: int | None = None
    """What had been burned since the last durable step, and is paid for."""
    refunded_uhs: int | None = None
    """The same, given back: the platform took the devices away."""
    unsaved: bool = False
    """Whether the job had never saved: then all that it burned is since its start."""
    restored_us: int | None = None
    """Of a resumption: from its start to its first step."""


def noted(moments: list[Moment], moment: Moment) -> None:
    """One more. Waiting that goes on is one moment, whatever it is for."""
    if moments and moments[-1].what == moment.what == "waiting":
        return
    moments.append(moment)
    if len(moments) > KEPT_MAX:
        del moments[1]


def amended(moments: list[Moment], **facts: int | None) -> None:
    """What is known by now of the last stop or loss: nothing if there is none since the last start."""
    for at in range(len(moments) - 1, -1, -1):
        if moments[at].what in ("running", "resumed"):
            return
        if moments[at].what in _STOPS:
            moments[at] = msgspec.structs.replace(moments[at], **facts)
            return


def restored(moments: list[Moment], restored_us: int) -> None:
    """How long the attempt that runs took to its first step, if it resumed something."""
    for at in range(len(moments) - 1, -1, -1):
        if moments[at].what in ("running", "resumed"):
            if moments[at].what == "resumed":
                moments[at] = msgspec.structs.replace(moments[at], restored_us=restored_us)
            return


def told(moments: list[Moment], *, submitted_at_us: int, now_us: int) -> str:
    """The line. A wait lasts until the moment after it, or until now; the first one needs no moment of its own."""
    waited_us = (moments[0].at_us if moments else now_us) - submitted_at_us
    words = [f"WAITING {_duration(waited_us)}"] if not moments or waited_us >= _WAITED_US_MIN else []
    for at, moment in enumerate(moments):
        if at and moment.what == "ended" and moment.why == moments[at - 1].why and moments[at - 1].what in _STOPS:
            continue  # FAILED, or CANCELLED, at this step: it needn't be said twice
        until_us = moments[at + 1].at_us if at + 1 < len(moments) else now_us
        words.append(_said(moment, lasted_us=max(until_us - moment.at_us, 0)))
    return " → ".join(words)


def _said(moment: Moment, *, lasted_us: int) -> str:
    match moment.what:
        case "waiting":
            return f"WAITING {_duration(lasted_us)}"
        case "running" | "resumed":
            first = "" if moment.restored_us is None else f", first step in {_duration(moment.restored_us)}"
            return f"{moment.what.upper()} on {moment.on}{first}"
        case "parked":
            return f"PARKED ({moment.why.replace('_', ' ')}) {_duration(lasted_us)}"
        case "ended":
            return moment.why.upper()
        case _:
            return _stopped(moment)


def _stopped(moment: Moment) -> str:
    """`EVICTED at step 140, durable in 20 ms, 0 steps lost, 0.0003 CT burned after the last save`"""
    head = (moment.why or "lost").replace("_", " ").upper()
    if moment.step is not None:
        head += f" at step {moment.step}"
    facts = [head]
    if moment.durable_us is not None:
        facts.append(f"durable in {_duration(moment.durable_us)}")
    if moment.lost_steps is not None:
        facts.append(f"{moment.lost_steps} step{'' if moment.lost_steps == 1 else 's'} lost")
    if moment.refunded_uhs:
        facts.append(f"{format_ct(moment.refunded_uhs, decimals=CT_DECIMALS)} CT refunded")
    if moment.lost_uhs:
        since = ", nothing saved" if moment.unsaved else " after the last save"
        facts.append(f"{format_ct(moment.lost_uhs, round_up=True)} CT burned{since}")
    return ", ".join(facts)


def _duration(us: int) -> str:
    if us < _S:
        return f"{us // _MS} ms"
    seconds = us // _S
    if seconds < 120:  # noqa: PLR2004
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 120:  # noqa: PLR2004
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
