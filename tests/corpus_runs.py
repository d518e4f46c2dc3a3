"""Reassembled captures of the corpus, each read once per core and way, and kept for all tests of the process.

Lives here: a recording stream, the three ways in (`assemble_capture`, `follow`, `tcpreasm extract`) brought into one form, and what
a capture itself says without any reassembly. No test. Both cores together read the corpus in a few seconds.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from conftest import submodule

End = tuple[str, int]
Ends = tuple[End, End]  # who sends, who receives
Gaps = tuple[tuple[int, int], ...]  # offset in the stream, missing bytes

SYN = 2
EMPTY = hashlib.sha256().hexdigest()


def sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


class Log:
    """Every call of one run, in order, as a digest (what both cores must have in common), and the streams that were completed."""

    def __init__(self) -> None:
        self.count = 0
        self.completed: list[Recorder] = []
        self._digest = hashlib.sha256()

    def note(self, ends: Ends, pieces: list[Any] | None) -> int:
        told = None if pieces is None else [(bytes(p), p.skip, p.start, p.end, p.seen_ns, p.packet_number, p.seq) for p in pieces]
        self._digest.update(repr((ends, told)).encode())
        self.count += 1
        return self.count

    def __str__(self) -> str:
        return f"{self.count} calls, {self._digest.hexdigest()}"


class Recorder:
    """A stream that keeps what it is given, and watches over the order of calls that every stream may rely on."""

    def __init__(self, ends: Ends, log: Log) -> None:
        self.ends = ends
        self.data = bytearray()
        self.gaps: list[tuple[int, int]] = []
        self.pieces: list[tuple[int, int]] = []
        """The number of the call among all calls of the run, and how many bytes came."""
        self.missing = 0
        self.started = self.ended = self.midway = self.complete = False
        self._log = log
        self._called = False

    def reassembled(self, reassemblies: list[Any]) -> None:
        assert not self.complete
        assert reassemblies, "a call without pieces"
        number = self._log.note(self.ends, reassemblies)
        for piece in reassemblies:
            assert not self.ended, "a piece behind the end"
            assert not self._called or (piece.skip >= 0 and not piece.start), "a start that is not the first piece"
            assert not (piece.start and piece.skip), "a start behind missing bytes"
            self._called = True
            data = bytes(piece)
            if piece.skip > 0:
                self.gaps.append((len(self.data) + self.missing, piece.skip))
                self.missing += piece.skip
            self.midway |= piece.skip < 0
            self.started |= piece.start
            self.ended |= piece.end
            self.data += data
            self.pieces.append((number, len(data)))

    def reassembly_complete(self) -> None:
        assert not self.complete, "completed twice"
        self.complete = True
        self._log.note(self.ends, None)
        self._log.completed.append(self)


class Run(NamedTuple):
    """One capture through `assemble_capture`."""

    opened: tuple[Recorder, ...]
    """All streams, in the order in which they were opened."""
    completed: tuple[Recorder, ...]
    """The same in the order in which they ended."""
    summary: Any
    stats: Any
    calls: str
    """Number and digest of all calls."""

    @property
    def verdicts(self) -> dict[str, int]:
        return {verdict.name: count for verdict, count in self.stats.verdicts.items()}

    @property
    def complaints(self) -> tuple[str, ...]:
        """What the command has to say of the capture: its problems, and what was left out though it may hold TCP (fragments, unknown
        link types, ...), or whatever it holds where there is no segment at all."""
        plain = {"SEGMENT"} if "SEGMENT" not in self.verdicts else {"SEGMENT", "NOT_IP", "NOT_TCP"}
        out = {name: count for name, count in self.verdicts.items() if name not in plain}
        if "FRAGMENT" in out:
            out["FRAGMENT"] -= self.stats.fragments_joined - self.stats.datagrams + self.stats.fragments_dropped.get("repeated", 0)
            if not out["FRAGMENT"]:
                del out["FRAGMENT"]
        if not out:
            return tuple(self.summary.problems)
        reasons = ", ".join(f"{count} {name}" for name, count in out.items())
        return (*self.summary.problems, f"{sum(out.values())} of {sum(self.verdicts.values())} frames were left out: {reasons}")


@cache
def assembled(tcpreasm: ModuleType, path: Path) -> Run:
    """The capture through `assemble_capture` with recording streams."""
    opened: list[Recorder] = []
    log = Log()

    def factory(net_flow: Any, transport_flow: Any) -> Recorder:
        opened.append(Recorder(((str(net_flow.src), transport_flow.src), (str(net_flow.dst), transport_flow.dst)), log))
        return opened[-1]

    with tcpreasm.Assembler(tcpreasm.StreamPool(factory)) as assembler:
        summary = assembler.assemble_capture(path)
        stats = assembler.stats
    assert len(log.completed) == len(opened), "a stream that was not completed"
    assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped
    assert stats.bytes_held == stats.pages_used == stats.connections == 0
    assert stats.bytes_delivered == sum(len(stream.data) for stream in opened)
    assert stats.bytes_skipped >= sum(stream.missing for stream in opened)
    return Run(tuple(opened), tuple(log.completed), summary, stats, str(log))


class Told(NamedTuple):
    """One stream as all three ways tell it."""

    ends: Ends
    length: int
    sha256: str
    gaps: Gaps
    started: bool


def told(stream: Recorder) -> Told:
    return Told(stream.ends, len(stream.data), sha256(stream.data), tuple(stream.gaps), stream.started)


def followed(tcpreasm: ModuleType, path: Path) -> list[tuple[Told, bool]]:
    """The capture through `follow`: each stream, and whether it was ended."""
    result = []
    for stream in tcpreasm.follow(path):
        net, transport = stream.key
        ends = (str(net.src), transport.src), (str(net.dst), transport.dst)
        result.append((Told(ends, len(stream.data), sha256(stream.data), stream.gaps, stream.started), stream.ended))
    return result


_LINE = re.compile(
    r"(?P<name>\S+)  (?P<length>\d+) bytes"
    r"(?:, (?P<missing>\d+) missing: (?P<gaps>\d+\+\d+(?: \d+\+\d+)*)(?: and (?P<more>\d+) more gaps)?)?"
    r"(?P<unstarted>, start not captured)?"
)


class Extracted(NamedTuple):
    """One file of `tcpreasm extract` and its line."""

    name: str
    length: int
    sha256: str
    missing: int
    first_gaps: Gaps
    gap_count: int
    started: bool


def extracted(
    tcpreasm: ModuleType, path: Path, folder: Path, capsys: Any, *options: str, complaints: tuple[str, ...] = ()
) -> list[Extracted]:
    """The capture through `tcpreasm extract`, run in this process: the files on disk, in the order in which they were told.

    What the command says on standard error must be the complaints.
    """
    capsys.readouterr()
    status = submodule(tcpreasm, "cli").main(["extract", str(path), "-o", str(folder), *options])
    output, errors = capsys.readouterr()
    assert (status, errors.splitlines()) == (0, [f"tcpreasm: {complaint}" for complaint in complaints])
    result = []
    for line in output.splitlines():
        match = _LINE.fullmatch(line)
        assert match is not None, line
        gaps = tuple((int(at), int(size)) for at, _, size in (part.partition("+") for part in (match["gaps"] or "").split()))
        data = (folder / match["name"]).read_bytes()
        assert len(data) == int(match["length"]) + ("--fill-gaps" in options) * int(match["missing"] or 0), line
        result.append(
            Extracted(
                match["name"],
                int(match["length"]),
                sha256(data),
                int(match["missing"] or 0),
                gaps,
                len(gaps) + int(match["more"] or 0),
                match["unstarted"] is None,
            )
        )
    assert sorted(path.name for path in folder.iterdir()) == sorted(file.name for file in result)
    return result


def expected_files(run: Run) -> list[Extracted]:
    """The files that `extract` must write, from what `assemble_capture` gave: streams with bytes, named as the module says."""
    numbers: dict[Ends, int] = defaultdict(int)
    names: dict[int, str] = {}
    # Names are given with a stream's first byte; streams of the same ends never overlap in time.
    for stream in sorted((s for s in run.opened if s.data), key=lambda s: next(number for number, size in s.pieces if size)):
        names[id(stream)] = file_name(stream.ends, numbers[stream.ends])
        numbers[stream.ends] += 1
    return [
        Extracted(names[id(s)], len(s.data), sha256(s.data), s.missing, tuple(s.gaps[:8]), len(s.gaps), s.started)
        for s in run.completed
        if s.data
    ]


def check_three_ways(tcpreasm: ModuleType, path: Path, folder: Path, capsys: Any) -> None:
    """`follow` and `tcpreasm extract` give what `assemble_capture` gave, stream by stream and in the same order."""
    run = assembled(tcpreasm, path)
    # A stream to which nothing came is not yielded.
    assert followed(tcpreasm, path) == [(told(stream), stream.ended) for stream in run.completed if stream.pieces]
    assert extracted(tcpreasm, path, folder, capsys, complaints=run.complaints) == expected_files(run)


def file_name(ends: Ends, number: int) -> str:
    """tcpflow's names: 010.000.000.001.09999-010.000.000.002.36559, a later stream of the same ends with c1, c2, ..."""
    name = "-".join(f"{_address(address)}.{port:05}" for address, port in ends)
    return f"{name}c{number}" if number else name


