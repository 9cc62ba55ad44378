"""The folder of a function that is called in a process of its own: its runner keeps it meanwhile, as it does a command's.

So what a function writes there, such as Ray Tune to its `storage_path`, outlives its attempts. It goes on when it is asked to
stop, unless it looks for that or catches the signal; what the folder holds is committed as it is shortly before its end.
"""

import os
from collections.abc import Callable

from fabric.errors import FabricError
from fabric.gate.events import LeaseOutcome
from fabric.system.private_folder import make_private
from fabric.worker.checkpoint_folder import kept_folder
from fabric.worker.execution import closed, or_parked, refused
from fabric.worker.fork import ForkedCall
from fabric.worker.payload import read_payload
from fabric.worker.spawned import Spawned
from fabric.worker.stage import JobEnd, Stage


def perform_beside(stage: Stage, start: Callable[[], Spawned | ForkedCall]) -> JobEnd:
    """Call the function in the process that `start` starts, and keep its folder; never raises.

    The attempt is begun here: its process must not take the claim over by which the folder is committed, unless the
    function's own code saves.
    """
    try:
        kept = kept_folder(
            make_private(stage.folder), stage.context, os.environ | read_payload(stage.lease.payload).env
        )
        if stage.context.rank == 0 and stage.lease.epoch > 1:
            stage.context.begin()
        kept.open()
    except FabricError as error:
        return refused(error)
    except OSError as error:
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=f"it has no folder to run in: {error}")
    stage.kept_folder = kept.folder
    end = JobEnd(outcome=LeaseOutcome.FAILED)
    try:
        spawned = start()
    except OSError as error:
        kept.close(commit=False)
        return JobEnd(outcome=LeaseOutcome.INTERRUPTED, error=f"its process can't be started: {error}")
    try:
        kept.saves_itself = lambda: spawned.saves_itself
        kept.command = spawned
        end = spawned.perform(stage)
        kept.command = None
    finally:
        is_over = end.outcome in (LeaseOutcome.SAVED, LeaseOutcome.SUCCEEDED)
        lost = closed(stage, kept, commit=is_over and spawned.saves == 0 and stage.context.save_wanted)
    return or_parked(stage, end if lost is None or not is_over else lost)
