"""The weights of a Hugging Face folder, read as data: safetensors alone, in one file or in shards that an index names.

A folder may come from anybody. So every file is looked at before a tensor of it is read: its header fits into the file and offsets
neither overlap nor leave holes, which the safetensors library checks as it opens one, and what an index names lies in the folder itself. A
pickle is never opened, and of the folder's configuration nothing is read here. Knows no model.
"""

import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fabric.errors import InvalidRequest

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
ADAPTER: Final = "adapter_model.safetensors"
_SUFFIX: Final = ".safetensors"
_INDEX_BYTES_MAX: Final = 64 * 2**20
"""Of some 500,000 tensors."""


class WeightFiles(Mapping[str, Tensor]):
    """The tensors of a folder by name; each is read when it is asked for, from its file's own memory map."""

    def __init__(self, folder: Path, files: Mapping[str, Any], places: Mapping[str, str]) -> None:
        """Use `opened`."""
        self.folder, self._files, self._places = folder, files, places

    def __getitem__(self, name: str) -> Tensor:
        file = self._places[name]
        with _said_of(self.folder / file):
            return self._files[file].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def opened(folder: Path, *, adapter: bool = False) -> WeightFiles:
    """The weights of a folder, or those of the `adapter` in it, looked at and still to be read.

    Raises:
        InvalidRequest: `no_weights`: there are none as safetensors; `bad_weights`: a file is damaged, or leads out of the folder.
    """
    named = {ADAPTER: None} if adapter else _files_of(folder)
    files: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name, wanted in named.items():
        path = _inside(folder, name)
        with _said_of(path):
            files[name] = safe_open(path, framework="pt")
            held = list(files[name].keys())
        twice = next((key for key in held if key in places), None)
        if twice is not None:
            raise _bad(folder, f"{twice[:200]!r} is both in {places[twice]} and in {name}")
        if missing := sorted((wanted or set()).difference(held)):
            raise _bad(
                folder, f"{INDEX} says that {missing[0][:200]!r} is in {name}, and it isn't ({len(missing)} such)"
            )
        places |= dict.fromkeys(held, name)
    return WeightFiles(folder, files, places)


def _files_of(folder: Path) -> dict[str, set[str] | None]:
    """The files that hold the weights, with the names that the index says of each: in the order in which Hugging Face looks."""
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: None}
    if not (folder / INDEX).exists():
        found = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
        pickles = f", only {found[0]}, a pickle, which can run code" if found else ""
        raise InvalidRequest(
            f"there are no weights in {folder}: it has neither {WEIGHTS} nor {INDEX}{pickles}. Save them there by "
            "save_pretrained(folder), which writes safetensors",
            code="no_weights",
        )
    path = _inside(folder, INDEX)
    if (size := path.stat().st_size) > _INDEX_BYTES_MAX:
        raise _bad(folder, f"{INDEX} has {size:,} bytes, at most {_INDEX_BYTES_MAX:,} may be")
    try:
        said: Any = json.loads(path.read_bytes())
        listed = said["weight_map"]
        pairs = [(name, file) for name, file in listed.items() if isinstance(file, str)]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise _bad(folder, f"{INDEX} can't be read ({type(error).__name__}: {str(error)[:100]})") from None
    if not pairs or len(pairs) < len(listed):
        raise _bad(folder, f"{INDEX} must say of each of at least one tensor in which file it is")
    files: dict[str, set[str] | None] = {}
    for name, file in pairs:
        held = files.setdefault(file, set())
        assert held is not None
        held.add(name)
    return files


def _inside(folder: Path, name: str) -> Path:
    """A plain file of the folder. The one place beside it that a link may lead to is where Hugging Face's cache keeps blobs."""
    if not name or Path(name).name != name or "\\" in name or "\0" in name or name in {".", ".."}:
        raise _bad(folder, f"{INDEX} names {name[:200]!r}, which is no file of this folder")
    if name != INDEX and not name.endswith(_SUFFIX):
        raise _bad(folder, f"{INDEX} names {name[:200]!r}, and only {_SUFFIX} files are read")
    path = folder / name
    try:
        where, home = path.resolve(strict=True), folder.resolve()
        is_plain = stat.S_ISREG(where.stat().st_mode)
    except (OSError, RuntimeError):
        raise _bad(folder, f"{name[:200]} is not there") from None
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not is_plain or not (where.is_relative_to(home) or where.is_relative_to(cache)):
        raise _bad(folder, f"{name[:200]} leads out of the folder, or is no plain file")
    return path


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _bad(path.parent, f"{path.name} can't be read ({str(error)[:200]})") from None


def _bad(folder: Path, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the weights in {folder} are damaged, or not what they say: {why}. Fetch or export the folder again",
        code="bad_weights",
    )
