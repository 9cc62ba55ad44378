"""What a script imports of what lies beside it, found by reading and without running anything.

A script that is sent without a working directory takes along the modules and packages in its own folder that it imports,
and those that they import. What is imported by a name made at run time, and data files, need `working_dir=`.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def stated_by(module: object, name: str) -> Any:
    """What a module has under a name, or None. It isn't asked for it: some import much when they are, and fail at that."""
    try:
        own = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return None
    return own.get(name)


def imported_beside(script: Path) -> list[Path]:
    """The script's own modules, in order, without itself: below its folder, as paths like the script's own."""
    return sorted(_with_imports([script], script.parent) - {script})


def module_in(name: str, folder: Path) -> list[Path]:
    """The files of a module or package of a folder, by its dotted name, and what they import of what lies there."""
    return sorted(_with_imports(_files_of(name, folder), folder))


def imported_by(code: str, folder: Path) -> list[Path]:
    """What code that runs in a folder, such as that of `python -c`, imports of what lies there."""
    return sorted(_with_imports((file for name in _names_in(code) for file in _files_of(name, folder)), folder))


def uses(script: Path, package: str) -> bool:
    """Whether a script, or a module beside it that it imports, imports a package."""
    files = [script, *imported_beside(script)]
    return any(name.partition(".")[0] == package for file in files for name in _imported_names(file))


def _with_imports(files: Iterable[Path], folder: Path) -> set[Path]:
    found = set(files)
    waiting = list(found)
    while waiting:
        for name in _imported_names(waiting.pop()):
            new = set(_files_of(name, folder)) - found
            found |= new
            waiting += new
    return found


def _imported_names(file: Path) -> Iterator[str]:
    return _names_in(file.read_bytes())


def _names_in(code: bytes | str) -> Iterator[str]:
    """Dotted names, absolute ones: a package is taken whole, and so are its relative imports."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return  # it says so itself when it runs
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module


def _files_of(name: str, folder: Path) -> Iterator[Path]:
    top = name.partition(".")[0]
    module, package = folder / f"{top}.py", folder / top
    if (package / "__init__.py").is_file() or (not module.is_file() and _is_namespace(package)):
        yield from sorted(file for file in package.rglob("*.py") if "__pycache__" not in file.parts)
    elif module.is_file():
        yield module


def _is_namespace(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.py"))
