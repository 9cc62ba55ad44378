"""From a script or a command to bytes that run elsewhere. Says no before anything is sent. Functions: see `functions`.

A script travels with its working directory, or where none is given with the files that its command names and the modules
beside them that they import.
"""

import io
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fabric.errors import InvalidRequest
from fabric.imports import imported_beside, named_beside, uses
from fabric.sdk.commands import MAIN, is_file, main_of, reached, script_of
from fabric.sdk.sent_files import listed

WORKING_DIR_BYTES_MAX: Final = 256 * 1024 * 1024
_IMPORTED: Final = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_MSDOS_FOLDER: Final = 0x10


def script_command(script: str | os.PathLike[str], args: Sequence[object]) -> list[str]:
    """How a Python script is run."""
    return ["python", os.fspath(script), *(str(arg) for arg in args)]


def preload_for(script: Path) -> str:
    """What a Python script is glad to find imported: torch, if it names it (or `training`), and neither it nor a module
    beside it uses Ray.
    """
    imported = set(_IMPORTED.findall(script.read_text(errors="replace")))
    return "torch" if imported & {"torch", "training"} and not uses(script, "ray") else ""


class Packed(NamedTuple):
    """A command, and what it is sent with."""

    files: bytes | None
    """A zip; None = nothing goes along."""
    command: list[str]
    """With its script by the name under which that is sent."""
    preload: str = ""
    left_out: tuple[str, ...] = ()
    """What of the working directory stays because a `.gitignore` names it."""
    secrets: tuple[str, ...] = ()
    """Its `.env` files, which stay too."""
    unsent: tuple[str, ...] = ()
    """Files and folders that its code names, and that stay because no working directory was given."""


def pack_files(command: Sequence[str], *, working_dir: str | os.PathLike[str] | None) -> bytes | None:
    """`pack_program`'s files alone."""
    return pack_program(command, working_dir=working_dir).files


def pack_program(command: Sequence[str], *, working_dir: str | os.PathLike[str] | None) -> Packed:
    """A command with a zip of the working directory; without one, of the files that it reaches (see `commands`). A script
    that lies elsewhere, named by `/abs/x.py` or `../x.py`, is sent from there.

    Raises:
        InvalidRequest: the script isn't there (`script_not_found`) or outside of the working directory given
            (`script_outside`), what is to be run is a directory (`not_a_command`) or may not be run (`not_executable`), or
            the directory is too large (`working_dir_too_large`).
    """
    root = Path(working_dir) if working_dir is not None else Path()
    if not root.is_dir():
        raise InvalidRequest(f"there is no directory {root}", code="working_dir_not_found", path=str(root))
    script = script_of(command)
    place = None if script is None else _place_of(script, root, is_given=working_dir is not None)
    if place is not None and script is not None:
        named_so = place.name if place.is_script else Path(place.name).parent.as_posix()
        command = [named_so if word == script else word for word in command]
    elif script is not None:
        where = f" in {root}" if working_dir is not None else ""
        raise InvalidRequest(
            f"there is no script {script!r}{where}: give its path from the working directory",
            code="script_not_found",
            path=script,
        )
    if place is None or place.folder == root:
        _check_first(root, command)
    is_python = place is not None and place.name.endswith(".py")
    preload = preload_for(place.folder / place.name) if place is not None and is_python and place.is_script else ""
    if working_dir is not None:
        found = listed(root)
        entries = {path.as_posix(): root / path for path in found.files}
        return Packed(
            _zip(root, entries, empty=found.empty), list(command), preload, tuple(found.left_out), tuple(found.secrets)
        )
    named = reached(command)
    if place is not None:
        named[place.name] = place.folder / place.name
        if is_python:
            beside = imported_beside(place.folder / place.name)
            named |= {path.relative_to(place.folder).as_posix(): path for path in beside}
    files = _zip(root, dict(sorted(named.items()))) if named else None
    return Packed(files, list(command), preload, unsent=_unsent(named.values()))


