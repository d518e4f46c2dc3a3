"""Both cores against an obvious, slow model: one dictionary entry for each byte, offset -> the copy that stays.

Lives here: the model, written from the promises (DESIGN.md's numbers stand in parentheses) and not from the engine, and random traffic
for it: several connections, reordering, copies that differ, cut payload, ends, resets, keep-alives, reused ports, flushes, limits,
initial sequence numbers next to the wrap. Not here: what both cores do alike on senseless input (test_parity).

The model knows offsets only: 0 is the byte behind the SYN, negative ones lie before it, and they never wrap. Sequence numbers are made
from them on the way into the engine. TCPREASM_EXAMPLES multiplies the number of examples.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorder import NS, Ends, Recorder, key_of, segment

EXAMPLES = int(os.environ.get("TCPREASM_EXAMPLES", "1"))


def examples(count: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count * EXAMPLES, derandomize=EXAMPLES == 1, deadline=None, suppress_health_check=slow)


START_NS = 1_700_000_000 * NS
CLOSED_NS = 60 * NS  # AssemblerOptions.closed_timeout
MAX_GAP = 1 << 27  # AssemblerOptions.max_gap
FAR = 1 << 29  # between the initial sequence numbers of one connection's incarnations
CONNECTIONS: list[Ends] = [
    ("10.0.0.1", 1234, "10.0.0.2", 80),
    ("10.0.0.2", 80, "10.0.0.1", 1234),
    ("2001:db8::1", 1234, "2001:db8::2", 80),
]
ISNS = [0, 5000, 2**31 - 6, 2**31, 2**32 - 1, 2**32 - 9, 2**32 - 2500]


# Whether a segment [n, e) wins a byte over the one [h, f) that brought what is held there, both as they came (AssemblerOptions.overlap).
WINS: dict[str, Callable[[int, int, int, int], bool]] = {
    "first": lambda n, e, h, f: False,
    "last": lambda n, e, h, f: True,
    "bsd": lambda n, e, h, f: n < h,
    "windows": lambda n, e, h, f: n < h,
    "linux": lambda n, e, h, f: n < h or (n == h and e > f),
    "old-linux": lambda n, e, h, f: n < h or (n == h and e >= f),
    "solaris": lambda n, e, h, f: e >= f if n <= h else e > f,
}


@dataclass
class Tape:
    """One stream as it looks from outside: runs of bytes, each behind a gap (0 for the first run of a stream with its start)."""

    runs: list[tuple[int, bytearray]] = field(default_factory=lambda: [(0, bytearray())])
    seen: list[int] = field(default_factory=list)  # capture time of each byte
    start: bool = False
    end: bool = False
    complete: bool = False
    pending: int = 0  # the model's: missing bytes that no piece has told of yet

    def put(self, byte: int, seen_ns: int) -> None:
        self.tell_gap()
        self.runs[-1][1].append(byte)
        self.seen.append(seen_ns)

    def miss(self, count: int) -> None:
        if self.pending >= 0:
            self.pending += count

    def tell_gap(self) -> None:
        if self.pending:
            self.runs.append((self.pending, bytearray()))
        self.pending = 0

    def close(self, end: bool) -> None:
        self.tell_gap()
        self.end, self.complete = end, True

    @property
    def told(self) -> tuple[Any, ...]:
        return self.runs, self.seen, self.start, self.end, self.complete

    @property
    def missing(self) -> int:
        return sum(max(skip, 0) for skip, _ in self.runs)


@dataclass
class NextStream:
    """A SYN with another initial sequence number, remembered (8)."""

    space: int
    held: dict[int, tuple[int, int]]
    cut: dict[int, int]


class ByteModel:
    """One direction of one connection, byte by byte."""

    def __init__(self, wait_segments: int | None, wait_ns: int | None, overlap: str) -> None:
        self.wins = WINS[overlap]
        self.wait_segments = wait_segments
        self.wait_ns = wait_ns
        self.tapes: list[Tape] = []
        self.space = 0  # which initial sequence number its packets count from
        self.open = False
        self.closed_at: int | None = None
        self.next_stream: NextStream | None = None
        self.forget()

    def forget(self) -> None:
        self.started = False
        self.from_syn = False
        self.next = 0
        self.first = 0
        self.held: dict[int, tuple[int, int]] = {}  # offset -> (byte, capture time): the copy that stays (7)
        self.came: dict[int, tuple[int, int]] = {}  # offset -> the segment that brought it, from where to where
        self.cut: dict[int, int] = {}  # offset -> capture time: cut off by the capture, no use waiting for it
        self.fin: int | None = None
        self.fin_ns = 0
        self.waiting_segments = 0
        self.created_ns = 0
        self.last_ns = 0

    @property
    def tape(self) -> Tape:
        return self.tapes[-1]

    def bytes_held(self) -> int:
        return len(self.held) + (len(self.next_stream.held) if self.next_stream else 0)

    def waits(self) -> bool:
        return bool(self.held or self.cut or (self.fin is not None and not self.ended()))

    def ended(self) -> bool:
        return self.started and self.fin == self.next

    # -- one segment

    def segment(self, off: int, payload: bytes, wire: int, now: int, *, fin: bool = False, ack: bool = True) -> None:
        """A segment without SYN and RST."""
        if not ack:
            return  # (8): data and FIN without the ACK flag are ignored
        self.look_for_tombstone(now)
        if self.closed_at is not None:
            if self.next_stream is None or not self.continues(wire, fin):
                return  # (8): after a close, late packets open no ghost stream
            self.begin_next(self.next_stream, now)
        elif not self.open:
            if not wire:
                return  # (2)
            self.begin(now)
        elif self.started and self.next_stream is not None and self.continues(wire, fin):
            following, self.next_stream = self.next_stream, None
            self.finish()
            self.begin_next(following, now)
        self.last_ns = max(self.last_ns, now)
        if wire or fin:
            self.text(off, payload, wire, fin, now)

    def continues(self, wire: int, fin: bool) -> bool:
        """Whether the generator meant this segment for the remembered SYN: it says so by counting from that one's start."""
        return self.meant_for_next and bool(wire or fin)

    meant_for_next = False

    def syn(self, space: int, payload: bytes, wire: int, now: int, fin: bool = False) -> None:
        self.look_for_tombstone(now)
        if self.closed_at is not None:
            if space == self.space:
                return
            self.begin(now)  # after a close it starts one at once (8)
        elif not self.open:
            self.begin(now)
        elif self.started and space != self.space:
            self.last_ns = max(self.last_ns, now)
            held = {i: (byte, now) for i, byte in enumerate(payload)}
            self.next_stream = NextStream(space, held, dict.fromkeys(range(len(payload), wire), now))
            return
        elif not self.started and space != self.space:
            self.finish()
            self.begin(now)
        self.space = space
        self.last_ns = max(self.last_ns, now)
        if not self.started:
            self.started = self.from_syn = True
            self.tape.start = True
        self.text(0, payload, wire, fin, now)

    def reset(self, off: int, now: int) -> None:
        self.look_for_tombstone(now)
        if not self.open or self.closed_at is not None:
            return
        self.last_ns = max(self.last_ns, now)
        known = [*self.held, *self.cut]
        if self.started:
            if off == self.next:
                self.fin, self.fin_ns = off, now
                self.advance(now)
        elif known and off == max(known) + 1:
            self.fin, self.fin_ns = off, now
            self.skip(now)

    def text(self, off: int, payload: bytes, wire: int, fin: bool, now: int) -> None:
        if fin:
            self.note_fin(off + wire, now)
        if self.started and off - self.next > MAX_GAP:
            return
        end = off + wire if self.fin is None else min(off + wire, self.fin)
        for place in range(off, off + wire):
            if (self.started and place < self.next) or (self.fin is not None and place >= self.fin):
                continue
            if place - off >= len(payload):
                self.cut.setdefault(place, now)
            elif place not in self.held or self.wins(off, end, *self.came[place]):
                self.held[place] = payload[place - off], now
                self.came[place] = off, end
        if self.started:
            self.advance(now)
        elif self.waits():
            self.waiting_segments += 1
            enough = self.wait_segments is not None and self.waiting_segments >= self.wait_segments
            if enough or (self.wait_ns is not None and now - self.created_ns >= self.wait_ns):
                self.skip(now)  # (9)

    def note_fin(self, fin: int, now: int) -> None:
        lowest = self.next if self.started else min([*self.held, *self.cut], default=None)
        if self.fin is not None or (lowest is not None and not 0 <= fin - lowest <= MAX_GAP):
            return
        self.fin, self.fin_ns = fin, now
        self.held = {place: byte for place, byte in self.held.items() if place < fin}
        self.cut = {place: seen for place, seen in self.cut.items() if place < fin}

    # -- what it leads to

    def advance(self, now: int) -> None:
        while not self.ended():
            if self.next in self.held:
                self.tape.put(*self.held.pop(self.next))
                self.cut.pop(self.next, None)
            elif self.next in self.cut:
                del self.cut[self.next]
                self.tape.miss(1)
            else:
                return
            self.next += 1
        self.tape.close(True)
        self.closed_at = now
        self.held, self.cut = {}, {}  # (8): what lies beyond the end is no data
        if self.next_stream is not None:
            self.next_stream.held, self.next_stream.cut = {}, {}

    def skip(self, now: int) -> None:
        """Stop waiting for the lowest hole."""
        target = min([*self.held, *self.cut], default=self.fin)
        assert target is not None
        if self.started:
            self.tape.miss(target - self.next)
        else:
            self.started = True
            self.first = target
            self.tape.pending = -1
        self.next = target
        self.advance(now)

    def begin(self, now: int) -> None:
        self.forget()
        self.open, self.closed_at, self.next_stream = True, None, None
        self.created_ns = self.last_ns = now
        self.tapes.append(Tape())

    def begin_next(self, following: NextStream, now: int) -> None:
        self.begin(now)
        self.space = following.space
        self.started = self.from_syn = self.tape.start = True
        self.held, self.cut = following.held, following.cut
        self.came = dict.fromkeys(self.held, (0, len(self.held) + len(self.cut)))
        self.advance(now)

    def finish(self) -> None:
        """Everything held goes out; the stream is over."""
        while self.waits():
            self.skip(self.last_ns)
        if not self.tape.complete:
            self.tape.close(False)
        self.open, self.closed_at = False, None

    def look_for_tombstone(self, now: int) -> None:
        if self.closed_at is not None and self.closed_at < now - CLOSED_NS:
            self.open, self.closed_at, self.next_stream = False, None, None

    def flush(self, t: int | None, close_all: bool, now: int) -> tuple[bool, bool]:
        if not self.open or self.closed_at is not None:
            return False, False
        old = [place for place, (_, seen) in self.held.items() if t is None or seen < t]
        old += [place for place, seen in self.cut.items() if t is None or seen < t]
        if self.fin is not None and (t is None or self.fin_ns < t):
            old.append(self.fin)
        if old:
            target = max(old)
            while self.waits() and (not self.started or self.next <= target):
                self.skip(now)
        if self.closed_at is not None:
            return True, True
        idle = close_all and (t is None or self.last_ns < t)
        if idle:
            self.finish()
            self.next_stream = None
        return bool(old) or idle, idle


