"""What a Python file and a function say by themselves, read without running anything: what they import, name and define."""

import ast
import dis
import sys
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from fabric.imports import stated_by

_REWRITTEN: Final = frozenset({"@pytest_ar", "@py_assert"})


def imported_names(file: Path, *, package: str) -> tuple[str, ...]:
    """The dotted names that a Python file imports anywhere in it, as absolute ones."""
    try:
        about = file.stat()
    except OSError:
        return ()
    return _imported_in(file, about.st_mtime_ns, about.st_size, package)


@lru_cache(maxsize=4096)
def _imported_in(file: Path, _mtime_ns: int, _size: int, package: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_names_in(_parsed(file), package)))


def _parsed(file: Path) -> ast.AST:
    try:
        about = file.stat()
    except OSError:
        return ast.Module(body=[], type_ignores=[])
    return _parsed_as(file, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=32)
def _parsed_as(file: Path, _mtime_ns: int, _size: int) -> ast.AST:
    try:
        return ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError, OSError, RecursionError):
        return ast.Module(body=[], type_ignores=[])  # it says so itself when it runs


def _names_in(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                yield from _from(module or "", [alias.name for alias in names], level, package)
            case ast.Call(func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__")):
                yield from (
                    argument.value
                    for argument in node.args[:1]
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                )


def _from(module: str, names: Iterable[str], level: int, package: str) -> Iterator[str]:
    base = module
    if level:
        above = package.split(".") if package else []
        kept = above[: len(above) - level + 1]
        base = ".".join([*kept, *([module] if module else [])])
    if base:
        yield base
        yield from (f"{base}.{name}" for name in names if name != "*")


@lru_cache(maxsize=1024)
def imported_by(code: types.CodeType, package: str) -> tuple[str, ...]:
    """What the bytecode imports, that of inner functions included. Known of what was submitted before: reading it takes as long
    as pickling it.
    """
    return tuple(_imports_of(code, package))


def _imports_of(code: types.CodeType, package: str) -> Iterator[str]:
    before: list[Any] = []
    for step in dis.get_instructions(code):
        if step.opname == "EXTENDED_ARG":
            continue
        if step.opname == "IMPORT_NAME":
            level, names = (before[-2], before[-1]) if len(before) > 1 else (0, None)
            known = names if isinstance(names, tuple) else ()
            yield from _from(str(step.argval or ""), known, level if isinstance(level, int) else 0, package)
        before = [*before[-1:], step.argval]
    by_name = not {"import_module", "__import__"}.isdisjoint(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imports_of(constant, package)
        elif by_name and isinstance(constant, str) and all(word.isidentifier() for word in constant.split(".")):
            yield constant


def plain_code(code: types.CodeType) -> types.CodeType:
    """The code of a function as its file has it, where pytest has rewritten its asserts: nodes have no pytest."""
    if _REWRITTEN.isdisjoint(_names_of(code)):
        return code
    try:
        whole = compile(Path(code.co_filename).read_bytes(), code.co_filename, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError):
        return code
    same = [each for each in _codes_in(whole) if _place(each) == _place(code)]
    return same[0] if len(same) == 1 else code


def _place(code: types.CodeType) -> tuple[Any, ...]:
    return code.co_name, code.co_firstlineno, code.co_freevars, code.co_argcount, code.co_kwonlyargcount


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes_in(constant)


def words_of(file: Path, *, asking: frozenset[str]) -> list[str]:
    """The texts that a file has in it, if it uses one of the names that it is asked for."""
    tree = _parsed(file)
    if not any(isinstance(node, ast.Name) and node.id in asking for node in ast.walk(tree)):
        return []
    return sorted(
        {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    )


def changed_globals(function: types.FunctionType) -> list[str]:
    """Which of the names that a function uses have in its module another value now than the module's file gives them: those
    that the file defines once, as a constant, a function or a class.
    """
    file = stated_by(sys.modules.get(function.__module__), "__file__")
    if not file or not file.endswith(".py"):
        return []
    given = _defined_by(Path(file))
    used = {name for name in _names_of(function.__code__) if name in given and name in function.__globals__}
    return sorted(name for name in used if _is_other(given[name], function.__globals__[name], function.__module__))


def _defined_by(file: Path) -> Mapping[str, ast.AST]:
    try:
        about = file.stat()
    except OSError:
        return {}
    return _defined_by_as(file, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=4096)
def _defined_by_as(file: Path, _mtime_ns: int, _size: int) -> Mapping[str, ast.AST]:
    return _defined_in(_parsed(file))


def _defined_in(tree: ast.AST) -> dict[str, ast.AST]:
    found: list[tuple[str, ast.AST]] = []
    for node in getattr(tree, "body", ()):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found.append((name, value))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found.append((name, value))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.append((name, node))
    stored = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    times = Counter([*stored, *(name for name, node in found if not isinstance(node, ast.expr))])
    rebound = {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}
    return {name: node for name, node in found if times[name] == 1 and name not in rebound}


def _names_of(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_of(constant)


def _is_other(node: ast.AST, value: object, module: str) -> bool:
    if isinstance(node, ast.expr):
        try:
            given = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return False
        return isinstance(given, bool | int | float | str | bytes | None) and (type(given), given) != (
            type(value),
            value,
        )
    decorated = bool(getattr(node, "decorator_list", ()))
    return not decorated and getattr(value, "__module__", module) != module