def _unsent(sent: Collection[Path]) -> tuple[str, ...]:
    """What the modules that are sent name of what lies beside them, and isn't sent."""
    there = {os.path.abspath(file) for file in sent}  # noqa: PTH100  # as below
    above = {str(folder) for file in there for folder in Path(file).parents}
    found = [each for file in sent if file.suffix == ".py" for each in named_beside(file)]
    left = {os.path.abspath(each): os.path.relpath(each) for each in found}  # noqa: PTH100
    return tuple(sorted(name for path, name in left.items() if path not in there | above))


class _Place(NamedTuple):
    """Where a script is: its name is a path from the folder."""

    folder: Path
    name: str
    is_script: bool = True
    """Else it is the `__main__.py` of a folder that was named."""


def _place_of(script: str, root: Path, *, is_given: bool) -> _Place | None:
    """Where the script is that a command names; None if there is none."""
    if any(main_of(os.fspath(place)) for place in (root / script, script)):
        found = _of_script(f"{script}/{MAIN}", root, is_given=is_given)
        return None if found is None else found._replace(is_script=False)
    return _of_script(script, root, is_given=is_given)


def _of_script(script: str, root: Path, *, is_given: bool) -> _Place | None:
    own = Path(script)
    if not own.is_absolute() and ".." not in own.parts and is_file(root / own):
        return _Place(root, own.as_posix())
    if not is_file(own):
        return None
    path, top = Path(os.path.abspath(own)), Path(os.path.abspath(root))  # noqa: PTH100  # links stay as they are named
    if path.is_relative_to(top):
        return _Place(root, path.relative_to(top).as_posix())
    if is_given:
        raise InvalidRequest(
            f"{script} is not in the working directory {root}, so it would not be sent: give one that has it",
            code="script_outside",
            path=script,
        )
    return _Place(path.parent, path.name)


def _check_first(root: Path, command: Sequence[str]) -> None:
    """Refuse what plainly can't be run, before it is sent. A name without a slash may be a command of the nodes'."""
    first = command[0] if command else ""
    path = root / first
    if not first or path.suffix == ".py" or ("/" not in first and shutil.which(first)):
        return
    if os.path.isdir(path):  # noqa: PTH112  # as in _is_file
        remedy = "give a script, and the directory with --working-dir (working_dir=)"
        if main_of(os.fspath(path)):
            remedy = f"write `-- python {first}`, which runs its {MAIN}"
        raise InvalidRequest(
            f"{first} is a directory: {remedy}",
            code="not_a_command",
            path=first,
        )
    if not Path(first).is_absolute() and is_file(path) and not os.access(path, os.X_OK):
        raise InvalidRequest(
            f"{first} is neither a Python script (.py) nor executable: run `chmod +x {first}`, or name what runs it, such"
            f" as `-- sh {first}`",
            code="not_executable",
            path=first,
        )


def _zip(root: Path, entries: Mapping[str, Path], *, empty: Sequence[Path] = ()) -> bytes:
    """Same files, same bytes: times are left out, so that an unchanged directory is not sent twice."""
    out, total = io.BytesIO(), 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in empty:
            there = zipfile.ZipInfo(f"{folder.as_posix()}/", _EPOCH)
            there.external_attr = (0o40755 << 16) | _MSDOS_FOLDER
            archive.writestr(there, b"")
        for name, file in entries.items():
            total += file.stat().st_size
            if total > WORKING_DIR_BYTES_MAX:
                raise InvalidRequest(
                    f"{root} holds more than {WORKING_DIR_BYTES_MAX >> 20} MiB: name what isn't needed in .fabricignore,"
                    " or read large data from where it lies",
                    code="working_dir_too_large",
                    limit_bytes=WORKING_DIR_BYTES_MAX,
                )
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (file.stat().st_mode & 0o777) << 16
            archive.writestr(entry, file.read_bytes())
    return out.getvalue()
