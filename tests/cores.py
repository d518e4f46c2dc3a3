"""The package on either core, both in one process, so that they can be compared call by call. For tests/ and for bench/.

Lives here: loading them. The compiled core is the plain package `tcpreasm`; the pure one is the same files loaded a second time, as
`tcpreasm_pure`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

IMPLEMENTATIONS = ("compiled", "pure")
NAMES = {"compiled": "tcpreasm", "pure": "tcpreasm_pure"}


@contextmanager
def _demand(implementation: str) -> Iterator[None]:
    """TCPREASM_IMPLEMENTATION as given, for as long as the block runs: child processes must not inherit it."""
    before = os.environ.get("TCPREASM_IMPLEMENTATION")
    os.environ["TCPREASM_IMPLEMENTATION"] = implementation
    try:
        yield
    finally:
        if before is None:
            del os.environ["TCPREASM_IMPLEMENTATION"]
        else:
            os.environ["TCPREASM_IMPLEMENTATION"] = before


def load(implementation: str) -> ModuleType:
    """The package on the core `implementation`, imported once a process. Fails the test where that core is not to be had."""
    name = NAMES[implementation]
    package = sys.modules.get(name)
    if package is None:
        try:
            with _demand(implementation):
                package = _import_as(name)
        except ImportError as error:
            for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[loaded]  # the next test must see the same error, not a half-made package
            pytest.fail(f"the {implementation} core cannot be loaded, and a missing core is a failure: {error!r}", pytrace=False)
    runs_on = getattr(package, "implementation", None)
    if runs_on != implementation:
        pytest.fail(f"{name} runs on the {runs_on} core, not on the {implementation} one", pytrace=False)
    return package


def _import_as(name: str) -> ModuleType:
    if name == "tcpreasm":
        return importlib.import_module(name)
    installed = importlib.util.find_spec("tcpreasm")
    if installed is None or installed.origin is None:
        raise ModuleNotFoundError("tcpreasm is not installed", name="tcpreasm")
    spec = importlib.util.spec_from_file_location(name, installed.origin, submodule_search_locations=[str(Path(installed.origin).parent)])
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    spec.loader.exec_module(package)
    return package


def submodule(package: ModuleType, path: str) -> ModuleType:
    """A module of the given package: `submodule(tcpreasm, "capture.pcap")`."""
    return importlib.import_module(f"{package.__name__}.{path}")


def core_module(package: ModuleType, path: str) -> ModuleType:
    """A module of the package's own core: `core_module(tcpreasm, "pages")` is `_compiled.pages` or `_pure.pages`."""
    return submodule(package, f"_{package.implementation}.{path}")
