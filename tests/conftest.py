"""What all tests share: the package on each of its two cores, the corpus, and a summary that says what was skipped.

Lives here: fixtures only, no test. `tcpreasm` runs a test once per core (see cores). A core that is missing fails every test that needs
it: it never skips.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command import Result, Run
from cores import IMPLEMENTATIONS, NAMES, core_module, load, submodule
from traffic import Talk, pcap

__all__ = ["DATA", "IMPLEMENTATIONS", "NAMES", "REPOSITORY", "core_module", "corpus_folder", "load", "submodule"]

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "tests" / "data"


def corpus_folder() -> Path | None:
    """Where the corpus is: TCPREASM_CORPUS, or ../shared/corpus seen from the repository. None where there is none."""
    named = os.environ.get("TCPREASM_CORPUS")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "corpus"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def tcpreasm(request: pytest.FixtureRequest) -> ModuleType:
    """The package, once on each core."""
    return load(request.param)


@pytest.fixture(scope="session")
def both() -> tuple[ModuleType, ModuleType]:
    """The package on the compiled and on the pure core, to be compared."""
    return load("compiled"), load("pure")


@pytest.fixture(scope="session", name="submodule")
def _submodule() -> Callable[[ModuleType, str], ModuleType]:
    """The function `submodule` above, for tests that would rather not import conftest."""
    return submodule


@pytest.fixture(scope="session")
def core(tcpreasm: ModuleType) -> Callable[[str], ModuleType]:
    """`core("pages")`: that module of the core at hand."""
    return lambda path: core_module(tcpreasm, path)


@pytest.fixture(scope="session")
def data() -> Path:
    """tests/data, the captures that the repository holds."""
    return DATA


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The corpus of real captures. It is too big for the repository: without it the test is skipped, and the summary says so."""
    folder = corpus_folder()
    if folder is None:
        pytest.skip("THE CORPUS IS ABSENT: neither TCPREASM_CORPUS nor ../shared/corpus is a folder")
    return folder


@pytest.fixture
def run(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType], capsys: pytest.CaptureFixture[str]) -> Run:
    main = submodule(tcpreasm, "cli").main

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return call


@pytest.fixture
def start(tcpreasm: ModuleType) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts the command as a process, on the same core."""
    changes = {
        "TCPREASM_IMPLEMENTATION": tcpreasm.implementation,
        "PYTHONPATH": str(Path(str(tcpreasm.__file__)).parent.parent),
    }

    def call(*arguments: object, **rest: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tcpreasm", *map(str, arguments)]
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, env=os.environ | changes, **(pipes | rest))

    return call


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., Path]:
    """Writes packets to a capture file."""

    def write(*talks: Talk, name: str = "made.pcap", cut: int = 0) -> Path:
        data = pcap(sorted(record for talk in talks for record in talk.records))
        path = tmp_path / name
        path.write_bytes(data[: len(data) - cut])
        return path

    return write


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests run in a folder of their own: in the repository, `python -c` and `python -m` in a child process would find the sources there
    instead of the package that is installed."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are no names: they are long, and compressed ones hold the time, while all processes of a run must find the same names."""
    return argname if isinstance(val, (bytes, bytearray, memoryview)) and len(val) > 4 else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "corpus" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.corpus)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests were skipped, each reason once, and whether the corpus was read."""
    counts: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        longrepr = report.longrepr
        reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
        reason = reason.removeprefix("Skipped: ")
        counts[reason] = counts.get(reason, 0) + 1
    terminalreporter.section("skipped tests and the corpus")
    terminalreporter.line(f"skipped: {sum(counts.values())} tests, {len(counts)} different reasons")
    for reason, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        terminalreporter.line(f"  {count} x {reason}")
    ran = sum(
        1
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.stats.get(outcome, [])
        if "corpus" in getattr(report, "keywords", ()) and report.when == "call"
    )
    folder = corpus_folder()
    terminalreporter.line(f"corpus tests run: {ran}" + (", corpus present" if folder else ", CORPUS ABSENT"))
