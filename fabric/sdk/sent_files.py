"""Which files of a folder are sent, and under which names: what git ignores stays, and what `.fabricignore` says has the
last word.

Both are written as for git, `!pattern` included. Never sent unless `.fabricignore` asks for it (`!.env`): version control,
caches, virtual environments, and `.env` files, which are where secrets are kept. A link is sent as what it leads to.
"""

import os
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple

from pathspec import GitIgnoreSpec

EXCLUDES: Final = (
    ".git", ".hg", ".svn", "__pycache__", "*.pyc", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache",
    ".pytest_cache", ".ipynb_checkpoints",
)  # fmt: skip
"""Never sent with a folder, unless its `.fabricignore` asks for it; nobody looks for these where the job runs."""
_SECRETS: Final = (".env", ".env.*", "!.env.example")
"""Not either; but a program may miss them, so they are named."""
_IGNORED: Final = ".gitignore"
_OWN: Final = ".fabricignore"
_VENV: Final = "pyvenv.cfg"


class Listing(NamedTuple):
    """What of a folder is sent."""

    files: list[Path]
    """Relative to it, in order."""
    empty: list[Path]
    """Folders of which nothing is sent but that they are there."""
    left_out: list[str]
    """What was left out because a `.gitignore` names it: the uppermost of it."""
    secrets: list[str]
    """The `.env` files that were left out."""


class _Left(Enum):
    """Why something is left out, as far as that is told."""

    UNTOLD = auto()
    BY_GIT = auto()
    SECRET = auto()


class _Rules(NamedTuple):
    """Those of one file, for what lies below its folder."""

    base: Path
    spec: GitIgnoreSpec

    def say(self, path: Path, *, is_folder: bool) -> bool | None:
        """Whether it is to be left out; None if they say nothing of it."""
        within = path.relative_to(self.base).as_posix()
        return self.spec.check_file(f"{within}/" if is_folder else within).include


def listed(root: Path) -> Listing:
    """What of a folder is sent."""
    top = Path(os.path.abspath(root))  # noqa: PTH100  # `resolve` would follow a link that the folder may be
    ignores = _Ignores(top)
    found = Listing([], [], [], [])
    _walk(top, ignores, found, top=top, above=(), rules=ignores.above)
    return found


class _Ignores:
    def __init__(self, top: Path) -> None:
        self.always = _Rules(top, GitIgnoreSpec.from_lines(EXCLUDES))
        self.secrets = _Rules(top, GitIgnoreSpec.from_lines(_SECRETS))
        self.own = _Rules(top, _read(top / _OWN))
        self.above = tuple(_Rules(folder, _read(folder / _IGNORED)) for folder in _repository_above(top))

    def leave_out(self, path: Path, rules: Sequence[_Rules], *, is_folder: bool) -> _Left | None:
        """Why it is left out; None = it is sent."""
        if (own := self.own.say(path, is_folder=is_folder)) is not None:
            return _Left.UNTOLD if own else None
        if self.always.say(path, is_folder=is_folder) or (is_folder and (path / _VENV).is_file()):
            return _Left.UNTOLD
        if self.secrets.say(path, is_folder=is_folder):
            return _Left.SECRET
        said = [each for rule in rules if (each := rule.say(path, is_folder=is_folder)) is not None]
        return _Left.BY_GIT if said and said[-1] else None


def _walk(
    folder: Path, ignores: _Ignores, found: Listing, *, top: Path, above: tuple[str, ...], rules: tuple[_Rules, ...]
) -> None:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder above it: it is sent once
    if folder != top and (folder / _IGNORED).is_file():
        rules = (*rules, _Rules(folder, _read(folder / _IGNORED)))
    before = len(found.files) + len(found.empty)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path, is_folder = Path(entry.path), entry.is_dir()
        if left := ignores.leave_out(path, rules, is_folder=is_folder):
            named = path.relative_to(top).as_posix() + ("/" if is_folder else "")
            found.left_out.extend([named] if left is _Left.BY_GIT else [])
            found.secrets.extend([named] if left is _Left.SECRET else [])
        elif is_folder:
            _walk(path, ignores, found, top=top, above=(*above, real), rules=rules)
        elif entry.is_file():
            found.files.append(path.relative_to(top))
    if folder != top and len(found.files) + len(found.empty) == before:
        found.empty.append(folder.relative_to(top))


def _repository_above(top: Path) -> Iterator[Path]:
    """The folders from the repository's own down to this one, whose rules hold here."""
    chain = [top, *top.parents]
    depth = next((at for at, folder in enumerate(chain) if (folder / ".git").exists()), 0)
    yield from reversed(chain[: depth + 1])


def _read(file: Path) -> GitIgnoreSpec:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return GitIgnoreSpec.from_lines(lines)
