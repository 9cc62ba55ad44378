"""The reference that is made from docstrings: it builds without a warning, and leaves no public name unexplained."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UNEXPLAINED = """
import importlib, sys
import pdoc.doc

def members(found):
    for each in found.members.values():
        if not each.name.startswith("_"):
            yield each
            if isinstance(each, pdoc.doc.Class):
                yield from members(each)

for name in sys.argv[1:]:
    module = pdoc.doc.Module(importlib.import_module(name))
    assert module.docstring, name
    for each in members(module):
        if isinstance(each, (pdoc.doc.Class, pdoc.doc.Function)) and not each.docstring and not each.is_inherited:
            print(name, each.qualname)
"""


@pytest.fixture(scope="module")
def modules():
    """As the Makefile has them."""
    made = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = re.findall(r"-m pdoc .*", made)
    found = re.findall(r"(?<= )(?:fabric|training)\.[\w.]+", command)
    assert len(found) > 10
    return found


def test_the_reference_builds_without_a_warning(modules, tmp_path):
    done = subprocess.run(
        ["make", "-s", "docs", f"API_TO={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for name in modules:
        assert (tmp_path / f"{name.replace('.', '/')}.html").is_file()


def test_every_public_function_and_class_of_the_reference_has_a_docstring(modules):
    done = subprocess.run(
        [sys.executable, "-c", UNEXPLAINED, *modules], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == []
