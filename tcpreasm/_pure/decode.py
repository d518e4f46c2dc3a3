"""Frame to TCP segment, or a numbered reason why not: the reference.

Lives here: link layers, IPv4, IPv6 and its extension headers, the TCP header, the TCP checksum. Not here: tunnels, fragments, keys, state.
`decode_frame` is called once a packet. Ethernet with a plain IPv4 header goes straight through: one `unpack_from` takes the link, IP and
TCP headers together. Everything else takes one layer after the other: each checks that its header was captured before it reads, and
returns what the next one makes of the rest (offset <= length).

A layer's function gets `frame`, the `offset` at which it starts there, the length `wire` that the whole frame had on the wire,
and `verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from ..decoded import Segment
from ..verdict import Verdict

__all__ = ["decode_frame"]

Result = tuple[Verdict, Segment | None]

_SEGMENT = Verdict.SEGMENT
_UNKNOWN_LINKTYPE: Result = Verdict.UNKNOWN_LINKTYPE, None
_NOT_IP: Result = Verdict.NOT_IP, None
_NOT_TCP: Result = Verdict.NOT_TCP, None
_FRAGMENT: Result = Verdict.FRAGMENT, None
_TRUNCATED: Result = Verdict.TRUNCATED, None
_BAD_IP_HEADER: Result = Verdict.BAD_IP_HEADER, None
_BAD_TCP_HEADER: Result = Verdict.BAD_TCP_HEADER, None
_BAD_CHECKSUM: Result = Verdict.BAD_CHECKSUM, None

_OFFLOADED_MAX = 1 << 20  # no network card takes more at once (Linux: 512 KiB); a frame that claims more is damaged there
_SIZE_MAX = 0x7FFFFFFF  # a frame counts as no longer than this, so that every length fits 31 bits
_TCP = 6
_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN = frozenset((0x8100, 0x88A8, 0x9100, 0x9200))
_LLC = 0  # an EtherType up to 1500 is a length (IEEE 802.3), and LLC follows; so does it where there is no EtherType at all
_LLC_SNAP = b"\xaa\xaa\x03\x00\x00\x00"
_SLL_LLC = 4  # Linux's own number for it
_EXTENSIONS = frozenset((0, 43, 44, 51, 60, 135, 139, 140))  # hop-by-hop, routing, fragment, AH, destination, mobility, HIP, shim6
_ROUTING, _FRAGMENT_HEADER, _AUTHENTICATION = 43, 44, 51
_AF_INET, _AF_INET6 = 2, frozenset((10, 24, 28, 30))  # of Linux, NetBSD and OpenBSD, FreeBSD, macOS

_be16 = Struct("!H").unpack_from
_be32 = Struct("!I").unpack_from
# EtherType; version and header length, total length, fragment, protocol, addresses; the TCP header
_plain = Struct("!12xH BxH2xHxB2x4s4s HHIIBBH2xH").unpack_from
_ipv4_header = Struct("!BxH2xHxB2x4s4s").unpack_from
_ipv6_header = Struct("!4xHBx16s16s").unpack_from
_tcp_header = Struct("!HHIIBBH2xH").unpack_from
_pseudo_tail = Struct("!II").pack
_new = tuple.__new__  # Segment(...) costs twice as much


def _checksum_is_right(frame: bytes, offset: int, length: int, src: bytes, dst: bytes) -> bool:
    """RFC 9293 3.1, RFC 8200 8.1: the one's complement sum of the pseudo-header and the segment is all ones. As 2**16 is 1 modulo
    2**16 - 1, that is to say that they, read as one number, are divisible by it."""
    covered = src + dst + _pseudo_tail(length, _TCP) + frame[offset : offset + length]
    if length & 1:
        covered += b"\0"
    return int.from_bytes(covered, "big") % 0xFFFF == 0


def _tcp(frame: bytes, offset: int, captured: int, on_wire: int, room: int, src: bytes, dst: bytes, verify: bool) -> Result:
    """`on_wire` bytes of TCP as the IP header tells, of which `captured` are there. The frame had `room` for: an IP header that
    claims more makes no gap."""
    if on_wire < 20:
        return _BAD_TCP_HEADER
    if captured < 20:
        return _TRUNCATED
    src_port, dst_port, seq, ack, data_offset, flags, window, urgent = _tcp_header(frame, offset)
    header = (data_offset >> 4) * 4
    if header < 20 or header > on_wire:
        return _BAD_TCP_HEADER
    if header > captured:
        return _TRUNCATED
    if verify and captured == on_wire and not _checksum_is_right(frame, offset, on_wire, src, dst):
        return _BAD_CHECKSUM
    on_wire = max(captured, min(on_wire, room))
    return _SEGMENT, Segment(
        src, dst, src_port, dst_port, seq, ack, flags, window, urgent, offset + header, captured - header, on_wire - header, header
    )  # fmt: skip


def timestamp_value(options: bytes) -> int | None:
    """TSval of a timestamp option (RFC 7323 3.2) among a header's options; None where there is none, or what stands before it is broken."""
    at = 0
    while at < len(options) and options[at] != 0:  # RFC 9293 3.2: 0 ends the list, 1 is padding, others have a length
        if options[at] == 1:
            at += 1
            continue
        if len(options) - at < 2 or not 2 <= options[at + 1] <= len(options) - at:
            return None
        if options[at] == 8 and options[at + 1] == 10:
            return int.from_bytes(options[at + 2 : at + 6], "big")
        at += options[at + 1]
    return None


