"""Whoever calls the gate's actor calls what it has: Ray finds out only when it is called."""

import re
from pathlib import Path

import pytest

import fabric
from fabric.gatehouse import Gatehouse

CALLERS = ("detached.py", "doorkeeper.py", "serve.py", "api/remote_gate.py")
_CALLED = re.compile(r"\b(?:self\._)?_?(?:actor|gate)\.(\w+)\.remote\(")


@pytest.mark.parametrize("caller", CALLERS)
def test_every_method_that_is_called_is_there(caller):
    called = set(_CALLED.findall((Path(fabric.__file__).parent / caller).read_text()))
    assert {name for name in called if not hasattr(Gatehouse, name)} == set()


def test_the_calls_are_found():
    called = _CALLED.findall((Path(fabric.__file__).parent / "detached.py").read_text())
    assert {"ready", "price", "differences"} <= set(called)
