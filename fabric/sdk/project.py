"""What a function needs of the caller's own modules: found by what it reaches, and sent along as files.

A module of the caller's own is one that is neither the standard library's nor installed: beside the script, below a folder
on `sys.path`, or of an editable install. Where it can be imported by its name it travels as a file and is imported there,
so that a class, an enum or an exception is the same one for all modules there, and the caller's own when it comes back. A
package travels whole, with the data in it; a module alone takes along what it imports, and where it speaks of `__file__`,
the files beside it that it names. What runs as `__main__`, or was imported in another way than from a file (by pytest, by
`exec`), is pickled by value.

Never sent: hidden files, keys and what `.fabricignore` names. Nothing is imported or run here to find this out.
"""

import importlib.machinery
import importlib.util
import os
import site
import sys
import sysconfig
import types
from collections.abc import Iterator
from enum import Enum
from fnmatch import fnmatch
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from fabric.errors import InvalidRequest
from fabric.imports import stated_by
from fabric.sdk.source import imported_by, imported_names, words_of

SECRETS: Final = (
    "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.keystore", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*",
    "credentials*.json", "client_secret*.json", "service-account*.json", "service_account*.json",
)  # fmt: skip
"""Files that hold keys by their names; so do hidden ones, such as `.env` and `.netrc`."""
_LEFT_OUT: Final = ("__pycache__", "*.pyc", "*.egg-info", "node_modules", "venv", *SECRETS)
_OURS: Final = frozenset({"fabric", "training", "serving"})
IN_USE: Final = frozenset((
    *_OURS, "aiohttp", "annotated_types", "attr", "attrs", "brotli", "certifi", "charset_normalizer", "click", "cloudpickle", "colorama",
    "colorful", "colorful_orig", "cryptography", "cython_runtime", "filelock", "grpc", "grpc_reflection", "grpc_tools", "idna", "jsonpointer", "jsonschema",
    "jsonschema_specifications", "msgpack", "msgspec", "numpy", "packaging", "psutil", "pydantic", "pydantic_core",
    "pydantic_settings", "pygments", "ray", "referencing", "requests", "rfc3339_validator", "rich", "rpds", "six", "sniffio",
    "stamina", "structlog", "tenacity", "torch", "tornado", "tqdm", "typing_extensions", "typing_inspection", "urllib3",
    "uvloop", "wcwidth", "yaml",
))  # fmt: skip
"""What a job's process may have imported before the job's own code is reached."""
_FILE_LOADERS: Final = (
    importlib.machinery.SourceFileLoader,
    importlib.machinery.SourcelessFileLoader,
    importlib.machinery.ExtensionFileLoader,
)
_PACKAGE: Final = "__init__.py"
_NAME_CHARS: Final = 200
_ABOVE_MOST: Final = 6
_PROJECT_MARKS: Final = (".git", "pyproject.toml")
_LOOKS_BESIDE: Final = frozenset({"__file__", "resources", "__spec__"})


class Standing(Enum):
    """How what a module has in it travels."""

    INSTALLED = "named: it is installed there too, or pickled by value in any case"
    FILE = "named, and its file goes along"
    VALUE = "by value: nothing can import it by its name"


def standing_of(name: str) -> Standing:
    """How what is in a module of that name travels."""
    module = sys.modules.get(name)
    if module is None or name == "__main__":
        return Standing.INSTALLED
    file = stated_by(module, "__file__")
    if file is None:
        return Standing.VALUE if _is_made_up(name) else Standing.INSTALLED
    if not is_local(name, file):
        return Standing.INSTALLED
    spec = stated_by(module, "__spec__")
    loader = getattr(spec, "loader", None) or stated_by(module, "__loader__")
    is_plain = isinstance(loader, _FILE_LOADERS) and _root_of(name, Path(file)) is not None
    return Standing.FILE if is_plain else Standing.VALUE


