"""The style, as far as a machine can tell: no file that swallows the design, no fraction in an account."""

import ast
import re
import subprocess
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

import fabric

ROOT = Path(__file__).parent.parent
PACKAGES = ("fabric", "serving", "training")
CORE = ("fabric/ledger/", "fabric/charging/", "fabric/placement/", "fabric/gate/")
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "base", "misc"}
IMPURE = {
    "ray",
    "asyncio",
    "time",
    "random",
    "os",
    "sqlite3",
    "pydantic",
    "torch",
    "threading",
    "secrets",
    "uuid",
}
LINES_MAX = 400
LINES_MAX_LONGER = 660
LONGER = {
    "tests/ledger/test_book_model.py": "one machine over everything that can happen to the book",
    "fabric/checkpoints/checkpoints.py": "all that may be done with a job's checkpoints is one object",
    "fabric/context/job.py": "all that a job's own code may ask of the fabric is one object",
    "fabric/gate/events.py": "every event of the gate in one place: the vocabulary is read as a whole",
    "serving/host/pool.py": "a replica's whole life, from its lease to its end, is one machine",
    "fabric/journal/writer.py": "deciding, committing and coming back after an outage are one machine with one lock",
}
"""A concept in one place beats a short file: those that need more lines, each with its reason."""


def tracked():
    """What the repository holds or is about to: git's own list where there is one, so that build products don't count."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        return sorted(ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file())
    return sorted(
        path for top in (*PACKAGES, "tests", "cluster-configs") for path in (ROOT / top).rglob("*") if path.is_file()
    )


FILES = tracked()
PYTHON = [path for path in FILES if path.suffix == ".py" and not re.search(r"_pb2(_grpc)?$", path.stem)]
OURS = [path for path in PYTHON if path.relative_to(ROOT).parts[0] in PACKAGES]
CORE_FILES = [path for path in OURS if str(path.relative_to(ROOT)).startswith(CORE)]


@cache
def tree(path):
    """Of a file, when a test looks at it: whoever only collects tests waits for none."""
    return ast.parse(path.read_text(encoding="utf-8"))


def at(path, node=None):
    line = f":{node.lineno}" if node is not None else ""
    return f"{path.relative_to(ROOT)}{line}"


def test_there_is_something_to_look_at():
    assert len(OURS) > 10
    assert {f"{path.relative_to(ROOT).parent}/" for path in CORE_FILES} >= set(CORE)


def test_no_file_has_more_than_400_lines_but_those_that_say_why():
    lines = {at(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON}
    bound = dict.fromkeys(LONGER, LINES_MAX_LONGER)
    assert {name: count for name, count in lines.items() if count > bound.get(name, LINES_MAX)} == {}
    assert set(LONGER) <= set(lines), "a file that is gone needs no leave to be long"


def test_a_module_is_called_what_it_is():
    assert [at(path) for path in PYTHON if {path.stem, path.parent.name} & FORBIDDEN_NAMES] == []


def test_every_module_says_what_it_is():
    speechless = [at(path) for path in OURS if not ast.get_docstring(tree(path))]
    assert speechless == []


def test_an_init_file_holds_a_docstring_and_names_from_elsewhere():
    allowed = (ast.Import, ast.ImportFrom)
    bad = []
    for path in OURS:
        if (
            path.name != "__init__.py" or path.parent == ROOT / "fabric"
        ):  # the façade looks its names up when they are used
            continue
        for node in tree(path).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            exports = isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
            if not (docstring or exports or isinstance(node, allowed)):
                bad.append(at(path, node))
    assert bad == []


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node, node.module


def test_the_core_imports_no_world():
    impure = [
        f"{at(path, node)} imports {name}"
        for path in CORE_FILES
        for node, name in imported(tree(path))
        if name.partition(".")[0] in IMPURE
    ]
    assert impure == []


def fractions(tree):
    """Everything that makes a float."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float | complex):
            yield node, f"the float {node.value}"
        elif isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node, "true division"
        elif isinstance(node, ast.Name) and node.id in {"float", "complex"}:
            yield node, node.id


