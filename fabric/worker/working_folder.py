"""The folder that a job works in: what its owner sent along, laid out."""

import importlib
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from fabric.errors import InvalidRequest, Unavailable
from fabric.imports import stated_by
from fabric.storage.archive import Archive

SIZE_MAX: Final = 16 * 2**30
FILES_MAX: Final = 100_000


def unpacked(archive: Archive, blob: str, *, into: Path) -> Path:
    """The folder `into`, made, with what the zip under the key has; nothing in it where there is no key."""
    into.mkdir(exist_ok=True)
    if blob:
        with zipfile.ZipFile(io.BytesIO(archive.get(blob))) as packed:
            _check_size(packed, into)
            for entry in packed.infolist():
                _unpack(packed, entry, into)
    return into


def _check_size(packed: zipfile.ZipFile, folder: Path) -> None:
    """Lay nothing out that the node can't hold: a small zip may say that it has as much as it likes, and no more is read.

    Raises:
        InvalidRequest: `working_dir_too_large`.
        Unavailable: `node_full`.
    """
    entries = packed.infolist()
    size = sum(entry.file_size for entry in entries)
    if size > SIZE_MAX or len(entries) > FILES_MAX:
        raise InvalidRequest(
            f"the working directory has {size:,} bytes in {len(entries):,} files when unpacked, and may have {SIZE_MAX:,} in"
            f" {FILES_MAX:,}: leave out what the job doesn't need, and read large data from where it lies",
            code="working_dir_too_large",
            limit_bytes=SIZE_MAX,
            limit_files=FILES_MAX,
        )
    free = shutil.disk_usage(folder).free
    if size > free:
        raise Unavailable(
            f"the working directory has {size:,} bytes, and {free:,} are free on the node",
            code="node_full",
            free_bytes=free,
        )


def _unpack(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Lay a file of a zip out with the mode it was packed with, which `zipfile` forgets; the job may always write it."""
    path = Path(packed.extract(entry, folder))
    mode = entry.external_attr >> 16 & 0o777
    if mode and not entry.is_dir():
        path.chmod(mode | 0o600)


def import_from(folder: Path, parts: Sequence[str]) -> None:
    """Let the job's own modules be found, before those that are installed, by this process and by those that it starts."""
    places = [os.path.normpath(folder / part) for part in parts]
    sys.path[:0] = places
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, *filter(None, [os.environ.get("PYTHONPATH")])])
    importlib.invalidate_caches()


def forget_modules(folder: Path) -> None:
    """Let go of what was imported from the folder: the next job of this process brings its own, maybe of the same names."""
    within = f"{folder}{os.sep}"
    looked_in = [place for place in list(sys.path_importer_cache) if place.startswith(within)]
    if not looked_in:
        return  # nothing was imported from there: there are thousands of modules to look at
    gone = [
        name
        for name, module in list(sys.modules.items())
        if any(place.startswith(within) for place in _places_of(module))
    ]
    for name in gone:
        sys.modules.pop(name, None)
    for place in looked_in:
        sys.path_importer_cache.pop(place, None)


def _places_of(module: ModuleType) -> list[str]:
    """Where a module came from: its file, or the folders of a namespace."""
    file = stated_by(module, "__file__")
    if isinstance(file, str):
        return [file]
    try:
        return [str(place) for place in stated_by(module, "__path__") or ()]
    except (KeyError, TypeError):  # a namespace whose parent is gone; what a module may have under the name
        return []
