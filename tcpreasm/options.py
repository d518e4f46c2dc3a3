"""What can be set, and what it is set to unless told otherwise.

Checked once, when they are made; the cores get plain numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .clock import Timestamp, is_seconds, to_ns

if TYPE_CHECKING:
    from .flow import Flow

__all__ = [
    "DEFAULT_ASSEMBLER_OPTIONS",
    "DEFAULT_MAX_OPEN_FILES",
    "TUNNELS",
    "AssemblerOptions",
    "FlushOptions",
    "check_bool",
    "check_number",
    "tunnel_bits",
]

TUNNELS = ("gre", "vxlan", "geneve", "ipip", "6in4", "4in6", "6in6", "mpls", "pppoe", "gtp")
"""What can be looked into, named as in `AssemblerOptions.decapsulate`. The cores number them in this order."""

DEFAULT_MAX_OPEN_FILES = 256

# What the names stand for, as numbers for the cores.
OVERLAP = {"first": 0, "last": 1, "bsd": 2, "windows": 2, "linux": 3, "solaris": 4, "old-linux": 5}
URGENT = {"inline": 0, "oob": 1, "oob-linux": 2}
SYN_DATA = {"deliver": 0, "acked": 1}
_NAMES = {"overlap": OVERLAP, "urgent": URGENT, "syn_data": SYN_DATA}


def check_number(name: str, value: object, unit: str) -> None:
    """TypeError and ValueError unless the value is an int, 1 or more. `unit`: what it counts, for the message."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a number of {unit}, not {type(value).__name__}: {value!r}")
    if value < 1:
        raise ValueError(f"{name} is 1 or more, not {value}")


