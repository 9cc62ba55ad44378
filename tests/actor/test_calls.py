"""Whoever calls an actor of ours calls what it has, with what that takes: Ray finds out only when it is called."""

import ast
import inspect
from pathlib import Path

import pytest

import fabric
from fabric.node.agent import NodeAgent
from fabric.server.gate_server import Gatehouse
from fabric.worker.runner import Runner

CALLERS = {
    "server/gate_handle.py": Gatehouse,
    "server/keeper.py": Gatehouse,
    "api/remote_gate.py": Gatehouse,
    "cluster/attempts.py": Runner,
    "cluster/placement_groups.py": Runner,
    "cluster/recovery.py": Runner,
    "cluster/ranks.py": Runner,
    "cluster/dispatch.py": Runner,
    "cluster/agents.py": NodeAgent,
}
SHELLS = {"who", "call"}
BY_NAME = {"_tried", "_call"}
"""They take an address and a method's name, and are told besides how long to wait."""


def calls_in(caller):
    """Every method that is called there, with its arguments."""
    for node in ast.walk(ast.parse((Path(fabric.__file__).parent / caller).read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        arguments, options = node.args, {each.arg for each in node.keywords}
        if node.func.attr == "remote" and isinstance(node.func.value, ast.Attribute):
            yield node.func.value.attr, arguments, options
        elif node.func.attr in BY_NAME and isinstance(arguments[1], ast.Constant):
            yield arguments[1].value, arguments[2:], options - {"within_s", "otherwise"}


@pytest.mark.parametrize("caller", CALLERS)
def test_every_method_that_is_called_is_there_and_takes_what_it_is_given(caller):
    called = list(calls_in(caller))
    assert called
    for name, arguments, options in called:
        method = getattr(CALLERS[caller], name, None)
        assert method is not None, f"{caller} calls {name}, which {CALLERS[caller].__name__} doesn't have"
        if not any(isinstance(each, ast.Starred) for each in arguments) and None not in options:
            inspect.signature(method).bind(None, *arguments, **dict.fromkeys(options))


def test_no_caller_of_an_actor_is_left_out():
    package = Path(fabric.__file__).parent
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    calling = {file for file in files if {name for name, _, _ in calls_in(file)} - SHELLS}
    assert calling == set(CALLERS)