def is_local(name: str, file: str) -> bool:
    """Whether a module of the name in the file is the caller's own: not ours, nor the standard library's, nor installed."""
    path = _real(file)
    if any(path.startswith(place) for place in _installed()):
        return False
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return False
    return not (name.partition(".")[0] in _OURS and path.startswith(_our_root()))


class Project:
    """The files that a function reaches, by where they lie among the modules there."""

    def __init__(self, working_dir: Path | None = None) -> None:
        self._working_dir = working_dir
        self.files: dict[Path, Path] = {}
        """Each file, and the folder from which it is imported."""
        self._seen: set[str] = set()
        self._trees: set[Path] = set()
        self._waiting: list[tuple[str, bool, Path]] = []

    def reach(self, name: str) -> None:
        """A module that can be imported by its name, and what it imports."""
        if name not in self._seen:
            self._follow(name)
        self._close()

    def reach_from(self, code: types.CodeType, *, package: str) -> None:
        """What a function that travels by value imports when it runs."""
        for name in imported_by(code, package):
            self._follow(name)
        self._close()

    def _close(self) -> None:
        while self._waiting:
            name, is_package, file = self._waiting.pop()
            for imported in imported_names(file, package=name if is_package else name.rpartition(".")[0]):
                self._follow(imported)

    def _follow(self, name: str) -> None:
        """A dotted name that something imports; it may be of an attribute rather than a module."""
        if name in self._seen:
            return
        self._seen.add(name)
        top, *rest = name.split(".")
        for found in _places_of(top):
            if found.is_file():
                self._take_module(top, found)
            elif (found / _PACKAGE).is_file():
                self._take_tree(top, found, root=found.parent)
            else:
                self._descend([top], rest, found, root=found.parent)

    def _descend(self, above: list[str], rest: list[str], folder: Path, *, root: Path) -> None:
        """Into a namespace package, of which only what is named belongs to the caller."""
        if not rest:
            return
        below, module = folder / rest[0], folder / f"{rest[0]}.py"
        name = ".".join([*above, rest[0]])
        if (below / _PACKAGE).is_file():
            self._take_tree(name, below, root=root)
        elif module.is_file():
            self._take_module(name, module, root=root)
        elif below.is_dir():
            self._descend([*above, rest[0]], rest[1:], below, root=root)

    def _take_module(self, name: str, file: Path, *, root: Path | None = None) -> None:
        root = root or file.parent
        if file in self.files:
            return
        self.files[file] = root
        if file.suffix == ".py":
            self._waiting.append((name, False, file))
            for beside in _named_beside(file):
                for path in _tree(beside, self._working_dir) if beside.is_dir() else (beside,):
                    self.files.setdefault(path, root)

    def _take_tree(self, name: str, folder: Path, *, root: Path) -> None:
        if folder in self._trees:
            return
        self._trees.add(folder)
        for file in _tree(folder, self._working_dir):
            self.files.setdefault(file, root)
            if file.suffix == ".py":
                inner = file.relative_to(folder).with_suffix("").parts
                is_package = inner[-1] == "__init__"
                dotted = ".".join([name, *(inner[:-1] if is_package else inner)])
                self._waiting.append((dotted, is_package, file))

    def check(self) -> None:
        """Refuse modules by whose names a job's process knows others.

        Raises:
            InvalidRequest: `module_name_taken`.
        """
        tops = {file.relative_to(root).parts[0] for file, root in self.files.items()}
        names = {top.partition(".")[0] for top in tops}
        for name in sorted(names & (sys.stdlib_module_names | IN_USE)):
            owner = "the standard library's" if name in sys.stdlib_module_names else f"another one, {name}"
            owner = "token-fabric's own" if name in _OURS else owner
            raise InvalidRequest(
                f"your module {name!r} has the name of {owner}, which a job's process has imported before yours: rename it",
                code="module_name_taken",
                module=name,
            )


