"""The verifier as one file: what `fabric audit verifier` writes, for whoever checks a bill without the product.

The modules of `fabric.audit.verify` one after the other as they stand, each after what it needs, with their imports at the
top. The same sources make the same bytes. Imports nothing of ours, and runs nothing of what it reads.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parent / "verify"
CONSOLE: Final = Path(__file__).parents[1] / "console"
_FROM_FILE: Final = '<script src="verifier.js"></script>'
_AROUND: Final = ("__init__", "__main__")
_END: Final = '\n\nif __name__ == "__main__":\n    sys.exit(main())\n'


def one_file(package: Path = PACKAGE) -> str:
    """The source of the whole verifier.

    Raises:
        ValueError: two modules give one name two meanings, or import in a way that one file can't keep.
    """
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(package.glob("*.py"))}
    modules = {name: ast.parse(source) for name, source in sources.items()}
    _assert_no_name_twice(modules)
    needs = {name: _siblings(module) for name, module in modules.items() if name not in _AROUND}
    order = [name for name in _in_order(needs) if name not in _AROUND]
    doc = ast.get_docstring(modules["__init__"], clean=False)
    parts = [
        f'"""{doc}"""\n',
        _imports([modules[name] for name in order]),
        *(_body(name, sources[name], modules[name]) for name in order),
    ]
    return "\n".join(parts) + _END


def one_page(console: Path = CONSOLE) -> str:
    """The verifier's second implementation as one page, which a browser opens from a disk: its script stands in it."""
    page, script = ((console / name).read_text(encoding="utf-8") for name in ("verifier.html", "verifier.js"))
    return page.replace(_FROM_FILE, f"<script>\n{script}</script>")


def _in_order(needs: dict[str, set[str]]) -> list[str]:
    """What is needed first, and by name where nothing else decides."""
    sorter, order = TopologicalSorter(needs), list[str]()
    sorter.prepare()
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return order


def _siblings(module: ast.Module) -> set[str]:
    return {node.module or "" for node in module.body if isinstance(node, ast.ImportFrom) and node.level}


def _imports(modules: list[ast.Module]) -> str:
    """All that they import of others, once."""
    plain, named = set[str](), dict[str, set[str]]()
    for node in (node for module in modules for node in module.body):
        if isinstance(node, ast.Import):
            plain |= {ast.unparse(node)}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            named.setdefault(node.module or "", set()).update(ast.unparse(alias) for alias in node.names)
    plain.add("import sys")
    lines = [*sorted(plain), *(f"from {name} import {', '.join(sorted(named[name]))}" for name in sorted(named))]
    return "\n".join(lines) + "\n"


def _body(name: str, source: str, module: ast.Module) -> str:
    """A module without its imports, under its docstring as a comment."""
    kept = source.split("\n")
    skipped = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    doc = ast.get_docstring(module) or ""
    for node in [module.body[0], *skipped] if doc else skipped:
        for number in range(node.lineno - 1, (node.end_lineno or node.lineno)):
            kept[number] = ""
    about = "\n".join(f"# {line}".rstrip() for line in f"--- {name} ---\n{doc}".split("\n"))
    return f"\n{about}\n\n" + "\n".join(kept).strip("\n") + "\n"


def _assert_no_name_twice(modules: dict[str, ast.Module]) -> None:
    owner: dict[str, str] = {}
    for name, module in modules.items():
        if name in _AROUND:
            continue
        for defined in _defined(module):
            if owner.setdefault(defined, name) != name:
                raise ValueError(f"{defined} is defined in {owner[defined]} and in {name}: one file can't hold both")
        for node in module.body:
            renamed = (
                isinstance(node, ast.ImportFrom)
                and node.level
                and (node.level > 1 or any(a.asname for a in node.names))
            )
            if renamed:
                raise ValueError(f"{name} renames what it imports of its siblings: one file can't")


def _defined(module: ast.Module) -> set[str]:
    found = set[str]()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return found
