"""Run by every Python of a job when it starts, because its folder is in PYTHONPATH: Ray, once it is imported, is the lease's.

Costs next to nothing where nobody imports Ray. What it hides, a `sitecustomize` of the environment's own, is run after it.
"""

import importlib.abc
import importlib.util
import os
import sys
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # pathlib would be imported by every start


class _OnRay(importlib.abc.MetaPathFinder):
    """Finds `ray` as others would, and has what is imported made the lease's."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        if name != "ray":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            from fabric.worker.lease_ray import install  # noqa: PLC0415  # it imports Ray

            install()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # this one loader's
        return spec


if os.environ.get("FABRIC_RAY"):
    sys.meta_path.insert(0, _OnRay())
sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != _HERE]  # noqa: PTH100
_own = sys.modules.pop("sitecustomize", None)
try:
    importlib.import_module("sitecustomize")  # the environment's, if it has one
except ImportError:
    if _own is not None:
        sys.modules["sitecustomize"] = _own
