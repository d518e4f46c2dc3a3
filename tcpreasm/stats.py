"""`AssemblerStats`: what an Assembler has done so far, as numbers.

Lives here: the names. The cores count; `Assembler.stats` takes the picture. COUNTERS, DROP_REASONS, EVICTION_REASONS and
GAP_REASONS are the cores' contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .verdict import Verdict

__all__ = ["COUNTERS", "DROP_REASONS", "EVICTION_REASONS", "FRAGMENT_COUNTERS", "FRAGMENT_DROP_REASONS", "GAP_REASONS", "AssemblerStats"]

DROP_REASONS = (
    "retransmitted",  # delivered before, or given up as missing
    "overlapping",  # a copy of held bytes that had to give way, as the option `overlap` tells
    "before_start",  # below the first byte of a stream that started without its SYN
    "out_of_window",  # further ahead than max_gap
    "after_end",  # beyond the FIN or the RST
    "after_close",  # for a connection that was closed a short while ago
    "no_ack_flag",  # data without the ACK flag (RFC 9293 3.10.7.4, fifth check)
    "rst_text",  # the text of a RST (RFC 9293 3.5.3, SHLD-2)
    "unconfirmed_syn",  # data of a SYN that nothing followed, or that was not accepted
    "factory_error",  # the stream factory raised, or made no stream
    "urgent",  # taken out of the stream by the option `urgent`
    "paws",  # with a timestamp older than one that came before, where the option `paws` asks for that
    "stopped",  # its stream gets no more: it has returned STOP, or has had as much as the option `depth` leaves it
)
"""Why captured payload was not delivered."""

EVICTION_REASONS = (
    "closed",  # it had ended, and was only remembered
    "half_open",  # nothing but SYNs had come, with text or without
    "idle",  # its last packet lay back furthest
)
"""Why a connection, rather than another, made room for a new one."""

GAP_REASONS = (
    "limited",  # at a limit of pages or bytes; these four are counted as holes_limited and so on
    "expired",  # by time
    "acked",  # the other direction had acknowledged past it
    "ended",  # its stream ended
    "cut",  # no hole: the capture has cut the bytes off
    "start",  # what lies before the first byte of a stream that starts without its SYN
)
"""Why bytes that were missing are no longer waited for, in the order of their counters."""

COUNTERS = (
    "segments",
    "bytes_captured",
    "bytes_delivered",
    "bytes_skipped",
    "holes_limited",
    "holes_expired",
    "holes_acked",
    "holes_ended",
    "conflicting",
    "rst_ignored",
    "fin_ignored",
    "late_syn",
    "syn_remembered",
    "urgent_segments",
    "streams_opened",
    "streams_closed",
)
"""Plain counters, in this order; then one of bytes for each of DROP_REASONS, and one of connections for each of EVICTION_REASONS."""

FRAGMENT_COUNTERS = ("fragments", "fragments_joined", "datagrams")
"""Plain counters of fragments, in this order; then one of fragments for each of FRAGMENT_DROP_REASONS."""

FRAGMENT_DROP_REASONS = (
    "repeated",  # all its bytes were there
    "overlap",  # of an IPv6 datagram with overlapping fragments (RFC 5722)
    "malformed",  # empty, not a multiple of eight bytes before the last, or against the datagram's length; or too deep in tunnels
    "too_large",  # of a datagram of more than 65,535 bytes
    "timeout",  # of a datagram that was not whole in time
    "limit",  # its datagram gave way to others
    "incomplete",  # of a datagram that was not whole at the end
)
"""Why a fragment led to no datagram."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AssemblerStats:
    """A picture of an Assembler's counters, taken when asked for.

    After every call, `bytes_captured == bytes_delivered + bytes_dropped + bytes_held` (summed over all assemblers, where several
    share a pool).

    Attributes:
        frames: frames given to assemble_frame, assemble_batch and assemble_capture.
        verdicts: those frames by what they were, a Verdict each; only those that occurred.
        segments: TCP segments, from frames and from assemble.
        bytes_captured: payload bytes of these segments.
        bytes_delivered: payload bytes given to streams.
        bytes_held: payload bytes that wait for missing ones.
        bytes_skipped: bytes of the streams that were never captured: the sum of all positive `skip`.
        holes_limited: holes of a known length that were given up at a limit of pages or bytes (`max_buffered_...`).
        holes_expired: those that were given up by time: by `hole_timeout`, or by a flush that left their connection open.
        holes_acked: those that the other direction had acknowledged past, by `acked_hole_timeout` (in a ConversationPool).
        holes_ended: those that were given up as their stream ended without a FIN or RST in order: flushed and closed, idle, evicted, begun
            anew. (What the capture cut off of a packet is not waited for, and is no such hole.)
        dropped: captured payload bytes that were not delivered, by reason; only reasons that occurred. The keys:
            "retransmitted": delivered before, or given up as missing;
            "overlapping": a copy of held bytes that had to give way: as the option `overlap` tells, the later one or the one held;
            "before_start": below the first byte of a stream that started without its SYN;
            "out_of_window": further ahead than max_gap;
            "after_end": beyond the FIN or the RST;
            "after_close": for a connection that was closed a short while ago;
            "no_ack_flag": data without the ACK flag;
            "rst_text": the text of a RST;
            "unconfirmed_syn": data of a SYN that nothing followed, on a connection that was open; or that the receiver did not accept
                (option `syn_data`);
            "factory_error": the stream factory raised, or made no stream;
            "urgent": out of band (option `urgent`);
            "paws": in a segment whose timestamp is older than one that came before (option `paws`);
            "stopped": for a stream that gets no more: it has returned STOP, or the option `depth` leaves it no more.
        conflicting: bytes among the "overlapping" ones that differ from the copy that stayed.
        rst_ignored: RST segments not at the expected sequence number (RFC 5961 3.2).
        fin_ignored: FIN segments out of place: below what was delivered, or contradicting an earlier one.
        late_syn: SYN segments that came after their stream had started without them.
        syn_remembered: SYN segments with another initial sequence number on an open connection, remembered.
        urgent_segments: segments with the URG flag, whatever the option `urgent` says.
        streams_opened: streams that the factory has made.
        streams_closed: calls of reassembly_complete.
        connections_evicted: connections (directions) that made room for new ones at max_connections, by reason; only reasons that
            occurred. The keys:
            "closed": it had ended, and was only remembered;
            "half_open": nothing but SYNs had come, with text or without;
            "idle": of all connections, its last packet lay back furthest.
        fragments: frames that were fragments of IP datagrams (inner ones counted too), as far as they are put together. Always
            `fragments == fragments_joined + fragments_held + sum(fragments_dropped.values())`.
        fragments_joined: those of datagrams that became whole.
        fragments_held: those of datagrams that are not whole yet.
        fragments_dropped: the others, by reason; only reasons that occurred. The keys:
            "repeated": all its bytes were there;
            "overlap": of an IPv6 datagram with overlapping fragments;
            "malformed": empty, or of a length that cannot be, or too deep in tunnels;
            "too_large": of a datagram of more than 65,535 bytes;
            "timeout": of a datagram that was not whole in time;
            "limit": its datagram gave way to others;
            "incomplete": of a datagram that was not whole at the end.
        datagrams: datagrams that became whole.
        offloading_senders: senders that `verify_checksums="auto"` noticed to leave checksums to their network card.
        connections: open connections (directions) of the pool now.
        pages_used: pages that hold something now.
        buffered_bytes: memory of these pages, headers and unused room included: what `max_buffered_bytes_total` limits. Payload that
            stays in the capture, and that only a mark is kept of, counts as if it were copied.
        pages_allocated: pages that are allocated now, used or free.
        page_requests: pages taken from the cache so far.
        bytes_dropped: sum of `dropped`.
    """

    frames: int
    verdicts: Mapping[Verdict, int]
    segments: int
    bytes_captured: int
    bytes_delivered: int
    bytes_held: int
    bytes_skipped: int
    holes_limited: int
    holes_expired: int
    holes_acked: int
    holes_ended: int
    dropped: Mapping[str, int]
    conflicting: int
    rst_ignored: int
    fin_ignored: int
    late_syn: int
    syn_remembered: int
    urgent_segments: int
    streams_opened: int
    streams_closed: int
    connections_evicted: Mapping[str, int]
    fragments: int
    fragments_joined: int
    fragments_held: int
    fragments_dropped: Mapping[str, int]
    datagrams: int
    offloading_senders: int
    connections: int
    pages_used: int
    buffered_bytes: int
    pages_allocated: int
    page_requests: int

    @property
    def bytes_dropped(self) -> int:
        """Sum of `dropped`."""
        return sum(self.dropped.values())


def build_stats(counters: tuple[int, ...], verdicts: tuple[int, ...], fragment_counters: tuple[int, ...], **now: int) -> AssemblerStats:
    """From a core's numbers: COUNTERS, DROP_REASONS and EVICTION_REASONS; frames by verdict; FRAGMENT_COUNTERS, FRAGMENT_DROP_REASONS."""
    plain = dict(zip(COUNTERS, counters)) | dict(zip(FRAGMENT_COUNTERS, fragment_counters))
    drops = counters[len(COUNTERS) :]
    return AssemblerStats(
        frames=sum(verdicts),
        verdicts=MappingProxyType({Verdict(number): count for number, count in enumerate(verdicts) if count}),
        dropped=_occurred(DROP_REASONS, drops),
        connections_evicted=_occurred(EVICTION_REASONS, drops[len(DROP_REASONS) :]),
        fragments_dropped=_occurred(FRAGMENT_DROP_REASONS, fragment_counters[len(FRAGMENT_COUNTERS) :]),
        **plain,
        **now,
    )


def _occurred(reasons: tuple[str, ...], counts: tuple[int, ...]) -> Mapping[str, int]:
    return MappingProxyType({reason: count for reason, count in zip(reasons, counts) if count})
