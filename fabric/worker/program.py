"""A job's script or command: processes of its own, started here, given the notice to stop, and waited for to their end.

A command is executed. A script of a job that is glad to find torch imported is forked instead, from a process that has it
(`script_process`). Who has ended by itself when the notice comes, or ends so after it, needs none: whoever stands above it is
let go on for a moment, to end as it would, or to start the next one that can save.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from fabric import context
from fabric.errors import Conflict
from fabric.system.processes import LEASE_VARIABLE, adopt_orphans, end_all, kill, seen_of
from fabric.worker.freeze import frozen
from fabric.worker.hearers import MOMENT_S, Hearers, Listeners
from fabric.worker.script_process import become
from fabric.worker.stop_notice import Standing, is_by_signal, program_of, standing

_LOOK_CLOSELY_S: Final = 0.005
_WAIT_SHARE: Final = 1 / 2
_WAIT_S_MAX: Final = 10.0
"""How long, and for which part of its grace, a program that can't save is let go on until what it keeps is whole."""
_TELL_SHARE: Final = 1 / 4
_TELL_S_MAX: Final = 5.0
"""The same for one that can, which may need the rest of it."""
_ATTEND_S: Final = 0.02
_FIND_S: Final = 0.5
"""So often it is looked which processes there are, of a program that was told."""
_SERVE_AFTER_S: Final = 2.0
"""A save that takes longer than this may need a launcher that is halted: for a store that it keeps, or a last barrier. Then it
is let go on for a moment, and again after twice the time: a rank that ends in such a moment would have it end the others.
"""
_SERVE_S: Final = 0.05


class Host(Listeners, Protocol):
    """Where the program's processes find the job's context."""

    saves: int

    def ask_to_stop(self, reason: str, *, seconds_left: float, save: bool) -> None: ...


class Exit(NamedTuple):
    """How a program ended."""

    code: int
    """Of its first process; negative = the signal that ended it."""
    has_saved: bool
    """Whether it was asked to stop, and said that what counts is saved."""