def _offloaded(frame: bytes, offset: int, wire: int) -> int:
    """Bytes from offset on, where only the frame tells: those on the wire, if that can be."""
    size = max(0, wire - offset)
    return size if size <= _OFFLOADED_MAX else len(frame) - offset


def _ipv4(frame: bytes, offset: int, wire: int, verify: bool) -> Result:
    """RFC 791 3.1."""
    captured = len(frame) - offset
    if captured == 0:
        return _TRUNCATED
    if frame[offset] >> 4 != 4:
        return _BAD_IP_HEADER
    if captured < 20:
        return _TRUNCATED
    version_ihl, total, fragment, protocol, src, dst = _ipv4_header(frame, offset)
    header = (version_ihl & 15) * 4
    if header < 20 or 0 < total < header:
        return _BAD_IP_HEADER
    if fragment & 0x3FFF:  # more fragments, or an offset
        return _FRAGMENT
    if protocol != _TCP:
        return _NOT_TCP
    if captured < header:
        return _TRUNCATED
    if total == 0:  # the network card was to cut it into segments: the frame tells the length
        total = max(_offloaded(frame, offset, wire), header)
    captured = min(captured, total)  # what follows is padding
    return _tcp(frame, offset + header, captured - header, total - header, wire - offset - header, src, dst, verify)


def _ipv6(frame: bytes, offset: int, wire: int, verify: bool) -> Result:
    """RFC 8200 3 and 4. Mobile IPv6's home address option, which takes the source's place in the checksum, is not looked at."""
    length = len(frame)
    if length == offset:
        return _TRUNCATED
    if frame[offset] >> 4 != 6:
        return _BAD_IP_HEADER
    if length - offset < 40:
        return _TRUNCATED
    payload_length, protocol, src, dst = _ipv6_header(frame, offset)
    offset += 40
    # No length: a jumbogram (RFC 2675), or to be cut by the network card. The frame tells the length then.
    end = offset + (payload_length or _offloaded(frame, offset, wire))
    while protocol != _TCP:  # one extension header a turn, 8 bytes at least
        if protocol not in _EXTENSIONS:
            return _NOT_TCP
        if end - offset < 8:
            return _BAD_IP_HEADER
        if length - offset < 8:
            return _TRUNCATED
        if protocol == _FRAGMENT_HEADER:
            if _be16(frame, offset + 2)[0] & 0xFFF9:  # an offset, or more fragments; neither: atomic, and whole (RFC 6946)
                return _FRAGMENT
            header = 8
        elif protocol == _AUTHENTICATION:
            header = (frame[offset + 1] + 2) * 4
        else:
            header = (frame[offset + 1] + 1) * 8
            if protocol == _ROUTING and frame[offset + 3]:
                verify = False  # segments left: the checksum is over an address that differs from type to type
        if end - offset < header:
            return _BAD_IP_HEADER
        if length - offset < header:
            return _TRUNCATED
        protocol = frame[offset]
        offset += header
    return _tcp(frame, offset, min(length, end) - offset, end - offset, wire - offset, src, dst, verify)


def _by_version(frame: bytes, offset: int, wire: int, verify: bool) -> Result:
    """No link layer: the first half byte tells IPv4 and IPv6 apart."""
    if len(frame) == offset:
        return _TRUNCATED
    version = frame[offset] >> 4
    if version == 4:
        return _ipv4(frame, offset, wire, verify)
    if version == 6:
        return _ipv6(frame, offset, wire, verify)
    return _NOT_IP


def _by_ethertype(frame: bytes, offset: int, ethertype: int, wire: int, verify: bool) -> Result:
    """What is at `offset` is told by `ethertype`; VLAN tags (IEEE 802.1Q, 802.1ad) may lie between."""
    while True:
        if ethertype == _IPV4:
            return _ipv4(frame, offset, wire, verify)
        if ethertype == _IPV6:
            return _ipv6(frame, offset, wire, verify)
        if ethertype in _VLAN:
            if len(frame) - offset < 4:
                return _TRUNCATED
            ethertype = _be16(frame, offset + 2)[0]
            offset += 4
        elif ethertype <= 1500:  # LLC, of which only SNAP carries IP (RFC 1042)
            if len(frame) - offset < 8:
                return _TRUNCATED
            if not frame.startswith(_LLC_SNAP, offset):
                return _NOT_IP
            ethertype = _be16(frame, offset + 6)[0]
            offset += 8
        else:
            return _NOT_IP