# -- the engine, told the same ------------------------------------------------------------------------------------------


class Bench:
    """A model for each connection and one Assembler, led through the same traffic and compared after each call."""

    def __init__(self, package: ModuleType, isns: list[int], wait_segments: int | None, wait: float | None, overlap: str) -> None:
        self.package = package
        self.isns = isns
        self.recorder = Recorder()
        self.pool = package.StreamPool(self.recorder)
        self.assembler = package.Assembler(
            self.pool,
            package.AssemblerOptions(
                max_buffered_pages_per_connection=0,
                max_buffered_pages_total=0,
                start_wait_segments=wait_segments,
                start_wait=wait,
                overlap=overlap,
            ),
        )
        wait_ns = None if wait is None else round(wait * NS)
        self.models = [ByteModel(wait_segments, wait_ns, overlap) for _ in CONNECTIONS]
        self.tapes: dict[str, list[Tape]] = {key_of(ends): [] for ends in CONNECTIONS}
        self.spaces = [0] * len(CONNECTIONS)  # the newest initial sequence number of each
        self.captured = 0
        self.now = START_NS
        self.seen_ns = START_NS  # of the last packet: what the engine takes for now (10)
        self.wild = 0

    def send(self, which: int, space: int, off: int, payload: bytes, cut: int = 0, **flags: Any) -> None:
        """off as the model counts: a SYN stands at -1."""
        ends = CONNECTIONS[which]
        seq = self.isns[which] + space * FAR + 1 + off
        tcp = segment(self.package, seq, payload, ends=ends, wire=len(payload) + cut, **flags)
        self.captured += len(payload)
        self.seen_ns = self.now
        self.assembler.assemble(self.package.Flow(ends[0], ends[2]), tcp, timestamp_ns=self.now)

    def compare(self) -> None:
        for kind, key, *rest in self.recorder.take():
            tapes = self.tapes[key]
            if kind == "new":
                assert not tapes or tapes[-1].complete, "a second stream while the first is open"
                tapes.append(Tape())
            elif kind == "complete":
                tapes[-1].complete = True
            else:
                for data, skip, start, end, seen_ns in rest[0]:
                    tape = tapes[-1]
                    fresh = len(tape.runs) == 1 and not tape.seen and not tape.start
                    assert skip >= -1
                    assert fresh or (skip >= 0 and not start), "only the first piece of a stream has a start, or none"
                    assert not (start and skip)
                    assert not tape.end
                    tape.start |= start
                    tape.end = end
                    if skip:
                        tape.runs.append((skip, bytearray()))
                    tape.runs[-1][1].extend(data)
                    tape.seen.extend([seen_ns] * len(data))
        stats = self.assembler.stats
        for ends, model in zip(CONNECTIONS, self.models):
            got, expected = self.tapes[key_of(ends)], model.tapes
            assert [tape.told for tape in got] == [tape.told for tape in expected], ends
        assert stats.bytes_held == sum(model.bytes_held() for model in self.models)
        assert stats.bytes_captured == self.captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held
        assert stats.bytes_delivered == sum(len(tape.seen) for tapes in self.tapes.values() for tape in tapes)

    # What happens. Each looks at the model for what makes sense now.

    def do(self, action: str, which: int, place: int, size: int, cut: int, variant: int, fin: bool, unit: int) -> None:
        model = self.models[which]
        model.look_for_tombstone(self.now)
        if not model.open:
            model.forget()
        place, size, cut = place * unit, size * unit, cut * unit
        if not model.started:
            variant = 0  # a lone byte before the start may be a keep-alive's: which copy is right is another test's matter
        if action == "near":
            place, action = model.next + place // 4 - 2 * unit, "text"
            if not model.from_syn:
                place = max(place, 0)
        if action == "text":
            self.text(which, place, self.content(which, model.space, place, size, variant), cut, fin)
        elif action == "syn":
            self.syn(which, model.space, size, cut, variant, fin)
        elif action == "other syn" and self.spaces[which] < 6:
            self.spaces[which] += 1
            self.syn(which, self.spaces[which], size, 0, variant, False)
        elif action == "confirm" and model.next_stream is not None:
            model.meant_for_next = True
            try:
                self.text(which, 0, self.content(which, model.next_stream.space, 0, size + 1, variant), cut, fin)
            finally:
                model.meant_for_next = False
        elif action == "reset":
            off = model.next if model.started else max([*model.held, *model.cut], default=place) + 1
            off += (0, 0, 1, -1)[variant]
            model.reset(off, self.now)
            self.send(which, model.space, off, b"text"[:size], rst=True)
        elif action == "ack":
            model.segment(place, b"", 0, self.now)
            self.send(which, model.space, place, b"")
        elif action == "no ack":
            self.send(which, model.space, place, self.content(which, model.space, place, size, 1), ack_flag=False, fin=fin)
        elif action == "keep-alive" and model.from_syn:
            self.text(which, model.next - 1, b"\0", 0, False)
        elif action == "wild" and model.started and model.closed_at is None:
            self.wild += 1
            self.text(which, model.next + MAX_GAP + 1 + (self.wild << 21), bytes(size + 1), 0, False)
        elif action == "flush":
            t = self.now - place * NS // 8
            result = [model.flush(t, fin, self.seen_ns) for model in self.models]
            told = self.assembler.flush_ns(t, fin)
            assert told == (sum(flushed for flushed, _ in result), sum(closed for _, closed in result))
        elif action == "flush all":
            closed = sum(model.flush(None, True, self.seen_ns)[1] for model in self.models)
            for model in self.models:
                model.look_for_tombstone(1 << 62)
            assert self.assembler.flush_all() == closed
        self.compare()

    def content(self, which: int, space: int, off: int, size: int, variant: int) -> bytes:
        return bytes((place * 31 + which * 7 + space * 13 + variant * 101) & 255 for place in range(off, off + size))

    def text(self, which: int, off: int, payload: bytes, cut: int, fin: bool) -> None:
        model = self.models[which]
        space = model.next_stream.space if model.meant_for_next and model.next_stream else model.space
        model.segment(off, payload, len(payload) + cut, self.now, fin=fin)
        self.send(which, space, off, payload, cut, fin=fin)

    def syn(self, which: int, space: int, size: int, cut: int, variant: int, fin: bool) -> None:
        payload = self.content(which, space, 0, size, variant)
        self.models[which].syn(space, payload, size + cut, self.now, fin)
        self.send(which, space, -1, payload, cut, syn=True, fin=fin)


