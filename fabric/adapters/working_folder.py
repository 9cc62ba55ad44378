"""The folder that a job works in: what its owner sent along, laid out."""

import io
import zipfile
from pathlib import Path

from fabric.adapters.archive import Archive


def unpacked(archive: Archive, blob: str, *, into: Path) -> Path:
    """The folder `into`, made, with what the zip under the key has; nothing in it where there is no key."""
    into.mkdir(exist_ok=True)
    if blob:
        with zipfile.ZipFile(io.BytesIO(archive.get(blob))) as packed:
            for entry in packed.infolist():
                _unpack(packed, entry, into)
    return into


def _unpack(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Lay a file of a zip out with the mode it was packed with, which `zipfile` forgets; the job may always write it."""
    path = Path(packed.extract(entry, folder))
    mode = entry.external_attr >> 16 & 0o777
    if mode and not entry.is_dir():
        path.chmod(mode | 0o600)
