"""A model's folder as one tar, to hand on through an archive. Plain files only, and it needs no torch."""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Final

from fabric.errors import InvalidRequest

_FILE_MAX: Final = 64 << 30
_NAME_BYTES_MAX: Final = 255
FILES_MAX: Final = 10_000


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
            for count, entry in enumerate(tar, 1):
                _check(entry)
                if count > FILES_MAX:
                    raise _bad(f"more than {FILES_MAX} files")
                source = tar.extractfile(entry)
                assert source is not None
                with (folder / entry.name).open("xb") as file:
                    shutil.copyfileobj(source, file)
    except FileExistsError:
        raise _bad("the same name twice") from None
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError, LookupError) as error:
        raise _bad(f"it is no tar, or not all of one ({str(error)[:200]})") from None
    return folder


def _check(entry: tarfile.TarInfo) -> None:
    """A sparse file counts as a plain one there, and may be a million times as large as the tar that it is in."""
    plain = entry.isfile() and not entry.issparse() and 0 <= entry.size <= _FILE_MAX
    named = entry.name.isprintable() and "/" not in entry.name and entry.name[:1] not in ("", ".")
    if not plain or not named or len(entry.name.encode(errors="replace")) > _NAME_BYTES_MAX:
        raise _bad(f"not {entry.name[:200]!r}")


def _bad(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"a packed model holds plain files only: {why}. Pack it with training.parcels.packed", code="bad_model"
    )