ACTIONS = ["text"] * 7 + ["near"] * 7 + ["syn"] * 3 + ["flush"] * 2
ACTIONS += ["other syn", "confirm", "reset", "ack", "no ack", "keep-alive", "wild", "flush all"]
ACTION = st.tuples(
    st.sampled_from(ACTIONS),
    st.sampled_from([0, 0, 0, 1, 1, 2]),
    st.integers(0, 48),
    st.integers(0, 12),
    st.sampled_from([0, 0, 0, 0, 0, 1, 4, 11]),
    st.integers(0, 3),
    st.sampled_from([False, False, False, False, False, True]),
)
TRAFFIC = st.lists(st.tuples(ACTION, st.sampled_from([0, 1, 1, 40_000_000, 400_000_000, 2 * NS, 25 * NS])), min_size=5, max_size=60)


@examples(150)
@given(
    traffic=TRAFFIC,
    isns=st.lists(st.sampled_from(ISNS), min_size=3, max_size=3),
    opened=st.lists(st.booleans(), min_size=3, max_size=3),
    wait_segments=st.sampled_from([1, 3, 16, None]),
    wait=st.sampled_from([0.0, 1.0, None]),
    unit=st.sampled_from([1, 1, 1, 1, 1, 1, 1, 150, 700]),
    overlap=st.sampled_from(["first"] * 6 + list(WINS)),
)
def test_any_traffic(
    tcpreasm: ModuleType,
    traffic: list[tuple[tuple[Any, ...], int]],
    isns: list[int],
    opened: list[bool],
    wait_segments: int | None,
    wait: float | None,
    unit: int,
    overlap: str,
) -> None:
    """After every call: the same bytes, gaps, times and marks as the model has them, as much held, and (12)."""
    bench = Bench(tcpreasm, isns, wait_segments, wait, overlap)
    for which, with_syn in enumerate(opened):
        if with_syn:
            bench.do("syn", which, 0, 0, 0, 0, False, 1)
    for action, step in traffic:
        bench.now += step
        bench.do(*action, unit)
    bench.do("flush all", 0, 0, 0, 0, 0, False, 1)
    missing = sum(tape.missing for tapes in bench.tapes.values() for tape in tapes)
    stats = bench.assembler.stats
    assert stats.bytes_skipped == missing
    assert (stats.bytes_held, stats.pages_used, len(bench.pool)) == (0, 0, 0)
    assert stats.streams_opened == stats.streams_closed == sum(len(tapes) for tapes in bench.tapes.values())


