"""What the picture of a conversation shows, segment by segment, taken down while a capture is reassembled.

Lives here: streams that note what they are given, and what the assembler counted for each segment. `ConversationWatch` takes frames in one
by one, some ten microseconds each, and looks at the assembler's counters around each segment of its conversation: whether a segment was
new, early, repeated or of no use is told by what the assembler did with its bytes (`AssemblerStats`), what is missing by
`Reassembly.skip`. The header's numbers say only where to draw it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._select import core
from ..api import Assembler
from ..capture import Frame, open_capture
from ..conversations import Conversation, Side
from ..decoded import Segment
from ..flow import ConnectionKey
from ..numbered import Numbered, Numbering
from ..options import tunnel_bits
from ..segment import ACK, FIN, RST, SYN
from ..stats import COUNTERS, DROP_REASONS
from ..streams import ByteCountStream

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.void]

__all__ = ["ConversationWatch", "Direction", "Kind", "Observed"]


class Kind(IntEnum):
    """What the assembler did with a segment's bytes."""

    IN_ORDER = 0
    """Delivered at once; or the segment has none, and its flags counted."""
    HELD = 1
    """Early: kept, until what lies before them comes or is given up."""
    LATE = 2
    """They were what held ones waited for."""
    REPEATED = 3
    """All or some of them had been there before."""
    UNUSED = 4
    """Of no use: outside of the stream, refused, or given up as missing before they came; or the segment's flags counted for nothing."""


