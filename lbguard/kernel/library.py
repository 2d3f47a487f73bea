"""pyroute2 without the parts that are not used.

`import pyroute2` executes the package's `__init__`, which imports the whole library: its database, wireless, WireGuard,
traffic control and more. That is a tenth of what a start of the service loads before it can repair a path. So the
package is entered into `sys.modules` before it is executed. Its submodules are then imported alone, and the first use
of another name (`from pyroute2 import NDB`) executes the package as usual.
"""

import importlib
import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_EXECUTES = frozenset({"__all__", "__version__"})
"""Names with underscores that the package itself defines; the import system looks for others."""


def defer_package(name: str) -> None:
    """Enter a package into `sys.modules` unexecuted, unless it is there or does not exist."""
    spec = None if name in sys.modules else find_spec(name)
    if spec is not None and spec.loader is not None:
        package = module_from_spec(spec)
        vars(package)["__getattr__"] = _DeferredNames(package, spec).find
        sys.modules[name] = package


class _DeferredNames:
    """Finds the names that an unexecuted package does not have yet (PEP 562)."""

    def __init__(self, package: ModuleType, spec: ModuleSpec) -> None:
        self._package = package
        self._spec = spec
        self._lock = threading.RLock()
        self._began = False

    def find(self, name: str) -> Any:
        """Return a submodule, or what the package defines once it is executed.

        Raises:
            AttributeError: it has neither.
        """
        missing = AttributeError(f"module {self._package.__name__!r} has no attribute {name!r}", name=name)
        if name.startswith("__") and name not in _EXECUTES:
            raise missing
        path = f"{self._package.__name__}.{name}"
        if find_spec(path) is not None:
            return importlib.import_module(path)
        with self._lock:
            if not self._began:
                self._began = True
                assert self._spec.loader is not None
                self._spec.loader.exec_module(self._package)
        if name in vars(self._package):
            return vars(self._package)[name]
        raise missing
