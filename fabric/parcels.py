"""A model's folder as one tar, to hand on through an archive. Plain files only, and it needs no torch."""

import io
import shutil
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
        InvalidRequest: the tar holds anything but plain files with plain names, or is broken (code `bad_model`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(whole), mode="r:") as tar:
            for entry in tar:
                _check(entry)
                source = tar.extractfile(entry)
                assert source is not None
                with (folder / entry.name).open("wb") as file:
                    shutil.copyfileobj(source, file)
    except tarfile.TarError as error:
        raise _bad(f"it is no tar, or not all of one ({error})") from None
    return folder


def _check(entry: tarfile.TarInfo) -> None:
    """A sparse file counts as a plain one there, and may be a million times as large as the tar that it is in."""
    plain = entry.isfile() and not entry.issparse() and entry.size <= _FILE_MAX
    if not plain or not entry.name.isprintable() or "/" in entry.name or entry.name[:1] in ("", "."):
        raise _bad(f"not {entry.name!r}")


def _bad(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"a packed model holds plain files only: {why}. Pack it with training.parcels.packed", code="bad_model"
    )