SEGMENTS = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 700), st.integers(0, 3)), min_size=1, max_size=40)


@examples(120)
@given(segments=SEGMENTS, isn=st.sampled_from(ISNS), early=st.booleans(), data=st.data())
def test_with_everything_there_the_first_copies_come_out(
    tcpreasm: ModuleType, segments: list[tuple[int, int, int]], isn: int, early: bool, data: st.DataObject
) -> None:
    """Any segments of one connection, in any order, their copies differing: first copy wins byte by byte, gaps are exact (6, 7)."""
    first: dict[int, int] = {}
    recorder = Recorder()
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(recorder), tcpreasm.AssemblerOptions(start_wait_segments=None, start_wait=None))
    flow = tcpreasm.Flow(CONNECTIONS[0][0], CONNECTIONS[0][2])
    packets = [(off, bytes((off + i) * 7 + variant * 50 & 255 for i in range(size))) for off, size, variant in segments]
    if early:
        packets.insert(data.draw(st.integers(0, len(packets))), (-1, b""))
    else:
        packets.insert(0, (-1, b""))
    total = max(off + len(payload) for off, payload in packets)
    packets.insert(data.draw(st.integers(packets.index((-1, b"")) + 1, len(packets))), (total, b""))  # the FIN
    before_syn = True
    for off, payload in packets:
        before_syn &= off != -1
        if before_syn and len(payload) == 1:
            continue  # may be a keep-alive's
        for i, byte in enumerate(payload):
            first.setdefault(off + i, byte)
        tcp = segment(tcpreasm, isn + 1 + off, payload, syn=off == -1, fin=off == total)
        assembler.assemble(flow, tcp, timestamp_ns=START_NS)
        stats = assembler.stats
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held
    assembler.flush_all()
    expected, place = [], 0
    for off in sorted(first):
        expected.append((first[off], off - place))
        place = off + 1
    got = []
    pieces = [piece for kind, _, *rest in recorder.calls if kind == "reassembled" for piece in rest[0]]
    for payload, skip, *_ in pieces:
        got += [(byte, 0 if i else skip) for i, byte in enumerate(payload)]
    assert got == expected
    assert (pieces[0][2], pieces[-1][3]) == (True, True)
    assert (pieces[-1][1] if not pieces[-1][0] else 0) == total - place
    assert [kind for kind, *_ in recorder.calls].count("complete") == 1


