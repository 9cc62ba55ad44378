"""Files that commands write: whole under their name, or not there."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fabric.errors import InvalidRequest


@contextmanager
def drafted(file: Path) -> Iterator[IO[bytes]]:
    """A draft that becomes `file` when the block ends well, and is gone when it doesn't.

    Raises:
        InvalidRequest: `file_unwritable`: there is no such folder, no permission, no room.
    """
    try:
        if file.exists() and not file.is_file():  # a pipe, or /dev/null: there is nothing to be replaced
            with tempfile.TemporaryFile() as out:
                yield out
                out.seek(0)
                with file.open("wb") as special:
                    shutil.copyfileobj(out, special)
            return
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}.draft")
        try:
            with draft.open("xb+") as out:
                yield out
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidRequest(
            f"can't write {file}: {error.strerror or error}", code="file_unwritable", path=str(file)
        ) from None
