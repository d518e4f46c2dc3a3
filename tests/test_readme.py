"""The README's examples, run as they stand there, on both cores.

A block marked `python` runs as a program; `console` commands run, and what is shown below them is what they print. `no-run` marks what
needs an interface.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for kind, mark, text in BLOCKS if kind == "python" and "no-run" not in mark]
SESSIONS = [text for kind, mark, text in BLOCKS if kind == "console"]


@pytest.fixture(params=["compiled", "pure"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Of a child process on one core, with the tests' data where the README has it."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(REPOSITORY / "tests" / "data")
    return {**os.environ, "TCPREASM_IMPLEMENTATION": request.param, "PYTHONPATH": package_folder()}


def package_folder() -> str:
    """Where the package that is tested lies."""
    import tcpreasm

    return str(Path(tcpreasm.__file__).parent.parent)


def run(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_there_are_examples() -> None:
    assert len(PROGRAMS) >= 4
    assert len(SESSIONS) >= 1


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_program(number: int, tmp_path: Path, environment: dict[str, str]) -> None:
    printed = run([sys.executable, "-c", PROGRAMS[number]], tmp_path, environment)
    assert ("print" in PROGRAMS[number]) == bool(printed)


@pytest.mark.parametrize("number", range(len(SESSIONS)))
def test_session(number: int, tmp_path: Path, environment: dict[str, str]) -> None:
    commands = re.findall(r"^\$ (tcpreasm [^\n]*)\n((?:(?!\$ )[^\n]*\n)*)", SESSIONS[number], re.MULTILINE)
    assert commands
    for command, shown in commands:
        printed = run([sys.executable, "-m", *shlex.split(command)], tmp_path, environment)
        lines = printed.splitlines()
        for line, below in zip(shown.splitlines(), lines, strict=False):
            if line == "...":
                break
            assert line == below
        assert shown.endswith("...\n") or shown == printed
