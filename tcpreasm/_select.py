"""Picks the core, `_compiled` or `_pure`, whole or not at all. Runs once, at import.

`TCPREASM_IMPLEMENTATION=auto|compiled|pure`: a named core is a demand, and ImportError where it can't be met; `auto` (the default)
takes the pure one only where there is no extension, not where there is one that fails to load.
"""

from __future__ import annotations

import importlib.machinery
import os
from typing import TYPE_CHECKING

__all__ = ["core", "implementation"]


def _extension_built() -> bool:
    path = os.path.join(os.path.dirname(__file__), "_compiled", "assembler")
    return any(os.path.exists(path + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES)


_wanted = os.environ.get("TCPREASM_IMPLEMENTATION") or "auto"
if _wanted not in ("auto", "compiled", "pure"):
    raise ImportError(f"TCPREASM_IMPLEMENTATION is auto, compiled or pure, not {_wanted!r}")
if _wanted == "auto":
    _wanted = "compiled" if _extension_built() else "pure"

implementation: str = _wanted
"""The core in use: "compiled" or "pure"."""

if TYPE_CHECKING or implementation == "pure":
    from . import _pure as core
else:
    from . import _compiled as core
