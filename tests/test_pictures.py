"""What pictures show: the arrays that go into them, byte for byte; and that they are drawn and written. No pixels.

Captures are made here, those of tests/data and the corpus are compared with what the tables say of them.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from command import Run
from conftest import DATA, submodule
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorder import ACK, FIN, RST, SYN, Ends, frame, pcap

pytest.importorskip("matplotlib", reason="THE EXTRA plot IS NOT INSTALLED: no picture is drawn")

CLIENT: Ends = ("10.0.0.1", 40000, "10.0.0.2", 80)
SERVER: Ends = ("10.0.0.2", 80, "10.0.0.1", 40000)
MS = 1_000_000
LATER = 600_000  # milliseconds: connections that were closed are forgotten by then
START = 1_700_000_000_000_000_000


class Packet(NamedTuple):
    """One packet: milliseconds, who, sequence and acknowledgement number from the streams' first bytes on, text, flags."""

    at: int
    ends: Ends
    seq: int
    ack: int
    text: bytes = b""
    flags: int = ACK


def capture(packets: list[Packet], first: int = 1001, other_first: int = 5001, cut: int | None = None) -> bytes:
    """As a file. The numbers of the client's and the server's first bytes; `cut` bytes of each frame are captured."""
    bases = {CLIENT: (first, other_first), SERVER: (other_first, first)}
    frames = []
    for one in packets:
        seq, ack = bases[one.ends]
        data = frame(seq + one.seq, one.text, one.flags, ends=one.ends, ack=(ack + one.ack) % 2**32)
        frames.append((START + one.at * MS, data))
    file = bytearray(pcap(frames))
    if cut is None:
        return bytes(file)
    cut_file = bytes(file[:24])
    at = 24
    for _, data in frames:
        taken = min(len(data), cut)
        cut_file += bytes(file[at : at + 8]) + taken.to_bytes(4, "little") + len(data).to_bytes(4, "little") + data[:taken]
        at += 16 + len(data)
    return cut_file


DISORDER = [
    Packet(0, CLIENT, -1, 0, flags=SYN),
    Packet(1, SERVER, -1, 0, flags=SYN | ACK),
    Packet(2, CLIENT, 0, 0),
    Packet(3, CLIENT, 0, 0, b"a" * 100),
    Packet(4, CLIENT, 200, 0, b"c" * 100),  # early
    Packet(5, SERVER, 0, 100),
    Packet(6, CLIENT, 300, 0, b"d" * 50),  # early too
    Packet(7, CLIENT, 200, 0, b"c" * 100),  # again, while it is held
    Packet(8, CLIENT, 100, 0, b"b" * 100),  # what they wait for
    Packet(9, CLIENT, 50, 0, b"ab" * 25),  # again, delivered
    Packet(10, SERVER, 0, 350, b"yes"),
    Packet(11, CLIENT, 400, 3, b"f" * 10),  # behind a hole that nothing fills
    Packet(12, CLIENT, 1000, 3, flags=RST),  # beyond the next byte: it counts for nothing
    Packet(13, SERVER, 3, 410, flags=FIN | ACK),
    Packet(14, CLIENT, 410, 4, flags=FIN | ACK),
]


@pytest.fixture
def observe(tcpreasm: ModuleType) -> Callable[..., Any]:
    """What was observed of conversation `number` in a source, and the watch itself."""
    observed = submodule(tcpreasm, "pictures.observed")

    def call(source: Any, number: int = 1, **options: Any) -> Any:
        watch = observed.ConversationWatch(number)
        assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(streams=watch.streams), tcpreasm.AssemblerOptions(**options))
        assert watch.read(assembler, [source]) == []
        found = watch.observed()
        assert found is None or found.numbered.number == number
        return found

    return call


