"""A job's script or command: processes of its own, started here, given the notice to stop, and waited for to their end.

A command is executed. A script of a job that is glad to find torch imported is forked instead, from a process that has it,
and is otherwise what `python script.py` is: its own main thread and `__main__`, with signals, `atexit`, threads and
`multiprocessing` as there.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from fabric import context
from fabric.errors import Conflict
from fabric.system.processes import LEASE_VARIABLE, adopt_orphans, end_all, kill, seen_of
from fabric.worker.freeze import frozen
from fabric.worker.job_signals import begin_anew
from fabric.worker.stop_notice import Notice, Standing, exit_code_of, notice_for, program_of, standing

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
_SHELL_BASE: Final = 128
_FLUSH_FAILED: Final = 120


class Host(Protocol):
    """Where the program's processes find the job's context."""

    saves: int

    def listening(self) -> frozenset[int]: ...

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
        self._standing_still = threading.Lock()
        """Taken by whoever has halted processes that somebody else could wake."""
        self._halted: frozenset[int] = frozenset()
        self.is_whole = False
        """Whether what it keeps is whole, if the notice's signal has ended it: it got that at a moment at which nothing was half
        written, and nobody was seen to end in the middle of a write since. Final once `end_rest` has returned."""
        self._notice: threading.Thread | None = None
        self._pid = 0
        self._executed: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._has_saved = False
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
        self._executed = subprocess.Popen(  # noqa: S603  # the job itself
            command, cwd=folder, stdin=subprocess.DEVNULL, start_new_session=True, env=dict(environment)
        )
        self._pid, self._lease_id = self._executed.pid, environment.get(LEASE_VARIABLE, "")

    def fork(self, script: Path, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> None:
        """Start a Python script in a copy of this process, of which it keeps what is imported, and nothing else."""
        sys.stdout.flush()
        sys.stderr.flush()
        adopt_orphans()
        self._lease_id = environment.get(LEASE_VARIABLE, "")
        self._pid = os.fork()
        if self._pid == 0:
            _become(script, [str(word) for word in arguments], folder=folder, environment=environment)

    def ask_to_stop(self) -> None:
        """Hand the job's notice on to whoever of the program can save; once."""
        with self._asked:
            if self._is_asked or not self._pid or self._ended.is_set():
                return
            self._is_asked = True
        self._saves_before = self._host.saves
        self._notice = threading.Thread(target=self._hand_on, name="fabric-notice", daemon=True)
        self._notice.start()

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
        with self._standing_still, frozen(self.processes, halted=self._halted) as pids:
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
        saved = self._is_asked and (self._has_saved or self._host.saves > self._saves_before)
        return Exit(code, saved)

    def _reap_others(self) -> None:
        """Until its first process has ended: wait for those that it has left to this one, which nobody else does."""
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)) is not None and ended.si_pid != self._pid:
            os.waitpid(ended.si_pid, 0)

    def _standing(self, *, listening: frozenset[int] = frozenset()) -> list[Standing]:
        return standing(self._pid, number=self._number, listening=listening, lease_id=self._lease_id)

    def _hand_on(self) -> None:
        with self._standing_still:
            notice = notice_for(self._standing(listening=self._host.listening()), root=self._pid)
            self._halted = notice.halted
            for pid in notice.halted:
                kill(pid, signal.SIGSTOP)
        left_s = self._job.deadline_s_left() or 0.0
        self._host.ask_to_stop(self._job.stop_reason, seconds_left=left_s, save=self._job.save_wanted)
        if not notice.told:
            self.is_whole = self._killed_at_rest(signal.SIGTERM, left_s=left_s, over=self._ended)
            return
        self.is_whole = self._signal(notice.signalled, left_s=left_s)
        self._attend(notice)

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

    def _attend(self, notice: Notice) -> None:
        """Until the program has ended: see who ends in the middle of a write. And wait until all have ended that were told,
        whom nobody waits for while their parents are halted.
        """
        codes: dict[int, int | None] = {}
        began, serve_after_s = time.monotonic(), _SERVE_AFTER_S
        found_at, pids, is_over = -_FIND_S, list[int](), not notice.halted
        while not self._ended.wait(_ATTEND_S):
            if time.monotonic() - found_at >= _FIND_S:
                found_at, pids = time.monotonic(), self.processes()
            if self._job.save_wanted and not self._is_at_rest(pids) and self._is_cut_off():
                self.is_whole = False
            if is_over:
                continue
            for pid in notice.told - codes.keys():
                code = exit_code_of(pid)
                if code is not None or not Path(f"/proc/{pid}").exists():
                    codes[pid] = code
            if not codes and notice.launchers and time.monotonic() - began >= serve_after_s:
                self._let_serve(notice.launchers)
                serve_after_s *= 2
            if len(codes) == len(notice.told):
                self._wake(notice, codes)
                is_over = True

    def _wake(self, notice: Notice, codes: Mapping[int, int | None]) -> None:
        """All have ended that were told: let those go on that waited for it, or end them, if what counts is saved."""
        self._has_saved = context.EXIT_SAVED in codes.values()
        with self._standing_still:
            now = {each.pid: each for each in self._standing()}
            waking = [now[pid] for pid in notice.halted if pid in now]
            self._halted = frozenset()
            if self._has_saved and not any(each.catches and each.pid not in notice.launchers for each in waking):
                for pid in now:
                    kill(pid)
                return
            for each in waking:
                if each.catches:
                    kill(each.pid, self._number)
                kill(each.pid, signal.SIGCONT)

    def _let_serve(self, launchers: Iterable[int]) -> None:
        """Halt launchers no longer for a moment. Only while all ranks live: one that ends would have them end the rest."""
        with self._standing_still:
            for pid in launchers:
                kill(pid, signal.SIGCONT)
            self._ended.wait(_SERVE_S)
            for pid in launchers:
                kill(pid, signal.SIGSTOP)


