"""Picks the core, `_compiled` or `_pure`, whole or not at all. Runs once, at import.

`TCPREASM_IMPLEMENTATION=auto|compiled|pure`: a named core is a demand, and ImportError where it can't be met; `auto` (the default)
takes the pure one only where there is no extension, not where there is one that fails to load. Where the compiled core's sources lie
uncompiled, in a clone of the repository, it says so: there the pure one is most likely a mistake, and many times slower.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import warnings
from typing import TYPE_CHECKING, NoReturn

__all__ = ["core", "implementation"]


_FOLDER = os.path.dirname(os.path.abspath(__file__))


def _lies_there(*suffixes: str) -> bool:
    path = os.path.join(_FOLDER, "_compiled", "assembler")
    return any(os.path.exists(path + suffix) for suffix in suffixes)


def _is_command() -> bool:
    """The command `tcpreasm` imports this, by its own name or by `python -m tcpreasm`."""
    name = os.path.basename((getattr(sys, "argv", None) or [""])[0])
    return name in ("tcpreasm", "tcpreasm.exe") or (name == "-m" and "tcpreasm" in sys.orig_argv)


def _refuse(text: str) -> NoReturn:
    """The command comes to its senses only behind this, and its errors take a line, and exit status 2."""
    if _is_command():
        print("tcpreasm:", text, file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(text)


_wanted = os.environ.get("TCPREASM_IMPLEMENTATION") or "auto"
if _wanted not in ("auto", "compiled", "pure"):
    _refuse(f"TCPREASM_IMPLEMENTATION is auto, compiled or pure, not {_wanted!r}")
if _wanted != "pure" and not _lies_there(*importlib.machinery.EXTENSION_SUFFIXES):
    if _lies_there(".pyx"):  # no wheel holds those
        _told = f"{_FOLDER} is the source tree of tcpreasm, where nothing is compiled for this Python"
        _advice = "`pip install -e .` compiles it there; from another folder Python finds the package that is installed"
        if _wanted == "compiled":
            _refuse(f"{_told}: {_advice}")
        warnings.warn(f"{_told}: the slow pure core runs. {_advice}", RuntimeWarning, stacklevel=3)
    if _wanted == "auto":
        _wanted = "pure"
elif _wanted == "auto":
    _wanted = "compiled"

implementation: str = _wanted
"""The core in use: "compiled" or "pure"."""

if TYPE_CHECKING or implementation == "pure":
    from . import _pure as core
else:
    from . import _compiled as core
