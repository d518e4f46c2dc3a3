"""The README's examples, run as they stand there, on both cores.

A block marked `python` runs as a program; `console` commands run, and what is shown below them is what they print. `no-run` marks what
needs an interface. What stands in the column "here" of the tables for those who come from elsewhere runs too, an interface being a file.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import DATA

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for kind, mark, text in BLOCKS if kind == "python" and "no-run" not in mark]
SESSIONS = [text for kind, mark, text in BLOCKS if kind == "console"]
ELSEWHERE = README.partition("\n## Coming from elsewhere\n")[2].partition("\n## ")[0]
HERE = [
    code
    for row in re.findall(r"^\| .* \|$", ELSEWHERE, re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[1])
    # Not words, parts of calls, a method's definition, a command and classes of others.
    if not re.fullmatch(r"\w+=?|reassembled\(self, reassemblies\)|tcpreasm http|dpkt\.\w+\.\w+", code)
]


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


@pytest.fixture
def at_hand(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the tables' codes take for granted."""
    import dpkt
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether
    from scapy.utils import rdpcap

    path = DATA / "http.pcap"
    monkeypatch.setattr(tcpreasm, "open_live", lambda *interface, **options: tcpreasm.open_capture(path))
    with tcpreasm.open_capture(path) as capture:
        frame = next(iter(capture))
    streams = [stream for stream in tcpreasm.follow(path) if stream.data]
    pieces: list[Any] = []

    class Keeps(tcpreasm.BytesStream):  # type: ignore[misc, name-defined]
        def reassembled(self, reassemblies: list[Any]) -> None:
            pieces.extend(reassemblies)

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        return Keeps(net_flow, transport_flow)

    tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(path)
    reader = tcpreasm.ReaderStream()
    reader.reassembly_complete()
    stream = tcpreasm.BytesStream(*streams[0].key)
    return {
        "tcpreasm": tcpreasm,
        "Flow": tcpreasm.Flow,
        "TCPSegment": tcpreasm.TCPSegment,
        "dpkt": dpkt,
        "IP": IP,
        "TCP": TCP,
        "path": path,
        "f": path.open("rb"),
        "p": Ether(frame.data),
        "packets": rdpcap(str(path)),
        "handle": dpkt.pcap.Reader(io.BytesIO(path.read_bytes())),  # as pypcap's, of which not every machine has one
        "buf": frame.data,
        "ts": frame.timestamp_ns / 1e9,
        "t": frame.timestamp_ns / 1e9,
        "eth": dpkt.ethernet.Ethernet(frame.data),
        "ip": dpkt.ethernet.Ethernet(frame.data).data,
        "flow": streams[0].key.net_flow,
        "tcp": tcpreasm.TCPSegment(40000, 80, 1000, syn=True),
        "net_flow": streams[0].key.net_flow,
        "transport_flow": streams[0].key.transport_flow,
        "factory": factory,
        "assembler": tcpreasm.Assembler(tcpreasm.StreamPool(factory)),
        "stream": stream,
        "reassemblies": pieces[:2],
        "r": pieces[0],
        "reader": reader,
    }


def test_there_are_ways_to_come_from_elsewhere() -> None:
    assert len(HERE) > 40
    assert {"scapy", "dpkt", "pypcap", "gopacket", "pynids"} <= {*re.findall(r"\w+", ELSEWHERE)}


@pytest.mark.parametrize("code", HERE)
def test_what_is_written_here_instead(at_hand: dict[str, Any], code: str) -> None:
    with at_hand["f"]:
        exec(f"{code}: pass" if code.startswith("for ") else code, at_hand)
