"""All that one rank of one attempt runs with, and how it ended."""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from fabric import context
from fabric.context.host import ContextHost
from fabric.context.link import Invitation
from fabric.gate.events import LeaseOutcome
from fabric.gate.instructions import Lease
from fabric.progress import Progress
from fabric.storage.archive import Archive
from fabric.worker.lease_ray_settings import LeaseRay
from fabric.worker.program import Program


class Save(NamedTuple):
    """A checkpoint that became durable."""

    step: int
    write_us: int
    size: int = 0
    restore_us: int = 0
    """From the attempt's start to its first step; 0 = not known."""


class JobEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How one rank ended. What comes from its own process never says LOST: who is to blame for that the platform saw itself,
    or nobody (see `fabric.cluster.validation`).
    """

    outcome: LeaseOutcome
    error: str = ""
    result_ref: str = ""
    saves: tuple[Save, ...] = ()
    step: int = 0
    """The last one it reported."""
    again: bool = False
    """It ended by itself to be queued anew: exit code 75 while nobody had asked it to stop."""
    reusable: bool = False
    """Whether another function of the same account may run in the process, if this one has left nothing there (`Runner.is_clean`)."""
    used_ray: bool = False
    """Whether the job started Ray tasks or actors: then its placement group can't be kept."""
    progress: Progress | None = None
    """What it told last of how far it was: of a short job nobody has asked before."""
    exit_code: int | None = None
    """Of a script or command that has ended by itself, as a shell tells it; None = it didn't, or it is a function."""


class Wishes(Protocol):
    """Whoever hands the fabric's wishes on to a job's own process."""

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool) -> None:
        """Save, and end."""

    def ask_to_save(self) -> None:
        """Save, and go on."""


@dataclass(slots=True)
class Stage:
    """Everything one rank of one attempt runs with."""

    lease: Lease
    folder: Path
    log_file: Path
    archive: Archive
    context: context.Context
    master: tuple[str, int]
    local: tuple[int, int] = (0, 1)
    """Which of how many ranks it is that share this node's devices."""
    invitation: Invitation | None = None
    """What processes of its program make their context of; None = they have none."""
    own_ray: LeaseRay | None = None
    """What Ray is, in processes that are the job's alone; None = there is none."""
    forks_scripts: bool = False
    """Whether a script may be forked from this process, which has imported torch and done nothing else."""
    process: "subprocess.Popen[bytes] | None" = None
    """What installs the job's packages."""
    program: Program | None = None
    host: ContextHost | None = None
    kept_folder: Path | None = None
    """What a function in a process of its own keeps files in; whoever started the process commits it. None = it has none."""
    told: frozenset[str] = frozenset()
    """The variables in which the fabric tells the job who it is."""
    signalled: bool = False
    """Whether a function that catches the signal got it as the notice: how it ends then is for the notice's sake."""
    fork: "Wishes | None" = None
    """The process of its own that the job runs in, if it does."""

    def ask_to_save(self) -> None:
        """Set the job's flag."""
        self.context.ask_to_save()
        if self.fork is not None:
            self.fork.ask_to_save()
        if self.host is not None:
            self.host.ask_to_save()

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool) -> None:
        """Set the job's flag, and signal whoever listens to signals instead."""
        self.context.ask_to_stop(reason, seconds_left=seconds_left, save=save)
        if self.fork is not None:
            self.fork.ask_to_stop(reason, seconds_left=seconds_left, save=save)
        if self.program is not None:
            self.program.ask_to_stop()
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
