"""Frame to TCP segment, or a numbered reason why not: the reference.

Lives here: link layers, IPv4, IPv6 and its extension headers, tunnels, the TCP header, the TCP checksum. Not here: how fragments become
datagrams (fragments), keys, state. `decode` is called once a packet. Ethernet with a plain IPv4 header goes straight through: one
`unpack_from` takes the link, IP and TCP headers together. Everything else takes one layer after the other: each checks that its header was
captured before it reads, and returns what the next one makes of the rest. A layer that ends as NOT_TCP or NOT_IP notes what it carries
instead (`Layers`): where that is a tunnel, the loop in `_unwrapped` goes on with what is in it.

A layer's function gets `frame`, the `offset` at which it starts there, the lengths `length` and `wire` up to which what it lies in was
captured and was on the wire (offset <= length <= wire), and `layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from ..decoded import Segment
from ..options import TUNNELS
from ..verdict import Verdict

__all__ = ["decode_frame"]

ALL_TUNNELS = (1 << len(TUNNELS)) - 1
MAX_TUNNELS = 8  # one within the other, labels counted; what is deeper stays unopened

# How checksums are looked at: not at all; refuse a wrong one; tell of each segment what its checksum was like.
IGNORE, VERIFY, JUDGE = range(3)
# What JUDGE tells besides BAD_CHECKSUM, each with the segment: it is right; or wrong as systems leave it for the network card to fill in:
# the sum of the pseudo-header, or zero.
RIGHT_CHECKSUM, UNFILLED_CHECKSUM = 9, 10


class Fragment(NamedTuple):
    """One fragment of an IP datagram (RFC 791 3.2, RFC 8200 4.5)."""

    src: bytes
    dst: bytes
    id: int
    protocol: int
    """Of the datagram's payload; IPv6: as this fragment says, and only the first one counts."""
    more: bool
    """Others follow."""
    checksums: int
    """How to look at them in the datagram."""
    offset: int
    """In the datagram's payload, bytes."""
    depth: int
    """Tunnels and labels around it, it being one itself."""
    level: int
    """The tunnels among those around it."""
    before: int
    """Bytes of the header that count for the datagram's length."""
    data: bytes
    """What was captured of it."""
    wire_length: int
    """Bytes on the wire, at least those of data."""


class Layers:
    """What decoding goes on with where a layer holds neither TCP nor, by itself, IP."""

    __slots__ = ("checksums", "depth", "length", "level", "offset", "tunnel", "tunnels", "wire")

    def __init__(self, checksums: int, tunnels: int, depth: int = 0, level: int = 0) -> None:
        self.checksums = checksums
        self.tunnels = tunnels
        self.depth = depth  # tunnels and labels so far
        self.level = level  # the tunnels among them: packets that what comes next lies in
        self.tunnel = ""  # one of TUNNELS, that may be looked into; "": nothing
        self.offset = self.length = self.wire = 0  # where it begins, and ends: as far as it was captured, and on the wire

    def note(self, tunnel: str, offset: int, length: int, wire: int) -> None:
        allowed = tunnel and wire > offset and self.tunnels >> TUNNELS.index(tunnel) & 1
        self.tunnel = tunnel if allowed else ""
        self.offset, self.length, self.wire = offset, length, max(length, wire)


Result = tuple[int, Segment | Fragment | None]

_SEGMENT = Verdict.SEGMENT
_UNKNOWN_LINKTYPE: Result = Verdict.UNKNOWN_LINKTYPE, None
_NOT_IP: Result = Verdict.NOT_IP, None
_NOT_TCP: Result = Verdict.NOT_TCP, None
_FRAGMENT: Result = Verdict.FRAGMENT, None
_TRUNCATED: Result = Verdict.TRUNCATED, None
_BAD_IP_HEADER: Result = Verdict.BAD_IP_HEADER, None
_BAD_TCP_HEADER: Result = Verdict.BAD_TCP_HEADER, None

_OFFLOADED_MAX = 1 << 20  # no network card takes more at once (Linux: 512 KiB); a frame that claims more is damaged there
_SIZE_MAX = 0x7FFFFFFF  # a frame counts as no longer than this, so that every length fits 31 bits
_IPV4_IN_IP, _TCP, _UDP, _IPV6_IN_IP, _GRE_IN_IP = 4, 6, 17, 41, 47
_TUNNEL_PORTS = {4789: "vxlan", 8472: "vxlan", 6081: "geneve", 2152: "gtp"}  # RFC 7348 5, RFC 8926 3.3, TS 29.281 4.4.2
_ETHERNET_IN_GRE = 0x6558  # transparent Ethernet bridging, in GRE and in Geneve
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
_ipv4_header = Struct("!BxHHHxB2x4s4s").unpack_from
_ipv6_header = Struct("!4xHBx16s16s").unpack_from
_tcp_header = Struct("!HHIIBBH2xH").unpack_from
_pseudo_tail = Struct("!II").pack
_new = tuple.__new__  # Segment(...) costs twice as much