def _by_ppp_protocol(frame: bytes, offset: int, wire: int, verify: bool) -> Result:
    """RFC 1661 2, RFC 1662 3.1: address and control may be left out, and the first of the protocol's bytes where it is zero."""
    if len(frame) - offset < 2:
        return _TRUNCATED
    if frame.startswith(b"\xff\x03", offset):
        offset += 2
        if len(frame) == offset:
            return _TRUNCATED
    protocol = frame[offset]
    offset += 1
    if protocol & 1 == 0:
        if len(frame) == offset:
            return _TRUNCATED
        protocol = protocol << 8 | frame[offset]
        offset += 1
    if protocol == 0x21:
        return _ipv4(frame, offset, wire, verify)
    if protocol == 0x57:
        return _ipv6(frame, offset, wire, verify)
    return _NOT_IP


def _by_family(frame: bytes, family: int, wire: int, verify: bool) -> Result:
    if family == _AF_INET:
        return _ipv4(frame, 4, wire, verify)
    if family in _AF_INET6:
        return _ipv6(frame, 4, wire, verify)
    return _NOT_IP


def _wlan(frame: bytes, offset: int, wire: int, verify: bool, data_pad: bool = False) -> Result:
    """IEEE 802.11-2020 9.2, 9.3.2. Data in clear, one packet a frame.

    Args:
        data_pad: the 802.11 header is padded to a multiple of four bytes.
    """
    captured = len(frame) - offset
    if captured < 2:
        return _TRUNCATED
    kind, flags = frame[offset], frame[offset + 1]
    if kind & 0x4F != 0x08 or flags & 0x40:  # version 0, data, with a body; not encrypted
        return _NOT_IP
    header = addresses = 30 if flags & 3 == 3 else 24  # from one access point to another: a fourth address
    if kind & 0x80:  # quality of service
        header += 6 if flags & 0x80 else 2
    if captured < header:
        return _TRUNCATED
    if flags & 4 or frame[offset + 22] & 15:
        return _FRAGMENT
    if kind & 0x80 and frame[offset + addresses] & 0x80:  # several packets aggregated
        return _NOT_IP
    if data_pad:
        header = (header + 3) & ~3
        if captured < header:
            return _TRUNCATED
    return _by_ethertype(frame, offset + header, _LLC, wire, verify)


# One function per link type: its number's name, what its header takes, what the rest is.


def _ethernet(frame: bytes, wire: int, verify: bool) -> Result:
    if len(frame) < 14:
        return _TRUNCATED
    return _by_ethertype(frame, 14, _be16(frame, 12)[0], wire, verify)


def _raw(frame: bytes, wire: int, verify: bool) -> Result:
    return _by_version(frame, 0, wire, verify)


def _raw_ipv4(frame: bytes, wire: int, verify: bool) -> Result:
    return _ipv4(frame, 0, wire, verify)


def _raw_ipv6(frame: bytes, wire: int, verify: bool) -> Result:
    return _ipv6(frame, 0, wire, verify)


def _sll(frame: bytes, wire: int, verify: bool) -> Result:
    if len(frame) < 16:
        return _TRUNCATED
    protocol = _be16(frame, 14)[0]
    if protocol < 0x0600 and protocol != _SLL_LLC:
        return _NOT_IP
    return _by_ethertype(frame, 16, protocol, wire, verify)


def _sll2(frame: bytes, wire: int, verify: bool) -> Result:
    if len(frame) < 20:
        return _TRUNCATED
    protocol = _be16(frame, 0)[0]
    if protocol < 0x0600 and protocol != _SLL_LLC:
        return _NOT_IP
    return _by_ethertype(frame, 20, protocol, wire, verify)


def _null(frame: bytes, wire: int, verify: bool) -> Result:
    """An address family in the writer's byte order, whichever that was: no family needs more than three bytes."""
    if len(frame) < 4:
        return _TRUNCATED
    family = _be32(frame, 0)[0]
    if family > 0xFFFFFF:
        family = int.from_bytes(frame[:4], "little")
    return _by_family(frame, family, wire, verify)


def _loop(frame: bytes, wire: int, verify: bool) -> Result:
    if len(frame) < 4:
        return _TRUNCATED
    return _by_family(frame, _be32(frame, 0)[0], wire, verify)


def _ppp(frame: bytes, wire: int, verify: bool) -> Result:
    return _by_ppp_protocol(frame, 0, wire, verify)