@pytest.mark.parametrize("overlap", WINS)
@examples(60)
@given(
    segments=st.lists(
        st.tuples(
            st.integers(0, 200), st.sampled_from([1, 1, 2, 3, 8, 40, 90]), st.integers(0, 3), st.sampled_from([0, 0, 0, 0, 0, 2, 30])
        ),
        min_size=2,
        max_size=90,
    ),
    scale=st.sampled_from([1, 1, 1, 60]),
    isn=st.sampled_from(ISNS),
)
def test_every_policy_byte_by_byte(
    tcpreasm: ModuleType, overlap: str, segments: list[tuple[int, int, int, int]], scale: int, isn: int
) -> None:
    """Early segments and those in order, whole and cut by the capture, their copies differing: whose bytes come out, how many gave way,
    and what on_conflict is told of them (7)."""
    wins = WINS[overlap]
    told: list[tuple[int, bytes, bytes, str]] = []

    def tell(_net: Any, _transport: Any, seq: int, held: bytes, new: bytes, winner: str) -> None:
        told.append((seq, held, new, winner))

    recorder = Recorder()
    assembler = tcpreasm.Assembler(
        tcpreasm.StreamPool(recorder),
        tcpreasm.AssemblerOptions(overlap=overlap, on_conflict=tell, max_buffered_pages_per_connection=0, max_buffered_pages_total=0),
    )
    flow = tcpreasm.Flow(CONNECTIONS[0][0], CONNECTIONS[0][2])
    assembler.assemble(flow, segment(tcpreasm, isn, syn=True), timestamp_ns=START_NS)
    held: dict[int, tuple[int, int, int]] = {}
    cut: set[int] = set()
    got: list[tuple[int, int]] = []  # byte, gap before it
    place = gap = overlapping = conflicting = 0
    for off, size, variant, missing in segments:
        off, size, missing = off * scale, size * scale, missing * scale
        payload = bytes((off + i) * 7 + (i % 5 < 3) * variant * 50 & 255 for i in range(size))
        conflicts: list[tuple[int, int, int, str]] = []
        for at in range(max(off, place), off + size):
            mine = payload[at - off], off, off + size + missing
            if at not in held:
                held[at] = mine
                continue
            overlapping += 1
            wins_it = wins(*mine[1:], *held[at][1:])
            if held[at][0] != mine[0]:
                conflicts.append((at, held[at][0], mine[0], "new" if wins_it else "held"))
            if wins_it:
                held[at] = mine
        cut.update(range(max(off + size, place), off + size + missing))
        while place in held or place in cut:
            if place in held:
                got.append((held.pop(place)[0], gap))
                gap = 0
            else:
                gap += 1
            place += 1
        assembler.assemble(flow, segment(tcpreasm, isn + 1 + off, payload, wire=size + missing), timestamp_ns=START_NS)
        stats = assembler.stats
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held
        assert stats.bytes_held == len(held)
        assert (stats.dropped.get("overlapping", 0), stats.conflicting) == (overlapping, conflicting + len(conflicts))
        conflicting += len(conflicts)
        each = [
            ((seq - isn - 1 + i) & 0xFFFFFFFF, old, new, winner)
            for seq, *copies, winner in told
            for i, (old, new) in enumerate(zip(*copies))
        ]
        assert sorted(each) == conflicts
        runs = [(seq, winner) for seq, _, _, winner in told]
        behind = [((seq + len(old)) & 0xFFFFFFFF, winner) for seq, old, _, winner in told]
        assert not set(runs) & set(behind), "a run that goes on is told in one"
        told.clear()
    assembler.flush_all()
    for at in sorted(held.keys() | cut):
        if at >= place:
            gap += at - place
            place = at
            if at in held:
                got.append((held[at][0], gap))
                gap = 0
            else:
                gap += 1
            place += 1
    pieces = [piece for call in recorder.calls if call[0] == "reassembled" for piece in call[2]]
    assert [(byte, 0 if i else skip) for data, skip, *_ in pieces for i, byte in enumerate(data)] == got


