"""What it means how a job's process ended: whether it succeeded, saved, failed, or was interrupted by the notice to stop.

Once a job was asked to stop, all but success is for the notice's sake, whether it is a program or a function that catches
the signal: it goes on when there is room.
"""

import re
import signal
from pathlib import Path
from typing import Final

import msgspec
import psutil

from fabric import context
from fabric.gate.events import LeaseOutcome
from fabric.system.private_folder import WORK
from fabric.worker.error_text import shortened
from fabric.worker.job_output import end_of_log
from fabric.worker.ray_end import look
from fabric.worker.ray_start import why_not
from fabric.worker.stage import JobEnd, Stage
from fabric.worker.stop_notice import shell_code

DIED: Final = "worker_died"
"""How the error of a rank begins that ended without a word: killed, out of memory, crashed."""
ENDED_UNSAVED: Final = "it ended when it was asked to stop, and saved nothing"
_ERROR_LINES: Final = 12
_PATH_MAX: Final = 4_096
_MISSING: Final = re.compile(
    rf"no such file or directory(?:: b?'([^'\n]{{0,{_PATH_MAX}}})'|, \w{{1,16}} '([^'\n]{{0,{_PATH_MAX}}})')?",
    re.IGNORECASE,
)
"""As shells and C's programs, which name the file before, Python, and Node say it."""


def exited(stage: Stage, code: object) -> JobEnd:
    """What an exit code means. One that was asked to stop and let the signal end it has not failed, but saved nothing."""
    if code in (0, None):
        return JobEnd(outcome=LeaseOutcome.SUCCEEDED)
    if code == context.EXIT_SAVED:
        return saved(stage)
    if code in (-signal.SIGTERM, 128 + signal.SIGTERM) and stage.context.stop_requested:
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=ENDED_UNSAVED)
    said = _said_of(code)
    tail = end_of_log(stage.log_file, _ERROR_LINES)
    lines = [said, shortened(tail), not_sent(tail, stage.folder / WORK)]
    return JobEnd(outcome=LeaseOutcome.FAILED, error="\n".join(line for line in lines if line))


def not_sent(said: str, work: Path) -> str:
    """What helps a job that failed for want of a file: not one that is elsewhere on the node. "" if it didn't."""
    for match in _MISSING.finditer(said):
        path = match[1] or match[2] or _named_before(said[max(0, match.start() - _PATH_MAX) : match.start()])
        if not path.startswith("/") or Path(path).is_relative_to(work) or Path(path).is_relative_to(work.resolve()):
            name = path.removeprefix(f"{work.resolve()}/").removeprefix(f"{work}/") or "a file"
            return (
                f"{name} was not there: a job takes along the files that its command names and the modules that its code"
                " imports. What else lies beside them, such as data, is sent with its folder: --working-dir (working_dir=)"
            )
    return ""


def _named_before(said: str) -> str:
    return re.split(r"[\s:'\"]", said.removesuffix(": "))[-1] if said.endswith(": ") else ""


def saved(stage: Stage) -> JobEnd:
    again = not stage.context.stop_requested
    return JobEnd(outcome=LeaseOutcome.SAVED, again=again, error=stage.context.leaves_for if again else "")


def excused(end: JobEnd, *, asked: bool) -> JobEnd:
    """Once a job was asked to stop, all but success is for the notice's sake: it goes on when there is room."""
    if asked and end.outcome is LeaseOutcome.FAILED:
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=f"{ENDED_UNSAVED} ({end.error})")
    return end


def unless_ray(end: JobEnd, stage: Stage) -> JobEnd:
    """What an end means of a job that may start a Ray of its own: no failure, where that has just not started, or has ended in the
    middle. That is tried again, and no refund.
    """
    if end.outcome is not LeaseOutcome.FAILED or stage.own_ray is None:
        return end
    look()
    why = why_not(Path(stage.own_ray.folder))
    error = f"{why}\n{end.error}".rstrip()
    return msgspec.structs.replace(end, outcome=LeaseOutcome.INTERRUPTED, error=error, result_ref="") if why else end


def judged(code: int, *, asked: bool) -> JobEnd:
    """What an end without a word means."""
    if code == context.EXIT_SAVED:
        return JobEnd(outcome=LeaseOutcome.SAVED, again=not asked)
    if code == -signal.SIGTERM and asked:
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=ENDED_UNSAVED)
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    more = f" ({_out_of_memory()})" if code == -signal.SIGKILL and not asked else ""
    how = f"exited with {code}" if code >= 0 else f"was ended by {name}{more}"
    end = JobEnd(outcome=LeaseOutcome.FAILED, error=f"{DIED}: its process {how}")
    return excused(end, asked=asked and code > 0)


def _said_of(code: object) -> str:
    if not isinstance(code, int):
        return str(code)
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else str(-code)
    more = f" ({_out_of_memory()})" if code == -signal.SIGKILL else ""
    return f"{DIED}: its process was ended by {name}, exit code {shell_code(code)}{more}"


def _out_of_memory() -> str:
    """What a kill that nobody owns up to means, and what there is against it."""
    gib = psutil.virtual_memory().total / 2**30
    return (
        f"out of memory, most likely: this machine has {gib:.0f} GiB for all of its jobs. Use smaller micro-batches or fewer "
        "reader processes, or nodes with more memory; with max_retries it resumes from its last checkpoint"
    )
