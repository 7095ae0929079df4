"""Imports single modules of packages whose dependencies are not installed."""

import importlib
import importlib.util
import sys
from types import ModuleType


def module_alone(name):
    """A module, imported without running the ``__init__`` of its packages."""
    top, *inner = name.split(".")
    if top not in sys.modules:
        found = importlib.util.find_spec(top)
        if found is None:
            raise ModuleNotFoundError(f"No module named {top!r}")
        [folder] = found.submodule_search_locations
    else:
        [folder] = sys.modules[top].__path__
    for i in range(len(inner)):
        package = ModuleType(".".join([top, *inner[:i]]))
        package.__path__ = ["/".join([folder, *inner[:i]])]
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(name)
