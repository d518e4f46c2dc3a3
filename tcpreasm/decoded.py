"""`Segment`: what decoding found in a frame. Both cores return this one class.

Lives here: the record only. Inside the compiled core it is a C struct (`_compiled/decode.pxd`); this form is for Python callers
and tests, so it is made at most once a packet and never on the compiled batch path.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Segment"]


class Segment(NamedTuple):
    """One TCP segment, as it lies in its frame (RFC 9293 3.1)."""

    src: bytes
    """Packed address of the sender: 4 bytes (IPv4) or 16 (IPv6)."""
    dst: bytes
    """Packed address of the receiver, of the same length."""
    src_port: int
    dst_port: int
    seq: int
    """Sequence number of the first byte (of the SYN, where there is one)."""
    ack: int
    """Acknowledgement number, whether the ACK flag is set or not."""
    flags: int
    """The eight bits: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128."""
    window: int
    """As in the header, not scaled."""
    urgent: int
    """Urgent pointer as in the header, whether the URG flag is set or not."""
    payload_offset: int
    """Where in the frame the payload starts, in bytes; at most the frame's length."""
    payload_length: int
    """Bytes of payload that were captured."""
    wire_payload_length: int
    """Bytes of payload that the segment had on the wire; more than `payload_length` where the capture cut it."""
    header_length: int
    """Bytes of the TCP header, options included; it ends where the payload starts."""
    tunnels: int
    """Packets that this one lies in: tunnels around its IP header. Labels (MPLS, PPPoE, VLAN) do not count."""
