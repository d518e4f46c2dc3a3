"""What tshark 4.0 makes of TCP streams ("follow"), as a model with its habits as switches: to tell why it gives other bytes than we do.

Lives here: the model and the search for the habits that explain a difference. No test. With all habits on it gives tshark's bytes,
with all of them off what a receiver and this package's promises say; it is a second reassembler, slow and short, that shares no code
with the package but the decoding. Used on the captures of the corpus, conversation by conversation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from corpus_runs import Ends, Seen

FIN, SYN, RST, ACK = 1, 2, 4, 16

GAP_TEXT = "writes text into a gap"
ACK_ENDS_WAITING = "gives a hole up once the other side acknowledged what lies behind it, though the bytes are captured later"
NO_ACK_NO_DATA = "drops what lies behind a hole where the other side acknowledged nothing of it"
BARE_ACK_STARTS = "counts a stream without SYN from a segment without payload"
FIRST_STARTS = "drops what lies before the first captured segment of a stream without SYN"
LAST_SYN_COUNTS = "counts from the last SYN before the first byte, though the data continues from another"
RST_TEXT = "takes the text of a RST for data"
NO_ACK_FLAG = "takes data without the ACK flag"
AFTER_END = "goes by no FIN: takes data behind it, and misses none in front of it"
FAR_AHEAD = "takes data further ahead than max_gap"
FIRST_FITTING_WINS = "lets the whole segment that fits next win, not each byte captured first"

HABITS = (
    RST_TEXT,
    NO_ACK_FLAG,
    AFTER_END,
    LAST_SYN_COUNTS,
    BARE_ACK_STARTS,
    FIRST_STARTS,
    GAP_TEXT,
    NO_ACK_NO_DATA,
    ACK_ENDS_WAITING,
    FAR_AHEAD,
    FIRST_FITTING_WINS,
)
_MAX_GAP = 1 << 27  # the default of AssemblerOptions
_START_SEGMENTS = 16  # that are looked at for the start of a stream without SYN


Stream = tuple[bytes, int]  # what there is, and how many bytes are missing in between


def distance(start: int, end: int) -> int:
    """How far end is ahead of start, modulo 2^32."""
    return (end - start + 2**31) % 2**32 - 2**31


class Side:
    """One direction of one conversation. `segments` are all that it sends, known from the beginning."""

    def __init__(self, habits: frozenset[str]) -> None:
        self.habits = habits
        self.segments: list[Seen] = []
        self.data = bytearray()
        self.missing = 0
        self.base: int | None = None  # what a SYN must carry to belong to this conversation
        self.next: int | None = None
        self.end: int | None = None
        self.held: list[tuple[int, bytes, int]] = []  # sequence number, bytes, length on the wire: where whole segments count
        self.held_bytes: dict[int, int | None] = {}  # where bytes count; None is a byte that the capture cut off

    def start(self, segment: Seen) -> None:
        """Set the place from a segment, if it does."""
        opens = bool(segment.flags & SYN)
        if self.next is not None and not (opens and not self.data and LAST_SYN_COUNTS in self.habits):
            return
        if not opens and not segment.wire_length and BARE_ACK_STARTS not in self.habits:
            return
        self.next = (segment.seq + opens) % 2**32
        if LAST_SYN_COUNTS not in self.habits:
            places = [(other.seq + 1) % 2**32 for other in self.segments if other.flags & SYN]
            first = next((other.seq for other in self.segments if other.wire_length and not other.flags & SYN), None)
            if opens and first in places:
                self.next = first
        if not opens and FIRST_STARTS not in self.habits:
            counted = [s.seq for s in self.segments if s.wire_length or BARE_ACK_STARTS in self.habits][:_START_SEGMENTS]
            ahead = [distance(segment.seq, seq) for seq in counted]
            self.next = (segment.seq + min(at for at in ahead if abs(at) <= _MAX_GAP)) % 2**32

    def take(self, segment: Seen) -> None:
        """One segment's payload and FIN."""
        flags = segment.flags
        if flags & RST and RST_TEXT not in self.habits:
            return
        if not flags & (SYN | RST | ACK) and NO_ACK_FLAG not in self.habits:
            return
        seq = (segment.seq + bool(flags & SYN)) % 2**32
        payload, wire = segment.payload, segment.wire_length
        if self.next is None:
            return
        if AFTER_END not in self.habits:
            if flags & FIN and self.end is None and distance(self.next, (seq + wire) % 2**32) >= 0:
                self.end = (seq + wire) % 2**32
            if self.end is not None:
                wire = max(0, min(wire, distance(seq, self.end)))
                payload = payload[:wire]
        if wire and (FAR_AHEAD in self.habits or distance(self.next, seq) <= _MAX_GAP):
            self._hold(seq, payload, wire)
            self._join()

    def _hold(self, seq: int, payload: bytes, wire: int) -> None:
        assert self.next is not None
        if FIRST_FITTING_WINS in self.habits:
            self.held.append((seq, payload, wire))
            return
        old = distance(seq, self.next)
        if not self.held_bytes and 0 <= old < wire:
            self.data += payload[old:]
            self.missing += min(wire - old, wire - len(payload))
            self.next = (seq + wire) % 2**32
            return
        for at in range(max(0, old), wire):
            self.held_bytes.setdefault((seq + at) % 2**32, payload[at] if at < len(payload) else None)

    def _join(self) -> None:
        """Everything held that begins at or before the place, the segment captured first before others."""
        assert self.next is not None
        while self.next in self.held_bytes:
            byte = self.held_bytes.pop(self.next)
            if byte is None:
                self.missing += 1
            else:
                self.data.append(byte)
            self.next = (self.next + 1) % 2**32
        while True:
            found = next((entry for entry in self.held if distance(self.next, entry[0]) <= 0), None)
            if found is None:
                return
            self.held.remove(found)
            seq, payload, wire = found
            old = distance(seq, self.next)
            if wire > old:
                self.data += payload[old:]
                self.missing += min(wire - old, wire - len(payload))
                self.next = (seq + wire) % 2**32

    def acknowledged(self, ack: int | None) -> None:
        """Over the holes in front of what the other side has got, which is everything before ack (None: all of them)."""
        while (self.held or self.held_bytes) and self.next is not None:
            hole = min(distance(self.next, seq) for seq in self.held_bytes or (entry[0] for entry in self.held))
            lowest = (self.next + hole) % 2**32
            if ack is not None and distance(lowest, ack) <= 0:
                return
            self.missing += hole
            if GAP_TEXT in self.habits:
                self.data += b"[%d bytes missing in capture file]\0" % hole
            self.next = lowest
            self._join()

    def finish(self) -> None:
        """No more will come."""
        if NO_ACK_NO_DATA not in self.habits:
            self.acknowledged(None)
            if self.end is not None and self.next is not None:
                self.missing += max(0, distance(self.next, self.end))