SEGMENT_DTYPE = [("seen_ns", "<i8"), ("begin", "<i8"), ("end", "<i8"), ("kind", "u1"), ("flags", "u1")]
POSITION_DTYPE = [("seen_ns", "<i8"), ("position", "<i8")]
LENGTH_DTYPE = [("seen_ns", "<i8"), ("length", "<i8")]
GAP_DTYPE = [("seen_ns", "<i8"), ("offset", "<i8"), ("length", "<i8")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Direction:
    """One direction of an observed conversation. Times are capture time in ns. Positions count the stream's bytes from 0,
    missing ones too, and urgent ones where the option `urgent` takes them out.

    Attributes:
        key: who sent to whom.
        stream: its counters; None where nothing came but acknowledgements.
        segments: those with text, SYN, FIN or RST, as they were captured: seen_ns, begin and end of the captured text, kind, flags.
        acks: what the other side acknowledged: seen_ns, position.
        delivered: seen_ns, position: up to where the stream was given out then.
        pieces: what was given out: seen_ns of the packet that brought it, length in bytes.
        held: seen_ns, length: bytes that wait from then on.
        gaps: what was given up as missing: seen_ns (when), offset, length.
        unused: bytes that were captured and not delivered, by the reasons of `AssemblerStats.dropped`.
        fragmented: times that the last fragment of a datagram brought something: instead of such segments, what was delivered then is
            among the others; `held` may leave them out.
    """

    key: ConnectionKey
    stream: ByteCountStream | None
    segments: Rows
    acks: Rows
    delivered: Rows
    pieces: Rows
    held: Rows
    gaps: Rows
    unused: dict[str, int]
    fragmented: int

    def count(self, kind: Kind) -> int:
        """Segments of that kind."""
        return int(np.count_nonzero(self.segments["kind"] == kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One conversation: both directions together, and each by itself."""

    numbered: Numbered
    client: Direction
    server: Direction

    @property
    def directions(self) -> tuple[Direction, Direction]:
        """Client to server, server to client."""
        return self.client, self.server


class _Seen(NamedTuple):
    """A segment as it came: what is needed to find its place once the stream's first byte is known."""

    seen_ns: int
    seq: int
    at: int  # position of the stream then: what lies within 2**31 of it is unambiguous
    length: int
    kind: Kind
    flags: int


_Name = tuple[bytes, bytes, int, int]
_DROPS = slice(len(COUNTERS), len(COUNTERS) + len(DROP_REASONS))
_AGAIN = ("retransmitted", "overlapping")
_FOR_NOTHING = [COUNTERS.index(name) for name in ("rst_ignored", "fin_ignored", "late_syn")]
_REMEMBERED = COUNTERS.index("syn_remembered")


def _name(key: ConnectionKey) -> _Name:
    net, transport = key
    return net.raw_src, net.raw_dst, transport.raw_src, transport.raw_dst  # type: ignore[return-value]  # packed addresses, and ports


def _places(numbers: Iterable[int], at: Iterable[int], base: int) -> NDArray[np.int64]:
    """Positions of sequence numbers in the stream that begins at base: those that lie within 2**31 of the positions `at` (RFC 9293 3.4)."""
    near = np.fromiter(at, np.int64)
    ahead = (np.fromiter(numbers, np.int64) - base - near) & 0xFFFFFFFF
    return near + ((ahead + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _rows(columns: dict[str, Any], dtype: list[tuple[str, str]]) -> Rows:
    rows = np.zeros(len(next(iter(columns.values()))), dtype)
    for name, values in columns.items():
        rows[name] = values
    return rows


@dataclass(slots=True)
class _Track:
    """What is noted of one direction."""

    key: ConnectionKey
    peer: _Track = field(init=False, repr=False)
    stream: ByteCountStream | None = None
    base: int | None = None  # sequence number of the stream's first byte
    unplaced: list[tuple[int, Segment, bytes]] = field(default_factory=list)  # that came before that was known
    segments: list[_Seen] = field(default_factory=list)
    acks: list[tuple[int, int, int]] = field(default_factory=list)  # seen_ns, number, position of the stream then
    delivered: list[tuple[int, int]] = field(default_factory=list)
    pieces: list[tuple[int, int]] = field(default_factory=list)
    held: list[tuple[int, int]] = field(default_factory=list)
    held_bytes: int = 0
    gaps: list[tuple[int, int, int]] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)
    fragmented: int = 0

    @property
    def position(self) -> int:
        """Of the next byte. Urgent ones that are no part of the stream take up their numbers all the same."""
        return self.stream.length + self.stream.skipped + self.unused.get("urgent", 0) if self.stream is not None else 0

    def note_held(self, now_ns: int, change: int) -> None:
        complete = self.stream is not None and self.stream.complete
        self.held_bytes = 0 if complete else max(0, self.held_bytes + change)
        if (self.held[-1][1] if self.held else 0) != self.held_bytes:
            self.held.append((now_ns, self.held_bytes))

    def expect(self, seen_ns: int, segment: Segment, text: bytes) -> None:
        if self.base is None and (text or segment.flags & SYN):
            self.unplaced.append((seen_ns, segment, text))

    def place(self, piece: core.Reassembly, position: int) -> None:
        """The first byte's number, by a piece and the segment that brought it."""
        data = piece.bytes
        for seen_ns, segment, text in self.unplaced:
            if seen_ns != piece.seen_ns:
                continue
            if piece.start and segment.flags & SYN:
                self.base = segment.seq + 1
            elif data and (found := text.find(data)) >= 0:
                self.base = segment.seq + bool(segment.flags & SYN) + found - position
            else:
                continue
            self.unplaced.clear()
            return

    def finish(self) -> Direction:
        segments, acks = self.segments, self.acks
        base = self.base
        if base is None:  # no piece told: the lowest one, or the first that was acknowledged
            numbers = [one.seq for one in segments] or [number for _, number, _ in acks[:1]] or [0]
            base = numbers[0] + int(_places(numbers, (0 for _ in numbers), numbers[0]).min())
        begins = _places((one.seq for one in segments), (one.at for one in segments), base)
        rows = _rows(
            {
                "seen_ns": [one.seen_ns for one in segments],
                "begin": begins,
                "end": begins + np.array([one.length for one in segments], np.int64),
                "kind": [one.kind for one in segments],
                "flags": [one.flags for one in segments],
            },
            SEGMENT_DTYPE,
        )
        gaps = np.array(self.gaps, GAP_DTYPE)
        if len(gaps):
            behind = gaps[np.searchsorted(gaps["offset"], begins, "right") - 1]
            given_up = (begins >= behind["offset"]) & (rows["end"] <= behind["offset"] + behind["length"])
            rows["kind"][(rows["kind"] == Kind.REPEATED) & given_up] = Kind.UNUSED
        ahead = begins > np.array([one.at for one in segments], np.int64)
        rows["kind"][(rows["kind"] == Kind.LATE) & ahead] = Kind.HELD  # a limit, not this one, ended the waiting
        return Direction(
            key=self.key,
            stream=self.stream,
            segments=rows,
            acks=_rows(
                {
                    "seen_ns": [seen_ns for seen_ns, _, _ in acks],
                    "position": _places((number for _, number, _ in acks), (at for _, _, at in acks), base),
                },
                POSITION_DTYPE,
            ),
            delivered=np.array(self.delivered, POSITION_DTYPE),
            pieces=np.array(self.pieces, LENGTH_DTYPE),
            held=np.array(self.held, LENGTH_DTYPE),
            gaps=gaps,
            unused=self.unused,
            fragmented=self.fragmented,
        )


class _Noted(ByteCountStream):
    """A stream of the conversation that is watched."""

    __slots__ = ("_track", "_watch")

    def __init__(self, watch: ConversationWatch, track: _Track) -> None:
        super().__init__()
        self._watch = watch
        self._track = track
        track.stream = self

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        track, now_ns = self._track, self._watch.now_ns
        before = self.length
        for piece in reassemblies:
            position = track.position
            if piece.skip > 0:
                track.gaps.append((now_ns, position, piece.skip))
                position += piece.skip
            if len(piece):
                track.pieces.append((piece.seen_ns, len(piece)))
            if track.base is None:
                track.place(piece, position)
            elif self._watch.takes_fragment and len(piece):
                kind = Kind.LATE if track.held_bytes else Kind.IN_ORDER
                track.segments.append(_Seen(piece.seen_ns, track.base + position, position, len(piece), kind, 0))
            super().reassembled([piece])
        track.delivered.append((now_ns, track.position))
        if not self._watch.takes_from(track):  # it is time, or the other side, that gives this out
            track.fragmented += self._watch.takes_fragment
            track.note_held(now_ns, before - self.length)

    def reassembly_complete(self) -> None:
        super().reassembly_complete()
        self._track.note_held(self._watch.now_ns, 0)


class ConversationWatch:
    """What reads captures into an assembler: takes down one conversation, counts the others.

    Args:
        number: which one: counted from 1, in the order in which they begin, as `tcpreasm flows` lists them.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.streams = Numbering(self._stream, self._done)
        """For the ConversationPool."""
        self.now_ns = 0
        """Capture time of the last frame."""
        self.takes_fragment = False
        """What is being taken in is the last fragment of a datagram."""
        self._at_hand: tuple[_Name, Segment, bytes] | None = None  # the segment that is being taken in, if it may be of that conversation
        self._found: Numbered | None = None
        self._conversation: Conversation | None = None
        self._tracks: list[_Track] = []  # of the side that began, and the other one
        self._names: set[_Name] = set()  # of the two
        self._current: dict[_Name, _Track] = {}  # the same, while the direction belongs to this conversation
        self._others: dict[_Name, ByteCountStream] = {}  # of conversations before it, that are not complete
        self._remembered: dict[_Name, tuple[int, Segment, bytes]] = {}  # SYNs that may open a conversation once packets follow

    def takes_from(self, track: _Track) -> bool:
        """The segment at hand is one of this direction."""
        return self._at_hand is not None and self._at_hand[0] == _name(track.key)

    def _stream(self, side: Side) -> ByteCountStream:
        """Makes the stream of a side of any conversation."""
        key, conversation = side.key, side.conversation
        name = _name(key)
        syn = self._remembered.pop(name, None)
        if conversation.context != self.number:
            self._leave(name)
            other = ByteCountStream()
            if self._conversation is None:
                self._others[name] = other
            return other
        if self._conversation is None:
            self._conversation = conversation
            self._begin(key)
        track = next(one for one in self._tracks if one.stream is None and one.key == key)
        self._current[name] = track
        stream = _Noted(self, track)
        if syn is not None:
            self._note_segment(track, *syn, 0, Kind.IN_ORDER)
        if self.takes_from(track) and self._at_hand is not None:
            track.expect(self.now_ns, *self._at_hand[1:])
        return stream

    def _begin(self, key: ConnectionKey) -> None:
        one, other = self._tracks = [_Track(key), _Track(key.reverse())]
        one.peer, other.peer = other, one
        self._names = {_name(key), _name(other.key)}
        back = self._others.get(_name(other.key))
        if back is None or back.complete:  # else that direction is still one of the conversation before
            self._current[_name(other.key)] = other
        self._others.clear()

    def _leave(self, name: _Name) -> None:
        """That direction goes on in another conversation; the other one too, unless its stream still runs."""
        track = self._current.pop(name, None)
        if track is not None and (track.peer.stream is None or track.peer.stream.complete):
            self._current.pop(_name(track.peer.key), None)

    def _done(self, one: Numbered) -> None:
        if one.number == self.number:
            self._found = one
        elif self._others:
            for side in one.conversation.sides:
                name = _name(side.key)
                if self._others.get(name) is side.stream:
                    self._others.pop(name, None)

    def read(self, assembler: Assembler, sources: Iterable[Any]) -> list[str]:
        """Takes captures in, one after the other, as `Assembler.assemble_capture` does. Returns what was wrong with them."""
        problems = []
        tunnels = tunnel_bits(assembler.options.decapsulate)
        for source in sources:
            with open_capture(source) as capture:
                for frame in capture:
                    self._take(assembler, frame, tunnels)
                    assembler.tick()
                if capture.problem is not None:
                    problems.append(f"{capture.source_name}: {capture.problem}")
        assembler.flush_all()
        return problems

    def observed(self) -> Observed | None:
        """What was taken down. None where there are not so many conversations."""
        if self._found is None:
            return None
        one, other = (track.finish() for track in self._tracks)
        is_client = one.key == self._found.key
        return Observed(numbered=self._found, client=one if is_client else other, server=other if is_client else one)

    def _take(self, assembler: Assembler, frame: Frame, tunnels: int) -> None:
        self.now_ns = frame.timestamp_ns
        segment = core.decode_frame(frame.data, frame.linktype, frame.wire_length, tunnels=tunnels)[1]
        name = None if segment is None else (segment.src, segment.dst, segment.src_port, segment.dst_port)
        if segment is None or name is None or (self._names and name not in self._names):
            self.takes_fragment = segment is None
            _assemble(assembler, frame)
            self.takes_fragment = False
            return
        text = frame.data[segment.payload_offset : segment.payload_offset + segment.payload_length]
        self._at_hand = name, segment, text
        track = self._current.get(name)
        at = length = 0
        if track is not None and track.stream is not None:
            at, length = track.position, track.stream.length
            track.expect(self.now_ns, segment, text)
        before = assembler.counters()[0]
        _assemble(assembler, frame)
        after = assembler.counters()[0]
        track = self._current.get(name)
        if after[_REMEMBERED] > before[_REMEMBERED]:
            self._remembered[name] = self.now_ns, segment, text
        elif track is not None:
            self._note(track, segment, text, at, length, before, after)
        self._at_hand = None

    def _note(
        self, track: _Track, segment: Segment, text: bytes, at: int, length: int, before: tuple[int, ...], after: tuple[int, ...]
    ) -> None:
        """What the assembler did with a segment: what its counters said before and after."""
        delivered = track.stream.length - length if track.stream is not None else 0
        fresh = segment.payload_length
        again = False
        if after[_DROPS] != before[_DROPS]:
            for reason, now, then in zip(DROP_REASONS, after[_DROPS], before[_DROPS]):
                if now > then:
                    fresh -= now - then
                    track.unused[reason] = track.unused.get(reason, 0) + now - then
                    again = again or reason in _AGAIN
        if again:
            kind = Kind.REPEATED
        elif not segment.payload_length:
            kind = Kind.UNUSED if any(after[place] > before[place] for place in _FOR_NOTHING) else Kind.IN_ORDER
        elif fresh <= 0:
            kind = Kind.UNUSED
        elif not delivered:
            kind = Kind.HELD
        else:
            kind = Kind.LATE if track.held_bytes else Kind.IN_ORDER
        self._note_segment(track, self.now_ns, segment, text, at, kind)
        track.note_held(self.now_ns, max(0, fresh) - delivered)

    def _note_segment(self, track: _Track, seen_ns: int, segment: Segment, text: bytes, at: int, kind: Kind) -> None:
        flags = segment.flags
        if text or flags & (SYN | FIN | RST):
            track.segments.append(_Seen(seen_ns, segment.seq + bool(flags & SYN), at, len(text), kind, flags))
        if flags & ACK:
            track.peer.acks.append((seen_ns, segment.ack, track.peer.position))


def _assemble(assembler: Assembler, frame: Frame) -> None:
    assembler.assemble_frame(frame.data, timestamp_ns=frame.timestamp_ns, linktype=frame.linktype, wire_length=frame.wire_length)
