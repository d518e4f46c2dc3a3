"""Builds the compiled core: every tcpreasm/_compiled/*.pyx becomes one extension module.

Lives here: what pyproject.toml cannot say. Metadata, requirements and tool settings are there.

Environment:
    TCPREASM_PURE=1      no extension at all: the package then runs on its pure core. Without it, a failed compile fails the install.
    TCPREASM_DEBUG=1     bounds checks, C assertions and symbols, little optimisation; built aside, in build/debug.
    TCPREASM_DEBUG=asan  the same under AddressSanitizer and UndefinedBehaviorSanitizer (the interpreter then needs libasan preloaded).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

PURE = os.environ.get("TCPREASM_PURE", "0") not in ("", "0")
DEBUG = os.environ.get("TCPREASM_DEBUG", "0")
if DEBUG not in ("", "0", "1", "asan"):
    sys.exit(f"TCPREASM_DEBUG is 0, 1 or asan, not {DEBUG!r}")
DEBUG = "" if DEBUG == "0" else DEBUG

CORE = Path("tcpreasm", "_compiled")
BUILD_BASE = "build/debug-asan" if DEBUG == "asan" else "build/debug" if DEBUG else "build"

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": bool(DEBUG),
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": bool(DEBUG),
    "embedsignature": False,  # methods tell theirs by themselves; a class tells it in the first line of its docstring
    "binding": True,
}

# No -march: a wheel runs on other machines than the one that built it.
COMPILE_ARGS = ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"] if DEBUG else ["-O3"]
LINK_ARGS: list[str] = []
if DEBUG == "asan":
    SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    COMPILE_ARGS += SANITIZE
    LINK_ARGS += SANITIZE


def extensions() -> list[Extension]:
    """One extension per .pyx. The .pxd files are in `depends`, which rebuilds on a change and puts them into the sdist."""
    sources = sorted(CORE.glob("*.pyx"))
    if not sources:
        sys.exit(f"no .pyx file in {CORE}: this is not a whole source tree (TCPREASM_PURE=1 builds without the compiled core)")
    contracts = sorted(path.as_posix() for path in CORE.glob("*.pxd"))
    return [
        Extension(
            f"tcpreasm._compiled.{source.stem}",
            [source.as_posix()],
            depends=contracts,
            extra_compile_args=COMPILE_ARGS,
            extra_link_args=LINK_ARGS,
        )
        for source in sources
    ]


class BuildExtensions(build_ext):
    """Runs Cython only when something is really built, so that an sdist neither needs nor carries generated C."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = bool(self.force or DEBUG or self.inplace)  # in place, a debug build and a release have one file name
        if self.parallel is None:
            self.parallel = os.cpu_count()

    def build_extensions(self) -> None:
        from Cython.Build import cythonize

        made = cythonize(
            self.extensions,
            build_dir=f"{BUILD_BASE}/cython",  # the C goes there, not beside the sources
            compiler_directives=DIRECTIVES,
            nthreads=os.cpu_count() or 1,
        )
        by_name = {extension.name: extension for extension in made}
        for extension in self.extensions:  # in place: setuptools has hung more onto these objects than Cython copies
            extension.sources = by_name[extension._full_name].sources
        super().build_extensions()


class SourceDistribution(sdist):
    """Carries the tests and benchmarks too, with their data, so that a packager can run them; and the Cython sources, also
    where TCPREASM_PURE=1 knows no extension."""

    def make_distribution(self) -> None:
        for contract_or_source in sorted(CORE.glob("*.p[xy][xd]")):
            self.filelist.append(contract_or_source.as_posix())
        for folder in ("tests", "bench"):
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file() and not {"__pycache__", ".hypothesis"} & set(path.parts):
                    self.filelist.append(path.as_posix())
        super().make_distribution()


options: dict[str, Any] = {"build": {"build_base": BUILD_BASE}}

setup(
    ext_modules=[] if PURE else extensions(),
    cmdclass={"build_ext": BuildExtensions, "sdist": SourceDistribution},
    options=options,
)