def relative(rows: Any) -> list[tuple[int, ...]]:
    """Rows with their times in milliseconds since the start."""
    return [((row[0] - START) // MS, *row[1:]) for row in rows.tolist()]


# ---- what is observed

IN_ORDER, HELD, LATE, REPEATED, UNUSED = range(5)


def test_each_segment_is_what_the_assembler_made_of_it(observe: Callable[..., Any]) -> None:
    found = observe(capture(DISORDER))
    client, server = found.directions
    assert relative(client.segments) == [
        (0, 0, 0, IN_ORDER, SYN),
        (3, 0, 100, IN_ORDER, ACK),
        (4, 200, 300, HELD, ACK),
        (6, 300, 350, HELD, ACK),
        (7, 200, 300, REPEATED, ACK),
        (8, 100, 200, LATE, ACK),
        (9, 50, 100, REPEATED, ACK),
        (11, 400, 410, HELD, ACK),
        (12, 1000, 1000, UNUSED, RST),
        (14, 410, 410, IN_ORDER, FIN | ACK),
    ]
    assert relative(server.segments) == [(1, 0, 0, IN_ORDER, SYN | ACK), (10, 0, 3, IN_ORDER, ACK), (13, 3, 3, IN_ORDER, FIN | ACK)]
    assert relative(client.acks) == [(1, 0), (5, 100), (10, 350), (13, 410)]
    assert relative(server.acks) == [(2, 0), (3, 0), (4, 0), (6, 0), (7, 0), (8, 0), (9, 0), (11, 3), (14, 4)]
    assert relative(client.delivered) == [(0, 0), (3, 100), (8, 350), (14, 410)]
    assert relative(client.pieces) == [(3, 100), (8, 100), (4, 100), (6, 50), (11, 10)]
    assert relative(client.held) == [(4, 100), (6, 150), (8, 0), (11, 10), (14, 0)]
    assert relative(server.held) == []
    assert relative(client.gaps) == [(14, 350, 50)]  # the end of the capture gave it up
    assert client.unused == {"overlapping": 100, "retransmitted": 50}
    assert [client.count(kind) for kind in range(5)] == [3, 3, 1, 2, 1]
    one = found.numbered
    assert (one.state_text, one.sent, one.received, one.missing) == ("closed", 360, 3, 50)


@pytest.mark.parametrize("first", [2**32 - 1, 2**32 - 40, 2**32 - 250, 2**32 - 349, 0, 2**31 - 150])
def test_numbers_wrap_around(observe: Callable[..., Any], first: int) -> None:
    """The picture is the same wherever sequence numbers begin, on both sides."""
    for one, other in zip(observe(capture(DISORDER, first, first - 2 & 0xFFFFFFFF)).directions, observe(capture(DISORDER)).directions):
        for name in ("segments", "acks", "delivered", "pieces", "held", "gaps"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()


@pytest.mark.parametrize(("dropped", "lowest"), [(1, 0), (2, 0), (3, 0), (4, 50), (5, 50)])
def test_a_stream_without_its_start_begins_at_its_lowest_byte(observe: Callable[..., Any], dropped: int, lowest: int) -> None:
    (client,) = [one for one in observe(capture(DISORDER[dropped:])).directions if one.key.transport_flow.src == CLIENT[1]]
    assert not client.stream.started
    assert [(begin, end) for _, begin, end, _, _ in relative(client.segments) if end > begin] == [
        (one.seq - lowest, one.seq - lowest + len(one.text)) for one in DISORDER[dropped:] if one.ends == CLIENT and one.text
    ]
    assert_consistent(client)


def test_a_limit_ends_the_waiting(observe: Callable[..., Any]) -> None:
    """Two pages are all that may be held: the second early segment is none that the first one waited for, and what is was given up when
    it came."""
    packets = [*DISORDER[:7], *DISORDER[8:10]]
    found = observe(capture(packets), max_buffered_pages_per_connection=2).client
    assert [row[3] for row in relative(found.segments)] == [IN_ORDER, IN_ORDER, HELD, HELD, UNUSED, REPEATED]
    assert relative(found.delivered) == [(0, 0), (3, 100), (6, 350)]
    assert found.unused == {"retransmitted": 150}
    assert relative(found.gaps) == [(6, 100, 100)]


@pytest.mark.parametrize("overlap", ["first", "last", "linux", "solaris"])
def test_whoever_wins_where_segments_overlap(observe: Callable[..., Any], overlap: str) -> None:
    """What is held counts each byte once, whichever copy of it stays."""
    packets = [
        *DISORDER[:6],
        Packet(6, CLIENT, 250, 0, b"D" * 100),
        Packet(7, CLIENT, 150, 0, b"C" * 100),
        Packet(8, CLIENT, 100, 0, b"b" * 50),
    ]
    found = observe(capture(packets), overlap=overlap).client
    assert [row[3] for row in relative(found.segments)] == [IN_ORDER, IN_ORDER, HELD, REPEATED, REPEATED, LATE]
    assert relative(found.held) == [(4, 100), (6, 150), (7, 200), (8, 0)]
    assert relative(found.delivered)[-1] == (8, 350)
    assert found.unused == {"overlapping": 100}


def test_urgent_bytes_that_are_taken_out(observe: Callable[..., Any]) -> None:
    """They are no part of the stream, and what comes behind them is in its place even so."""
    urgent = frame(1004, b"4567!", ACK | 32, ends=CLIENT, urgent=5)
    parts = [frame(1000, b"", SYN, ends=CLIENT), frame(1001, b"123", ends=CLIENT), urgent, frame(1012, b"z", ends=CLIENT)]
    parts.append(frame(1009, b"abc", ends=CLIENT))
    found = observe(pcap((START + at * MS, one) for at, one in enumerate(parts)), urgent="oob").client
    assert [row[1:4] for row in relative(found.segments)] == [(0, 0, 0), (0, 3, 0), (3, 8, 0), (11, 12, HELD), (8, 11, LATE)]
    assert found.unused == {"urgent": 1}
    assert relative(found.held) == [(3, 1), (4, 0)]
    assert (found.stream.length, len(found.gaps)) == (11, 0)


def test_a_stream_that_begins_with_fragments(observe: Callable[..., Any]) -> None:
    """Its first bytes came in IP fragments: the first whole segment tells where they lie."""
    data = [frame(1101, b"second", ends=CLIENT), frame(1107, b"third", ends=CLIENT)]
    whole = frame(1001, bytes(100), ends=CLIENT)
    link, ip, body = whole[:14], whole[14:34], whole[34:]
    parts = [  # total length, and offset in eights with "more" (RFC 791 3.1)
        link + ip[:2] + (20 + len(part)).to_bytes(2, "big") + ip[4:6] + field.to_bytes(2, "big") + ip[8:] + part
        for part, field in ((body[:64], 0x2000), (body[64:], 8))
    ]
    found = observe(pcap((START + at * MS, one) for at, one in enumerate([*parts, *data])), start_wait_segments=1).client
    assert [row[1:4] for row in relative(found.segments)] == [(100, 106, IN_ORDER), (106, 111, IN_ORDER)]
    assert (found.stream.length, found.fragmented) == (111, 1)


def test_more_than_four_gigabytes(observe: Callable[..., Any]) -> None:
    """Positions go on behind 2**32: each is told from where the stream was."""
    packets = [Packet(0, CLIENT, -1, 0, flags=SYN)]
    step = 100_000_000
    packets += [Packet(1 + at, CLIENT, at * step, 0, b"x") for at in range(60)]
    client = observe(capture(packets), max_buffered_pages_per_connection=1).client
    assert [row[1] for row in relative(client.segments)[1:]] == [at * step for at in range(60)]


def test_bytes_that_the_capture_cut_off_are_gaps(observe: Callable[..., Any]) -> None:
    client = observe(capture(DISORDER[:4], cut=54 + 30)).client
    assert relative(client.segments)[1:] == [(3, 0, 30, IN_ORDER, ACK)]
    assert [row[1:] for row in relative(client.gaps)] == [(30, 70)]


def test_a_direction_that_only_acknowledges(observe: Callable[..., Any]) -> None:
    """It has no stream, and the other one's text is all that there is; and the other way about."""
    found = observe(capture([one for one in DISORDER if one.ends == CLIENT and not one.flags & (SYN | FIN | RST)]))
    assert found.server.stream is None
    assert len(found.server.segments) == 0
    assert relative(found.server.acks) == [(2, 0), (3, 0), (4, 0), (6, 0), (7, 0), (8, 0), (9, 0), (11, 3)][1:]  # (2) opens nothing


def test_a_port_that_is_used_again_is_another_conversation(observe: Callable[..., Any]) -> None:
    """The SYN that is only believed once packets follow stands in the picture of its own conversation."""
    first = DISORDER[:4]
    again = [Packet(20, CLIENT, 99_999, 0, flags=SYN), Packet(21, SERVER, 77_777, 100_000, flags=SYN | ACK)]
    again += [Packet(22, CLIENT, 100_000, 77_778, b"second"), Packet(23, SERVER, 77_778, 100_006, b"answer")]
    data = capture(first + again)
    one, two = observe(data, 1), observe(data, 2)
    assert observe(data, 3) is None
    assert relative(one.client.segments) == [(0, 0, 0, IN_ORDER, SYN), (3, 0, 100, IN_ORDER, ACK)]
    assert relative(two.client.segments) == [(20, 0, 0, IN_ORDER, SYN), (22, 0, 6, IN_ORDER, ACK)]
    assert relative(two.server.segments) == [(21, 0, 0, IN_ORDER, SYN | ACK), (23, 0, 6, IN_ORDER, ACK)]
    assert relative(two.server.acks) == [(22, 0)]
    assert relative(two.client.acks) == [(21, 0), (23, 6)]


def test_a_direction_goes_on_where_the_other_one_begins_anew(observe: Callable[..., Any]) -> None:
    """A SYN|ACK with another number, and text behind it, begins another stream; the client's is still the same."""
    packets = [*DISORDER[:4], Packet(20, SERVER, 77_777, 100, flags=SYN | ACK), Packet(21, SERVER, 77_778, 100, b"hello")]
    data = capture([*packets, Packet(22, CLIENT, 100, 77_783, b"more"), Packet(23, CLIENT, 100, 77_783, b"more")])
    one, two = observe(data, 1), observe(data, 2)
    assert relative(one.client.segments)[1:] == [(3, 0, 100, IN_ORDER, ACK), (22, 100, 104, IN_ORDER, ACK), (23, 100, 104, REPEATED, ACK)]
    assert relative(two.server.segments) == [(20, 0, 0, IN_ORDER, SYN | ACK), (21, 0, 5, IN_ORDER, ACK)]
    assert (relative(two.client.segments), relative(two.server.acks), two.client.stream) == ([], [], None)


def test_a_connection_that_is_refused_where_one_was_before(observe: Callable[..., Any]) -> None:
    """The RST, of which there is no stream, stands in neither's picture but that of its own conversation."""
    first = [*DISORDER[:4], Packet(5, CLIENT, 100, 0, flags=FIN | ACK), Packet(6, SERVER, 0, 101, flags=FIN | ACK)]
    again = [Packet(LATER, CLIENT, 99_999, 0, flags=SYN), Packet(LATER + 1, SERVER, 0, 100_000, flags=RST | ACK)]
    data = capture(first + again)
    one, two = observe(data, 1), observe(data, 2)
    assert (one.numbered.state_text, two.numbered.state_text) == ("closed", "refused")
    assert relative(one.server.segments) == [(1, 0, 0, IN_ORDER, SYN | ACK), (6, 0, 0, IN_ORDER, FIN | ACK)]
    assert relative(two.client.segments) == [(LATER, 0, 0, IN_ORDER, SYN)]
    assert [flags for *_, flags in relative(two.server.segments)] == [RST | ACK]


@pytest.mark.parametrize(("timeout", "then"), [(1.0, 1100), (0, 5)])
def test_a_hole_that_the_other_side_has_acknowledged(observe: Callable[..., Any], timeout: float, then: int) -> None:
    """Its acknowledgement gives out what waited: that stands in the picture of whom it was held for."""
    packets = [*DISORDER[:5], Packet(5, SERVER, 0, 300), Packet(1100, SERVER, 0, 300, b"yes"), Packet(1101, SERVER, 3, 300, b"no")]
    found = observe(capture(packets), acked_hole_timeout=timeout)
    assert relative(found.client.gaps) == [(then, 100, 100)]
    assert relative(found.client.held) == [(4, 100), (then, 0)]
    assert relative(found.server.segments)[1:] == [(1100, 0, 3, IN_ORDER, ACK), (1101, 3, 5, IN_ORDER, ACK)]
    assert relative(found.server.held) == []


def test_who_talks_to_itself(observe: Callable[..., Any]) -> None:
    """Both directions have one key, and there is no telling them apart."""
    itself = ("10.0.0.1", 7, "10.0.0.1", 7)
    frames = [(START, frame(0, flags=SYN, ends=itself)), (START + MS, frame(1, b"echo", ends=itself))]
    found = observe(pcap(frames))
    assert sum(len(one.segments) for one in found.directions) == 2
    assert found.numbered.sent + found.numbered.received == 4


def covered(intervals: Any) -> list[list[int]]:
    """What intervals cover together."""
    found: list[list[int]] = []
    for begin, end in sorted(intervals):
        if begin == end:
            continue
        if found and begin <= found[-1][1]:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([begin, end])
    return found


def assert_consistent(direction: Any) -> None:
    """Segments cover exactly the bytes that the stream was given, and nothing is held at the end."""
    stream = direction.stream
    if stream is None:
        return
    used = direction.segments[direction.segments["kind"] != UNUSED]
    given = []
    at = 0
    for _, offset, length in direction.gaps.tolist():
        given.append((at, offset))
        at = offset + length
    given.append((at, stream.length + stream.skipped))
    assert covered(zip(used["begin"].tolist(), used["end"].tolist())) == covered(given)
    assert int(direction.pieces["length"].sum()) == stream.length
    assert len(direction.held) == 0 or int(direction.held["length"][-1]) == 0
    assert int(direction.delivered["position"][-1]) == stream.length + stream.skipped


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.pcap*")))
def test_the_picture_agrees_with_the_tables(run: Run, observe: Callable[..., Any], name: str) -> None:
    """Conversation N is line N of `tcpreasm flows`."""
    lines = run("flows", DATA / name).lines[1:]
    for number, line in enumerate(lines, 1):
        found = observe(DATA / name, number)
        cells = line.split()
        one = found.numbered
        assert [str(number), one.key.src, one.key.dst] == cells[:3]
        assert [one.sent, one.received, one.gap_count, one.missing] == [int(cell) for cell in cells[3:7]]
        assert one.state_text == " ".join(cells[10:])
        for direction in found.directions:
            assert_consistent(direction)
    assert observe(DATA / name, len(lines) + 1) is None


PERTURBED = ("drop3pct", "mix", "wrap32", "no_syn", "keepalive_garbage", "rst_injected", "snaplen200", "clip_head")


@pytest.mark.parametrize("name", PERTURBED)
def test_perturbed_captures(tcpreasm: ModuleType, observe: Callable[..., Any], corpus: Path, name: str) -> None:
    """Of captures with every kind of disorder: some conversations, the largest one among them."""
    source = corpus / "perturbed" / f"{name}.pcap"
    for number in (2, 60 if name == "clip_head" else 109):
        for direction in observe(source, number).directions:
            assert_consistent(direction)


def test_fragments_are_shown_as_what_they_brought(observe: Callable[..., Any], corpus: Path) -> None:
    found = observe(corpus / "kernel" / "ipfrag" / "ipfrag_atB.pcap", 5)
    assert found.client.fragmented == 13
    for direction in found.directions:
        assert_consistent(direction)


def test_what_is_held_is_what_the_assembler_says(tcpreasm: ModuleType, observe: Callable[..., Any]) -> None:
    """After each packet; the capture holds one conversation."""
    said = []
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream))
    with tcpreasm.open_capture(DATA / "disordered.pcap") as frames:
        for one in frames:
            assembler.assemble_frame(one.data, timestamp_ns=one.timestamp_ns)
            said.append((one.timestamp_ns, assembler.stats.bytes_held))
    found = observe(DATA / "disordered.pcap")
    assert max(held for _, held in said) > 5000
    now = [0, 0]
    changes = sorted((seen_ns, side, held) for side, direction in enumerate(found.directions) for seen_ns, held in direction.held.tolist())
    for seen_ns, held in said:
        while changes and changes[0][0] <= seen_ns:
            _, side, now[side] = changes.pop(0)
        assert sum(now) == held


def test_both_cores_observe_the_same(both: tuple[ModuleType, ModuleType]) -> None:
    seen = []
    for package in both:
        observed = submodule(package, "pictures.observed")
        watch = observed.ConversationWatch(1)
        watch.read(package.Assembler(package.ConversationPool(streams=watch.streams)), [DATA / "disordered.pcap"])
        for direction in watch.observed().directions:
            seen.append([direction.segments.tolist(), direction.acks.tolist(), direction.held.tolist(), direction.unused])
    assert seen[:2] == seen[2:]


# ---- series


@pytest.fixture(scope="module")
def series() -> ModuleType:
    import tcpreasm.pictures.series

    return tcpreasm.pictures.series


UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be at work on other things
TIMES = st.lists(st.tuples(st.integers(0, 1), st.integers(-(2**60), 2**60), st.integers(0, 10**6)), min_size=1, max_size=40)


@UNHURRIED
@given(rows=TIMES, bins=st.integers(2, 20), parts=st.integers(1, 5))
def test_a_timeline_loses_no_byte(series: ModuleType, rows: list[tuple[int, int, int]], bins: int, parts: int) -> None:
    timeline = series.Timeline(bins)
    for part in range(parts):
        for side in (0, 1):
            some = [(time, length) for which, time, length in rows[part::parts] if which == side]
            timeline.add(side, np.array([time for time, _ in some], np.int64), np.array([length for _, length in some], np.int64))
        assert timeline.sums.shape[1] <= bins  # whatever was added so far
    edges, sums = timeline.edges_ns, timeline.sums
    assert sums.shape == (2, len(edges) - 1)
    assert {*np.diff(edges).tolist()} == {timeline.width_ns}
    for side in (0, 1):
        for begin, end, total in zip(edges[:-1].tolist(), edges[1:].tolist(), sums[side].tolist()):
            assert total == sum(length for which, time, length in rows if which == side and begin <= time < end)
    assert sums.sum() == sum(length for _, _, length in rows)
    low, high = min(time for _, time, _ in rows), max(time for _, time, _ in rows)
    assert edges[0] <= low
    assert high < edges[-1]
    half = timeline.width_ns // 2
    assert half == 0 or high // half - low // half >= bins  # no finer one would do


MARKS = st.lists(st.tuples(st.integers(0, 1000), st.integers(-50, 5000), st.integers(0, 300)), min_size=1, max_size=80)


@UNHURRIED
@given(marks=MARKS, columns=st.integers(1, 30), rows=st.integers(1, 100))
def test_merged_marks_cover_the_same_pixels(series: ModuleType, marks: list[tuple[int, int, int]], columns: int, rows: int) -> None:
    times, begins, lengths = (np.array(column, np.int64) for column in zip(*marks))
    ends = begins + lengths
    some = list(zip(*(column.tolist() for column in series.merge_marks(times, begins, ends, columns, rows))))
    if len(marks) <= columns:
        assert some == list(zip(times.tolist(), begins.tolist(), ends.tolist()))
        return
    width = max(1, int(times.max() - times.min()) // columns)
    pixel = int(ends.max() - begins.min()) // rows
    first = int(times.min())
    merged: dict[int, list[tuple[int, int]]] = {}
    for time, begin, end in some:
        merged.setdefault((time - first) // width, []).append((begin, end))
    original: dict[int, list[tuple[int, int]]] = {}
    for time, begin, end in zip(times.tolist(), begins.tolist(), ends.tolist()):
        original.setdefault((time - first) // width, []).append((begin, end))
    assert merged.keys() == original.keys()
    for column, found in merged.items():
        expected: list[list[int]] = []
        for begin, end in sorted(original[column]):
            if expected and begin <= expected[-1][1] + pixel:
                expected[-1][1] = max(expected[-1][1], end)
            else:
                expected.append([begin, end])
        assert [list(one) for one in found] == expected


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 9)), min_size=10, max_size=100), st.integers(1, 5))
def test_thinned_steps_keep_every_extreme(series: ModuleType, steps: list[tuple[int, int]], columns: int) -> None:
    steps.sort(key=lambda step: step[0])
    times, values = (np.array(column, np.int64) for column in zip(*steps))
    some = list(zip(*(column.tolist() for column in series.thin_steps(times, values, columns))))
    if len(steps) <= 4 * columns:
        assert some == steps
        return
    assert len(some) <= 4 * (columns + 1) + columns
    width = max(1, int(times[-1] - times[0]) // columns)
    for column in {(time - times[0]) // width for time, _ in steps}:
        all_, kept = ([value for time, value in which if (time - times[0]) // width == column] for which in (steps, some))
        assert (kept[0], kept[-1], min(kept), max(kept)) == (all_[0], all_[-1], min(all_), max(all_))


@UNHURRIED
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=20))
def test_open_at_a_time(series: ModuleType, spans: list[tuple[int, int]]) -> None:
    rows = np.array([(begin, begin + length) for begin, length in spans], np.int64).reshape(-1, 2)
    times, counts = series.open_at_a_time(rows)
    curve = dict(zip(times.tolist(), counts.tolist()))
    now = 0
    for time in range(75):
        now = curve.get(time, now)
        assert now == sum(begin <= time <= begin + length for begin, length in spans)


# ---- figures


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture
def plot(tcpreasm: ModuleType) -> ModuleType:
    return submodule(tcpreasm, "pictures.plot")


def test_a_conversation_is_drawn_as_it_was_observed(observe: Callable[..., Any], plot: ModuleType) -> None:
    figure = plot.conversation_figure(observe(capture(DISORDER)))
    client, server, throughput, held = figure.axes
    assert legend(figure) == [
        *("in order", "early: held", "late: fills a hole", "retransmission", "not used", "never captured"),
        *("delivered up to", "acknowledged by the other side", "SYN", "FIN"),
    ]
    assert figure.get_suptitle() == "1: 10.0.0.1:40000->10.0.0.2:80   closed, handshake 2 ms"
    assert client.get_title(loc="left") == (
        "client to server: 360 bytes, 2 retransmissions, 1 gap, 50 bytes missing   (1 unused beyond the edges)"
    )
    assert server.get_title(loc="left") == "server to client: 3 bytes"
    bars = {tuple(map(tuple, path.vertices.tolist())) for lines in client.collections for path in lines.get_paths() if len(path) == 2}
    assert {((0.003, 0.0), (0.003, 100.0)), ((0.004, 200.0), (0.004, 300.0)), ((0.008, 100.0), (0.008, 200.0))} <= bars
    delivered = next(line for line in client.lines if line.get_linestyle() == "-")
    assert delivered.get_xydata().tolist() == [[0.0, 0.0], [0.003, 100.0], [0.008, 350.0], [0.014, 410.0]]
    acknowledged = next(line for line in client.lines if line.get_linestyle() == "--")
    assert acknowledged.get_xydata().tolist() == [[0.001, 0.0], [0.005, 100.0], [0.01, 350.0], [0.013, 410.0]]
    (band,) = client.patches
    assert (band.get_y(), band.get_height()) == (350, 50)
    low, high = client.get_ylim()
    assert low < 0
    assert 410 < high < 500  # the RST at 1000 does not stretch it
    assert throughput.get_title(loc="left").endswith("client to server above, server to client below")
    (up, down, _) = held.lines
    assert up.get_xydata().tolist() == [[0.004, 100.0], [0.006, 150.0], [0.008, 0.0], [0.011, 10.0], [0.014, 0.0]]
    assert len(down.get_xydata()) == 0


def test_the_time_is_that_of_its_packets(observe: Callable[..., Any], plot: ModuleType) -> None:
    """The capture goes on for a minute, and then gives out what waited: that is said, and does not stretch the picture."""
    other = frame(1, b"other", ends=("10.0.0.3", 1, "10.0.0.4", 2))
    data = capture(DISORDER[:7]) + pcap([(START + 60_006 * MS, other)])[24:]
    figure = plot.conversation_figure(observe(data))
    assert figure.axes[0].get_title(loc="left").endswith("1 gap, 100 bytes missing, given out 60 s after the last packet")
    assert figure.axes[0].get_xlim()[1] == pytest.approx(0.006 * 1.02)


def test_a_png_has_the_colours_of_its_figure(observe: Callable[..., Any], plot: ModuleType, tmp_path: Path) -> None:
    """Its palette does not lose those of a few dots, by which the legend goes."""
    from PIL import Image

    found = observe(capture(DISORDER))
    plot.save(plot.conversation_figure(found), tmp_path / "saved.png")
    plot.conversation_figure(found).savefig(tmp_path / "drawn.png", dpi=110)
    saved, drawn = (np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int) for name in ("saved.png", "drawn.png"))
    assert abs(saved - drawn).max() <= 16


def test_throughput_is_what_was_delivered(observe: Callable[..., Any], plot: ModuleType) -> None:
    figure = plot.conversation_figure(observe(capture(DISORDER)))
    up, down, _ = figure.axes[2].lines
    for line, sign, total in ((up, 1, 360), (down, -1, 3)):
        seconds, rates = line.get_xdata(), line.get_ydata()
        assert round(float((np.diff(seconds) * rates[:-1]).sum()) / 8, 6) == sign * total


@pytest.mark.parametrize("packets", [DISORDER[:1], DISORDER[1:2], [DISORDER[3]], DISORDER[:3], []], ids=len)
def test_next_to_nothing_is_drawn(
    tcpreasm: ModuleType, observe: Callable[..., Any], plot: ModuleType, tmp_path: Path, packets: list[Packet]
) -> None:
    data = capture(packets)
    if packets:
        plot.save(plot.conversation_figure(observe(data)), tmp_path / "one.png")
    overview = submodule(tcpreasm, "pictures.overview").Overview(10)
    tcpreasm.Assembler(tcpreasm.ConversationPool(streams=overview.streams)).assemble_capture(data)
    overview.finish()
    figure = plot.capture_figure(overview)
    plot.save(figure, tmp_path / "all.png")
    assert figure.get_suptitle().startswith("1 conversation," if packets else "0 conversations, 0 bytes")


def test_many_segments_become_few_marks_and_say_so(observe: Callable[..., Any], plot: ModuleType) -> None:
    packets = [Packet(0, CLIENT, -1, 0, flags=SYN), *(Packet(at, CLIENT, at * 10, 0, b"0123456789") for at in range(6000))]
    figure = plot.conversation_figure(observe(capture(packets)))
    client = figure.axes[0]
    marks = sum(len(path) == 2 for lines in client.collections for path in lines.get_paths())
    assert 500 < marks <= 1600
    assert client.get_title(loc="left") == f"client to server: 60,000 bytes   (6,000 segments, drawn as {marks:,} marks)"


def test_a_whole_capture(tcpreasm: ModuleType, plot: ModuleType) -> None:
    overview = submodule(tcpreasm, "pictures.overview").Overview(10)
    tcpreasm.Assembler(tcpreasm.ConversationPool(streams=overview.streams)).assemble_capture(DATA / "http.pcap")
    overview.finish()
    figure = plot.capture_figure(overview)
    throughput, opened, largest = figure.axes
    assert figure.get_suptitle() == "3 conversations, 25,543 bytes"
    assert [text.get_text().strip() for text in largest.texts] == [
        "1: 127.0.0.1:40001 - 127.0.0.1:8080, closed",
        "2: 127.0.0.1:40002 - 127.0.0.1:8080, closed",
        "3: 127.0.0.1:40003 - 127.0.0.1:8080, closed",
    ]
    assert [round(bar.get_width()) for bar in largest.patches] == [5453, 256, 106, 13432, 3628, 2668]
    assert opened.lines[0].get_ydata().tolist() == [1, 0, 1, 0, 1, 0]
    assert len(throughput.lines) == 3


def test_the_overview_agrees_with_the_tables(run: Run, tcpreasm: ModuleType, corpus: Path) -> None:
    source = corpus / "perturbed" / "drop3pct.pcap"
    overview = submodule(tcpreasm, "pictures.overview").Overview(10_000)
    tcpreasm.Assembler(tcpreasm.ConversationPool(streams=overview.streams)).assemble_capture(source)
    overview.finish()
    lines = run("flows", source).lines[1:]
    time_of = submodule(tcpreasm, "clock").time_of
    assert [
        [
            *(str(row.number), row.client, row.server, str(row.sent), str(row.received), str(row.gap_count), str(row.missing)),
            *(time_of(row.first_seen_ns), time_of(row.last_seen_ns)),
            *("-" if row.handshake_ns is None else f"{row.handshake_ns / 1e6:.3f}ms", *row.state.split()),
        ]
        for row in overview.rows
    ] == [line.split() for line in lines]
    assert [row.number for row in overview.rows] == list(range(1, len(lines) + 1))
    for row in overview.rows:
        assert row.graph.sum(axis=1).tolist() == [row.sent, row.received]
        assert bool(row.gap_places) == bool(row.gap_count)
    assert overview.timeline.sums.sum(axis=1).tolist() == [overview.sent, overview.received]


@pytest.mark.parametrize("limit", [1, 2, 5, 200])
def test_the_largest_are_kept(tcpreasm: ModuleType, limit: int, corpus: Path) -> None:
    rows = {}
    for most in (limit, 10_000):
        overview = submodule(tcpreasm, "pictures.overview").Overview(most)
        tcpreasm.Assembler(tcpreasm.ConversationPool(streams=overview.streams)).assemble_capture(corpus / "perturbed" / "reorder.pcap")
        overview.finish()
        rows[most] = [(row.number, row.sent + row.received) for row in overview.largest]
        assert overview.count == 120
    assert rows[limit] == sorted(rows[10_000], key=lambda row: (-row[1], row[0]))[:limit]


def test_of_equal_ones_the_first_are_kept(tcpreasm: ModuleType) -> None:
    overview = submodule(tcpreasm, "pictures.overview").Overview(3)
    frames = [(START + at, frame(1, b"same", ends=("10.0.0.1", 1000 + at, "10.0.0.2", 80))) for at in range(9)]
    tcpreasm.Assembler(tcpreasm.ConversationPool(streams=overview.streams)).assemble_capture(pcap(frames))
    overview.finish()
    assert [row.number for row in overview.largest] == [1, 2, 3]
    assert (overview.count, overview.sent) == (9, 36)


# ---- the command


def test_plot_writes_the_format_that_is_asked_for(run: Run, tmp_path: Path) -> None:
    for name, number, begins in (
        ("1.png", [1], b"\x89PNG\r\n\x1a\n"),
        ("all.PNG", [], b"\x89PNG\r\n\x1a\n"),
        ("1.pdf", [1], b"%PDF-"),
        ("1.svg", [1], b"<?xml"),
    ):
        path = tmp_path / name
        assert run("plot", DATA / "http.pcap", *number, "-o", path) == (0, f"{path}\n", "")
        assert path.read_bytes().startswith(begins)
    root = ElementTree.parse(tmp_path / "1.svg").getroot()
    texts = "".join(root.itertext())
    assert "1: 127.0.0.1:40001->127.0.0.1:8080" in texts
    assert "client to server: 5,453 bytes" in texts


def test_plot_makes_the_same_file_again(run: Run, tmp_path: Path) -> None:
    for ending in (".svg", ".pdf"):
        for name in ("one", "two"):
            assert run("plot", DATA / "missing.pcap", 1, "-o", tmp_path / (name + ending)).status == 0
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


def test_plot_names_the_picture_after_the_capture(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("plot", DATA / "http.pcap").out == "http.png\n"
    assert run("plot", DATA / "http.pcap", 2).out == "http-2.png\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["http-2.png", "http.png"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["plot", DATA / "http.pcap", "4"], "tcpreasm: there is no conversation 4: 3 in all (tcpreasm flows lists them)\n"),
        (["plot", DATA / "http.pcap", "0"], "tcpreasm plot: argument N: is 1 or more, not '0' (see tcpreasm plot --help)\n"),
        (["plot", DATA / "http.pcap", "-o", "x.gif"], "tcpreasm: a picture's name ends with .pdf, .png, .svg, not 'x.gif'\n"),
        (["plot", "nowhere.pcap", "1"], "tcpreasm: nowhere.pcap: No such file or directory\n"),
        (["plot", DATA / "http.pcap", "-o", "nowhere/x.png"], "tcpreasm: nowhere/x.png: No such file or directory\n"),
    ],
)
def test_plot_errors_are_one_line(run: Run, arguments: list[object], text: str) -> None:
    assert run(*arguments) == (2, "", text)


def test_plot_without_matplotlib(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("plot", DATA / "http.pcap", "-o", "x.png")
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith("tcpreasm: this takes matplotlib: pip install 'tcpreasm[plot]' (")


def test_plot_tells_of_a_cut_capture(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cut.pcap").write_bytes((DATA / "http.pcap").read_bytes()[:-5])
    done = run("plot", tmp_path / "cut.pcap", 1, "-o", tmp_path / "x.png")
    assert done.status == 0
    assert done.err.startswith(f"tcpreasm: {tmp_path / 'cut.pcap'}: ")
    assert done.err.count("\n") == 1