@examples(100)
@given(
    cells=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=120),
    size=st.sampled_from([1, 7, 1900]),
    limit=st.integers(0, 9),
    total=st.integers(0, 12),
    isn=st.sampled_from(ISNS),
)
def test_limits(tcpreasm: ModuleType, cells: list[tuple[int, int]], size: int, limit: int, total: int, isn: int) -> None:
    """Segments of one page each: which ones are held, and which hole is given up when a limit is reached (5)."""
    recorder = Recorder()
    assembler = tcpreasm.Assembler(
        tcpreasm.StreamPool(recorder),
        tcpreasm.AssemblerOptions(max_buffered_pages_per_connection=limit, max_buffered_pages_total=total),
    )
    held: list[set[int]] = [set() for _ in CONNECTIONS]
    place = [0] * len(CONNECTIONS)
    expected: list[list[tuple[int, int]]] = [[] for _ in CONNECTIONS]  # cells with the gap before each
    for ends in CONNECTIONS:
        assembler.assemble(tcpreasm.Flow(ends[0], ends[2]), segment(tcpreasm, isn, ends=ends, syn=True), timestamp_ns=START_NS)
    for which, cell in cells:
        ends = CONNECTIONS[which]
        tcp = segment(tcpreasm, isn + 1 + cell * size, bytes([cell]) * size, ends=ends)
        assembler.assemble(tcpreasm.Flow(ends[0], ends[2]), tcp, timestamp_ns=START_NS)
        mine = held[which]
        if cell >= place[which]:
            mine.add(cell)
        while mine:
            full = 0 < limit <= len(mine) or 0 < total <= sum(map(len, held))
            lowest = min(mine)
            if lowest != place[which] and not full:
                break
            mine.remove(lowest)
            expected[which].append((lowest, lowest - place[which]))
            place[which] = lowest + 1
        stats = assembler.stats
        assert stats.pages_used == sum(map(len, held))
        assert stats.bytes_held == stats.pages_used * size
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held
    for ends, wanted in zip(CONNECTIONS, expected):
        pieces = [piece for kind, key, *rest in recorder.calls if (kind, key) == ("reassembled", key_of(ends)) for piece in rest[0]]
        assert [(data[0], skip // size) for data, skip, *_ in pieces if data] == wanted
        assert {len(data) for data, *_ in pieces if data} <= {size}


@examples(100)
@given(
    segments=st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(0, 9000), st.sampled_from([1, 5, 300, 1900, 1901, 4000]), st.integers(0, 2), st.integers(0, 3)
        ),
        min_size=1,
        max_size=60,
    ),
    limit=st.integers(0, 6),
    total=st.integers(0, 8),
    flush_every=st.integers(3, 40),
    isn=st.sampled_from(ISNS),
)
def test_under_limits_and_flushes_what_comes_out_is_still_right(
    tcpreasm: ModuleType, segments: list[tuple[int, int, int, int, int]], limit: int, total: int, flush_every: int, isn: int
) -> None:
    """Whatever is given up early: each byte that comes out stands at its place and is the first copy, and no limit is passed."""
    recorder = Recorder()
    pool = tcpreasm.StreamPool(recorder)
    assembler = tcpreasm.Assembler(pool, tcpreasm.AssemblerOptions(max_buffered_pages_per_connection=limit, max_buffered_pages_total=total))
    first: list[dict[int, int]] = [{} for _ in CONNECTIONS]
    place = {key_of(ends): 0 for ends in CONNECTIONS}
    for ends in CONNECTIONS:
        assembler.assemble(tcpreasm.Flow(ends[0], ends[2]), segment(tcpreasm, isn, ends=ends, syn=True), timestamp_ns=START_NS)
    for step, (which, off, size, variant, cut) in enumerate(segments):
        ends = CONNECTIONS[which]
        payload = bytes((off + i) * 7 + variant * 50 & 255 for i in range(size))
        for i, byte in enumerate(payload):
            first[which].setdefault(off + i, byte)
        tcp = segment(tcpreasm, isn + 1 + off, payload, ends=ends, wire=size + cut * 100)
        assembler.assemble(tcpreasm.Flow(ends[0], ends[2]), tcp, timestamp_ns=START_NS + step)
        if step % flush_every == 0:
            assembler.flush_ns(START_NS + step - flush_every, False)
        stats = assembler.stats
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held
        assert total == 0 or stats.pages_used < total
        assert limit == 0 or stats.pages_used <= (limit - 1) * len(CONNECTIONS)
    assembler.flush_all()
    by_key = dict(zip(place, first))
    for kind, key, *rest in recorder.calls:
        for data, skip, *_ in rest[0] if kind == "reassembled" else ():
            place[key] += skip
            assert data == bytes(by_key[key][place[key] + i] for i in range(len(data)))
            place[key] += len(data)