def test_there_is_no_fraction_in_the_core():
    found = [f"{at(path, node)}: {what}" for path in CORE_FILES for node, what in fractions(tree(path))]
    assert found == []


@pytest.mark.parametrize("code", ["a = 0.5", "a = b / c", "a /= 2", "a = float(b)", "def f(a: float): ...", "a = 1e6"])
def test_a_fraction_would_be_found(code):
    assert list(fractions(ast.parse(code)))


def test_sets_are_not_walked_in_the_core():
    """Their order depends on hashes, and a replay must not."""
    walked = []
    for path in CORE_FILES:
        loops = (node for node in ast.walk(tree(path)) if isinstance(node, ast.For | ast.comprehension))
        for loop in loops:
            call = loop.iter
            is_call = (
                isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in {"set", "frozenset"}
            )
            if is_call or isinstance(call, ast.Set | ast.SetComp):
                walked.append(at(path, call))
    assert walked == []


def test_the_tree_knows_no_machine_and_no_registry():
    hosts = "|".join(
        map(
            re.escape,
            [
                "pyp" + "i.org",
                "pythonhosted" + ".org",
                "registry" + ".npmjs",
                "docker.io",
                "ghcr.io",
                "quay.io",
                "gcr.io",
            ],
        )
    )
    places = "|".join(["/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/[a-z]+/", "/Us" + "ers/", "/opt/py" + "pi"])
    pattern = re.compile(f"({hosts})|(?<![\\w.])({places})")
    found = []
    for path in FILES:
        if path == Path(__file__) or path.suffix in {".png", ".ico", ".woff2"} or "static" in path.parts:
            continue
        lines = enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        found += [f"{at(path)}:{number}: {line.strip()[:80]}" for number, line in lines if pattern.search(line)]
    assert found == []


def test_the_public_names_are_these():
    assert sorted(fabric.__all__) == [
        "Balance",
        "Cost",
        "Fabric",
        "Job",
        "Lease",
        "Limits",
        "Quote",
        "Resources",
        "balance",
        "connect",
        "job",
        "jobs",
        "lease",
        "quote",
        "submit",
    ]
    assert [name for name in fabric.__all__ if not hasattr(fabric, name)] == []


def test_every_export_is_there():
    for name in ("fabric.ledger", "fabric.charging", "fabric.placement", "fabric.gate", "fabric.audit", "fabric.wire"):
        module = __import__(name, fromlist=["*"])
        exports = getattr(module, "__all__", [])
        assert [export for export in exports if not hasattr(module, export)] == []
        assert sorted(set(exports)) == sorted(exports), f"{name} exports a name twice"


def test_a_test_is_a_sentence():
    tests = chain.from_iterable(
        ((path, node) for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
        for path in PYTHON
        if path.relative_to(ROOT).parts[0] == "tests" and path.name.startswith("test_")
    )
    short = [at(path, node) for path, node in tests if node.name.startswith("test_") and node.name.count("_") < 3]
    assert short == []


def test_the_core_reads_no_clock():
    calls = ((path, node) for path in CORE_FILES for node in ast.walk(tree(path)) if isinstance(node, ast.Call))
    clocks = {"now", "utcnow", "today", "monotonic", "time_ns", "perf_counter", "sleep"}
    read = [at(path, call) for path, call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in clocks]
    assert read == []


def test_what_the_architecture_names_is_there():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:fabric|serving|training|tests)/[\w/]+\.py)(?::(\w+))?`", text)
    assert len(named) > 40
    gone = [
        f"{file}:{name}"
        for file, name in named
        if not (ROOT / file).is_file()
        or (
            name
            and not re.search(
                rf"^ *(?:(?:async )?def|class) {name}\b|^{name}\b",
                (ROOT / file).read_text(encoding="utf-8"),
                re.MULTILINE,
            )
        )
    ]
    assert gone == []
