"""The zygote: one process a machine that has imported torch, touched no device, and runs no thread. Jobs are forked from it.

Importing torch takes seconds; a fork takes milliseconds. Per job there are two processes. The *stem* carries the lease's id
where the kernel shows it (`/proc/pid/environ`), so meters and the reaper find it without a word from anybody; whatever the
job leaves behind stays below it, and it tells the runner how the job's process ended. Its child is the job, and leads a
session of its own: it can be killed by number, and takes nothing with it.

The zygote itself never runs a job's code, and never opens a device: what is forked is clean for anyone.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Final

from fabric.system.processes import FABRIC_VARIABLE, LEASE_VARIABLE, NO_LEASE_YET, adopt_orphans, end_all, seen_of
from fabric.worker.fork_messages import (
    Commission,
    Ended,
    Exited,
    Reported,
    Saved,
    SaveWish,
    Saving,
    Started,
    StopWish,
    Talk,
)
from fabric.worker.lease_ray_settings import told_ray
from fabric.worker.members import group_of, join_group
from fabric.worker.traces import BROKEN, carry_trace, trace_of

SOCKET_NAME: Final = "zygote"
READY: Final = "ready"
ROOM_FOR_ID: Final = 400
"""Characters of a lease's id: as much of the environment is kept free for it."""
_IMPORTS: Final = (
    "numpy", "torch", "torch.nn.functional", "torch.optim", "torch.distributed", "torch.nn.parallel", "torch._dynamo",
    "torch.profiler", "torch.utils.serialization.config", "tensorboardX", "boto3", "training", "training.session",
    "fabric.worker.runner",
)  # fmt: skip
_LOOK_S: Final = 1.0
_BACKLOG: Final = 64
_CREDENTIALS: Final = 12
"""Bytes: a process, its user, its group."""


def environment_of(variables: dict[str, str], *, fabric: str = "") -> dict[str, str]:
    """The zygote's own environment: with room for a lease's id, whose the leases are, and without threads that a fork would lose."""
    return {
        **variables,
        LEASE_VARIABLE: NO_LEASE_YET * ROOM_FOR_ID,
        FABRIC_VARIABLE: fabric,
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def main(folder: str) -> int:
    """Import, say that it is ready, and fork until the parent is gone."""
    parent = os.getppid()
    for name in _IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    assert threading.active_count() == 1, "a fork keeps one thread"
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    path = Path(folder) / SOCKET_NAME
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(_BACKLOG)
    listener.settimeout(_LOOK_S)
    gc.collect()
    gc.freeze()
    print(READY, flush=True)  # noqa: T201  # what the agent waits for
    while os.getppid() == parent:
        _reap()
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        connection.settimeout(None)
        if os.fork() == 0:
            listener.close()
            os._exit(_stem(connection))
        connection.close()
    return 0


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _stem(connection: socket.socket) -> int:
    """Stand above one job: found by the lease's id, until nothing of it is left.

    The socket is open to all of this user's processes, a job's among them. So whose the fork is doesn't depend on a word of
    whoever asks: it is where that process is, by its control group and its limits.
    """
    asker = int.from_bytes(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS)[:4], sys.byteorder
    )
    trace, group = trace_of(asker), group_of(asker)
    if trace == BROKEN or seen_of(asker) is None:
        return 1
    join_group(group)
    carry_trace(trace)
    talk = Talk(connection)
    said = talk.hear()
    if not isinstance(said, Commission):
        return 1
    os.setsid()
    adopt_orphans()
    carry_mark(said.lease_id)
    job = os.fork()
    if job == 0:
        os._exit(_job(talk, said))
    if said.tells_start:
        talk.say(Started(job=job, stem=os.getpid()))
    while True:
        pid, status = os.wait()
        if pid == job:
            if talk.is_over():
                end_all((), lease_id=said.lease_id)
            talk.say(Exited(code=os.waitstatus_to_exitcode(status)))
            talk.close()
            connection.close()
            break
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    return 0


def carry_mark(lease_id: str) -> None:
    """Write the lease's id where /proc shows this process's first environment. What is forked from it shows it, too."""
    mark = lease_id.encode()
    assert len(mark) <= ROOM_FOR_ID, f"{lease_id} is longer than any lease's id"
    entries = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    prefix = f"{LEASE_VARIABLE}=".encode()
    for at in range(1_000_000):
        address = entries[at]
        if address is None:
            break
        if ctypes.string_at(address, len(prefix)) == prefix:
            room = len(ctypes.string_at(address)) - len(prefix)
            ctypes.memmove(address + len(prefix), mark.ljust(room, b"\0"), room)
            return
    raise AssertionError("the zygote was started without room for a lease's id")


def _job(talk: Talk, commission: Commission) -> int:
    os.setsid()
    return work(talk, commission, forks_scripts=True)


def work(talk: Talk, commission: Commission, *, forks_scripts: bool = False) -> int:
    """Run a job in this process, which is its alone; the exit code."""
    from fabric.worker.execution import perform  # noqa: PLC0415
    from fabric.worker.runner import decode_order, stage_of  # noqa: PLC0415  # imported by the zygote, once

    os.environ.clear()
    os.environ.update(commission.environment)
    stage = stage_of(
        decode_order(commission.order),
        archive=pickle.loads(commission.archive),  # noqa: S301  # from the runner, over a socket of our own
        devices=commission.devices,
        on_saved=lambda step, write_us, size: talk.say(Saved(step=step, write_us=write_us, size=size)),
        on_report=lambda: talk.say(Reported(progress=stage.context.progress)),
        on_checkpoints=lambda: talk.say(Saving()),
    )
    stage.kept_folder = Path(commission.kept_folder) if commission.kept_folder else None
    stage.own_ray = told_ray(commission.environment) or stage.own_ray
    stage.context.owns_process, stage.forks_scripts = True, forks_scripts
    threading.Thread(target=_listen, args=(talk, stage), name="fabric-wishes", daemon=True).start()
    end = perform(stage)
    talk.say(Reported(progress=stage.context.progress))
    talk.say(Ended(end=end))
    sys.stdout.flush()
    sys.stderr.flush()
    return 0


def _listen(talk: Talk, stage: Any) -> None:
    """Hand the fabric's wishes to the job. A function that listens to SIGTERM gets one."""
    while (said := talk.hear()) is not None:
        match said:
            case StopWish():
                stage.ask_to_stop(said.reason, seconds_left=said.seconds_left, save=said.save)
                if stage.program is None and callable(signal.getsignal(signal.SIGTERM)):
                    stage.signalled = True
                    os.kill(os.getpid(), signal.SIGTERM)
            case SaveWish():
                stage.ask_to_save()
            case _:
                pass
    # The runner is gone, and with it whoever would end this: the fabric went down, or Ray killed it.
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
