"""What is to be done when a module is imported, and not before: most processes never import it."""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from typing import Any


def when_imported(name: str, installer: str) -> None:
    """Call `install` of the module `installer` once the module of that name is imported; now, if it is."""
    if name in sys.modules:
        importlib.import_module(installer).install()
    else:
        sys.meta_path.insert(0, _Once(name, installer))


class _Once(MetaPathFinder):
    """Finds a module as others would, and has what is imported looked after."""

    def __init__(self, name: str, installer: str) -> None:
        self._name, self._installer = name, installer

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            importlib.import_module(self._installer).install()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # this one loader's
        return spec
