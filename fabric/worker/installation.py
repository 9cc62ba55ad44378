"""A job's packages, installed in its lease: what `environments` builds, run and judged in the runner's process."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from fabric.errors import FabricError
from fabric.gate.events import LeaseOutcome
from fabric.system.inheritance import withheld
from fabric.system.private_folder import make_private, rooms_of
from fabric.system.processes import FABRIC_VARIABLE, LEASE_VARIABLE
from fabric.worker.environments import build_command
from fabric.worker.exits import ENDED_UNSAVED
from fabric.worker.job_output import end_of_log, logged
from fabric.worker.payload import Payload, read_payload
from fabric.worker.stage import JobEnd, Stage
from fabric.worker.working_folder import unpacked

_TOLD_LINES: Final = 12


def furnish(stage: Stage, folder: Path) -> JobEnd:
    """Install the job's packages into a folder, in processes of the lease's; never raises."""
    try:
        make_private(stage.folder)
    except (FabricError, OSError) as error:
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=f"it has no folder to run in: {error}")
    with logged(stage.log_file):
        try:
            return _furnished(stage, read_payload(stage.lease.payload), folder)
        except FabricError as error:
            return JobEnd(outcome=LeaseOutcome.FAILED, error=f"{error.code}: {error.message}")
        except Exception as error:  # noqa: BLE001  # whatever went wrong, the runner says how the attempt ended
            return JobEnd(outcome=LeaseOutcome.FAILED, error=f"runtime_env_failed: {type(error).__name__}: {error}")


def _furnished(stage: Stage, payload: Payload, folder: Path) -> JobEnd:
    wanted = payload.environment
    assert wanted is not None, "a job without packages of its own is run as it is"
    work, home, temporary = rooms_of(stage.folder)
    unpacked(stage.archive, payload.working_dir_blob if wanted.files else "", into=work)
    rooms = {"HOME": str(home), "TMPDIR": str(temporary), LEASE_VARIABLE: str(stage.lease.lease_id)}
    rooms[FABRIC_VARIABLE] = os.environ.get(FABRIC_VARIABLE, "")
    given = {**payload.runtime_env.get("env_vars", {}), **payload.env}
    stage.process = subprocess.Popen(  # noqa: S603  # our own module; what it runs is the tenant's
        build_command(folder),
        cwd=work,
        stdin=subprocess.PIPE,
        start_new_session=True,
        env=_inherited(given) | given | rooms,
    )
    if stage.context.stop_requested:
        os.killpg(stage.process.pid, signal.SIGTERM)
    stage.process.communicate(msgspec.json.encode(wanted))
    return _judged(stage, stage.process.returncode)


def _inherited(given: Mapping[str, str]) -> dict[str, str]:
    """What a package's own code may see of this process' environment."""
    kept_back = set(withheld(os.environ, apart=True)) - given.keys()
    return {name: value for name, value in os.environ.items() if name not in kept_back}


def _judged(stage: Stage, code: int) -> JobEnd:
    if code == 0:
        return JobEnd(outcome=LeaseOutcome.SUCCEEDED)
    if stage.context.stop_requested and code in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=ENDED_UNSAVED)
    tail = end_of_log(stage.log_file, _TOLD_LINES)
    return JobEnd(outcome=LeaseOutcome.FAILED, error=f"runtime_env_failed: exit code {code}\n{tail}".rstrip())