class Program:
    """One job's."""

    def __init__(
        self,
        job: context.Context,
        host: Host,
        *,
        number: int = signal.SIGTERM,
        is_at_rest: Callable[[Collection[int]], bool] = lambda _: True,
        is_cut_off: Callable[[], bool] = lambda: False,
    ) -> None:
        """Nothing runs yet.

        Args:
            job: who asks it to stop.
            host: where its processes hear of that.
            number: the signal that the others get.
            is_at_rest: whether nothing of what it keeps is half written by these processes. Asked of some that run, it
                may be otherwise the next moment.
            is_cut_off: whether somebody was seen to end just now who was writing to what it keeps.
        """
        self._job, self._host, self._number = job, host, number
        self._is_at_rest, self._is_cut_off = is_at_rest, is_cut_off
        self._lease_id = ""
        self._hearers = Hearers(host, self._standing)
        self.is_whole = False
        """Whether what it keeps is whole, if the notice's signal has ended it: it got that at a moment at which nothing was half
        written, and nobody was seen to end in the middle of a write since. Final once `end_rest` has returned."""
        self._notice: threading.Thread | None = None
        self._pid = 0
        self._executed: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._asked = threading.Lock()
        self._is_asked = False
        self._saves_before = 0

    @property
    def pid(self) -> int:
        """Of its first process; 0 = nothing runs yet."""
        return self._pid

    def execute(self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        """Start a command.

        Raises:
            OSError: it can't be.
        """
        adopt_orphans()
        self._lease_id = environment.get(LEASE_VARIABLE, "")
        self._executed = subprocess.Popen(  # noqa: S603  # the job itself
            command, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True, env=dict(environment)
        )
        self._pid = self._hearers.root = self._executed.pid

    def fork(self, script: Path, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        """Start a Python script in a copy of this process, of which it keeps what is imported, and nothing else."""
        sys.stdout.flush()
        sys.stderr.flush()
        adopt_orphans()
        self._lease_id = environment.get(LEASE_VARIABLE, "")
        self._pid = os.fork()
        if self._pid == 0:
            become(script, [str(word) for word in arguments], folder=folder, environment=environment)
        self._hearers.root = self._pid

    def ask_to_stop(self) -> None:
        """Hand the job's notice on to whoever of the program can save; once."""
        with self._asked:
            if self._is_asked or not self._pid or self._ended.is_set():
                return
            self._is_asked = True
        self._saves_before = self._host.saves
        self._notice = threading.Thread(target=self._hand_on, name="fabric-notice", daemon=True)
        self._notice.start()

    def was_ended(self, code: int) -> bool:
        """Whether an exit code is that of what the notice's signal has ended, and says no more: a launcher's may be any."""
        return is_by_signal(code) or (self._pid in self._hearers.launchers and not self._hearers.are_spoiled)

    @property
    def has_ended(self) -> bool:
        """Whether its first process has, also if nobody has waited for it yet."""
        return self._ended.is_set() or (self._pid != 0 and seen_of(self._pid) is None)

    def processes(self) -> list[int]:
        """All that live of it, wherever they have gone to below this process."""
        return program_of(self._pid, lease_id=self._lease_id) if self._pid else []

    @contextmanager
    def frozen(self) -> Iterator[frozenset[int]]:
        """Inside, its processes stand still; yields which they are.

        Raises:
            Conflict: they don't in time.
        """
        with self._hearers.halting, frozen(self.processes, halted=self._hearers.halted) as pids:
            yield pids

    def end_rest(self) -> None:
        """Its first process has ended: end what that has left, at a moment at which nothing is half written."""
        if self._notice is not None:
            self._notice.join()
        is_cut_off = not self._is_at_rest(self.processes()) and self._is_cut_off()
        left_s = self._job.deadline_s_left() or 0.0
        is_whole = not self.processes() or self._killed_at_rest(signal.SIGKILL, left_s=left_s, over=threading.Event())
        self.is_whole = self.is_whole and is_whole and not is_cut_off
        end_all((), lease_id=self._lease_id, find=self.processes)

    def wait(self) -> Exit:
        """Its end."""
        if self._job.owns_process:
            self._reap_others()
        if self._executed is not None:
            code = self._executed.wait()
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._ended.set()
        was_done = code != 0 and self._hearers.has_trained  # with 0 it is the job's end
        has_saved = self._hearers.has_saved or self._host.saves > (0 if was_done else self._saves_before)
        return Exit(code, self._is_asked and has_saved)

    def _reap_others(self) -> None:
        """Until its first process has ended: wait for those that it has left to this one, which nobody else does."""
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) is not None and ended.si_pid != self._pid:
            os.waitpid(ended.si_pid, 0)

    def _standing(self, listening: frozenset[int] = frozenset()) -> list[Standing]:
        return standing(self._pid, number=self._number, listening=listening, lease_id=self._lease_id)

    def _hand_on(self) -> None:
        hearers = self._hearers
        hearers.is_open = True
        began, left_s = time.monotonic(), self._left_s()
        signalled, may_end = hearers.look(in_moment=self._job.save_wanted)
        self._host.ask_to_stop(self._job.stop_reason, seconds_left=left_s, save=self._job.save_wanted)
        while True:
            hearers.begin_moment()
            until = began + min(left_s * _TELL_SHARE, MOMENT_S)
            while not hearers.awaited and may_end and time.monotonic() < until and not self._ended.wait(_ATTEND_S):
                signalled, may_end = hearers.look(in_moment=True)
            if not hearers.awaited:
                hearers.is_open = False
                signalled, _ = hearers.look(in_moment=False)
            if not hearers.awaited:
                self.is_whole = self._killed_at_rest(signal.SIGTERM, left_s=self._left_s(), over=self._ended)
                return
            self.is_whole = self._signal(signalled, left_s=self._left_s())
            if not self._attend():
                return
            began, left_s = time.monotonic(), self._left_s()
            signalled, may_end = hearers.look(in_moment=True)

    def _left_s(self) -> float:
        return self._job.deadline_s_left() or 0.0

    def _signal(self, pids: Collection[int], *, left_s: float) -> bool:
        """Send the notice's signal when what the program keeps is whole: a handler that ends it leaves what was being written
        half written. Whether it was, in time.
        """

        def send(_: Collection[int]) -> None:
            for pid in pids:
                kill(pid, self._number)

        if not pids or not self._job.save_wanted:
            send(())
            return True
        return self._at_rest(send, patience_s=min(left_s * _TELL_SHARE, _TELL_S_MAX), over=self._ended)

    def _killed_at_rest(self, number: int, *, left_s: float, over: threading.Event) -> bool:
        """Nobody can save: end all, when what the program keeps is whole. Whether it was, in time."""

        def end(_: Collection[int]) -> None:
            for each in self._standing():
                # Ray's own would tell others what they die of, and these would write it down.
                kill(each.pid, signal.SIGKILL if each.is_ray else number)

        return self._at_rest(end, patience_s=min(left_s * _WAIT_SHARE, _WAIT_S_MAX), over=over)

    def _at_rest(self, act: Callable[[Collection[int]], None], *, patience_s: float, over: threading.Event) -> bool:
        """Act when nothing of what the program keeps is half written, and it stands still; or so late, as it is. Whether it
        was. Not at all once it is `over`.
        """
        give_up_at = time.monotonic() + (patience_s if self._job.save_wanted else 0.0)
        while not over.is_set():
            is_last = time.monotonic() >= give_up_at
            # A look costs less than a freeze, and most of them find something half written.
            if not is_last and not self._is_at_rest(self.processes()):
                over.wait(_LOOK_CLOSELY_S)
                continue
            try:
                with self.frozen() as pids:
                    is_whole = self._job.save_wanted and self._is_at_rest(pids)
                    if is_whole or is_last:
                        act(pids)
                        return is_whole
            except Conflict:
                if is_last:
                    act(())
                    return False
        return False

    def _attend(self) -> bool:
        """Until the program has ended: see who ends in the middle of a write. And wait until all have ended that were told.

        Returns before that, and says so, if those have ended by themselves, and who stood above them was let go on.
        """
        hearers, is_over = self._hearers, False
        began, serve_after_s = time.monotonic(), _SERVE_AFTER_S
        found_at, pids = -_FIND_S, list[int]()
        while not self._ended.wait(_ATTEND_S):
            if time.monotonic() - found_at >= _FIND_S:
                found_at, pids = time.monotonic(), self.processes()
            if self._job.save_wanted and not self._is_at_rest(pids) and self._is_cut_off():
                self.is_whole = False
            if is_over or not hearers.halted:
                continue
            hearers.note_ends()
            if not hearers.codes and hearers.launchers and time.monotonic() - began >= serve_after_s:
                self._let_serve(hearers.launchers & hearers.halted)
                serve_after_s *= 2
            if not hearers.awaited:
                if hearers.wake(self._number):
                    return True
                self.is_whole = self.is_whole and not hearers.are_spoiled
                is_over = True
        return False

    def _let_serve(self, launchers: Iterable[int]) -> None:
        """Halt launchers no longer for a moment. Only while all ranks live: one that ends would have them end the rest."""
        with self._hearers.halting:
            for pid in launchers:
                kill(pid, signal.SIGCONT)
            self._ended.wait(_SERVE_S)
            for pid in launchers:
                kill(pid, signal.SIGSTOP)
