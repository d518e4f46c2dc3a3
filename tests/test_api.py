"""The thin layer: what assemble_capture reads, what it says of it, when it flushes, what the options refuse."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import DATA
from recorder import ENDS, SYN, Recorder, Rig, frame, key_of

HTTP = DATA / "http.pcap"
SENT = sum(
    connection[side]["len"]
    for connection in json.loads((DATA / "truth.json").read_text())["http.pcap"]["connections"]
    for side in ("c2s", "s2c")
)


def digests(tcpreasm: ModuleType, source: Any, **options: Any) -> tuple[list[str], Any]:
    """SHA-256 of every stream, in order of creation, and the summary."""
    streams: list[Any] = []

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        streams.append(tcpreasm.BytesStream(net_flow, transport_flow))
        return streams[-1]

    with tcpreasm.Assembler(tcpreasm.StreamPool(factory)) as assembler:
        summary = assembler.assemble_capture(source, **options)
    return [sha256(stream.data).hexdigest() for stream in streams], summary


def frames_of(tcpreasm: ModuleType) -> list[Any]:
    with tcpreasm.open_capture(HTTP) as capture:
        return list(capture)


SOURCES: dict[str, Callable[[ModuleType], Any]] = {
    "path": lambda _: HTTP,
    "text": lambda _: str(HTTP),
    "bytes": lambda _: HTTP.read_bytes(),
    "bytearray": lambda _: bytearray(HTTP.read_bytes()),
    "file": lambda _: io.BytesIO(HTTP.read_bytes()),
    "capture": lambda tcpreasm: tcpreasm.open_capture(HTTP),
    "frames": frames_of,
    "generator of frames": lambda tcpreasm: iter(frames_of(tcpreasm)),
    "pairs": lambda tcpreasm: [(each.timestamp_ns / 1e9, each.data) for each in frames_of(tcpreasm)],
    "list of one path": lambda _: [HTTP],
    "list of halves": lambda tcpreasm: [frames_of(tcpreasm)[:40], frames_of(tcpreasm)[40:]],
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_kind_of_source_gives_the_same(tcpreasm: ModuleType, name: str) -> None:
    expected, plain = digests(tcpreasm, HTTP)
    got, summary = digests(tcpreasm, SOURCES[name](tcpreasm))
    assert got == expected
    assert summary == plain
    assert (summary.packets, summary.streams, summary.bytes_delivered, summary.bytes_skipped) == (79, 6, SENT, 0)
    assert summary.complete
    assert summary.problems == ()


def test_a_cut_file_gives_what_is_there_and_says_so(tcpreasm: ModuleType) -> None:
    _, summary = digests(tcpreasm, HTTP.read_bytes()[:-10])
    assert summary.packets == 78
    assert not summary.complete
    assert len(summary.problems) == 1
    assert "ends in the middle of a record" in summary.problems[0]


@pytest.mark.parametrize("source", [3, None, object()])
def test_what_is_no_source(tcpreasm: ModuleType, source: Any) -> None:
    with pytest.raises(TypeError, match="a capture is a path"):
        digests(tcpreasm, source)


def test_what_is_no_frame(tcpreasm: ModuleType) -> None:
    with pytest.raises(TypeError, match=r"a frame is a Frame, a \(seconds, bytes\) pair or a packet of scapy, not bytes: b'no time'"):
        digests(tcpreasm, iter([b"no time"]))


def test_no_such_file(tcpreasm: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digests(tcpreasm, tmp_path / "none.pcap")
    with pytest.raises(tcpreasm.CaptureError, match="is no pcap or pcapng capture"):
        digests(tcpreasm, b"GET / HTTP/1.1\r\n\r\n")


def test_state_is_kept_between_captures_unless_flushed(tcpreasm: ModuleType) -> None:
    """A segment at the end of one capture, what comes before it in the next."""
    rig = Rig(tcpreasm)
    first = [(1.0, frame(1000, flags=SYN)), (1.1, frame(1004, b"def"))]
    second = [(1.2, frame(1001, b"abc"))]
    rig.assembler.assemble_capture(first, flush=False)
    assert len(rig.pool) == 1
    rig.assembler.assemble_capture(second, flush=False)
    assert rig.recorder.data() == b"abcdef"
    assert rig.flush_all()[0] == 1


def test_progress_is_told(tcpreasm: ModuleType) -> None:
    seen: list[tuple[int, int, int]] = []
    digests(tcpreasm, HTTP, progress=lambda capture: seen.append((capture.packets, capture.position, capture.size)))
    assert seen[-1] == (79, HTTP.stat().st_size, HTTP.stat().st_size)


def test_an_exception_of_a_stream_ends_the_capture_and_loses_no_state(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    rig = Rig(tcpreasm, recorder)
    recorder.plan["reassembled"] = RuntimeError("mine")
    with pytest.raises(RuntimeError, match="mine"):
        rig.assembler.assemble_capture([(1.0, frame(1000, flags=SYN)), (2.0, frame(1001, b"abc"))])
    rig.taken()
    assert len(rig.pool) == 1
    assert rig.segment(1001, b"xyz", at=3)[-1][2][0][0] == b"xyz"


def test_the_last_assembler_of_a_pool_flushes(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    first = Rig(tcpreasm, recorder)
    second = Rig(tcpreasm, recorder, first.pool)
    first.send(_syn(tcpreasm))
    assert first.assembler.assemble_capture([(2.0, frame(1001, b"abc"))]).bytes_delivered == 3
    assert len(first.pool) == 1
    first.assembler.close()
    assert len(first.pool) == 1
    second.assembler.close()
    assert len(first.pool) == 0
    assert recorder.calls[-1][0] == "complete"


def _syn(tcpreasm: ModuleType) -> Any:
    return tcpreasm.TCPSegment(1234, 80, 1000, syn=True)


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("max_buffered_pages_total", "many", TypeError),
        ("max_buffered_pages_per_connection", 1.5, TypeError),
        ("max_buffered_pages_per_connection", True, TypeError),
        ("max_buffered_pages_total", -1, ValueError),
        ("max_buffered_pages_total", 10**30, ValueError),
        ("max_buffered_pages_per_connection", -1, ValueError),
        ("max_buffered_pages_per_connection", 2**31, ValueError),
        ("max_buffered_bytes_total", 1e6, TypeError),
        ("max_buffered_bytes_total", 0, ValueError),
        ("max_buffered_bytes_per_connection", False, TypeError),
        ("max_buffered_bytes_per_connection", 2**62 + 1, ValueError),
        ("overlap", "whatever", ValueError),
        ("overlap", None, TypeError),
        ("on_conflict", "print", TypeError),
        ("urgent", "out", ValueError),
        ("urgent", True, TypeError),
        ("paws", 1, TypeError),
        ("syn_data", "tfo", ValueError),
        ("syn_data", None, TypeError),
        ("verify_checksums", "yes", ValueError),
        ("start_wait_segments", 0, ValueError),
        ("start_wait", -1, ValueError),
        ("max_gap", 0, ValueError),
        ("max_gap", 2**31, ValueError),
        ("hole_timeout", "1", TypeError),
        ("idle_timeout", float("nan"), ValueError),
        ("closed_timeout", None, TypeError),
        ("max_connections", None, TypeError),
        ("max_connections", True, TypeError),
        ("max_connections", -1, ValueError),
        ("max_connections", 2**31, ValueError),
        ("open_on", "ack", ValueError),
        ("open_on", None, ValueError),
        ("on_evict", "print", TypeError),
        ("on_gap", "print", TypeError),
        ("depth", 0, ValueError),
        ("depth", 2**30 + 1, ValueError),
        ("depth", "1", TypeError),
        ("depth", True, TypeError),
    ],
)
def test_options_name_what_is_wrong(tcpreasm: ModuleType, option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=option) as raised:
        tcpreasm.AssemblerOptions(**{option: value})
    assert repr(value) in str(raised.value)


def test_options_at_the_ends_of_their_ranges(tcpreasm: ModuleType) -> None:
    for pages in (0, 2**31 - 1):
        rig = Rig(tcpreasm, max_buffered_pages_total=pages, max_buffered_pages_per_connection=pages, hole_timeout=np.float32(0.5))
        assert tcpreasm.AssemblerOptions(max_connections=pages).max_connections == pages
        rig.segment(1000, syn=True)
        assert rig.segment(1005, b"held") == []
    for limit in (None, 2**62):
        rig = Rig(tcpreasm, max_buffered_bytes_total=limit, max_buffered_bytes_per_connection=limit)
        rig.segment(1000, syn=True)
        assert rig.segment(1005, b"held") == []


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("t", "x", TypeError),
        ("t", True, TypeError),
        ("t", float("nan"), ValueError),
        ("t", datetime(2024, 1, 1), ValueError),
        ("close_all", 3, TypeError),
        ("close_all", None, TypeError),
    ],
)
def test_flush_options_name_what_is_wrong(tcpreasm: ModuleType, option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{option} is ") as raised:
        tcpreasm.FlushOptions(**{option: value})
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("name", "value"), [("coalesce", "no"), ("flush", 0), ("progress", 5)])
def test_arguments_of_a_capture_are_checked(tcpreasm: ModuleType, name: str, value: Any, threads: int) -> None:
    with tcpreasm.Assembler(tcpreasm.StreamPool(Recorder())) as assembler:
        with pytest.raises(TypeError, match=f"^{name} is .* not {type(value).__name__}: {value!r}$"):
            assembler.assemble_capture(HTTP, threads=threads, **{name: value})
        assert assembler.stats.frames == 0


def test_pool_and_options_are_checked(tcpreasm: ModuleType) -> None:
    with pytest.raises(TypeError, match="pool is a StreamPool, not dict"):
        tcpreasm.Assembler({})
    with pytest.raises(TypeError, match="options are AssemblerOptions, not dict"):
        tcpreasm.Assembler(tcpreasm.StreamPool(Recorder()), {})
    with pytest.raises(TypeError, match="a stream factory has a method new"):
        tcpreasm.StreamPool(3)


@pytest.mark.parametrize(
    ("given", "ns"),
    [
        ({"timestamp_ns": np.int64(5)}, 5),
        ({"timestamp_ns": np.uint64(2**62 - 1)}, 2**62 - 1),
        ({"timestamp_ns": np.int8(-5)}, -5),
        ({"timestamp": np.int64(5)}, 5_000_000_000),
        ({"timestamp": np.float32(1.5)}, 1_500_000_000),
        ({"timestamp": np.float32(0.1)}, 100_000_001),  # the float32 nearest to 0.1, to the nanosecond
        ({"timestamp": np.float64(1.25)}, 1_250_000_000),
        ({"timestamp": Fraction(1, 3)}, 333_333_333),
    ],
)
def test_numbers_of_other_types_are_times(tcpreasm: ModuleType, given: dict[str, Any], ns: int) -> None:
    syn = [("new", key_of()), ("reassembled", key_of(), [(b"", 0, True, False, ns)])]
    rig = Rig(tcpreasm)
    rig.assembler.assemble(tcpreasm.Flow(ENDS[0], ENDS[2]), _syn(tcpreasm), **given)
    assert rig.recorder.take() == syn
    rig = Rig(tcpreasm)
    rig.assembler.assemble_frame(frame(1000, flags=SYN), **given)
    assert rig.recorder.take() == syn


def test_numbers_of_other_types_are_times_of_flushes_and_pairs(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(recorder))
    assembler.assemble_capture([(np.float32(2), frame(1000, flags=SYN)), (np.int64(3), frame(1005, b"abc"))], flush=False)
    assert assembler.flush_older_than(np.int64(3)) == (0, 0)
    assert assembler.flush_older_than(np.float32(3.5)) == (1, 1)
    assert [call[0] for call in recorder.calls] == ["new", "reassembled", "reassembled", "complete"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"timestamp_ns": 1.5}, TypeError, "timestamp_ns is an int, not float: 1.5"),
        ({"timestamp_ns": True}, TypeError, "timestamp_ns is an int, not bool: True"),
        ({"timestamp_ns": np.array([1, 2])}, TypeError, "timestamp_ns is an int, not ndarray: array([1, 2])"),
        ({"timestamp_ns": 2**62}, ValueError, f"timestamp_ns lies less than 2**62 ns from 1970, not at {2**62} ns"),
        ({"timestamp": "now"}, TypeError, "timestamp is seconds or an aware datetime, not str: 'now'"),
        ({"timestamp": False}, TypeError, "timestamp is seconds or an aware datetime, not bool: False"),
        ({"timestamp": float("nan")}, ValueError, "timestamp is a finite number of seconds, not nan"),
        ({"timestamp": 10**30}, ValueError, f"timestamp lies less than 2**62 ns from 1970, not at {10**39} ns"),
        ({"timestamp": 1, "timestamp_ns": 1}, TypeError, "give timestamp or timestamp_ns, not both"),
    ],
)
def test_wrong_times_are_named(tcpreasm: ModuleType, given: dict[str, Any], error: type[Exception], message: str) -> None:
    with Rig(tcpreasm).assembler as assembler, pytest.raises(error, match=f"^{re.escape(message)}$"):
        assembler.assemble_frame(frame(1000, flags=SYN), **given)


class Half:
    """No stream: it lacks the second method."""

    def reassembled(self, reassemblies: Any) -> None: ...

    def __repr__(self) -> str:
        return "<half a stream>"


@pytest.mark.parametrize("made", [None, 5, Half()])
def test_what_a_factory_makes_is_a_stream(tcpreasm: ModuleType, made: Any) -> None:
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(lambda net_flow, transport_flow: made))
    message = f"the factory gave {made!r} for 10.0.0.1:1234->10.0.0.2:80: a stream has reassembled() and reassembly_complete()"
    for _ in range(2):  # the connection is gone, as where the factory raises
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            assembler.assemble_frame(frame(1000, b"abc", SYN), timestamp_ns=0)
        assert len(assembler.pool) == 0
    assert (assembler.stats.streams_opened, assembler.stats.dropped) == (0, {"factory_error": 6})
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        assembler.assemble_capture([(0, frame(1000, b"abc", SYN))])


def test_an_attribute_error_of_a_factory_is_its_own(tcpreasm: ModuleType) -> None:
    own = AttributeError("the factory's own")

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        raise own

    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory))
    with pytest.raises(AttributeError) as raised:
        assembler.assemble_frame(frame(1000, b"abc", SYN), timestamp_ns=0)
    assert raised.value is own
    assert len(assembler.pool) == 0


def test_closed_for_good(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.send(_syn(tcpreasm))
    rig.assembler.close()
    rig.assembler.close()
    assert [call[0] for call in rig.recorder.calls] == ["new", "reassembled", "complete"]
    with pytest.raises(ValueError, match="closed"):
        rig.send(_syn(tcpreasm))
    with pytest.raises(ValueError, match="closed"):
        rig.assembler.flush_all()
    assert rig.assembler.stats.streams_closed == 1


def test_an_iterable_of_pairs_may_tell_its_link_type_and_exact_times(tcpreasm: ModuleType) -> None:
    """As dpkt's readers do: a method datalink, and Decimals where times have nanoseconds."""
    whole = frame(1000, b"text")

    class Reader(list[Any]):
        def datalink(self) -> int:
            return 101

    seconds = Decimal("1700000000.123456789")
    for linktype, told in ((1, 101), (12, 12)):
        recorder = Recorder()
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(recorder))
        summary = assembler.assemble_capture(Reader([(seconds, whole[14:])]), linktype=linktype)
        assert (summary.segments, summary.bytes_delivered) == (1, 4), told
        (pieces,) = [call[2] for call in recorder.take() if call[0] == "reassembled"]
        assert [(data, seen) for data, _, _, _, seen in pieces] == [(b"text", 1_700_000_000_123_456_789)]
