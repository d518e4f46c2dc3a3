"""The peers: what exactly is run, on how much of a capture, and what its output means.

Lives here: commands. Not here: rounds (run), tables (report). Each run is a process of its own; nothing is called once a packet.

Programs that drive a library (go/, nids.c, python/) time themselves by a monotonic clock, from opening the file to the last flush, without
the process's start; one that works in memory also without reading the file. Commands are timed as whole processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from .. import floor
from ..measure import REPOSITORY, Measurement, run_way
from .cuts import Sample

__all__ = ["PEERS", "Peer", "versions"]

HERE = Path(__file__).parent
TIMEOUT = 900.0  # seconds


def tools() -> Path:
    """Where install.sh puts what it builds."""
    named = os.environ.get("TCPREASM_PEERS")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tcpreasm-peers"


def _installer() -> str:
    return f"bash {(HERE / 'install.sh').relative_to(REPOSITORY)}"


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory where there is one, so that no disk is measured."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="tcpreasm-peers-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Launched:
    """A process that has ended."""

    elapsed_ns: int
    peak_rss: int
    output: Path
    """What it wrote to standard output."""


def _launch(command: list[str], folder: Path) -> Launched:
    """Run a command to its end. RuntimeError where it fails or takes longer than TIMEOUT."""
    output = folder / "output"
    launcher = [sys.executable, "-I", "-S", str(HERE / "python" / "launch.py"), str(output), *command]
    with (folder / "errors").open("w+") as errors:
        process = subprocess.Popen(launcher, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=REPOSITORY, start_new_session=True)
        try:
            said, _ = process.communicate(timeout=TIMEOUT)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # the launcher and what it started
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"not done after {TIMEOUT:.0f} s") from None
            raise
        errors.seek(0)
        complaint = errors.read().strip()
    if process.returncode or (found := json.loads(said))["exit"]:
        raise RuntimeError(complaint[-500:] or f"{command[0]} failed")
    return Launched(found["ns"], found["peak_rss"], output)


@dataclass(frozen=True, kw_only=True, eq=False)
class Peer(ABC):
    """One way to get at a capture's streams. Each is equal to itself only."""

    name: str
    row: str
    """Its row of the table. Several may share one: the fastest of them, on each workload, is what stands there."""
    text: str
    """What exactly is run."""
    most_packets: int = 0
    """Larger captures are cut; 0: none is."""
    most_packets_of: Mapping[str, int] = field(default_factory=dict)
    """The same for single workloads."""
    most_rounds: int = 0
    """0: all."""

    def missing(self) -> str:
        """Why it can't be run here; nothing: it can."""
        return ""

    @abstractmethod
    def run(self, sample: Sample) -> Measurement:
        """Once, in a process of its own. Missing or RuntimeError, with a word, where that can't be."""

    def measurement(self, sample: Sample, ns: int, peak_rss: int, delivered: int | None, **known: Any) -> Measurement:
        """In the form of tcpreasm's own."""
        return Measurement(
            name=self.name,
            workload=sample.workload,
            packets=sample.packets,
            ns_per_packet=ns / sample.packets,
            peak_rss=peak_rss,
            bytes_delivered=delivered,
            **known,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Ours(Peer):
    """A way of bench.measure."""

    way: str

    def run(self, sample: Sample) -> Measurement:
        return run_way(self.way, sample.path, sample.packets)


@dataclass(frozen=True, kw_only=True, eq=False)
class Floor(Peer):
    """bench/floor.c, which checks totals of its own: it delivers nothing."""

    way: str

    def missing(self) -> str:
        return "" if shutil.which(floor.compiler()) else "no C compiler"

    def run(self, sample: Sample) -> Measurement:
        if sample.part:
            raise RuntimeError("of whole captures only")
        found = floor.measure(self.way, sample.capture)
        return replace(found, name=self.name, bytes_delivered=None, streams=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Program(Peer):
    """A program that install.sh builds: it prints {"ns", "bytes_delivered", ...}."""

    program: str
    sources: tuple[str, ...]
    options: tuple[str, ...] = ()
    says_connections: bool = False
    """It wants to know how many there are at most."""

    def missing(self) -> str:
        built = tools() / "bin" / self.program
        if not built.exists():
            return f"not built ({_installer()})"
        if any((HERE / source).stat().st_mtime > built.stat().st_mtime for source in self.sources):
            return f"older than its source ({_installer()})"
        return ""

    def command(self, sample: Sample) -> list[str]:
        room = [str(sample.connections)] if self.says_connections else []
        return [str(tools() / "bin" / self.program), *self.options, str(sample.path), *room]

    def run(self, sample: Sample) -> Measurement:
        with _scratch() as folder:
            launched = _launch(self.command(sample), folder)
            found = json.loads(launched.output.read_text().splitlines()[-1])
        if found["packets"] not in (sample.packets, -1):
            raise RuntimeError(f"took {found['packets']} packets of {sample.packets}")
        known = {name: found[name] for name in ("bytes_skipped", "streams") if found.get(name, -1) >= 0}
        return self.measurement(sample, found["ns"], launched.peak_rss, found["bytes_delivered"], **known)


@dataclass(frozen=True, kw_only=True, eq=False)
class Script(Program):
    """The same, as a script of python/ for the peers' own environment."""

    program: str = "python"
    sources: tuple[str, ...] = ()
    script: str
    needs: str = ""

    def missing(self) -> str:
        if self.needs and self.needs not in _packages():
            return f"not installed ({_installer()})"
        return ""

    def command(self, sample: Sample) -> list[str]:
        python = tools() / "venv" / "bin" / "python"
        return [str(python) if self.needs else sys.executable, str(HERE / "python" / self.script), str(sample.path)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Command(Peer):
    """A command line tool: the whole process counts. In `arguments`, CAPTURE and FOLDER stand for the file and an empty folder."""

    arguments: tuple[str, ...]
    writes: str = ""
    """"files" in FOLDER, or "output": their bytes are what it delivered."""

    def missing(self) -> str:
        return "" if shutil.which(self.arguments[0]) else f"not installed ({_installer()})"

    def run(self, sample: Sample) -> Measurement:
        with _scratch() as folder:
            written = folder / "written"
            written.mkdir()
            given = {"CAPTURE": str(sample.path), "FOLDER": str(written)}
            launched = _launch([given.get(argument, argument) for argument in self.arguments], folder)
            delivered: int | None
            if self.writes == "files":
                delivered = sum(entry.stat().st_size for entry in os.scandir(written))
            elif self.writes == "output":
                delivered = launched.output.stat().st_size
            else:
                delivered = None
        return self.measurement(sample, launched.elapsed_ns, launched.peak_rss, delivered)


_FROM_FILE = (
    "pcapgo over a 1 MiB buffer, ZeroCopyReadPacketData, DecodingLayerParser (sparse container, panics not caught), counting streams"
)
_BY_FLOW = "each decodes and assembles the flows that are its own"
_GOPACKET = {  # suffix of the name: mode, suffix of the row, text
    "": ("one", "", f"{_FROM_FILE}; one goroutine"),
    "-gc": ("one", ", GOGC=1000", "the same with a garbage collector that lets the heap grow tenfold"),
    "-memory": ("memory", ", in memory", "the same as the first, over packets that lie in memory: no reader, nothing copied"),
    "-pipe": ("pipe", ", two goroutines", "one goroutine reads and decodes, one assembles; batches of 256 packets go through a channel"),
    "-pipe-raw": ("pipe-raw", ", two goroutines", "one goroutine reads, one decodes and assembles; batches as before"),
    "-shard": ("shard", ", two goroutines", f"one goroutine reads and hands packets by their flow to two others; {_BY_FLOW}"),
    "-twice": ("twice", ", two goroutines", f"two goroutines, both of which read the file; {_BY_FLOW}"),
}
_GOPACKET_BOTH_WAYS = ("", "-memory", "-shard", "-twice")


def _gopacket(package: str, suffixes: Iterable[str]) -> list[Peer]:
    return [
        Program(
            name=f"gopacket-{package}{suffix}",
            row=f"gopacket {package}{row}",
            text=text,
            program=package,
            sources=("go/common.go", f"go/{package}.go"),
            options=("-mode", mode, *(("-gc", "1000") if suffix == "-gc" else ())),
        )
        for suffix, (mode, row, text) in ((suffix, _GOPACKET[suffix]) for suffix in suffixes)
    ]


_OURS = {
    "": ("count", "", "ByteCountStream, from the file, one thread"),
    "-threads": ("count-threads", ", two threads", "ByteCountStream, from the file, two threads"),
    "-mapped": ("count-mapped", ", mapped", "ByteCountStream, from the file, which the caller has mapped; one thread"),
    "-memory": ("count-memory", ", in memory", "ByteCountStream, the capture as bytes"),
    "-python": ("python", ", Python stream", "a stream in plain Python, called once a packet, from the file, one thread"),
}

_FLOOR = "bench/floor.c: a bare loop that decodes, looks up, counts what is in order, and holds nothing"

PEERS: tuple[Peer, ...] = (
    Floor(name="floor", row="floor", text=f"{_FLOOR}; from the file", way="file"),
    Floor(name="floor-memory", row="floor, in memory", text=f"{_FLOOR}; over the capture in memory", way="memory"),
    *(Ours(name=f"tcpreasm{suffix}", row=f"tcpreasm{row}", text=text, way=way) for suffix, (way, row, text) in _OURS.items()),
    Command(
        name="tcpreasm-extract",
        row="tcpreasm extract",
        text="python -m tcpreasm extract CAPTURE -o FOLDER --quiet, the whole process; FOLDER is in memory",
        arguments=(sys.executable, "-m", "tcpreasm", "extract", "CAPTURE", "-o", "FOLDER", "--quiet"),
        writes="files",
        most_packets_of={"web100k": 300_000, "manyflows": 300_000},
    ),
    *_gopacket("tcpassembly", _GOPACKET),
    *_gopacket("reassembly", _GOPACKET_BOTH_WAYS),
    Program(
        name="libnids",
        row="libnids",
        text="nids_run over the file, checksums and port scan detection off, a callback that counts, room for all connections;"
        " it leaves out what lies beyond the window that the receiver advertised last",
        program="nids",
        sources=("nids.c",),
        says_connections=True,
    ),
    Command(
        name="tcpflow",
        row="tcpflow",
        text="tcpflow -q -S enable_report=NO -r CAPTURE -o FOLDER, the whole process; FOLDER is in memory; missing bytes are holes",
        arguments=("tcpflow", "-q", "-S", "enable_report=NO", "-r", "CAPTURE", "-o", "FOLDER"),
        writes="files",
        most_packets_of={"web100k": 300_000, "manyflows": 300_000},
    ),
    Command(
        name="tcpflow-console",
        row="tcpflow, to the console",
        text="tcpflow -q -C -0 -B -S enable_report=NO -r CAPTURE, the whole process, its output to a file in memory;"
        " it prints payload as packets come, and reassembles nothing",
        arguments=("tcpflow", "-q", "-C", "-0", "-B", "-S", "enable_report=NO", "-r", "CAPTURE"),
        writes="output",
        most_packets_of={"web100k": 300_000, "manyflows": 300_000},
    ),
    Command(
        name="tshark",
        row="tshark",
        text="tshark -n -q -r CAPTURE -o tcp.reassemble_out_of_order:TRUE -z follow,tcp,raw,0, payload dissected as data, the whole"
        " process; it follows one stream only, so its bytes are not checked",
        arguments=(
            *("tshark", "-n", "-q", "-r", "CAPTURE", "-o", "tcp.reassemble_out_of_order:TRUE", "-z", "follow,tcp,raw,0"),
            *("-d", "tcp.port==5001,data", "-d", "tcp.port==40000,data"),
        ),
        most_packets=300_000,
    ),
    Script(
        name="bare",
        row="bare Python loop",
        text="struct and a dictionary of flows by hand, early segments in a heap each; counts, keeps nothing else",
        script="bare_loop.py",
        most_packets=300_000,
    ),
    Script(
        name="dpkt",
        row="dpkt loop",
        text="the usual loop: dpkt.pcap.Reader, dpkt.ethernet.Ethernet, a list of payloads a flow, sorted and joined in the end",
        script="dpkt_loop.py",
        needs="dpkt",
        most_packets=100_000,
    ),
    Script(
        name="pktcap",
        row="pktcap",
        text="read_tcp_streams with a TCPReassembler with room for all",
        script="pktcap_streams.py",
        needs="pktcap",
        most_packets=50_000,
    ),
    Script(
        name="scapy",
        row="scapy TCPSession",
        text="sniff(offline=, session=TCPSession, store=False) with a payload class that takes bytes as they come",
        script="scapy_session.py",
        needs="scapy",
        most_packets=10_000,
        most_rounds=3,
    ),
)


@cache
def _packages() -> dict[str, str]:
    """What the peers' environment holds, and in which version."""
    python = tools() / "venv" / "bin" / "python"
    if not python.exists():
        return {}
    code = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    return found


def versions() -> dict[str, str]:
    """Of each peer that is there."""
    found = {"tcpreasm": _first_line("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty")}
    debian = {"gopacket": "golang-github-google-gopacket-dev", "libnids": "libnids-dev", "tcpflow": "tcpflow", "tshark": "tshark"}
    for name, package in debian.items():
        found[name] = _first_line("dpkg-query", "-W", "-f=${Version}", package)
    found["Go"] = _first_line(str(tools() / "bin" / "tcpassembly"), "-version")
    found |= {name: version for name, version in _packages().items() if name in ("scapy", "dpkt", "pktcap")}
    return {name: version for name, version in found.items() if version}


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout.partition("\n")[0].strip()
