"""`AssemblerStats`: what an Assembler has done so far, as numbers.

Lives here: the names. The cores count; `Assembler.stats` takes the picture. DROP_REASONS and COUNTERS are the cores' contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .verdict import Verdict

__all__ = ["COUNTERS", "DROP_REASONS", "AssemblerStats"]

DROP_REASONS = (
    "retransmitted",  # delivered before, or given up as missing
    "overlapping",  # a copy of held bytes; the copy captured first stays
    "before_start",  # below the first byte of a stream that started without its SYN
    "out_of_window",  # further ahead than max_gap
    "after_end",  # beyond the FIN or the RST
    "after_close",  # for a connection that was closed a short while ago
    "no_ack_flag",  # data without the ACK flag (RFC 9293 3.10.7.4, fifth check)
    "rst_text",  # the text of a RST (RFC 9293 3.5.3, SHLD-2)
    "unconfirmed_syn",  # data of a SYN that nothing followed, on a connection that was open
    "factory_error",  # the stream factory raised
)
"""Why captured payload was not delivered."""

COUNTERS = (
    "segments",
    "bytes_captured",
    "bytes_delivered",
    "bytes_skipped",
    "conflicting",
    "rst_ignored",
    "fin_ignored",
    "late_syn",
    "syn_remembered",
    "streams_opened",
    "streams_closed",
)
"""Plain counters, in this order; then one of bytes for each of DROP_REASONS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AssemblerStats:
    """A picture of an Assembler's counters, taken when asked for.

    After every call, `bytes_captured == bytes_delivered + bytes_dropped + bytes_held` (summed over all assemblers, where several
    share a pool).
    """

    frames: int
    """Frames given to assemble_frame and assemble_capture."""
    verdicts: Mapping[Verdict, int]
    """Those frames by what they were; only those that occurred."""
    segments: int
    """TCP segments, from frames and from assemble."""
    bytes_captured: int
    """Payload bytes of these segments."""
    bytes_delivered: int
    """Payload bytes given to streams."""
    bytes_held: int
    """Payload bytes waiting in pages."""
    bytes_skipped: int
    """Bytes of the streams that were never captured: the sum of all positive `skip`."""
    dropped: Mapping[str, int]
    """Captured bytes that were not delivered, by reason (DROP_REASONS); only those that occurred."""
    conflicting: int
    """Dropped bytes whose held copy had another value."""
    rst_ignored: int
    """RST segments not at the expected sequence number (RFC 5961 3.2)."""
    fin_ignored: int
    """FIN segments out of place: below what was delivered, or contradicting an earlier one."""
    late_syn: int
    """SYN segments that came after their stream had started without them."""
    syn_remembered: int
    """SYN segments with another initial sequence number on an open connection, remembered."""
    streams_opened: int
    """Streams that the factory has made."""
    streams_closed: int
    """Calls of reassembly_complete."""
    connections: int
    """Open connections (directions) of the pool now."""
    pages_used: int
    """Pages that hold something now."""
    pages_allocated: int
    """Pages that are allocated now, used or free."""
    page_requests: int
    """Pages taken from the cache so far."""

    @property
    def bytes_dropped(self) -> int:
        """Sum of `dropped`."""
        return sum(self.dropped.values())


def build_stats(counters: tuple[int, ...], verdicts: tuple[int, ...], **now: int) -> AssemblerStats:
    """From a core's numbers: counters as COUNTERS + DROP_REASONS, frames by verdict number."""
    plain = dict(zip(COUNTERS, counters))
    drops = counters[len(COUNTERS) :]
    return AssemblerStats(
        frames=sum(verdicts),
        verdicts=MappingProxyType({Verdict(number): count for number, count in enumerate(verdicts) if count}),
        dropped=MappingProxyType({reason: count for reason, count in zip(DROP_REASONS, drops) if count}),
        **plain,
        **now,
    )
