"""The folders of one attempt of a job: made empty, its owner's alone, and gone when the attempt is.

Below the fabric's own folder on the node lies one for each attempt, in it one for each rank, and in that what the rank
has: where it works, its home, its temporary files, its log. What a crash has left is swept away: whatever no lease that
lives has a name for.
"""

import os
import shutil
import stat
import time
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Final

from fabric.errors import Unavailable
from fabric.system.short_links import TEMPORARY, unlink_all

WORK: Final = "work"
HOME: Final = "home"
CACHE: Final = "cache"
"""What jobs have read, by account: outlives attempts."""
ENVIRONMENTS: Final = "environments"
"""Where jobs' packages are installed, by account: outlives attempts."""
IDLE: Final = "idle"
"""Where processes of Ray's stand that no attempt has taken yet, and what is left there by them is nobody's."""
YOUNG_S: Final = 300.0
"""What was touched since then may be of a lease that whoever sweeps hasn't heard of."""
LEFT_MAX: Final = 256
"""Of so many attempts, and ranks of one, it is told at once what they have left; of others later."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def attempt_folder(work_dir: Path, lease_id: str) -> Path:
    """Where the files of an attempt are."""
    return work_dir / lease_id.replace("/", "_")


def make_private(folder: Path) -> Path:
    """Make a folder that nobody but its owner may enter, and what it takes above it.

    Raises:
        Unavailable: `work_dir_not_ours`: somebody else has made it, or the one above it.
    """
    _make(folder)
    for ours in (folder.parent, folder):
        about = ours.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            raise Unavailable(
                f"{ours} was made by somebody else: remove it; jobs of this fabric work there", code="work_dir_not_ours"
            )
    if about.st_mode & _OTHERS:
        folder.chmod(0o700)
    return folder


def _make(folder: Path) -> None:
    """From the bottom up: mostly what is above is there."""
    try:
        folder.mkdir(mode=0o700)
    except FileNotFoundError:
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        return


def rooms_of(folder: Path) -> tuple[Path, Path, Path]:
    """Where a rank works, its home, and where its temporary files are: empty, and made anew if something was left there."""
    rooms = folder / WORK, folder / HOME, folder / TEMPORARY
    for room in rooms:
        try:
            room.mkdir(mode=0o700)
        except FileExistsError:
            if not _is_as_made(room):
                clear(room)
                room.mkdir(mode=0o700)
    return rooms


def _is_as_made(room: Path) -> bool:
    """Whether it is a folder of its owner's alone, with nothing in it."""
    about = room.lstat()
    is_own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
    return is_own and not about.st_mode & _OTHERS and not os.listdir(room)  # noqa: PTH208


def clear(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, however deep and whatever its modes; what can't be removed
    stays.
    """
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            path.unlink()
        return
    with suppress(RecursionError):
        shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        _flatten(path)
        shutil.rmtree(path, ignore_errors=True)


def _flatten(path: Path) -> None:
    """Move all folders below it up into it, and let its owner into them: then no path is too long, and no tree too deep."""
    waiting, number = [path], 0
    while waiting:
        folder = waiting.pop()
        with suppress(OSError):
            folder.chmod(0o700)
            for entry in list(os.scandir(folder)):
                if entry.is_dir(follow_symlinks=False):
                    number += 1
                    above = path / f".fabric-{number}"
                    with suppress(OSError):
                        Path(entry.path).chmod(0o700)
                        Path(entry.path).rename(above)
                        waiting.append(above)


def close(folder: Path) -> None:
    """Remove a rank's folder, and the attempt's with the last of them."""
    unlink_all(folder)
    clear(folder)
    with suppress(OSError):
        folder.parent.rmdir()


def left_in(work_dir: Path, *, living: Container[str]) -> dict[str, tuple[int, ...]]:
    """What is there of attempts whose folders' names are not among the `living`: by the folder's name, which ranks'."""
    found: dict[str, tuple[int, ...]] = {}
    with suppress(OSError):
        for entry in os.scandir(work_dir):
            if entry.name in {CACHE, ENVIRONMENTS, IDLE} or entry.name in living:
                continue
            if entry.is_dir(follow_symlinks=False) and (ranks := _ranks_in(Path(entry.path))):
                found[entry.name] = ranks
            if len(found) >= LEFT_MAX:
                break
    return found


def _ranks_in(folder: Path) -> tuple[int, ...]:
    with suppress(OSError):
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        return tuple(sorted(int(name) for name in names if name.isdecimal() and name == str(int(name))))[:LEFT_MAX]
    return ()


def sweep(work_dir: Path, *, living: Container[str], younger_than_s: float = YOUNG_S) -> list[str]:
    """Remove what attempts have left whose folders' names are not among the `living`. Returns the names."""
    before = time.time() - younger_than_s
    swept = []
    for folder in (work_dir, work_dir / IDLE):
        with suppress(OSError):
            for entry in list(os.scandir(folder)):
                kept = folder == work_dir and (entry.name in {CACHE, ENVIRONMENTS, IDLE} or entry.name in living)
                if not kept and entry.stat(follow_symlinks=False).st_mtime < before:
                    for rank in Path(entry.path).iterdir() if entry.is_dir(follow_symlinks=False) else ():
                        unlink_all(rank)
                    clear(Path(entry.path))
                    swept.append(entry.name)
    return swept
