"""A function that uses Ray: called in a process of its own, started for it, in which Ray is the lease's.

The runner is a process of the fabric's Ray cluster, and no process can be of two. What they say to each other is what a
runner says to a process that was forked for its job.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Self

import msgspec

from fabric.system.processes import seen_of
from fabric.worker.exits import judged, unless_ray
from fabric.worker.fork import Fork, commission_for
from fabric.worker.fork_messages import Commission, Talk
from fabric.worker.freeze import frozen
from fabric.worker.job_output import end_of_log
from fabric.worker.lease_ray_settings import variables_for
from fabric.worker.payload import read_payload
from fabric.worker.stage import JobEnd, Stage
from fabric.worker.stop_notice import program_of

_TOLD_LINES: Final = 12


class Spawned(Fork):
    """The conversation with one job's process, which is this one's child."""

    def __init__(self, talk: Talk, process: "subprocess.Popen[bytes]", *, lease_id: str) -> None:
        super().__init__(talk)
        self._process, self._lease_id = process, lease_id

    @classmethod
    def start(cls, stage: Stage, *, order: bytes, devices: tuple[str, ...]) -> Self:
        """Start the process; what it has to do it is told when it is there."""
        assert stage.own_ray is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        payload = read_payload(stage.lease.payload)
        given = {**payload.runtime_env.get("env_vars", {}), **payload.env}  # Ray reads its own as it is imported
        environment = variables_for(stage.own_ray, os.environ | given, given=given)
        with theirs:
            process = subprocess.Popen(  # noqa: S603  # our own module; what it calls is the tenant's
                [sys.executable, "-m", "fabric.worker.spawned", str(theirs.fileno())],
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        talk = Talk(ours)
        talk.say(commission_for(stage, order=order, devices=devices, environment=environment))
        return cls(talk, process, lease_id=stage.lease.lease_id)

    @property
    def has_ended(self) -> bool:
        """Whether the process has, whatever else still lives."""
        return seen_of(self._process.pid) is None

    def processes(self) -> list[int]:
        """All that live of the job."""
        return program_of(self._process.pid, lease_id=self._lease_id)

    @contextmanager
    def frozen(self) -> Iterator[frozenset[int]]:
        """Inside, all of them stand still; `Conflict` if they don't in time."""
        with frozen(self.processes) as pids:
            yield pids

    def perform(self, stage: Stage) -> JobEnd:
        """Hear the job to its end; never raises."""
        end = self.heard(stage)
        code = self._process.wait()
        if end is not None:
            return end
        end = judged(code, asked=stage.context.stop_requested)
        said = end_of_log(stage.log_file, _TOLD_LINES) if code > 0 and stage.log_file.exists() else ""
        return unless_ray(msgspec.structs.replace(end, error=f"{end.error}\n{said}".rstrip()), stage)


def main(descriptor: str) -> int:
    """Call one function."""
    from fabric.worker.zygote import work  # noqa: PLC0415  # it imports much

    talk = Talk(socket.socket(fileno=int(descriptor)))
    said: Any = talk.hear()
    return work(talk, said) if isinstance(said, Commission) else 1


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # it has said all; threads that it left are not waited for, and its Ray ends with it