def _sum(covered: bytes) -> int:
    """The one's complement sum (RFC 1071), with zero written as all ones: as 2**16 is 1 modulo 2**16 - 1, that is the remainder."""
    return (int.from_bytes(covered, "big") % 0xFFFF) or 0xFFFF


def _checked(frame: bytes, offset: int, length: int, src: bytes, dst: bytes, checksums: int) -> int:
    """RFC 9293 3.1, RFC 8200 8.1: the one's complement sum of the pseudo-header and the segment is all ones."""
    pseudo = src + dst + _pseudo_tail(length, _TCP)
    covered = pseudo + frame[offset : offset + length] + bytes(length & 1)
    if _sum(covered) == 0xFFFF:
        return RIGHT_CHECKSUM if checksums == JUDGE else _SEGMENT
    if checksums == JUDGE and _be16(frame, offset + 16)[0] in (0, _sum(pseudo)):
        return UNFILLED_CHECKSUM
    return Verdict.BAD_CHECKSUM


def _tcp(frame: bytes, offset: int, captured: int, on_wire: int, room: int, src: bytes, dst: bytes, checksums: int, level: int) -> Result:
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
    verdict: int = _SEGMENT
    if checksums and captured == on_wire:
        verdict = _checked(frame, offset, on_wire, src, dst, checksums)
    on_wire = _on_wire(captured, on_wire, room)
    return verdict, Segment(
        src, dst, src_port, dst_port, seq, ack, flags, window, urgent, offset + header, captured - header, on_wire - header, header,
        level,
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


def _offloaded(length: int, offset: int, wire: int) -> int:
    """Bytes from offset on, where only the frame tells: those on the wire, if that can be."""
    size = max(0, wire - offset)
    return size if size <= _OFFLOADED_MAX else length - offset


def _on_wire(captured: int, claimed: int, room: int) -> int:
    """What an IP header claims, as far as the frame had room for it."""
    return max(captured, min(claimed, room))


def _note_protocol(layers: Layers, frame: bytes, protocol: int, in_ipv6: bool, offset: int, length: int, wire: int) -> None:
    """IP's payload from offset on: which tunnel is it? In UDP only the port tells."""
    tunnel = ""
    if wire <= offset:
        return
    if protocol == _IPV4_IN_IP:
        tunnel = "4in6" if in_ipv6 else "ipip"
    elif protocol == _IPV6_IN_IP:
        tunnel = "6in6" if in_ipv6 else "6in4"
    elif protocol == _GRE_IN_IP:
        tunnel = "gre"
    elif protocol == _UDP and length >= offset + 8:
        tunnel = _TUNNEL_PORTS.get(_be16(frame, offset + 2)[0], "")
        size = _be16(frame, offset + 4)[0]
        if size >= 8:
            wire = min(wire, offset + size)
            length = min(length, wire)
        elif size:  # none: the network card was to cut it
            tunnel = ""
        offset += 8
    layers.note(tunnel, offset, length, wire)


def _lacking(offset: int, length: int, end: int, header: int) -> Result | None:
    """So many bytes of a header behind IP's are there: None. Or the packet has none, or the capture."""
    if end - offset < header:
        return _BAD_IP_HEADER
    return _TRUNCATED if length - offset < header else None


def _authentication_size(frame: bytes, offset: int) -> int:
    """Of an authentication header (RFC 4302 2.2), in IPv4 and in IPv6: it hides nothing."""
    return (frame[offset + 1] + 2) * 4


def _ipv4(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """RFC 791 3.1."""
    captured = length - offset
    if captured == 0:
        return _TRUNCATED
    if frame[offset] >> 4 != 4:
        return _BAD_IP_HEADER
    if captured < 20:
        return _TRUNCATED
    version_ihl, total, identification, field, protocol, src, dst = _ipv4_header(frame, offset)
    header = (version_ihl & 15) * 4
    if header < 20 or 0 < total < header:
        return _BAD_IP_HEADER
    is_fragment = field & 0x3FFF  # more fragments, or an offset
    if captured < header:
        if not is_fragment:
            return _TRUNCATED if protocol in (_TCP, _AUTHENTICATION) else _NOT_TCP
        captured = header
    if total == 0:  # the network card was to cut it into segments: the frame tells the length
        total = max(_offloaded(length, offset, wire), header)
    captured = min(captured, total)  # what follows is padding
    if is_fragment:
        on_wire = _on_wire(captured, total, wire - offset)
        return Verdict.FRAGMENT, Fragment(
            src, dst, identification, protocol, bool(field & 0x2000), layers.checksums, (field & 0x1FFF) * 8, layers.depth + 1,
            layers.level, header, frame[offset + header : offset + captured], on_wire - header,
        )  # fmt: skip
    return _ipv4_payload(frame, protocol, offset + header, offset + captured, offset + total, wire, src, dst, layers)


def _ipv4_payload(
    frame: bytes, protocol: int, offset: int, length: int, end: int, room: int, src: bytes, dst: bytes, layers: Layers
) -> Result:
    """Captured up to `length`, and `end` as the IP header tells; the frame had `room`."""
    while protocol == _AUTHENTICATION:  # one header a turn
        lacking = _lacking(offset, length, end, 8) or _lacking(offset, length, end, _authentication_size(frame, offset))
        if lacking is not None:
            return lacking
        protocol, offset = frame[offset], offset + _authentication_size(frame, offset)
    if protocol == _TCP:
        return _tcp(frame, offset, length - offset, end - offset, room - offset, src, dst, layers.checksums, layers.level)
    _note_protocol(layers, frame, protocol, False, offset, length, _on_wire(length, end, room))
    return _NOT_TCP


def _ipv6(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """RFC 8200 3."""
    if length == offset:
        return _TRUNCATED
    if frame[offset] >> 4 != 6:
        return _BAD_IP_HEADER
    if length - offset < 40:
        return _TRUNCATED
    payload_length, protocol, src, dst = _ipv6_header(frame, offset)
    offset += 40
    # No length: a jumbogram (RFC 2675), or to be cut by the network card. The frame tells the length then.
    end = offset + (payload_length or _offloaded(length, offset, wire))
    return _ipv6_payload(frame, protocol, offset, length, end, wire, src, dst, layers)


def _ipv6_payload(
    frame: bytes, protocol: int, offset: int, length: int, end: int, room: int, src: bytes, dst: bytes, layers: Layers
) -> Result:
    """RFC 8200 4. As _ipv4_payload; `length` may lie beyond `end`. Mobile IPv6's home address option, which takes the source's place in
    the checksum, is not looked at."""
    begin = offset
    checksums = layers.checksums
    while protocol != _TCP:  # one extension header a turn, 8 bytes at least
        if protocol not in _EXTENSIONS:
            length = min(length, end)
            _note_protocol(layers, frame, protocol, True, offset, length, _on_wire(length, end, room))
            return _NOT_TCP
        lacking = _lacking(offset, length, end, 8)
        if lacking is not None:
            return lacking
        if protocol == _FRAGMENT_HEADER:
            field = _be16(frame, offset + 2)[0]
            if field & 0xFFF9:  # an offset, or more fragments; neither: atomic, and whole (RFC 6946)
                length = min(length, end)
                return Verdict.FRAGMENT, Fragment(
                    src, dst, _be32(frame, offset + 4)[0], frame[offset], bool(field & 1), checksums, field & 0xFFF8, layers.depth + 1,
                    layers.level, offset - begin, frame[offset + 8 : length], _on_wire(length, end, room) - offset - 8,
                )  # fmt: skip
            header = 8
        elif protocol == _AUTHENTICATION:
            header = _authentication_size(frame, offset)
        else:
            header = (frame[offset + 1] + 1) * 8
            if protocol == _ROUTING and frame[offset + 3]:
                checksums = IGNORE  # segments left: the checksum is over an address that differs from type to type
        lacking = _lacking(offset, length, end, header)
        if lacking is not None:
            return lacking
        protocol = frame[offset]
        offset += header
    return _tcp(frame, offset, min(length, end) - offset, end - offset, room - offset, src, dst, checksums, layers.level)


def _by_version(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """No link layer: the first half byte tells IPv4 and IPv6 apart."""
    if length == offset:
        return _TRUNCATED
    version = frame[offset] >> 4
    if version == 4:
        return _ipv4(frame, offset, length, wire, layers)
    if version == 6:
        return _ipv6(frame, offset, length, wire, layers)
    return _NOT_IP


def _by_ethertype(frame: bytes, offset: int, ethertype: int, length: int, wire: int, layers: Layers) -> Result:
    """What is at `offset` is told by `ethertype`; VLAN tags (IEEE 802.1Q, 802.1ad) may lie between."""
    while True:
        if ethertype == _IPV4:
            return _ipv4(frame, offset, length, wire, layers)
        if ethertype == _IPV6:
            return _ipv6(frame, offset, length, wire, layers)
        if ethertype in _VLAN:
            if length - offset < 4:
                return _TRUNCATED
            ethertype = _be16(frame, offset + 2)[0]
            offset += 4
        elif ethertype <= 1500:  # LLC, of which only SNAP carries IP (RFC 1042)
            if length - offset < 8:
                return _TRUNCATED
            if not frame.startswith(_LLC_SNAP, offset):
                return _NOT_IP
            ethertype = _be16(frame, offset + 6)[0]
            offset += 8
        else:
            if ethertype in (0x8847, 0x8848):  # RFC 3032 5, RFC 5332 3: unicast or not
                layers.note("mpls", offset, length, wire)
            elif ethertype == 0x8864:  # RFC 2516 4; 0x8863 is discovery
                layers.note("pppoe", offset, length, wire)
            return _NOT_IP


def _by_ethernet(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    if length - offset < 14:
        return _TRUNCATED
    return _by_ethertype(frame, offset + 14, _be16(frame, offset + 12)[0], length, wire, layers)


def _by_ppp_protocol(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """RFC 1661 2, RFC 1662 3.1: address and control may be left out, and the first of the protocol's bytes where it is zero."""
    if length - offset < 2:
        return _TRUNCATED
    if frame.startswith(b"\xff\x03", offset):
        offset += 2
        if length == offset:
            return _TRUNCATED
    protocol = frame[offset]
    offset += 1
    if protocol & 1 == 0:
        if length == offset:
            return _TRUNCATED
        protocol = protocol << 8 | frame[offset]
        offset += 1
    if protocol == 0x21:
        return _ipv4(frame, offset, length, wire, layers)
    if protocol == 0x57:
        return _ipv6(frame, offset, length, wire, layers)
    return _NOT_IP


def _pppoe(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """RFC 2516 4. What follows behind the session's own length is padding."""
    if length - offset < 6:
        return _TRUNCATED
    if not frame.startswith(b"\x11\x00", offset):  # not session data
        return _NOT_IP
    return _by_ppp_protocol(frame, offset + 6, length, wire, layers)


def _by_family(frame: bytes, family: int, length: int, wire: int, layers: Layers) -> Result:
    if family == _AF_INET:
        return _ipv4(frame, 4, length, wire, layers)
    if family in _AF_INET6:
        return _ipv6(frame, 4, length, wire, layers)
    return _NOT_IP


def _wlan(frame: bytes, offset: int, length: int, wire: int, layers: Layers, data_pad: bool = False) -> Result:
    """IEEE 802.11-2020 9.2, 9.3.2. Data in clear, one packet a frame.

    Args:
        data_pad: the 802.11 header is padded to a multiple of four bytes.
    """
    captured = length - offset
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
    return _by_ethertype(frame, offset + header, _LLC, length, wire, layers)


# One function per link type: its number's name, what its header takes, what the rest is.


def _ethernet(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    return _by_ethernet(frame, 0, length, wire, layers)


def _raw(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    return _by_version(frame, 0, length, wire, layers)


def _raw_ipv4(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    return _ipv4(frame, 0, length, wire, layers)


def _raw_ipv6(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    return _ipv6(frame, 0, length, wire, layers)


def _sll(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    if length < 16:
        return _TRUNCATED
    protocol = _be16(frame, 14)[0]
    if protocol < 0x0600 and protocol != _SLL_LLC:
        return _NOT_IP
    return _by_ethertype(frame, 16, protocol, length, wire, layers)


def _sll2(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    if length < 20:
        return _TRUNCATED
    protocol = _be16(frame, 0)[0]
    if protocol < 0x0600 and protocol != _SLL_LLC:
        return _NOT_IP
    return _by_ethertype(frame, 20, protocol, length, wire, layers)


def _null(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    """An address family in the writer's byte order, whichever that was: no family needs more than three bytes."""
    if length < 4:
        return _TRUNCATED
    family = _be32(frame, 0)[0]
    if family > 0xFFFFFF:
        family = int.from_bytes(frame[:4], "little")
    return _by_family(frame, family, length, wire, layers)


def _loop(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    if length < 4:
        return _TRUNCATED
    return _by_family(frame, _be32(frame, 0)[0], length, wire, layers)


def _ppp(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    return _by_ppp_protocol(frame, 0, length, wire, layers)


def _c_hdlc(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    """Cisco's framing (RFC 1547 4.3.1)."""
    if length < 4:
        return _TRUNCATED
    protocol = _be16(frame, 2)[0]
    return _NOT_IP if protocol < 0x0600 else _by_ethertype(frame, 4, protocol, length, wire, layers)


def _ppp_serial(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    """Either of the two; Cisco's first byte is no PPP protocol."""
    if not frame:
        return _TRUNCATED
    return _c_hdlc(frame, length, wire, layers) if frame[0] in b"\x0f\x8f" else _ppp(frame, length, wire, layers)


def _ppp_ether(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    return _pppoe(frame, 0, length, wire, layers)


def _fddi(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    if length < 13:
        return _TRUNCATED
    if frame[0] & 0x70 != 0x50:  # no LLC frame with addresses of 48 bits
        return _NOT_IP
    return _by_ethertype(frame, 13, _LLC, length, wire, layers)


def _ieee802_11(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    return _wlan(frame, 0, length, wire, layers)


def _radiotap(frame: bytes, length: int, wire: int, layers: Layers) -> Result:
    """www.radiotap.org. Little-endian. Of its fields only the flags matter: is the 802.11 header padded to four bytes?"""
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
    return _wlan(frame, header, length, wire, layers, data_pad)


_LINKTYPES: dict[int, Callable[[bytes, int, int, Layers], Result]] = {
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


# Tunnels. Each begins with a byte or more on the wire.


def _by_gre_protocol(frame: bytes, offset: int, protocol: int, length: int, wire: int, layers: Layers) -> Result:
    if protocol == _ETHERNET_IN_GRE:
        return _by_ethernet(frame, offset, length, wire, layers)
    if protocol < 0x0600:  # no EtherType
        return _NOT_IP
    return _by_ethertype(frame, offset, protocol, length, wire, layers)


def _gre(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """RFC 2784 2.1, RFC 2890 2: checksum, key and number may be there. Version 0, and none of the bits that RFC 2784 2.3 refuses."""
    if length - offset < 4:
        return _TRUNCATED
    bits = _be16(frame, offset)[0]
    if bits & 0x4C07:
        return _NOT_IP
    header = 4 + 4 * ((bits >> 15) + (bits >> 13 & 1) + (bits >> 12 & 1))
    if length - offset < header:
        return _TRUNCATED
    return _by_gre_protocol(frame, offset + header, _be16(frame, offset + 2)[0], length, wire, layers)


def _vxlan(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """RFC 7348 5: the flag I is set, everything reserved is not looked at."""
    if length - offset < 8:
        return _TRUNCATED
    if not frame[offset] & 0x08:
        return _NOT_IP
    return _by_ethernet(frame, offset + 8, length, wire, layers)


def _geneve(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """RFC 8926 3.4: version, length of the options, O for control packets."""
    if length - offset < 8:
        return _TRUNCATED
    if frame[offset] >> 6 or frame[offset + 1] & 0x80:
        return _NOT_IP
    header = 8 + (frame[offset] & 0x3F) * 4
    if length - offset < header:
        return _TRUNCATED
    return _by_gre_protocol(frame, offset + header, _be16(frame, offset + 2)[0], length, wire, layers)


def _gtp(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """3GPP TS 29.281 5.1, 5.2: version 1, a G-PDU. Any of E, S and PN: four bytes more, of which the last one tells the first extension."""
    if length - offset < 8:
        return _TRUNCATED
    flags = frame[offset]
    if flags >> 4 != 3 or frame[offset + 1] != 255:
        return _NOT_IP
    wire = min(wire, offset + 8 + _be16(frame, offset + 2)[0])
    length = min(length, wire)
    offset += 8
    if flags & 7:
        if length - offset < 4:
            return _TRUNCATED
        following = frame[offset + 3] if flags & 4 else 0
        offset += 4
        while following:  # its first byte is its length in words, its last one tells the next
            if length == offset:
                return _TRUNCATED
            header = frame[offset] * 4
            if header == 0:
                return _NOT_IP
            if length - offset < header:
                return _TRUNCATED
            following = frame[offset + header - 1]
            offset += header
    return _by_version(frame, offset, length, wire, layers)


def _mpls(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    """RFC 3032 2.1: labels up to the bottom of the stack. What follows is told by no field: by the version of IP, and nothing else is
    guessed."""
    bottom = 0
    while not bottom:
        if length - offset < 4:
            return _TRUNCATED
        bottom = frame[offset + 2] & 1
        offset += 4
    return _by_version(frame, offset, length, wire, layers)


def _pppoe_session(frame: bytes, offset: int, length: int, wire: int, layers: Layers) -> Result:
    if length - offset >= 6:
        wire = min(wire, offset + 6 + _be16(frame, offset + 4)[0])
    return _pppoe(frame, offset, min(length, wire), wire, layers)


_TUNNELS: dict[str, Callable[[bytes, int, int, int, Layers], Result]] = {
    "gre": _gre,
    "vxlan": _vxlan,
    "geneve": _geneve,
    "ipip": _by_version,
    "6in4": _by_version,
    "4in6": _by_version,
    "6in6": _by_version,
    "mpls": _mpls,
    "pppoe": _pppoe_session,
    "gtp": _gtp,
}

_LABELS = ("mpls", "pppoe")  # which put no packet into another one


def _unwrapped(frame: bytes, result: Result, layers: Layers) -> Result:
    """One tunnel a turn. Where the innermost holds no IP, the verdict is that of what carried it."""
    while layers.tunnel and layers.depth < MAX_TUNNELS:
        layers.depth += 1
        layers.level += layers.tunnel not in _LABELS
        look_into, layers.tunnel = _TUNNELS[layers.tunnel], ""
        inner = look_into(frame, layers.offset, layers.length, layers.wire, layers)
        if inner is not _NOT_IP:
            result = inner
    return result


def decode_frame(
    frame: bytes | bytearray | memoryview,
    linktype: int,
    wire_length: int | None = None,
    verify_checksums: bool = False,
    tunnels: int = ALL_TUNNELS,
) -> tuple[Verdict, Segment | None]:
    """Decode one frame.

    Args:
        frame: the captured bytes, any buffer.
        linktype: LINKTYPE_ number of the capture; any int.
        wire_length: bytes that the frame had on the wire. None, or less than were captured: as captured.
        verify_checksums: refuse a wrong TCP checksum, where the whole segment was captured.
        tunnels: bit n: look into options.TUNNELS[n].

    Returns the verdict, and the `Segment` where that is `Verdict.SEGMENT`, else None. No bytes make it raise; TypeError where
    `frame` is no buffer.
    """
    if type(frame) is not bytes:
        frame = bytes(memoryview(frame))
    verdict, segment = decode(frame, linktype, wire_length, VERIFY if verify_checksums else IGNORE, tunnels)
    return Verdict(verdict), segment if verdict == _SEGMENT and isinstance(segment, Segment) else None


def decode(frame: bytes, linktype: int, wire_length: int | None, checksums: int, tunnels: int) -> Result:
    """The same, as the assembler has it: a `Fragment` with `Verdict.FRAGMENT` (None for one of the link layer), a `Segment` also with
    `Verdict.BAD_CHECKSUM`, and the two verdicts besides where checksums is JUDGE."""
    length = len(frame)
    # Ethernet, no tag, IPv4 without options, wholly captured, no fragment, TCP without a checksum to look at: nearly every packet there is.
    if linktype == 1 and length >= 54 and not checksums:
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
            fields = (src, dst, src_port, dst_port, seq, ack, flags, window, urgent, 34 + header, size, size, header, 0)
            return _SEGMENT, _new(Segment, fields)
    link = _LINKTYPES.get(linktype)
    if link is None:
        return _UNKNOWN_LINKTYPE
    wire = length if wire_length is None or wire_length < length else wire_length
    layers = Layers(checksums, tunnels)
    return _unwrapped(frame, link(frame, length, min(wire, _SIZE_MAX), layers), layers)


def decode_datagram(data: bytes, first: Fragment, length: int, tunnels: int) -> Result:
    """The payload of a datagram that was put together of fragments.

    Args:
        data: what was captured of it, from its beginning.
        first: its first fragment.
        length: its bytes on the wire.
    """
    layers = Layers(first.checksums, tunnels, first.depth, first.level)
    payload = _ipv4_payload if len(first.src) == 4 else _ipv6_payload
    return _unwrapped(data, payload(data, first.protocol, 0, len(data), length, length, first.src, first.dst, layers), layers)