def shell_code(code: int) -> int:
    """An exit code as a shell tells it: 128 and the number of a signal that ended it."""
    return _SHELL_BASE - code if code < 0 else code


def _become(script: Path, arguments: list[str], *, folder: Path, environment: Mapping[str, str]) -> NoReturn:
    """Be what `python script` would be; never returns."""
    code = 1
    try:
        os.setsid()
        _close_all()
        _start_anew(script, arguments, folder=folder, environment=environment)
        code = _main(script)
    except BaseException:  # noqa: BLE001  # nothing of what is above may run in this copy
        with suppress(BaseException):
            traceback.print_exc()
    os._exit(code)


def _close_all() -> None:
    """Keep the standard streams alone."""
    for entry in list(os.scandir("/proc/self/fd")):
        if int(entry.name) > 2:  # noqa: PLR2004
            with suppress(OSError):
                os.close(int(entry.name))


def _start_anew(script: Path, arguments: list[str], *, folder: Path, environment: Mapping[str, str]) -> None:
    """What would be new in a new interpreter."""
    context.enter(None)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [*arguments]
    sys.path.insert(0, str(script.parent))
    begin_anew()
    process: Any = sys.modules.get("multiprocessing.process")
    if process is not None:
        process.ORIGINAL_DIR = str(folder)
        process.current_process().authkey = os.urandom(32)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _main(script: Path) -> int:
    """Run the script as `__main__`, and end as an interpreter does; the exit code."""
    module = ModuleType("__main__")
    module.__file__ = str(script)
    module.__loader__ = SourceFileLoader("__main__", str(script))
    module.__dict__["__builtins__"] = sys.modules["builtins"]
    sys.modules["__main__"] = module
    code = 0
    try:
        compiled = compile(script.read_bytes(), str(script), "exec", dont_inherit=True)
        _run(compiled, module)
    except BaseException as error:  # noqa: BLE001  # as at an interpreter's top
        code = _uncaught(error)
    return _finalized(code)


def _run(compiled: CodeType, module: ModuleType) -> None:
    exec(compiled, module.__dict__)  # noqa: S102  # the job's script


def _uncaught(error: BaseException) -> int:
    """What an interpreter does with what nobody has caught."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)  # noqa: T201  # as Python does
        return 1
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__") == __name__:
        trace = trace.tb_next
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def _finalized(code: int) -> int:
    """Wait for threads, run what was registered for the exit, and flush."""
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  # what an interpreter calls first at its end
    atexit._run_exitfuncs()  # noqa: SLF001
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or _FLUSH_FAILED
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        time.sleep(1)
    return code