# -- found by the above ---------------------------------------------------------------------------------------------------


def drive(package: ModuleType, *packets: tuple[int, bytes, dict[str, Any]]) -> tuple[list[Any], Any]:
    """One connection, ISN 999; then everything flushed. What it led to, and the stats."""
    recorder = Recorder()
    assembler = package.Assembler(package.StreamPool(recorder))
    for off, payload, flags in packets:
        assembler.assemble(package.Flow("10.0.0.1", "10.0.0.2"), segment(package, 1000 + off, payload, **flags), timestamp_ns=0)
    assembler.flush_all()
    return [(kind, *rest) for kind, _, *rest in recorder.calls], assembler.stats


def test_fin_below_a_syn_that_comes_later(tcpreasm: ModuleType) -> None:
    """A pending FIN that lies before the SYN is another stream's: it must not swallow what follows."""
    calls, stats = drive(tcpreasm, (-2, b"x", {}), (-2, b"", {"fin": True}), (-1, b"", {"syn": True}), (0, b"hello", {}), (5, b"world", {}))
    got = b"".join(data for kind, *rest in calls if kind == "reassembled" for data, *_ in rest[0])
    assert got.endswith(b"helloworld")
    assert 0 <= stats.bytes_skipped < 2**32


def test_cut_that_reaches_over_the_fin(tcpreasm: ModuleType) -> None:
    """Bytes that the capture cut off reach over a page behind them and over the FIN: the stream ends at the FIN."""
    calls, stats = drive(
        tcpreasm,
        (-1, b"", {"syn": True}),
        (10, b"a" * 10, {"wire": 90}),
        (30, b"b" * 10, {}),
        (50, b"", {"fin": True}),
        (0, b"c" * 10, {}),
    )
    assert calls[-2] == (
        "reassembled",
        [
            (b"c" * 10, 0, False, False, 0),
            (b"a" * 10, 0, False, False, 0),
            (b"b" * 10, 10, False, False, 0),
            (b"", 10, False, True, 0),
        ],
    )
    assert calls[-1] == ("complete",)
    assert stats.bytes_skipped == 20


@pytest.mark.parametrize(("off", "ends"), [(10, False), (20, True)])
def test_reset_behind_cut_payload_before_the_start(tcpreasm: ModuleType, off: int, ends: bool) -> None:
    """RST closes at the sequence number expected, and that counts the bytes on the wire."""
    calls, stats = drive(tcpreasm, (0, b"c" * 10, {"wire": 20}), (off, b"", {"rst": True}))
    assert any(piece[3] for kind, *rest in calls if kind == "reassembled" for piece in rest[0]) == ends
    assert stats.rst_ignored == (not ends)


def test_bytes_skipped_is_the_sum_of_the_positive_skips(tcpreasm: ModuleType) -> None:
    """Bytes cut off right behind an unknown start belong to what is unknown."""
    calls, stats = drive(tcpreasm, (0, b"", {"wire": 20}), (20, b"abc", {}))
    assert [rest for kind, *rest in calls if kind == "reassembled"] == [[[(b"abc", -1, False, False, 0)]]]
    assert stats.bytes_skipped == 0
