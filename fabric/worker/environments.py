"""Packages of a job's own: what may be asked for, and how they are installed.

Installing a package may run its author's code. Where it doesn't, because all of them are wheels, a node agent does it before the
devices burn (`wheels`). Else it is done by the lease's own processes: metered, charged from when the devices are held, in the
job's log, stopped when the job is, and ended with the lease. Ray's own way, an agent on every node that
answers to no lease, is never asked. What was installed is kept on the node for the account's next job with the same
packages, by a digest of them, and for nobody else.

It is a virtual environment over the fabric's: what the fabric has is there, the job's own comes before it. Run as a program
(`python -m fabric.worker.environments FOLDER`, what is wanted on standard input) this builds one.
"""

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from fabric.errors import InvalidRequest
from fabric.system.disk_watch import taken_by
from fabric.system.private_folder import ENVIRONMENTS

TOOLS: Final = ("pip", "uv")
PACKAGES_MAX: Final = 200
WORD_CHARS_MAX: Final = 1_000
BUILD_S: Final = 600
BUILD_S_MAX: Final = 3_600
WHEELS_ONLY: Final = ("--only-binary", ":all:")
"""Options of both tools: nothing of a package's is run to install it."""
BYTES_MAX: Final = 64 * 2**30
FILES_MAX: Final = 1_000_000
"""Of one environment on a node's disk."""
_LOOK_S: Final = 5.0
_SHARE_OF_TIME: Final = 20
"""At most one part in so many of the time goes into counting."""
KEPT: Final = 8
"""Environments of an account on a node: the ones used last."""
_READY: Final = ".ready"
_PLAIN: Final = re.compile(r"[A-Za-z0-9][^/\\]*")
"""A requirement by its name: one with a path may mean a file of the working directory."""
_OPTIONS: Final = {"pip": "pip_install_options", "uv": "uv_pip_install_options"}
_IGNORED: Final = ("pip_check", "uv_check")
_CONFIG: Final = ("setup_timeout_seconds", "eager_install")
_REMEDIES: Final = {
    "conda": "use pip or uv, or a Ray cluster of your own whose nodes have what only conda has",
    "working_dir": "send files with working_dir= (--working-dir)",
    "py_modules": "send modules in the working directory, with working_dir= (--working-dir)",
    "py_executable": "name packages with pip or uv, or run a command",
    "image_uri": "name packages with pip or uv, or use a Ray cluster of your own with that image",
    "container": "name packages with pip or uv, or use a Ray cluster of your own with that image",
    "worker_process_setup_hook": "call it at the beginning of your function or script",
}
_RESERVED: Final = ("FABRIC_", "RAY_", "LD_")
_RESERVED_NAMES: Final = ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be installed."""

    tool: str
    packages: tuple[str, ...]
    options: tuple[str, ...] = ()
    within_s: int = BUILD_S
    files: str = ""
    """Which working directory the packages may name files of; "" = they name none."""

    @property
    def digest(self) -> str:
        """Two with the same one are the same environment."""
        same = msgspec.structs.replace(self, within_s=BUILD_S)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return hashlib.sha256(python.encode() + msgspec.json.encode(same)).hexdigest()[:32]


def environment_of(runtime_env: Mapping[str, Any], *, files: str = "") -> Environment | None:
    """What a job's runtime_env has to be installed; None if nothing.

    Args:
        runtime_env: the job's, in Ray's words.
        files: names the job's working directory, by content.

    Raises:
        InvalidRequest: `invalid_runtime_env`: a field whose work can't be held within a lease, or a value that makes no sense.
    """
    for name in runtime_env:
        if name not in (*TOOLS, "env_vars", "config"):
            remedy = _REMEDIES.get(name, f"leave it out: allowed are {', '.join((*TOOLS, 'env_vars', 'config'))}")
            raise _refused(f"runtime_env may not have {name[:100]!r}: {remedy}", given=name)
    wanted = [tool for tool in TOOLS if runtime_env.get(tool)]
    if len(wanted) > 1:
        raise _refused("runtime_env has both pip and uv: name the packages with one of them", given="uv")
    within_s = _within_s(runtime_env.get("config", {}))
    if not wanted:
        return None
    tool = wanted[0]
    given = runtime_env[tool]
    if isinstance(given, str):
        raise _refused(
            f"{tool} is a list of packages, not the name of a file: list them, or put the file into the working directory"
            f' and name it: {{"{tool}": ["-r", "{given[:100]}"]}}',
            given=tool,
        )
    fields = given if isinstance(given, dict) else {"packages": given}
    unknown = [name for name in fields if name not in ("packages", _OPTIONS[tool], *_IGNORED)]
    if unknown:
        raise _refused(
            f"{tool} may not have {str(unknown[0])[:100]!r}: allowed are packages, {_OPTIONS[tool]}", given=tool
        )
    packages = _words(fields.get("packages", []), of=tool)
    may_name_files = any(_PLAIN.fullmatch(word) is None for word in packages)
    return Environment(
        tool=tool,
        packages=packages,
        options=_words(fields.get(_OPTIONS[tool], []), of=_OPTIONS[tool]),
        within_s=within_s,
        files=files if may_name_files else "",
    )


def check_variables(variables: Mapping[str, str]) -> None:
    """Refuse names by which a job's process would pass for something else.

    Raises:
        InvalidRequest: `invalid_env`.
    """
    for name in variables:
        if name.startswith(_RESERVED) or name in _RESERVED_NAMES:
            raise InvalidRequest(
                f"{name[:100]} can't be set from runtime_env: names that begin with {', '.join(_RESERVED)} and"
                f" {', '.join(_RESERVED_NAMES)} belong to the platform; what your own program reads of them goes into env= (--env)",
                code="invalid_env",
                given=name[:100],
            )


def environment_folder(work_dir: Path, account_id: str, digest: str) -> Path:
    """Where a node keeps it: below the account's own folder."""
    return work_dir / ENVIRONMENTS / account_id / digest


