"""What commands import before they need it: `--help` of each nothing but what writes it, and those that ask the door
nothing of a cluster. Modules are counted, not seconds.
"""

import json
import os
import subprocess
import sys

import pytest

NEEDED = {"fabric", "google", "typer", "rich", "markdown_it", "mdurl", "pygments", "shellingham", "annotated_doc"}
"""Packages that write a page of help: our messages, Typer, Rich and what these two have with them."""
IF_THERE = {"attr", "tomli", "typing_extensions", "colorama"}
"""What Rich, and Pythons of before, take along where they find it."""
MODULES_MAX = 480
"""421 as this was written; a library more is a hundred."""
NOT_YET = (
    "fabric.sdk",
    "fabric.daemon",
    "fabric.config.cluster",
    "fabric.doctor",
    "fabric.results",
    "asyncio",
    "ssl",
    "msgspec",
)
OF_A_CLUSTER = ("ray", "torch", "vllm", "aiohttp", "pydantic", "boto3", "numpy", "structlog", "stamina", "uvicorn")

HELP = """
import contextlib, io, json, sys
from typer.main import get_command
from fabric.cli import app

def paths(command, path):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from paths(inner, [*path, name])

command, seen = get_command(app), {}
for path in paths(command, []):
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        command([*path, "--help"], prog_name="fabric")
    assert "Usage" in page.getvalue(), path
    seen[" ".join(path)] = sorted(sys.modules)
own = set(sys.builtin_module_names) | set(sys.stdlib_module_names)
print(json.dumps({"seen": seen, "standard": sorted(own)}))
"""
ASK = """
import contextlib, io, json, sys
from fabric.cli import main

sys.argv = ["fabric", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
print(json.dumps(sorted(sys.modules)))
"""


def python(program, *words, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pages():
    """Modules that there are once the help of each command was written, one after another in one process."""
    return python(HELP)


def test_the_help_of_every_command_imports_what_writes_it_and_no_more(pages):
    standard = set(pages["standard"]) | {"__main__", "_distutils_hack"}
    assert len(pages["seen"]) > 50
    for command, modules in pages["seen"].items():
        packages = {each.split(".")[0] for each in modules if not each.startswith("_")} - standard
        assert packages <= NEEDED | IF_THERE, (command, packages - NEEDED - IF_THERE)
        assert len(modules) <= MODULES_MAX, (command, len(modules))


def test_no_help_imports_the_sdk_or_what_starts_a_fabric(pages):
    for command, modules in pages["seen"].items():
        assert not set(modules) & set(NOT_YET), command


@pytest.mark.parametrize(
    "words",
    ["--version", "balance", "jobs", "top", "models", "plans", "usage", "statement", "keys ls", "job job-0", "logs job-0",
     "checkpoints ls job-0", "cancel job-0", "topup 1", "quote -t 1"],
)  # fmt: skip
def test_a_command_that_asks_the_door_imports_nothing_of_a_cluster(house, words):
    asked = {"FABRIC_ADDRESS": house.address, "FABRIC_API_KEY": house.acme, "FABRIC_CA": str(house.tls.ca)}
    modules = set(python(ASK, *words.split(), **asked))
    assert "fabric.cli" in modules
    assert not modules & {*OF_A_CLUSTER, "fabric.daemon", "fabric.config.cluster", "fabric.doctor"}