def _places_of(top: str) -> Iterator[Path]:
    """Where a top-level module of the caller's own lies: a file, or folders of a package; nothing if it is none."""
    if top in {"__main__", "__mp_main__"}:
        return
    module = sys.modules.get(top)
    try:
        spec = stated_by(module, "__spec__") or importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return
    if spec is None:
        return
    if spec.submodule_search_locations is not None:
        yield from (Path(place) for place in spec.submodule_search_locations if is_local(top, str(place)))
    elif spec.has_location and spec.origin and is_local(top, spec.origin) and isinstance(spec.loader, _FILE_LOADERS):
        yield Path(spec.origin)


def _root_of(name: str, file: Path) -> Path | None:
    """The folder from which a module is imported; None if its file doesn't lie as its name says."""
    parts = name.split(".")
    shown = (*file.parent.parts, file.name.partition(".")[0])
    inner = shown[:-1] if shown[-1] == "__init__" else shown
    if list(inner[-len(parts) :]) != parts:
        return None
    return Path(*inner[: -len(parts)])


def _tree(folder: Path, top: Path | None) -> list[Path]:
    """The files of a folder that may be sent, in order. The `.fabricignore` in it, and those above it in its project, are
    read as git reads its own.
    """
    found: list[Path] = []
    entered: set[str] = set()
    rules = [(base, _ignored_in(base)) for base in _bases_of(folder, top)]

    def goes(path: Path) -> bool:
        said = [spec.check_file(_within(path, base)).include for base, spec in rules]
        told = [each for each in said if each is not None]
        return _may_go(path) and not (told and told[-1])

    for where, folders, names in os.walk(folder, followlinks=True):
        real = _real(where)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        here = Path(where)
        folders[:] = sorted(name for name in folders if goes(here / name))
        found.extend(here / name for name in sorted(names) if goes(here / name) and (here / name).is_file())
    return found


def _bases_of(folder: Path, top: Path | None) -> list[Path]:
    """The folder and those above it up to its project's own, which is the working directory, a repository, or has a
    pyproject.toml; one, if none is.
    """
    above = list(folder.parents)[:_ABOVE_MOST]
    marked = (
        n for n, base in enumerate(above) if base == top or any((base / mark).exists() for mark in _PROJECT_MARKS)
    )
    return [*reversed(above[: next(marked, 0) + 1]), folder]


def _within(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() + ("/" if path.is_dir() else "")


def _may_go(path: Path) -> bool:
    return not path.name.startswith(".") and not any(fnmatch(path.name, pattern) for pattern in _LEFT_OUT)


def _ignored_in(folder: Path) -> GitIgnoreSpec:
    try:
        lines = (folder / ".fabricignore").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return GitIgnoreSpec.from_lines(lines)


def _named_beside(file: Path) -> list[Path]:
    """The files and folders beside a module that its text names, if it looks for what lies beside it."""
    found = (file.parent / word for word in words_of(file, asking=_LOOKS_BESIDE) if _is_inner(word))
    return [path for path in found if path.exists() and path != file and _may_go(path)]


def _is_inner(word: str) -> bool:
    names = word.split("/")
    return (
        len(word) < _NAME_CHARS
        and "\0" not in word
        and not any(name in {"", ".", ".."} or name[0] == "." for name in names)
    )


def _is_made_up(name: str) -> bool:
    """Whether a module, and the package that it is in, came from no file, and are no part of Python either."""
    top = sys.modules.get(name.partition(".")[0])
    spec = stated_by(top, "__spec__")
    return (
        spec is None
        and stated_by(top, "__file__") is None
        and stated_by(top, "__path__") is None
        and name not in sys.builtin_module_names
    )


@cache
def _installed() -> tuple[str, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [*(sysconfig.get_path(kind) for kind in kinds), site.getusersitepackages()]
    return tuple(_real(place) + os.sep for place in dict.fromkeys(places) if place)


@cache
def _our_root() -> str:
    return _real(Path(__file__).parents[2]) + os.sep


@lru_cache(maxsize=8192)
def _real(path: str | Path) -> str:
    return os.path.realpath(path)