def python_of(folder: Path) -> Path:
    """The interpreter that has the packages."""
    return folder / "bin" / "python"


def is_ready(folder: Path) -> bool:
    """Whether it was built to its end; it counts as used now."""
    try:
        os.utime(folder / _READY)
    except OSError:
        return False
    return True


def build_command(folder: Path) -> list[str]:
    """What builds it, as a process of the lease's; it reads an `Environment` in JSON from standard input."""
    return [sys.executable, "-m", "fabric.worker.environments", str(folder)]


def build(folder: Path, wanted: Environment) -> int:
    """Build it, unless it is there; the exit status. Two that want the same on one node wait for each other."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(folder):
            return 0
        _forget_oldest(folder.parent)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=False, symlinks=True)
        _lay_over(folder)
        status = _installed(folder, wanted)
        if status == 0:
            (folder / _READY).touch()
        else:
            shutil.rmtree(folder, ignore_errors=True)
        return status


def _installed(folder: Path, wanted: Environment) -> int:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    python = str(python_of(folder))
    if wanted.tool == "uv" and uv is not None:
        command = [uv, "pip", "install", "--python", python]
    else:
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check"]
    command += [*wanted.options, *wanted.packages]
    print(f"installing {' '.join(wanted.packages)}", flush=True)  # noqa: T201 - into the job's log
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603
    try:
        return _awaited(process, folder, within_s=wanted.within_s)
    except _TooMuch as why:
        print(why, flush=True)  # noqa: T201
        return 128 + signal.SIGALRM
    finally:
        process.kill()
        process.wait()


class _TooMuch(Exception):
    """Longer or larger than may be."""


def _awaited(process: "subprocess.Popen[bytes]", folder: Path, *, within_s: float) -> int:
    """The exit status of what installs into a folder.

    Raises:
        _TooMuch: it takes longer, or more of the disk, than it may.
    """
    began, pause_s = time.monotonic(), _LOOK_S
    while (left_s := began + within_s - time.monotonic()) > 0:
        code = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(min(pause_s, left_s))
        looked = time.monotonic()
        taken = taken_by(folder, files_max=FILES_MAX)
        if taken.bytes > BYTES_MAX or taken.files > FILES_MAX:
            raise _TooMuch(
                f"the packages take more than {BYTES_MAX >> 30} GiB or {FILES_MAX:,} files, which is all that they may: install less"
            )
        if code is not None:
            return code
        pause_s = max(_LOOK_S, _SHARE_OF_TIME * (time.monotonic() - looked))
    raise _TooMuch(
        f"the packages were not installed within {within_s} s: raise config.setup_timeout_seconds (at most {BUILD_S_MAX}),"
        " or install less"
    )


def _lay_over(folder: Path) -> None:
    """Let it see, after its own, what this interpreter has."""
    own = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))
    below = sysconfig.get_path("purelib")
    (own / "_fabric.pth").write_text(f"import site; site.addsitedir({below!r})\n")


def _forget_oldest(account: Path) -> None:
    """Make room for one more. What a process runs with stays."""
    found = sorted(account.glob(f"*/{_READY}"), key=lambda ready: ready.stat().st_mtime, reverse=True)
    for ready in found[KEPT - 1 :]:
        if not _is_used(ready.parent):
            ready.unlink(missing_ok=True)
            shutil.rmtree(ready.parent, ignore_errors=True)


def _is_used(folder: Path) -> bool:
    wanted = os.fsencode(folder) + b"/"
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes().startswith(wanted):
                return True
        except OSError:
            continue
    return False


def _words(given: object, *, of: str) -> tuple[str, ...]:
    try:
        words = msgspec.convert(given, tuple[str, ...])
    except msgspec.ValidationError:
        raise _refused(f"{of} is a list of texts", given=of) from None
    if len(words) > PACKAGES_MAX or any(not word or len(word) > WORD_CHARS_MAX or "\0" in word for word in words):
        raise _refused(
            f"{of} may have {PACKAGES_MAX} entries of 1 to {WORD_CHARS_MAX} characters, without NUL", given=of
        )
    return words


def _within_s(config: object) -> int:
    fields = config if isinstance(config, dict) else {"": None}
    unknown = [name for name in fields if name not in _CONFIG]
    given = fields.get("setup_timeout_seconds", BUILD_S)
    if unknown or type(given) is not int or not 0 < given <= BUILD_S_MAX:
        raise _refused(
            f"config may have setup_timeout_seconds, whole seconds from 1 to {BUILD_S_MAX}, and nothing else",
            given="config",
        )
    return given


def _refused(message: str, *, given: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_runtime_env", given=given[:100])


def main(arguments: Sequence[str]) -> int:
    """Build the environment that is told on standard input."""
    wanted = msgspec.json.decode(sys.stdin.buffer.read(), type=Environment)
    if "--wheels" in arguments[1:]:
        wanted = msgspec.structs.replace(wanted, options=(*WHEELS_ONLY, *wanted.options))
    return build(Path(arguments[0]), wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