def check_bool(name: str, value: object) -> None:
    """TypeError for what is no bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is a bool, not {type(value).__name__}: {value!r:.80}")


def tunnel_bits(decapsulate: bool | Collection[str]) -> int:
    """Bit n stands for TUNNELS[n]."""
    if isinstance(decapsulate, bool):
        decapsulate = TUNNELS if decapsulate else ()
    return sum(1 << number for number, name in enumerate(TUNNELS) if name in decapsulate)


def _check_decapsulate(value: object) -> None:
    if isinstance(value, bool):
        return
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(f"decapsulate is a bool or a collection of names, not {type(value).__name__}: {value!r:.80}")
    for name in value:
        if not isinstance(name, str):
            raise TypeError(f"decapsulate holds names, not {type(name).__name__}: {name!r:.80}")
        if name not in TUNNELS:
            raise ValueError(f"decapsulate holds names out of {', '.join(TUNNELS)}, not {name!r:.80}")


_FRAGMENT_LIMITS = ("max_fragmented_datagrams", "max_fragment_bytes")
_NUMBERS = ("max_buffered_pages_total", "max_buffered_pages_per_connection", "max_connections")
_BYTES = ("max_buffered_bytes_total", "max_buffered_bytes_per_connection")
_SECONDS = ("start_wait", "fragment_timeout", "hole_timeout", "acked_hole_timeout", "idle_timeout", "closed_timeout")


@dataclass(frozen=True, kw_only=True, slots=True)
class AssemblerOptions:
    """Limits and rules of one Assembler. Values are checked: TypeError and ValueError name the one that is wrong.

    Attributes:
        max_buffered_pages_total: pages (up to 1900 bytes of payload each) that all connections of the assembler together may hold, 0 to
            2**31 - 1; at so many the connection at hand stops waiting. 0: no limit. Default 131,072.
        max_buffered_pages_per_connection: pages that one direction of a connection may hold, 0 to 2**31 - 1; at so many its lowest hole
            is skipped. 0: no limit. Default 16,384.
        max_buffered_bytes_total: memory in bytes that the pages of all connections of the assembler together may take, headers and unused
            room included, 1 to 2**62; at so much the connection at hand stops waiting. A page takes 96 bytes where it holds up to 16,
            512 up to 432, else 1984. None: no limit. Default 131,072 * 1984 = 260,046,848, what so many full pages take.
        max_buffered_bytes_per_connection: the same for one direction of a connection, 1 to 2**62; at so much its lowest hole is skipped.
            None, the default: no limit.
        overlap: whose bytes stay where a segment covers bytes that are held. What was delivered is never revised. "first" (the
            default): those captured first, byte by byte. "last": those captured last. The others decide as the receiver of that
            name does (names as in Snort's manual, Stream5, after Novak and Sturges, "Target-Based TCP Stream Reassembly", 2007), once
            for each pair of segments, by where the two began and ended as they came. The new one wins, of those that begin at n and h
            and end before N and H: "bsd", "windows": n < h. "linux": n < h, or n == h and N > H. "old-linux": n < h, or n == h and
            N >= H. "solaris": n <= h and N >= H, or n > h and N > H. Where the capture cut a segment short, its end is that on the
            wire; where it reaches over the FIN, the FIN.
        on_conflict: called where a segment brings other bytes than those held: on_conflict(net_flow, transport_flow, seq, held, new,
            wins), once for each run of differing bytes, seq being the sequence number of the first one, held and new the two copies,
            wins "held" or "new". Called after the segment's stream was (its own method `on_conflict` too, see Stream), in the thread that
            takes the segment in; what it returns is ignored, and an exception passes through as a stream's does. What was delivered is not
            kept, and so not compared. None (default): differences are counted, and told to streams with that method only.
        urgent: what becomes of urgent data (RFC 9293 3.8.5). "inline" (the default): it is part of the stream, as RFC 6093 3 asks for.
            "oob": the byte before the one that the urgent pointer of a segment with URG points to (RFC 6093 2.1) is out of band: it
            takes up its sequence number, is not delivered and is no gap. "oob-linux": likewise, and a pointer of 0 means the byte at
            the segment's sequence number, as Linux has it. Pointers beyond the segment are ignored; of a byte that the capture cut off
            nothing is known.
        paws: leave out segments whose timestamp is older than that of one that came before in order, text and FIN (RFC 7323 5.3); not
            SYN and RST, none without the option, and none after 24 days of silence (5.5). Frames have timestamps, a TCPSegment has
            none. Default False.
        syn_data: when text of a SYN goes out (RFC 9293 3.5, RFC 7413). "deliver" (the default): with the SYN. "acked": it is held until
            a segment of the same direction with ACK shows what became of it. One that begins behind the SYN's first byte of text shows
            that the text before it was accepted: that goes out, the rest of the SYN's is dropped. One with text, or a FIN, at that
            first byte shows that nothing was: its own bytes are what counts. A SYN that comes after such segments is delivered as with
            "deliver"; flushes, time-outs and limits of pages give out what is held.
        verify_checksums: refuse segments whose TCP checksum is wrong. Default False. "auto": refuse them but from senders (source
            addresses) that leave the checksum to their network card, behind the capture: every segment of such a sender is taken. One
            counts as such where the first segment of it whose checksum can be told, and each one since, was wrong, and one of them
            has what systems leave there for the card (the sum of the pseudo-header, or zero); or where more than half of its first 16
            are wrong, whatever they have: those up to then are refused. Once 16 were seen it stays as it is. Logged as a warning for the
            first such sender, and counted (`AssemblerStats.offloading_senders`). A sender can pretend, so True is what withstands
            one that means to mislead.
        decapsulate: what TCP is looked for in. True, the default: in all tunnels and labels that are known; False: in none; or the names
            of some: "gre" (RFC 2784, RFC 2890; Ethernet in it too), "vxlan" (RFC 7348; UDP ports 4789 and 8472), "geneve" (RFC 8926; UDP
            port 6081), "ipip" (IPv4 in IPv4, RFC 2003), "6in4" (RFC 4213), "4in6" and "6in6" (RFC 2473), "mpls" (RFC 3032; IP
            behind the labels, no pseudo-wires), "pppoe" (RFC 2516), "gtp" (user data, 3GPP TS 29.281; UDP port 2152). Up to eight, one
            within the other. Connections are told by the innermost addresses and ports and by the number of tunnels around them
            (`Flow.tunnels`; labels, that is mpls and pppoe, are none); which tunnels they are does not count.
        defragment: put fragmented IP datagrams together (RFC 791 3.2, RFC 8200 4.5), in any order; the segment comes with the last
            fragment and its time. Of bytes that come twice the first copy stays (IPv4); an IPv6 datagram with overlapping fragments is
            discarded (RFC 5722), unless the copy is the same. Default True. False: fragments are left out, as `Verdict.FRAGMENT`.
        fragment_timeout: seconds of capture time for which the fragments of a datagram are kept, 0 to 1e9. None: until a limit is
            reached. Default 30.
        max_fragmented_datagrams: datagrams of which fragments are kept, 1 to 2**31 - 1; the oldest one gives way. Default 1024.
        max_fragment_bytes: bytes of memory for all of them, 1 to 2**31 - 1; the oldest ones give way. A datagram takes 256, room for its
            payload up to the highest byte that came (256 bytes, or a greater power of two), and 8 for each run of bytes that has come, or
            that there is room for (4 at first). Default 16 MiB.
        start_wait_segments: a stream whose SYN was not captured starts after so many segments, 1 or more. None: their number does not
            start it. Default 16.
        start_wait: ... or after so many seconds of capture time, 0 to 1e9. None: time does not start it. Default 1.
        max_gap: bytes that a segment may lie ahead of its stream, 1 to 2**31 - 1. One that is farther off is dropped and counted, unless
            packets continue from it. None: 2**31 - 1. Default 2**27.
        hole_timeout: seconds of capture time for which a hole is waited for, 0 to 1e9; in whole captures and on live interfaces. None:
            until the end. Default 120.
        acked_hole_timeout: the same for a hole that the other direction has acknowledged past, in a ConversationPool: who acknowledges it
            has those bytes, and nobody sends them again. A capture from several queues may show an acknowledgement before what it is
            for: 0 gives such holes up at once, also where nothing flushes. None: it makes no difference. Default 1.
        idle_timeout: seconds of capture time without a packet after which a connection is closed, 0 to 1e9; in whole captures and on live
            interfaces. None: never. Default 3600.
        closed_timeout: seconds of capture time for which a closed connection is remembered, 0 to 1e9, so that late packets open no new
            stream. 0: it is forgotten as soon as capture time goes on. Default 60.
        max_connections: connections (directions) that the pool may have at a time, open ones and closed ones that are remembered, 0 to
            2**31 - 1. A new one that finds so many takes the place of another, which makes room: the oldest closed one; where there is
            none, the oldest half-open one (nothing but SYNs, with text or without), then the one whose last packet lies back furthest, each
            flushed and completed as idle ones are, before anything else is done with the segment at hand. What user code runs for
            makes no room; where that is all there is, the limit is exceeded for the time. With several threads over one capture each
            has its part of it. 0: no limit. Default 2**21: about 440 MB, at some 210 bytes each without their streams, and twice the
            million directions of the largest workload that this package is measured with.
        open_on: what makes the factory be called. "syn" (default): the first segment of a connection. "data": the first one with
            payload or a FIN, so that connection attempts that nothing follows, as in a SYN flood, make no stream; the stream's first
            piece, the start, comes then, with the SYN's capture time. Text of a SYN that is held (`syn_data="acked"`), or only remembered,
            opens none before it goes out, and is dropped where its connection makes room for another.
        on_evict: called with the net flow, the transport flow and the reason ("closed", "half_open" or "idle") when a connection has
            made room for a new one, after its stream's reassembly_complete (and method `on_evict`, see Stream). What it raises comes as
            what a stream raises. None (default): not called.
        on_gap: called where missing bytes are given up: on_gap(net_flow, transport_flow, seq, missing, why). seq is the sequence number
            of the first missing byte, missing their number; the piece behind them tells the same as `skip`, or the sum of several that
            lie side by side. why: "limited", "expired", "acked" or "ended", for a hole that counts as `holes_limited` and so on;
            "cut" for what the capture cut off of packets; "start", with missing -1, where a stream starts without its SYN, and seq is
            its first byte's. Called after the stream was (with `coalesce`, before; its own method `on_gap` too, see Stream), in the
            thread that takes the segment in or flushes. What it raises comes as what a stream raises, and leaves the other gaps of that
            segment untold. None (default): not called.
        depth: bytes of each stream that are delivered, 1 to 2**30: its first ones, the missing ones among them counted, and a byte out
            of band too. The last piece is cut there; then the stream gets no more, as if it had returned `STOP`. What lies behind is
            not held either. None (default): all.
    """

    max_buffered_pages_total: int = 131_072
    max_buffered_pages_per_connection: int = 16_384
    max_buffered_bytes_total: int | None = 131_072 * 1984
    max_buffered_bytes_per_connection: int | None = None
    overlap: str = "first"
    on_conflict: Callable[[Any, Any, int, bytes, bytes, str], object] | None = None
    urgent: str = "inline"
    paws: bool = False
    syn_data: str = "deliver"
    verify_checksums: bool | str = False
    decapsulate: bool | Collection[str] = True
    defragment: bool = True
    fragment_timeout: float | None = 30.0
    max_fragmented_datagrams: int = 1024
    max_fragment_bytes: int = 1 << 24
    start_wait_segments: int | None = 16
    start_wait: float | None = 1.0
    max_gap: int | None = 1 << 27
    hole_timeout: float | None = 120.0
    acked_hole_timeout: float | None = 1.0
    idle_timeout: float | None = 3600.0
    closed_timeout: float = 60.0
    max_connections: int = 1 << 21
    open_on: str = "syn"
    on_evict: Callable[[Flow, Flow, str], object] | None = None
    on_gap: Callable[[Flow, Flow, int, int, str], object] | None = None
    depth: int | None = None

    def __post_init__(self) -> None:
        for name in (*_NUMBERS, *_BYTES, *_FRAGMENT_LIMITS, "start_wait_segments", "max_gap", "depth"):
            value = getattr(self, name)
            optional = name not in _NUMBERS and name not in _FRAGMENT_LIMITS
            if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool)):
                continue
            raise TypeError(f"{name} is an int{' or None' if optional else ''}, not {type(value).__name__}: {value!r}")
        for name in _NUMBERS:
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is from 0 (no limit) to 2**31 - 1, not {getattr(self, name)}")
        for name in _BYTES:
            value = getattr(self, name)
            if value is not None and not 0 < value <= 2**62:
                raise ValueError(f"{name} is from 1 to 2**62, or None, not {value}")
        for name in _FRAGMENT_LIMITS:
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is from 1 to 2**31 - 1, not {getattr(self, name)}")
        if self.start_wait_segments is not None and self.start_wait_segments < 1:
            raise ValueError(f"start_wait_segments is 1 or more, or None, not {self.start_wait_segments}")
        if self.max_gap is not None and not 0 < self.max_gap < 2**31:
            raise ValueError(f"max_gap is from 1 to 2**31 - 1, or None, not {self.max_gap}")
        if self.depth is not None and not 1 <= self.depth <= 2**30:
            raise ValueError(f"depth is from 1 to 2**30, or None, not {self.depth}")
        for name in _SECONDS:
            value = getattr(self, name)
            if value is None and name != "closed_timeout":
                continue
            if not is_seconds(value):
                raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}: {value!r}")
            if not 0 <= value <= 1e9:
                raise ValueError(f"{name} is from 0 to 1e9 seconds, not {value!r}")
        for name, values in _NAMES.items():
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name} is a str, not {type(value).__name__}: {value!r}")
            if value not in values:
                raise ValueError(f"{name} is one of {', '.join(map(repr, values))}, not {value!r}")
        if self.on_conflict is not None and not callable(self.on_conflict):
            raise TypeError(f"on_conflict is a function or None, not {type(self.on_conflict).__name__}: {self.on_conflict!r}")
        check_bool("paws", self.paws)
        if self.open_on not in ("syn", "data"):
            raise ValueError(f"open_on is 'syn' or 'data', not {self.open_on!r}")
        for name in ("on_evict", "on_gap"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} is a callable or None, not {type(value).__name__}: {value!r:.80}")
        if self.verify_checksums != "auto":
            if isinstance(self.verify_checksums, str):
                raise ValueError(f"verify_checksums is a bool or 'auto', not {self.verify_checksums!r:.80}")
            if not isinstance(self.verify_checksums, bool):
                given = f"{type(self.verify_checksums).__name__}: {self.verify_checksums!r:.80}"
                raise TypeError(f"verify_checksums is a bool or 'auto', not {given}")
        _check_decapsulate(self.decapsulate)
        if not isinstance(self.decapsulate, bool):
            object.__setattr__(self, "decapsulate", frozenset(self.decapsulate))  # the caller's list may change
        check_bool("defragment", self.defragment)


DEFAULT_ASSEMBLER_OPTIONS = AssemblerOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class FlushOptions:
    """What `Assembler.flush_with_options` gives out and closes. Values are checked: TypeError and ValueError name the one that is wrong.

    Attributes:
        t: capture time before which something counts as old: seconds since 1970 or an aware datetime. None (default): everything is old.
        close_all: also close connections that hold nothing and have seen nothing since t. Default False.
    """

    t: Timestamp | None = None
    close_all: bool = False

    def __post_init__(self) -> None:
        if self.t is not None:
            to_ns(self.t, name="t")
        check_bool("close_all", self.close_all)