def follow(segments: Iterable[Seen], habits: Iterable[str] = HABITS) -> dict[Ends, list[Stream]]:
    """The streams of each direction, in the order in which their conversations began, without the empty ones."""
    on = frozenset(habits)
    conversations: list[tuple[dict[Ends, Side], list[Seen]]] = []
    current: dict[frozenset[object], tuple[dict[Ends, Side], list[Seen]]] = {}
    for segment in segments:
        key = frozenset(segment.ends)
        conversation = current.get(key)
        if conversation is not None and segment.flags & (SYN | ACK) == SYN:
            base = conversation[0][segment.ends].base
            if base is not None and base != segment.seq:
                conversation = None
        if conversation is None:
            conversation = current[key] = ({segment.ends: Side(on), segment.ends[::-1]: Side(on)}, [])
            conversations.append(conversation)
        sides, all_segments = conversation
        all_segments.append(segment)
        side = sides[segment.ends]
        side.segments.append(segment)
        if side.base is None:
            side.base = segment.seq if segment.flags & SYN else (segment.seq - 1) % 2**32
    result: dict[Ends, list[Stream]] = {}
    for sides, all_segments in conversations:
        for segment in all_segments:
            if ACK_ENDS_WAITING in on:
                sides[segment.ends[::-1]].acknowledged(segment.ack)
            sides[segment.ends].start(segment)
            sides[segment.ends].take(segment)
        for ends, side in sides.items():
            side.finish()
            if side.data:
                result.setdefault(ends, []).append((bytes(side.data), side.missing))
    return result


def explanation(segments: Sequence[Seen], ends: Ends, ours: list[Stream]) -> tuple[str, ...] | None:
    """The fewest habits that tshark would have to give up to get our bytes. None where not even all of them would do."""
    conversation = [segment for segment in segments if segment.ends in (ends, ends[::-1])]
    for count in range(len(HABITS) + 1):
        for dropped in combinations(HABITS, count):
            if follow(conversation, set(HABITS) - set(dropped)).get(ends, []) == ours:
                return dropped
    return None
