"""A model's folder as one tar, to hand on through an archive. Plain files only, and it needs no torch."""

import io
import tarfile
from pathlib import Path
from typing import Final

from fabric.errors import InvalidRequest

_FILE_MAX: Final = 64 << 30


def packed(folder: Path) -> bytes:
    """The folder's files as one tar, the same bytes for the same files: what a job can hand on."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            entry = tarfile.TarInfo(path.name)
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return whole.getvalue()


def unpacked(whole: bytes, folder: Path) -> Path:
    """The files of `packed`, into `folder`.

    Raises:
        InvalidRequest: the tar holds anything but plain files with plain names (code `bad_model`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as tar:
        for entry in tar:
            if not entry.isfile() or "/" in entry.name or entry.name.startswith(".") or entry.size > _FILE_MAX:
                raise InvalidRequest(
                    f"a packed model holds plain files only, not {entry.name!r}: pack it with training.parcels.packed",
                    code="bad_model",
                )
            source = tar.extractfile(entry)
            assert source is not None
            (folder / entry.name).write_bytes(source.read())
    return folder