def _c_hdlc(frame: bytes, wire: int, verify: bool) -> Result:
    """Cisco's framing (RFC 1547 4.3.1)."""
    if len(frame) < 4:
        return _TRUNCATED
    protocol = _be16(frame, 2)[0]
    return _NOT_IP if protocol < 0x0600 else _by_ethertype(frame, 4, protocol, wire, verify)


def _ppp_serial(frame: bytes, wire: int, verify: bool) -> Result:
    """Either of the two; Cisco's first byte is no PPP protocol."""
    if not frame:
        return _TRUNCATED
    return _c_hdlc(frame, wire, verify) if frame[0] in b"\x0f\x8f" else _ppp(frame, wire, verify)


def _ppp_ether(frame: bytes, wire: int, verify: bool) -> Result:
    """RFC 2516 4."""
    if len(frame) < 6:
        return _TRUNCATED
    if frame[:2] != b"\x11\x00":  # not session data
        return _NOT_IP
    return _by_ppp_protocol(frame, 6, wire, verify)


def _fddi(frame: bytes, wire: int, verify: bool) -> Result:
    if len(frame) < 13:
        return _TRUNCATED
    if frame[0] & 0x70 != 0x50:  # no LLC frame with addresses of 48 bits
        return _NOT_IP
    return _by_ethertype(frame, 13, _LLC, wire, verify)


def _ieee802_11(frame: bytes, wire: int, verify: bool) -> Result:
    return _wlan(frame, 0, wire, verify)


def _radiotap(frame: bytes, wire: int, verify: bool) -> Result:
    """www.radiotap.org. Little-endian. Of its fields only the flags matter: is the 802.11 header padded to four bytes?"""
    length = len(frame)
    if length < 8:
        return _TRUNCATED
    header = frame[2] | frame[3] << 8
    if frame[0] != 0 or header < 8:
        return _NOT_IP
    if length < header:
        return _TRUNCATED
    present = frame[4]
    field = 4
    while frame[field + 3] & 0x80:  # another word of presence bits
        field += 4
        if field + 4 > header:
            return _NOT_IP
    field += 4
    data_pad = False
    if present & 2:
        if present & 1:  # a time stamp of 8 bytes, aligned, comes first
            field = ((field + 7) & ~7) + 8
        if field >= header:
            return _NOT_IP
        data_pad = frame[field] & 0x20 != 0
    return _wlan(frame, header, wire, verify, data_pad)


_LINKTYPES: dict[int, Callable[[bytes, int, bool], Result]] = {
    0: _null,
    1: _ethernet,
    9: _ppp,
    10: _fddi,
    12: _raw,
    14: _raw,
    50: _ppp_serial,
    51: _ppp_ether,
    101: _raw,
    104: _c_hdlc,
    105: _ieee802_11,
    108: _loop,
    113: _sll,
    127: _radiotap,
    228: _raw_ipv4,
    229: _raw_ipv6,
    276: _sll2,
}


def decode_frame(
    frame: bytes | bytearray | memoryview, linktype: int, wire_length: int | None = None, verify_checksums: bool = False
) -> Result:
    """Decode one frame.

    Args:
        frame: the captured bytes, any buffer.
        linktype: LINKTYPE_ number of the capture; any int.
        wire_length: bytes that the frame had on the wire. None, or less than were captured: as captured.
        verify_checksums: refuse a wrong TCP checksum, where the whole segment was captured.

    Returns the verdict, and the `Segment` where that is `Verdict.SEGMENT`, else None. No bytes make it raise; TypeError where
    `frame` is no buffer.
    """
    if type(frame) is not bytes:
        frame = bytes(memoryview(frame))
    length = len(frame)
    # Ethernet, no tag, IPv4 without options, wholly captured, no fragment, TCP without a checksum to verify: nearly every packet there is.
    if linktype == 1 and length >= 54 and not verify_checksums:
        (
            ethertype, version_ihl, total, fragment, protocol, src, dst,
            src_port, dst_port, seq, ack, data_offset, flags, window, urgent,
        ) = _plain(frame)  # fmt: skip
        header = (data_offset >> 4) * 4
        if (
            ethertype == 0x0800 and version_ihl == 0x45 and protocol == 6 and not fragment & 0x3FFF
            and header >= 20 and total >= 20 + header and length >= 14 + total
        ):  # fmt: skip
            size = total - 20 - header
            fields = (src, dst, src_port, dst_port, seq, ack, flags, window, urgent, 34 + header, size, size, header)
            return _SEGMENT, _new(Segment, fields)
    link = _LINKTYPES.get(linktype)
    if link is None:
        return _UNKNOWN_LINKTYPE
    wire = length if wire_length is None or wire_length < length else wire_length
    return link(frame, min(wire, _SIZE_MAX), verify_checksums)
