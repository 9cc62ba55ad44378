"""Programs that tests hold as text import what is there: no checker of types and no move of modules sees them otherwise."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORTS = re.compile(
    r"(?:^|[\n;]\s*)(?:from ((?:fabric|serving|training)[\w.]*) import ([\w, ]+)|import ((?:fabric|serving|training)\.[\w.]*))"
)


def texts(file):
    found = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return [node for node in found if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def is_there(module, name=""):
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    return not name or hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}") is not None


def imported(text):
    for whole, names, alone in IMPORTS.findall(text):
        yield from ((whole, each.split(" as ")[0].strip()) for each in names.split(",")) if whole else [(alone, "")]


def test_what_programs_in_texts_import_of_ours_is_there():
    gone = [
        (f"{file.relative_to(ROOT)}:{node.lineno}", module, name)
        for top in ("tests", "examples")
        for file in sorted((ROOT / top).rglob("*.py"))
        if file != Path(__file__)
        for node in texts(file)
        for module, name in imported(node.value)
        if not is_there(module, name)
    ]
    assert gone == []


def test_a_module_and_a_name_that_are_gone_are_found():
    found = list(imported("import sys\nfrom fabric import nowhere, daemon as d; import fabric.nowhere\n"))
    assert found == [("fabric", "nowhere"), ("fabric", "daemon"), ("fabric.nowhere", "")]
    assert [is_there(*each) for each in found] == [False, True, False]