def _address(address: str) -> str:
    packed = ip_address(address).packed
    if len(packed) == 4:
        return ".".join(f"{byte:03}" for byte in packed)
    return ".".join(packed[at : at + 2].hex() for at in range(0, 16, 2))


class Seen(NamedTuple):
    """One TCP segment as the capture has it."""

    ends: Ends
    seq: int
    ack: int
    flags: int
    payload: bytes
    wire_length: int
    """Payload bytes on the wire."""


def segments(tcpreasm: ModuleType, path: Path) -> Iterator[Seen]:
    """The capture's segments, one by one and unchanged: the reader, the decoder and what puts fragments together alone, no reassembly."""
    decode = submodule(tcpreasm, "_pure.decode")
    fragments = submodule(tcpreasm, "_pure.fragments").Fragments(30 * 10**9, 1024, 1 << 24)
    flow = submodule(tcpreasm, "flow").Flow
    with tcpreasm.open_capture(path) as capture:
        for frame in capture:
            data = frame.data
            _, s = decode.decode(data, frame.linktype, frame.wire_length, decode.IGNORE, decode.ALL_TUNNELS)
            if isinstance(s, decode.Fragment):
                _, s, data = fragments.take(s, frame.timestamp_ns, decode.ALL_TUNNELS)
            if s is not None:
                net = flow(s.src, s.dst)
                ends = (str(net.src), s.src_port), (str(net.dst), s.dst_port)
                payload = bytes(data[s.payload_offset : s.payload_offset + s.payload_length])
                yield Seen(ends, s.seq, s.ack, s.flags, payload, s.wire_payload_length)


def opened_in_sight(tcpreasm: ModuleType, path: Path) -> set[Ends]:
    """The directions whose SYN the capture holds."""
    return {segment.ends for segment in segments(tcpreasm, path) if segment.flags & SYN}
