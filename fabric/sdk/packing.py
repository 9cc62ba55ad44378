"""From a script or a command to bytes that run elsewhere. Says no before anything is sent. Functions: see `functions`.

A script travels with its working directory, or where none is given with the modules beside it that it imports.
"""

import io
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from fabric.errors import InvalidRequest
from fabric.imports import imported_beside

WORKING_DIR_BYTES_MAX: Final = 256 * 1024 * 1024
EXCLUDES: Final = (".git", ".hg", "__pycache__", "*.pyc", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache")
"""Never sent with a working directory, besides what its `.fabricignore` names (one pattern a line)."""
_IMPORTED: Final = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def script_command(script: str | os.PathLike[str], args: Sequence[object]) -> list[str]:
    """How a Python script is run."""
    return ["python", os.fspath(script), *(str(arg) for arg in args)]


def preload_for(command: Sequence[str], *, working_dir: str | os.PathLike[str] | None) -> str:
    """What a Python script is glad to find imported: torch, if it names it (or `training`) and doesn't use Ray."""
    script = _script_of(command)
    path = (Path(working_dir) if working_dir is not None else Path()) / (script or "")
    if script is None or not script.endswith(".py") or not path.is_file():
        return ""
    imported = set(_IMPORTED.findall(path.read_text(errors="replace")))
    return "torch" if imported & {"torch", "training"} and "ray" not in imported else ""


def pack_files(command: Sequence[str], *, working_dir: str | os.PathLike[str] | None) -> bytes | None:
    """A zip of the working directory; without one, of the files that the command names and of what its script imports of
    the modules beside it. None if there are none.

    Raises:
        InvalidRequest: the script isn't there (`script_not_found`), what is to be run is a directory (`not_a_command`) or
            may not be run (`not_executable`), or the directory is too large (`working_dir_too_large`).
    """
    root = Path(working_dir) if working_dir is not None else Path()
    if not root.is_dir():
        raise InvalidRequest(f"there is no directory {root}", code="working_dir_not_found", path=str(root))
    script = _script_of(command)
    if script is not None and not _is_file(root / script):
        where = f" in {root}" if working_dir is not None else ""
        raise InvalidRequest(
            f"there is no script {script!r}{where}: give its path from the working directory",
            code="script_not_found",
            path=script,
        )
    _check_first(root, command)
    if working_dir is not None:
        return _zip(root, _files(root))
    named = dict.fromkeys(Path(word) for word in command if _is_own_file(word))
    if script is not None and script.endswith(".py") and _is_own_file(script):
        named |= dict.fromkeys(imported_beside(Path(script)))
    return _zip(root, iter(named)) if named else None


def _check_first(root: Path, command: Sequence[str]) -> None:
    """Refuse what plainly can't be run, before it is sent. A name without a slash may be a command of the nodes'."""
    first = command[0] if command else ""
    path = root / first
    if not first or path.suffix == ".py" or ("/" not in first and shutil.which(first)):
        return
    if os.path.isdir(path):  # noqa: PTH112  # as in _is_file
        raise InvalidRequest(
            f"{first} is a directory: give a script, and the directory with --working-dir (working_dir=)",
            code="not_a_command",
            path=first,
        )
    if not Path(first).is_absolute() and _is_file(path) and not os.access(path, os.X_OK):
        raise InvalidRequest(
            f"{first} is neither a Python script (.py) nor executable: run `chmod +x {first}`, or name what runs it, such"
            f" as `-- sh {first}`",
            code="not_executable",
            path=first,
        )


def _script_of(command: Sequence[str]) -> str | None:
    """The Python script that a command runs, if it plainly runs one."""
    if command and Path(command[0]).name.startswith("python"):
        first = next((word for word in command[1:] if not word.startswith("-")), None)
        flags = command[1 : command.index(first)] if first is not None else ()
        return None if {"-m", "-c"} & set(flags) else first
    return command[0] if command and command[0].endswith((".py", ".sh")) else None


def _is_own_file(word: str) -> bool:
    path = Path(word)
    return not path.is_absolute() and ".." not in path.parts and _is_file(path)


def _is_file(path: Path) -> bool:
    """Whether there is such a file. A word may be any text, such as that of `python -c`, which is longer than a name may be."""
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises OSError for what can't be a file's name


def _files(root: Path) -> Iterator[Path]:
    ignore_file = root / ".fabricignore"
    extra = ignore_file.read_text().split("\n") if ignore_file.is_file() else []
    patterns = (*EXCLUDES, *(line.strip().rstrip("/") for line in extra if line.strip() and line[0] != "#"))
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _excluded(Path(folder, name).relative_to(root), patterns))
        for name in sorted(names):
            path = Path(folder, name).relative_to(root)
            if not _excluded(path, patterns) and (root / path).is_file():
                yield path


def _excluded(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path.name, pattern) or fnmatch(path.as_posix(), pattern) for pattern in patterns)


def _zip(root: Path, paths: Iterator[Path]) -> bytes:
    """Same files, same bytes: times are left out, so that an unchanged directory is not sent twice."""
    out, total = io.BytesIO(), 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            file = root / path
            total += file.stat().st_size
            if total > WORKING_DIR_BYTES_MAX:
                raise InvalidRequest(
                    f"{root} holds more than {WORKING_DIR_BYTES_MAX >> 20} MiB: name what isn't needed in .fabricignore,"
                    " or read large data from where it lies",
                    code="working_dir_too_large",
                    limit_bytes=WORKING_DIR_BYTES_MAX,
                )
            entry = zipfile.ZipInfo(path.as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (file.stat().st_mode & 0o777) << 16
            archive.writestr(entry, file.read_bytes())
    return out.getvalue()
