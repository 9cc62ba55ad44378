"""What a script imports of what lies beside it, found by reading and without running anything.

A script that is sent without a working directory takes along the modules and packages in its own folder that it imports,
and those that they import. What is imported by a name made at run time, and data files, need `working_dir=`.
"""

import ast
import os
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


def named_beside(file: Path) -> Iterator[Path]:
    """Files that a module names in its text and that are there, below its own folder or the one that one is in. Folders too,
    where it asks for its own place: it may name what it reads by parts.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    remarks = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    knows_its_place = any(isinstance(node, ast.Name) and node.id == "__file__" for node in ast.walk(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in remarks:
            for folder in dict.fromkeys((file.parent, Path())):
                found = folder / node.value
                if _is_below(node.value) and (os.path.isfile(found) or (knows_its_place and _has_files(found))):  # noqa: PTH113  # see `is_file` in `commands`
                    yield found
                    break


def _is_below(word: str) -> bool:
    """Whether it is a path to something below a folder."""
    path = Path(word)
    return path.parts != () and not path.is_absolute() and ".." not in path.parts and "\0" not in word


def _has_files(folder: Path) -> bool:
    return os.path.isdir(folder) and bool(os.listdir(folder))  # noqa: PTH112, PTH208  # as above


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
