"""The whole fabric as one background process: started, found again, and stopped.

`up` starts the process that serves, waits until every part answers, and tells how it gets on meanwhile. The process
holds the embedded Ray cluster (or joins a running one), makes sure that the gate actor lives, and keeps its door open.
Its state directory says where it is; a lock there keeps a second one out. `down` stops it in order: the jobs, which are
asked to save and go on after the next `up`, the door, the gate with a snapshot, the cluster. Killed instead, nothing is
lost: the journal has everything, and the next `up` ends what the dead one left behind and goes on.

On a Ray cluster that was there before (`ray: {mode: join}`) the gate and the jobs outlive the door: `down` closes the
door alone, jobs go on, are metered and settle, and the next `up` finds the gate where it is. `down(gate=True)` stops the
gate as well: to upgrade it, or to give it another journal, archive or credentials. Jobs go on even then; the next gate
finds them.

Knows processes, files and the state directory; knows neither Ray nor the gate.
"""

from fabric.daemon.cleanup import end_remains, new_session_folder
from fabric.daemon.process import down, up
from fabric.daemon.serving_host import Hosting
from fabric.daemon.state_dir import (
    Condition,
    Running,
    Step,
    condition,
    ending_file,
    held,
    now_file,
    operator_key,
    operator_key_file,
    ray_token_file,
    role_key,
    role_key_file,
    running,
)
from fabric.daemon.unsettled import unsettled_calls

__all__ = [
    "Condition",
    "Hosting",
    "Running",
    "Step",
    "condition",
    "down",
    "end_remains",
    "ending_file",
    "held",
    "new_session_folder",
    "now_file",
    "operator_key",
    "operator_key_file",
    "ray_token_file",
    "role_key",
    "role_key_file",
    "running",
    "unsettled_calls",
    "up",
]
