"""What a copy of a process that has torch imported becomes: `python script.py`, as a new interpreter would run it.

Its own main thread and `__main__`, with signals, `atexit`, threads and `multiprocessing` as there; nothing of what is above
it in the copied process runs.
"""

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, NoReturn

from fabric import context
from fabric.worker.job_signals import begin_anew

_FLUSH_FAILED: Final = 120


def become(script: Path, arguments: list[str], *, folder: Path, environment: Mapping[str, str]) -> NoReturn:
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
