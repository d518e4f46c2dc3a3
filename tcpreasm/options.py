"""What can be set, and what it is set to unless told otherwise.

Checked once, when they are made; the cores get plain numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .clock import Timestamp, is_seconds, to_ns

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
_PAGES = ("max_buffered_pages_total", "max_buffered_pages_per_connection")
_SECONDS = ("start_wait", "fragment_timeout", "hole_timeout", "idle_timeout", "closed_timeout")


@dataclass(frozen=True, kw_only=True, slots=True)
class AssemblerOptions:
    """Limits and rules of one Assembler. Values are checked: TypeError and ValueError name the one that is wrong.

    Attributes:
        max_buffered_pages_total: pages (1900 bytes of payload each) that all connections of the assembler together may hold, 0 to
            2**31 - 1; at so many the connection at hand stops waiting. 0: no limit. Default 131,072.
        max_buffered_pages_per_connection: pages that one direction of a connection may hold, 0 to 2**31 - 1; at so many its lowest hole
            is skipped. 0: no limit. Default 16,384.
        overlap: whose bytes win where held segments differ. "first", the only value: those captured first, byte by byte.
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
            within the other. Connections are told by the innermost addresses and ports alone.
        defragment: put fragmented IP datagrams together (RFC 791 3.2, RFC 8200 4.5), in any order; the segment comes with the last
            fragment and its time. Of bytes that come twice the first copy stays (IPv4); an IPv6 datagram with overlapping fragments is
            discarded (RFC 5722), unless the copy is the same. Default True. False: fragments are left out, as `Verdict.FRAGMENT`.
        fragment_timeout: seconds of capture time for which the fragments of a datagram are kept, 0 to 1e9. None: until a limit is
            reached. Default 30.
        max_fragmented_datagrams: datagrams of which fragments are kept, 1 to 2**31 - 1; the oldest one gives way. Default 1024.
        max_fragment_bytes: bytes for all of them (each up to its highest byte that came), 1 to 2**31 - 1; the oldest ones give way.
            Default 16 MiB.
        start_wait_segments: a stream whose SYN was not captured starts after so many segments, 1 or more. None: their number does not
            start it. Default 16.
        start_wait: ... or after so many seconds of capture time, 0 to 1e9. None: time does not start it. Default 1.
        max_gap: bytes that a segment may lie ahead of its stream, 1 to 2**31 - 1. One that is farther off is dropped and counted, unless
            packets continue from it. None: 2**31 - 1. Default 2**27.
        hole_timeout: seconds of capture time for which a hole is waited for, 0 to 1e9; in whole captures and on live interfaces. None:
            until the end. Default 120.
        idle_timeout: seconds of capture time without a packet after which a connection is closed, 0 to 1e9; in whole captures and on live
            interfaces. None: never. Default 3600.
        closed_timeout: seconds of capture time for which a closed connection is remembered, 0 to 1e9, so that late packets open no new
            stream. 0: it is forgotten as soon as capture time goes on. Default 60.
    """

    max_buffered_pages_total: int = 131_072
    max_buffered_pages_per_connection: int = 16_384
    overlap: str = "first"
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
    idle_timeout: float | None = 3600.0
    closed_timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in (*_PAGES, *_FRAGMENT_LIMITS, "start_wait_segments", "max_gap"):
            value = getattr(self, name)
            optional = name in ("start_wait_segments", "max_gap")
            if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool)):
                continue
            raise TypeError(f"{name} is an int{' or None' if optional else ''}, not {type(value).__name__}: {value!r}")
        for name in _PAGES:
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is from 0 (no limit) to 2**31 - 1, not {getattr(self, name)}")
        for name in _FRAGMENT_LIMITS:
            if not 1 <= getattr(self, name) < 2**31:
                raise ValueError(f"{name} is from 1 to 2**31 - 1, not {getattr(self, name)}")
        if self.start_wait_segments is not None and self.start_wait_segments < 1:
            raise ValueError(f"start_wait_segments is 1 or more, or None, not {self.start_wait_segments}")
        if self.max_gap is not None and not 0 < self.max_gap < 2**31:
            raise ValueError(f"max_gap is from 1 to 2**31 - 1, or None, not {self.max_gap}")
        for name in _SECONDS:
            value = getattr(self, name)
            if value is None and name != "closed_timeout":
                continue
            if not is_seconds(value):
                raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}: {value!r}")
            if not 0 <= value <= 1e9:
                raise ValueError(f"{name} is from 0 to 1e9 seconds, not {value!r}")
        if self.overlap != "first":
            raise ValueError(f"overlap is 'first', not {self.overlap!r}")
        if self.verify_checksums != "auto":
            if isinstance(self.verify_checksums, str):
                raise ValueError(f"verify_checksums is a bool or 'auto', not {self.verify_checksums!r:.80}")
            check_bool("verify_checksums", self.verify_checksums)
        _check_decapsulate(self.decapsulate)
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
