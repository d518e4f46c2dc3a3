# cython: language_level=3
"""Frame to TCP segment: the compiled twin of `_pure/decode.py`, function by function. The contract is in decode.pxd.

Lives here: link layers, IPv4, IPv6 and its extension headers, tunnels, the TCP header, the TCP checksum. Not here: how fragments become
datagrams (fragments), keys, state. `decode` is called once a packet. Ethernet with a plain IPv4 header goes straight through: one look at
link and IP header together, then TCP. Everything else takes one layer after the other, each of which checks that it was captured before it
reads, and hands on (offset <= length <= wire length). A layer that ends as NOT_TCP or NOT_IP notes what it carries instead (layers_s):
where that is a tunnel, the loop in `_unwrapped` goes on with what is in it.

Multi-byte fields are put together from bytes: right at any alignment and byte order, and one load and swap to the compiler.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ..decoded import Segment
from ..options import TUNNELS
from ..verdict import Verdict

__all__ = ["decode_frame"]


cdef enum:
    IPV4_IN_IP = 4  # protocol numbers
    TCP = 6
    AUTHENTICATION = 51
    UDP = 17
    IPV6_IN_IP = 41
    GRE_IN_IP = 47
    OFFLOADED_MAX = 1 << 20  # no network card takes more at once (Linux: 512 KiB); a frame that claims more is damaged there
    SIZE_MAX_ = 0x7FFFFFFF  # a frame counts as no longer than this, so that every length fits 31 bits
    ETHERNET_IN_GRE = 0x6558  # transparent Ethernet bridging, in GRE and in Geneve


# What decoding goes on with where a layer holds neither TCP nor, by itself, IP.
cdef struct layers_s:
    uint32_t flags          # decode's
    uint32_t tunnel         # one of the TUNNEL_ bits, allowed by flags; 0: nothing
    uint32_t depth          # tunnels and labels so far
    uint8_t level           # the tunnels among them, as segment_s has them
    size_t offset           # where in the frame it begins, and where it ends: as far as it was captured,
    size_t length
    size_t wire_length      # and on the wire


cdef inline uint32_t be16(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 8) | p[1]


cdef inline uint32_t be32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t _words(const uint8_t *p, size_t length, uint64_t total) noexcept nogil:
    # Adds up 32-bit words in the machine's own byte order, the last one filled with zeros (RFC 1071 2: the order of bytes within
    # words does not change whether the sum is all ones). 64 bits hold 2**32 such words.
    cdef uint32_t word
    cdef size_t i
    for i in range(length >> 2):
        memcpy(&word, p + 4 * i, 4)
        total += word
    if length & 3:
        word = 0
        memcpy(&word, p + (length & ~<size_t>3), length & 3)
        total += word
    return total


cdef int _checked(const uint8_t *tcp, size_t length, uint32_t flags, const segment_s *out) noexcept nogil:
    # RFC 9293 3.1, RFC 8200 8.1. The zeros behind IPv4 addresses add nothing.
    cdef uint8_t pseudo[8]
    cdef uint64_t addresses, total
    cdef uint16_t field
    pseudo[0], pseudo[1], pseudo[2], pseudo[3] = <uint8_t>(length >> 24), <uint8_t>(length >> 16), <uint8_t>(length >> 8), <uint8_t>length
    pseudo[4], pseudo[5], pseudo[6], pseudo[7] = 0, 0, 0, TCP
    addresses = _words(pseudo, 8, 0)
    addresses = _words(out.src, 16, addresses)
    addresses = _words(out.dst, 16, addresses)
    total = _words(tcp, length, addresses)
    if _folded(total) == 0xFFFF:
        return RIGHT_CHECKSUM if flags & JUDGE_CHECKSUMS else SEGMENT
    if flags & JUDGE_CHECKSUMS:
        memcpy(&field, tcp + 16, 2)
        if field == 0 or field == _folded(addresses):
            return UNFILLED_CHECKSUM
    return BAD_CHECKSUM


cdef inline uint64_t _folded(uint64_t total) noexcept nogil:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


cdef inline int _tcp(
    const uint8_t *tcp, size_t captured, size_t on_wire, size_t room, uint32_t flags, segment_s *out
) noexcept nogil:
    # `on_wire` bytes of TCP as the IP header tells, of which `captured` are there. Addresses are set already. The frame had `room`
    # for: an IP header that claims more makes no gap.
    cdef size_t header
    if on_wire < 20:
        return BAD_TCP_HEADER
    if captured < 20:
        return TRUNCATED
    header = (tcp[12] >> 4) * 4
    if header < 20 or header > on_wire:
        return BAD_TCP_HEADER
    if header > captured:
        return TRUNCATED
    out.src_port = <uint16_t>be16(tcp)
    out.dst_port = <uint16_t>be16(tcp + 2)
    out.seq = be32(tcp + 4)
    out.ack = be32(tcp + 8)
    out.flags = tcp[13]
    out.header = <uint8_t>header
    out.window = <uint16_t>be16(tcp + 14)
    out.urgent = <uint16_t>be16(tcp + 18)
    out.payload = tcp + header
    out.payload_length = <uint32_t>(captured - header)
    if room < on_wire:
        out.wire_payload_length = <uint32_t>((room if room > captured else captured) - header)
    else:
        out.wire_payload_length = <uint32_t>(on_wire - header)
    if flags & (VERIFY_CHECKSUMS | JUDGE_CHECKSUMS) and captured == on_wire:
        return _checked(tcp, on_wire, flags, out)
    return SEGMENT


cdef bint timestamp_value(const uint8_t *options, int size, uint32_t *tsval) noexcept nogil:
    cdef int at = 0
    while at < size and options[at] != 0:  # RFC 9293 3.2: 0 ends the list, 1 is padding, others have a length
        if options[at] == 1:
            at += 1
            continue
        if size - at < 2 or not 2 <= options[at + 1] <= size - at:
            return False
        if options[at] == 8 and options[at + 1] == 10:
            tsval[0] = be32(options + at + 2)
            return True
        at += options[at + 1]
    return False


cdef inline void _ipv4_addresses(const uint8_t *ip, uint8_t level, segment_s *out) noexcept nogil:
    # Stores of 8 bytes, so that a hash that loads 8 bytes right afterwards gets them from the store buffer.
    cdef uint64_t src = 0, dst = 0, zero = 0
    memcpy(&src, ip + 12, 4)
    memcpy(&dst, ip + 16, 4)
    memcpy(out.src, &src, 8)
    memcpy(out.src + 8, &zero, 8)
    memcpy(out.dst, &dst, 8)
    memcpy(out.dst + 8, &zero, 8)
    out.level = level


cdef inline size_t _size(size_t length, size_t wire_length) noexcept nogil:
    # What the whole frame had on the wire.
    cdef size_t size = wire_length if wire_length > length else length
    return size if size < SIZE_MAX_ else SIZE_MAX_


cdef inline size_t _offloaded(size_t length, size_t offset, size_t wire_length) noexcept nogil:
    # Bytes from offset on, where only the frame tells: those on the wire, if that can be.
    cdef size_t size = wire_length - offset
    return size if size <= OFFLOADED_MAX else length - offset


cdef inline size_t _on_wire(size_t captured, size_t claimed, size_t room) noexcept nogil:
    # What an IP header claims, as far as the frame had room for it.
    return max(captured, min(claimed, room))


cdef void _note(layers_s *layers, uint32_t tunnel, size_t offset, size_t length, size_t wire_length) noexcept nogil:
    layers.tunnel = tunnel & layers.flags if wire_length > offset else 0
    layers.offset, layers.length, layers.wire_length = offset, length, max(length, wire_length)


cdef void _note_protocol(
    layers_s *layers, const uint8_t *frame, uint8_t protocol, bint in_ipv6, size_t offset, size_t length, size_t wire_length
) noexcept nogil:
    # IP's payload from offset on: which tunnel is it? In UDP only the port tells (RFC 7348 5, RFC 8926 3.3, TS 29.281 4.4.2).
    cdef uint32_t tunnel = 0, port
    cdef size_t size
    if wire_length <= offset:
        return
    if protocol == IPV4_IN_IP:
        tunnel = TUNNEL_4IN6 if in_ipv6 else TUNNEL_IPIP
    elif protocol == IPV6_IN_IP:
        tunnel = TUNNEL_6IN6 if in_ipv6 else TUNNEL_6IN4
    elif protocol == GRE_IN_IP:
        tunnel = TUNNEL_GRE
    elif protocol == UDP and length >= offset + 8:
        port, size = be16(frame + offset + 2), be16(frame + offset + 4)
        if port == 4789 or port == 8472:
            tunnel = TUNNEL_VXLAN
        elif port == 6081:
            tunnel = TUNNEL_GENEVE
        elif port == 2152:
            tunnel = TUNNEL_GTP
        if size >= 8:
            wire_length = min(wire_length, offset + size)
            length = min(length, wire_length)
        elif size != 0:  # none: the network card was to cut it
            tunnel = 0
        offset += 8
    _note(layers, tunnel, offset, length, wire_length)


cdef int _fragment(
    const uint8_t *data, size_t captured, size_t on_wire, size_t before, uint32_t id, uint32_t field, uint8_t protocol, layers_s *layers,
    segment_s *out
) noexcept nogil:
    # The addresses are set already. `field`: the offset in bytes; the lowest bit: more of them follow.
    cdef fragment_s *fragment = <fragment_s *>out
    fragment.id_high, fragment.id_low = <uint16_t>(id >> 16), <uint16_t>id
    fragment.protocol = protocol
    fragment.more = field & 1
    fragment.flags = layers.flags
    fragment.offset = field & 0xFFF8
    fragment.depth = layers.depth + 1
    fragment.before = <uint32_t>before
    fragment.data = data
    fragment.length = <uint32_t>min(captured, on_wire)
    fragment.wire_length = <uint32_t>on_wire
    return FRAGMENT


# So many bytes of a header behind IP's are there: 0. Or the packet has none, or the capture; `length` may lie before `offset`.
cdef inline int _lacking(size_t offset, size_t length, size_t end, size_t header) noexcept nogil:
    if end - offset < header:
        return BAD_IP_HEADER
    return TRUNCATED if length < offset + header else 0


# Of an authentication header (RFC 4302 2.2), in IPv4 and in IPv6: it hides nothing.
cdef inline size_t _authentication_size(const uint8_t *header) noexcept nogil:
    return (<size_t>header[1] + 2) * 4


cdef int _ipv4(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    cdef const uint8_t *ip = frame + offset
    cdef size_t captured = length - offset
    cdef size_t header, total, room
    cdef uint32_t field
    if captured == 0:
        return TRUNCATED
    if ip[0] >> 4 != 4:
        return BAD_IP_HEADER
    if captured < 20:
        return TRUNCATED
    header = (ip[0] & 15) * 4
    total = be16(ip + 2)
    if header < 20 or (total != 0 and total < header):
        return BAD_IP_HEADER
    field = be16(ip + 6)
    if captured < header:
        if field & 0x3FFF == 0:
            return TRUNCATED if ip[9] == TCP or ip[9] == AUTHENTICATION else NOT_TCP
        captured = header
    if total == 0:  # the network card was to cut it into segments: the frame tells the length
        total = _offloaded(length, offset, wire_length)
        if total < header:
            total = header
    if captured > total:  # what follows is padding
        captured = total
    room = wire_length - offset
    _ipv4_addresses(ip, layers.level, out)
    if field & 0x3FFF:  # more fragments, or an offset
        return _fragment(
            ip + header, captured - header, _on_wire(captured, total, room) - header, header, be16(ip + 4),
            (field & 0x1FFF) << 3 | (field >> 13 & 1), ip[9], layers, out
        )
    return _ipv4_payload(frame, ip[9], offset + header, offset + captured, offset + total, offset + room, layers, out)


cdef int _ipv4_payload(
    const uint8_t *frame, uint8_t protocol, size_t offset, size_t length, size_t end, size_t room, layers_s *layers, segment_s *out
) noexcept nogil:
    # Captured up to `length`, and `end` as the IP header tells; the frame had `room`. The addresses are set already.
    cdef size_t header
    cdef int lacking
    while protocol == AUTHENTICATION:  # one header a turn
        lacking = _lacking(offset, length, end, 8)
        if lacking != 0:
            return lacking
        header = _authentication_size(frame + offset)
        lacking = _lacking(offset, length, end, header)
        if lacking != 0:
            return lacking
        protocol = frame[offset]
        offset += header
    if protocol == TCP:
        return _tcp(frame + offset, length - offset, end - offset, max(room, offset) - offset, layers.flags, out)
    _note_protocol(layers, frame, protocol, False, offset, length, _on_wire(length, end, room))
    return NOT_TCP


cdef int _ipv6(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    cdef const uint8_t *ip = frame + offset
    cdef size_t end
    if length == offset:
        return TRUNCATED
    if ip[0] >> 4 != 6:
        return BAD_IP_HEADER
    if length - offset < 40:
        return TRUNCATED
    memcpy(out.src, ip + 8, 16)
    memcpy(out.dst, ip + 24, 16)
    out.level = layers.level | LEVEL_IPV6
    end = be16(ip + 4)
    offset += 40
    if end != 0:
        end += offset
    else:  # a jumbogram (RFC 2675), or cut by the network card: the frame tells the length
        end = offset + _offloaded(length, offset, wire_length)
    return _ipv6_payload(frame, ip[6], offset, length, end, wire_length, layers, out)


cdef int _ipv6_payload(
    const uint8_t *frame, uint8_t protocol, size_t offset, size_t length, size_t end, size_t room, layers_s *layers, segment_s *out
) noexcept nogil:
    # As _ipv4_payload; `length` may lie beyond `end`.
    cdef uint32_t flags = layers.flags, field
    cdef size_t header, begin = offset
    cdef int lacking
    while protocol != TCP:  # one extension header a turn, 8 bytes at least
        if not (protocol == 0 or protocol == 43 or protocol == 44 or protocol == AUTHENTICATION or protocol == 60 or protocol == 135
                or protocol == 139 or protocol == 140):
            length = min(length, end)
            _note_protocol(layers, frame, protocol, True, offset, length, _on_wire(length, end, room))
            return NOT_TCP
        lacking = _lacking(offset, length, end, 8)
        if lacking != 0:
            return lacking
        if protocol == 44:
            field = be16(frame + offset + 2)
            if field & 0xFFF9:  # an offset, or more fragments; neither: atomic, and whole (RFC 6946)
                length = min(length, end)
                layers.flags = flags
                return _fragment(
                    frame + offset + 8, length - offset - 8, _on_wire(length, end, room) - offset - 8, offset - begin,
                    be32(frame + offset + 4), field, frame[offset], layers, out
                )
            header = 8
        elif protocol == AUTHENTICATION:
            header = _authentication_size(frame + offset)
        else:
            header = (<size_t>frame[offset + 1] + 1) * 8
            if protocol == 43 and frame[offset + 3] != 0:  # segments left: the checksum is over an address that differs from type to type
                flags &= ~<uint32_t>(VERIFY_CHECKSUMS | JUDGE_CHECKSUMS)
        lacking = _lacking(offset, length, end, header)
        if lacking != 0:
            return lacking
        protocol = frame[offset]
        offset += header
    return _tcp(frame + offset, min(length, end) - offset, end - offset, max(room, offset) - offset, flags, out)


cdef int _by_version(
    const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out
) noexcept nogil:
    if length == offset:
        return TRUNCATED
    if frame[offset] >> 4 == 4:
        return _ipv4(frame, length, offset, wire_length, layers, out)
    if frame[offset] >> 4 == 6:
        return _ipv6(frame, length, offset, wire_length, layers, out)
    return NOT_IP


cdef int _by_ethertype(
    const uint8_t *frame, size_t length, size_t offset, uint32_t ethertype, size_t wire_length, layers_s *layers, segment_s *out
) noexcept nogil:
    while True:
        if ethertype == 0x0800:
            return _ipv4(frame, length, offset, wire_length, layers, out)
        if ethertype == 0x86DD:
            return _ipv6(frame, length, offset, wire_length, layers, out)
        if ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100 or ethertype == 0x9200:
            if length - offset < 4:
                return TRUNCATED
            ethertype = be16(frame + offset + 2)
            offset += 4
        elif ethertype <= 1500:  # a length (IEEE 802.3): LLC follows, of which only SNAP carries IP (RFC 1042)
            if length - offset < 8:
                return TRUNCATED
            if memcmp(frame + offset, b"\xaa\xaa\x03\x00\x00\x00", 6) != 0:
                return NOT_IP
            ethertype = be16(frame + offset + 6)
            offset += 8
        else:
            if ethertype == 0x8847 or ethertype == 0x8848:  # RFC 3032 5, RFC 5332 3: unicast or not
                _note(layers, TUNNEL_MPLS, offset, length, wire_length)
            elif ethertype == 0x8864:  # RFC 2516 4; 0x8863 is discovery
                _note(layers, TUNNEL_PPPOE, offset, length, wire_length)
            return NOT_IP


cdef int _by_ppp_protocol(
    const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out
) noexcept nogil:
    # RFC 1661 2, RFC 1662 3.1: address and control may be left out, and the first of the protocol's bytes where it is zero.
    cdef uint32_t protocol
    if length - offset < 2:
        return TRUNCATED
    if frame[offset] == 0xFF and frame[offset + 1] == 0x03:
        offset += 2
        if length == offset:
            return TRUNCATED
    protocol = frame[offset]
    offset += 1
    if protocol & 1 == 0:
        if length == offset:
            return TRUNCATED
        protocol = (protocol << 8) | frame[offset]
        offset += 1
    if protocol == 0x21:
        return _ipv4(frame, length, offset, wire_length, layers, out)
    if protocol == 0x57:
        return _ipv6(frame, length, offset, wire_length, layers, out)
    return NOT_IP


cdef int _pppoe(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    if length - offset < 6:
        return TRUNCATED
    if frame[offset] != 0x11 or frame[offset + 1] != 0:  # not session data
        return NOT_IP
    return _by_ppp_protocol(frame, length, offset + 6, wire_length, layers, out)


cdef int _by_family(
    const uint8_t *frame, size_t length, uint32_t family, size_t wire_length, layers_s *layers, segment_s *out
) noexcept nogil:
    if family == 2:
        return _ipv4(frame, length, 4, wire_length, layers, out)
    if family == 10 or family == 24 or family == 28 or family == 30:  # AF_INET6 of Linux, NetBSD and OpenBSD, FreeBSD, macOS
        return _ipv6(frame, length, 4, wire_length, layers, out)
    return NOT_IP


cdef int _wlan(
    const uint8_t *frame, size_t length, size_t offset, bint data_pad, size_t wire_length, layers_s *layers, segment_s *out
) noexcept nogil:
    # IEEE 802.11-2020 9.2, 9.3.2. Data in clear, one packet a frame.
    cdef size_t header = 24
    cdef uint8_t kind, flags
    if length - offset < 2:
        return TRUNCATED
    kind, flags = frame[offset], frame[offset + 1]
    if kind & 0x4F != 0x08 or flags & 0x40:  # version 0, data, with a body; not encrypted
        return NOT_IP
    if flags & 3 == 3:  # from one access point to another: a fourth address
        header += 6
    if kind & 0x80:  # quality of service
        header += 6 if flags & 0x80 else 2
    if length - offset < header:
        return TRUNCATED
    if flags & 4 or frame[offset + 22] & 15:
        (<fragment_s *>out).data = NULL
        return FRAGMENT
    if kind & 0x80 and frame[offset + (30 if flags & 3 == 3 else 24)] & 0x80:  # several packets aggregated
        return NOT_IP
    if data_pad:
        header = (header + 3) & ~<size_t>3
        if length - offset < header:
            return TRUNCATED
    return _by_ethertype(frame, length, offset + header, 0, wire_length, layers, out)


cdef int _radiotap(const uint8_t *frame, size_t length, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    # www.radiotap.org. Little-endian. Of its fields only the flags matter: is the 802.11 header padded to four bytes?
    cdef size_t header, field = 4
    cdef uint8_t present
    cdef bint data_pad = False
    if length < 8:
        return TRUNCATED
    header = frame[2] | (<size_t>frame[3] << 8)
    if frame[0] != 0 or header < 8:
        return NOT_IP
    if length < header:
        return TRUNCATED
    present = frame[4]
    while frame[field + 3] & 0x80:  # another word of presence bits
        field += 4
        if field + 4 > header:
            return NOT_IP
    field += 4
    if present & 2:
        if present & 1:  # a time stamp of 8 bytes, aligned, comes first
            field = ((field + 7) & ~<size_t>7) + 8
        if field >= header:
            return NOT_IP
        data_pad = frame[field] & 0x20 != 0
    return _wlan(frame, length, header, data_pad, wire_length, layers, out)


cdef int _by_linktype(
    const uint8_t *frame, size_t length, size_t wire_length, int linktype, layers_s *layers, segment_s *out
) noexcept nogil:
    cdef uint32_t protocol
    cdef size_t header
    if linktype == 1:  # EN10MB
        if length < 14:
            return TRUNCATED
        return _by_ethertype(frame, length, 14, be16(frame + 12), wire_length, layers, out)
    if linktype == 101 or linktype == 12 or linktype == 14:  # RAW
        return _by_version(frame, length, 0, wire_length, layers, out)
    if linktype == 228:  # IPV4
        return _ipv4(frame, length, 0, wire_length, layers, out)
    if linktype == 229:  # IPV6
        return _ipv6(frame, length, 0, wire_length, layers, out)
    if linktype == 113 or linktype == 276:  # LINUX_SLL, LINUX_SLL2
        header = 16 if linktype == 113 else 20
        if length < header:
            return TRUNCATED
        protocol = be16(frame + (14 if linktype == 113 else 0))
        if protocol < 0x0600 and protocol != 4:  # Linux's own numbers, of which 4 is LLC
            return NOT_IP
        return _by_ethertype(frame, length, header, protocol, wire_length, layers, out)
    if linktype == 0 or linktype == 108:  # NULL: the writer's byte order; LOOP: network order
        if length < 4:
            return TRUNCATED
        protocol = be32(frame)
        if linktype == 0 and protocol > 0xFFFFFF:
            protocol = frame[0] | (<uint32_t>frame[1] << 8) | (<uint32_t>frame[2] << 16) | (<uint32_t>frame[3] << 24)
        return _by_family(frame, length, protocol, wire_length, layers, out)
    if linktype == 9:  # PPP
        return _by_ppp_protocol(frame, length, 0, wire_length, layers, out)
    if linktype == 50 or linktype == 104:  # PPP_SERIAL: either of the two; C_HDLC: Cisco's framing (RFC 1547 4.3.1)
        if length == 0:
            return TRUNCATED
        if linktype == 50 and frame[0] != 0x0F and frame[0] != 0x8F:
            return _by_ppp_protocol(frame, length, 0, wire_length, layers, out)
        if length < 4:
            return TRUNCATED
        protocol = be16(frame + 2)
        if protocol < 0x0600:
            return NOT_IP
        return _by_ethertype(frame, length, 4, protocol, wire_length, layers, out)
    if linktype == 51:  # PPP_ETHER (RFC 2516 4)
        return _pppoe(frame, length, 0, wire_length, layers, out)
    if linktype == 10:  # FDDI
        if length < 13:
            return TRUNCATED
        if frame[0] & 0x70 != 0x50:  # no LLC frame with addresses of 48 bits
            return NOT_IP
        return _by_ethertype(frame, length, 13, 0, wire_length, layers, out)
    if linktype == 105:  # IEEE802_11
        return _wlan(frame, length, 0, False, wire_length, layers, out)
    if linktype == 127:  # IEEE802_11_RADIOTAP
        return _radiotap(frame, length, wire_length, layers, out)
    return UNKNOWN_LINKTYPE


# Tunnels. Each gets what `layers` notes, and begins with a length of 1 or more on the wire.


cdef int _ethernet(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    if length - offset < 14:
        return TRUNCATED
    return _by_ethertype(frame, length, offset + 14, be16(frame + offset + 12), wire_length, layers, out)


cdef int _by_gre_protocol(
    const uint8_t *frame, size_t length, size_t offset, uint32_t protocol, size_t wire_length, layers_s *layers, segment_s *out
) noexcept nogil:
    if protocol == ETHERNET_IN_GRE:
        return _ethernet(frame, length, offset, wire_length, layers, out)
    if protocol < 0x0600:  # no EtherType
        return NOT_IP
    return _by_ethertype(frame, length, offset, protocol, wire_length, layers, out)


cdef int _gre(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    # RFC 2784 2.1, RFC 2890 2: checksum, key and number may be there. Version 0, and none of the bits that RFC 2784 2.3 refuses.
    cdef uint32_t bits
    cdef size_t header = 4
    if length - offset < 4:
        return TRUNCATED
    bits = be16(frame + offset)
    if bits & 0x4C07:
        return NOT_IP
    header += 4 * <size_t>((bits >> 15) + (bits >> 13 & 1) + (bits >> 12 & 1))
    if length - offset < header:
        return TRUNCATED
    return _by_gre_protocol(frame, length, offset + header, be16(frame + offset + 2), wire_length, layers, out)


cdef int _vxlan(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    # RFC 7348 5: the flag I is set, everything reserved is not looked at.
    if length - offset < 8:
        return TRUNCATED
    if frame[offset] & 0x08 == 0:
        return NOT_IP
    return _ethernet(frame, length, offset + 8, wire_length, layers, out)


cdef int _geneve(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    # RFC 8926 3.4: version, length of the options, O for control packets.
    cdef size_t header
    if length - offset < 8:
        return TRUNCATED
    if frame[offset] >> 6 or frame[offset + 1] & 0x80:
        return NOT_IP
    header = 8 + (<size_t>frame[offset] & 0x3F) * 4
    if length - offset < header:
        return TRUNCATED
    return _by_gre_protocol(frame, length, offset + header, be16(frame + offset + 2), wire_length, layers, out)


cdef int _gtp(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    # 3GPP TS 29.281 5.1, 5.2: version 1, a G-PDU. Any of E, S and PN: four bytes more, of which the last one tells the first extension.
    cdef size_t end, header
    cdef uint8_t flags, next_
    if length - offset < 8:
        return TRUNCATED
    flags = frame[offset]
    if flags >> 4 != 3 or frame[offset + 1] != 255:
        return NOT_IP
    end = min(wire_length, offset + 8 + be16(frame + offset + 2))
    length = min(length, end)
    offset += 8
    if flags & 7:
        if length - offset < 4:
            return TRUNCATED
        next_ = frame[offset + 3] if flags & 4 else 0
        offset += 4
        while next_:  # its first byte is its length in words, its last one tells the next
            if length == offset:
                return TRUNCATED
            header = <size_t>frame[offset] * 4
            if header == 0:
                return NOT_IP
            if length - offset < header:
                return TRUNCATED
            next_ = frame[offset + header - 1]
            offset += header
    return _by_version(frame, length, offset, end, layers, out)


cdef int _mpls(const uint8_t *frame, size_t length, size_t offset, size_t wire_length, layers_s *layers, segment_s *out) noexcept nogil:
    # RFC 3032 2.1: labels up to the bottom of the stack. What follows is told by no field: by the version of IP, and nothing else is
    # guessed.
    cdef bint bottom = False
    while not bottom:
        if length - offset < 4:
            return TRUNCATED
        bottom = frame[offset + 2] & 1
        offset += 4
    return _by_version(frame, length, offset, wire_length, layers, out)


cdef int _tunnel(const uint8_t *frame, layers_s *layers, segment_s *out) noexcept nogil:
    cdef uint32_t tunnel = layers.tunnel
    cdef size_t offset = layers.offset, length = layers.length, wire_length = layers.wire_length
    layers.tunnel = 0
    if tunnel == TUNNEL_GRE:
        return _gre(frame, length, offset, wire_length, layers, out)
    if tunnel == TUNNEL_VXLAN:
        return _vxlan(frame, length, offset, wire_length, layers, out)
    if tunnel == TUNNEL_GENEVE:
        return _geneve(frame, length, offset, wire_length, layers, out)
    if tunnel == TUNNEL_MPLS:
        return _mpls(frame, length, offset, wire_length, layers, out)
    if tunnel == TUNNEL_PPPOE:
        # Padding follows where the session's own length says so (RFC 2516 4).
        if length - offset >= 6:
            wire_length = min(wire_length, offset + 6 + be16(frame + offset + 4))
        return _pppoe(frame, min(length, wire_length), offset, wire_length, layers, out)
    if tunnel == TUNNEL_GTP:
        return _gtp(frame, length, offset, wire_length, layers, out)
    return _by_version(frame, length, offset, wire_length, layers, out)  # IP in IP (RFC 2003, RFC 2473, RFC 4213)


cdef int _unwrapped(const uint8_t *frame, int verdict, layers_s *layers, segment_s *out) noexcept nogil:
    # One tunnel a turn. Where the innermost holds no IP, the verdict is that of what carried it.
    cdef int inner
    while layers.tunnel != 0 and layers.depth < MAX_TUNNELS:
        layers.depth += 1
        if not layers.tunnel & (TUNNEL_MPLS | TUNNEL_PPPOE):
            layers.level += LEVEL_TUNNEL
        inner = _tunnel(frame, layers, out)
        if inner != NOT_IP:
            verdict = inner
    return verdict


cdef int decode(
    const uint8_t *frame, size_t length, size_t wire_length, int linktype, uint32_t flags, segment_s *out
) noexcept nogil:
    cdef size_t total
    # Ethernet, no tag, IPv4 without options, wholly captured, no fragment, TCP: nearly every packet there is.
    if linktype == 1 and length >= 54 and be16(frame + 12) == 0x0800 and frame[14] == 0x45 and frame[23] == TCP:
        total = be16(frame + 16)
        if total >= 40 and be16(frame + 20) & 0x3FFF == 0 and length >= total + 14:
            _ipv4_addresses(frame + 14, 0, out)
            return _tcp(frame + 34, total - 20, total - 20, total - 20, flags, out)
    return _by_layers(frame, length, wire_length, linktype, flags, out)


cdef int _by_layers(
    const uint8_t *frame, size_t length, size_t wire_length, int linktype, uint32_t flags, segment_s *out
) noexcept nogil:
    cdef layers_s layers
    layers.flags, layers.tunnel, layers.depth, layers.level = flags, 0, 0, 0
    return _unwrapped(frame, _by_linktype(frame, length, _size(length, wire_length), linktype, &layers, out), &layers, out)


cdef int decode_datagram(
    const uint8_t *data, size_t length, size_t wire_length, uint8_t protocol, uint32_t depth, uint32_t flags, segment_s *out
) noexcept nogil:
    cdef layers_s layers
    cdef int verdict
    layers.flags, layers.tunnel, layers.depth, layers.level = flags, 0, depth, out.level & ~<uint8_t>LEVEL_IPV6
    if out.level & LEVEL_IPV6:
        verdict = _ipv6_payload(data, protocol, 0, length, wire_length, wire_length, &layers, out)
    else:
        verdict = _ipv4_payload(data, protocol, 0, length, wire_length, wire_length, &layers, out)
    return _unwrapped(data, verdict, &layers, out)


_VERDICTS = tuple(Verdict)
ALL_TUNNELS = (1 << len(TUNNELS)) - 1


def decode_frame(frame, linktype, wire_length=None, verify_checksums=False, tunnels=ALL_TUNNELS):
    """Decode one frame. For Python callers and tests; inside the core `decode` is called.

    Args:
        frame: the captured bytes, any buffer.
        linktype: LINKTYPE_ number of the capture; any int.
        wire_length: bytes that the frame had on the wire. None, or less than were captured: as captured.
        verify_checksums: refuse a wrong TCP checksum, where the whole segment was captured.
        tunnels: bit n: look into options.TUNNELS[n].

    Returns the verdict, and the `Segment` where that is `Verdict.SEGMENT`, else None. No bytes make it raise; TypeError where
    `frame` is no buffer.
    """
    cdef segment_s segment
    cdef Py_buffer view
    cdef const uint8_t *start
    cdef size_t on_wire = 0
    cdef int verdict, link, size
    if type(frame) is not bytes:
        frame = memoryview(frame)
        if not frame.c_contiguous:
            frame = bytes(frame)
    if wire_length is not None and wire_length > 0:
        on_wire = min(wire_length, SIZE_MAX_)
    link = linktype if 0 <= linktype <= 0xFFFF else -1
    PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE)
    try:
        start = <const uint8_t *>view.buf
        verdict = decode(
            start, view.len, on_wire, link, (VERIFY_CHECKSUMS if verify_checksums else 0) | (<uint32_t>tunnels << TUNNEL_BITS), &segment
        )
        if verdict != SEGMENT:
            return _VERDICTS[verdict], None
        size = 16 if segment.level & LEVEL_IPV6 else 4
        return _VERDICTS[SEGMENT], Segment(
            (<char *>segment.src)[:size], (<char *>segment.dst)[:size], segment.src_port, segment.dst_port, segment.seq, segment.ack,
            segment.flags, segment.window, segment.urgent, segment.payload - start, segment.payload_length, segment.wire_payload_length,
            segment.header, segment.level // LEVEL_TUNNEL,
        )
    finally:
        PyBuffer_Release(&view)
