# cython: language_level=3
"""Frame to TCP segment: the compiled twin of `_pure/decode.py`, function by function. The contract is in decode.pxd.

Lives here: link layers, IPv4, IPv6 and its extension headers, the TCP header, the TCP checksum. Not here: tunnels, fragments, keys, state.
`decode` is called once a packet. Ethernet with a plain IPv4 header goes straight through: one look at link and IP header together, then
TCP. Everything else takes one layer after the other, each of which checks that it was captured before it reads, and hands on
(offset <= length).

Multi-byte fields are put together from bytes: right at any alignment and byte order, and one load and swap to the compiler.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ..decoded import Segment
from ..verdict import Verdict

__all__ = ["decode_frame"]


cdef enum:  # tcpreasm.verdict.Verdict
    SEGMENT = 0
    UNKNOWN_LINKTYPE = 1
    NOT_IP = 2
    NOT_TCP = 3
    FRAGMENT = 4
    TRUNCATED = 5
    BAD_IP_HEADER = 6
    BAD_TCP_HEADER = 7
    BAD_CHECKSUM = 8

cdef enum:
    TCP = 6
    OFFLOADED_MAX = 1 << 20  # no network card takes more at once (Linux: 512 KiB); a frame that claims more is damaged there
    SIZE_MAX_ = 0x7FFFFFFF  # a frame counts as no longer than this, so that every length fits 31 bits


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


cdef bint _checksum_is_right(const uint8_t *tcp, size_t length, const segment_s *out) noexcept nogil:
    # RFC 9293 3.1, RFC 8200 8.1. The zeros behind IPv4 addresses add nothing.
    cdef uint8_t pseudo[8]
    cdef uint64_t total
    pseudo[0], pseudo[1], pseudo[2], pseudo[3] = <uint8_t>(length >> 24), <uint8_t>(length >> 16), <uint8_t>(length >> 8), <uint8_t>length
    pseudo[4], pseudo[5], pseudo[6], pseudo[7] = 0, 0, 0, TCP
    total = _words(pseudo, 8, 0)
    total = _words(out.src, 16, total)
    total = _words(out.dst, 16, total)
    total = _words(tcp, length, total)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


cdef inline int _tcp(
    const uint8_t *tcp, size_t captured, size_t on_wire, size_t room, bint verify_checksums, segment_s *out
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
    if verify_checksums and captured == on_wire and not _checksum_is_right(tcp, on_wire, out):
        return BAD_CHECKSUM
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


cdef inline void _ipv4_addresses(const uint8_t *ip, segment_s *out) noexcept nogil:
    # Stores of 8 bytes, so that a hash that loads 8 bytes right afterwards gets them from the store buffer.
    cdef uint64_t src = 0, dst = 0, zero = 0
    memcpy(&src, ip + 12, 4)
    memcpy(&dst, ip + 16, 4)
    memcpy(out.src, &src, 8)
    memcpy(out.src + 8, &zero, 8)
    memcpy(out.dst, &dst, 8)
    memcpy(out.dst + 8, &zero, 8)
    out.is_ipv6 = 0


cdef inline size_t _size(size_t length, size_t wire_length) noexcept nogil:
    # What the whole frame had on the wire.
    cdef size_t size = wire_length if wire_length > length else length
    return size if size < SIZE_MAX_ else SIZE_MAX_


cdef inline size_t _offloaded(size_t length, size_t offset, size_t wire_length) noexcept nogil:
    # Bytes from offset on, where only the frame tells: those on the wire, if that can be.
    cdef size_t size = _size(length, wire_length) - offset
    return size if size <= OFFLOADED_MAX else length - offset


cdef int _ipv4(
    const uint8_t *frame, size_t length, size_t offset, size_t wire_length, bint verify_checksums, segment_s *out
) noexcept nogil:
    cdef const uint8_t *ip = frame + offset
    cdef size_t captured = length - offset
    cdef size_t header, total
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
    if be16(ip + 6) & 0x3FFF:  # more fragments, or an offset
        return FRAGMENT
    if ip[9] != TCP:
        return NOT_TCP
    if captured < header:
        return TRUNCATED
    if total == 0:  # the network card was to cut it into segments: the frame tells the length
        total = _offloaded(length, offset, wire_length)
        if total < header:
            total = header
    if captured > total:  # what follows is padding
        captured = total
    _ipv4_addresses(ip, out)
    return _tcp(ip + header, captured - header, total - header, _size(length, wire_length) - offset - header, verify_checksums, out)


cdef int _ipv6(
    const uint8_t *frame, size_t length, size_t offset, size_t wire_length, bint verify_checksums, segment_s *out
) noexcept nogil:
    cdef const uint8_t *ip = frame + offset
    cdef size_t end, header
    cdef uint8_t protocol
    if length == offset:
        return TRUNCATED
    if ip[0] >> 4 != 6:
        return BAD_IP_HEADER
    if length - offset < 40:
        return TRUNCATED
    end = be16(ip + 4)
    protocol = ip[6]
    offset += 40
    if end != 0:
        end += offset
    else:  # a jumbogram (RFC 2675), or cut by the network card: the frame tells the length
        end = offset + _offloaded(length, offset, wire_length)
    while protocol != TCP:  # one extension header a turn, 8 bytes at least
        if not (protocol == 0 or protocol == 43 or protocol == 44 or protocol == 51 or protocol == 60 or protocol == 135
                or protocol == 139 or protocol == 140):
            return NOT_TCP
        if end - offset < 8:
            return BAD_IP_HEADER
        if length < offset + 8:
            return TRUNCATED
        if protocol == 44:
            if be16(frame + offset + 2) & 0xFFF9:  # an offset, or more fragments; neither: atomic, and whole (RFC 6946)
                return FRAGMENT
            header = 8
        elif protocol == 51:
            header = (<size_t>frame[offset + 1] + 2) * 4
        else:
            header = (<size_t>frame[offset + 1] + 1) * 8
            if protocol == 43 and frame[offset + 3] != 0:
                verify_checksums = False  # segments left: the checksum is over an address that differs from type to type
        if end - offset < header:
            return BAD_IP_HEADER
        if length < offset + header:
            return TRUNCATED
        protocol = frame[offset]
        offset += header
    memcpy(out.src, ip + 8, 16)
    memcpy(out.dst, ip + 24, 16)
    out.is_ipv6 = 1
    return _tcp(
        frame + offset, (end if end < length else length) - offset, end - offset, _size(length, wire_length) - offset, verify_checksums, out
    )


cdef int _by_version(
    const uint8_t *frame, size_t length, size_t offset, size_t wire_length, bint verify_checksums, segment_s *out
) noexcept nogil:
    if length == offset:
        return TRUNCATED
    if frame[offset] >> 4 == 4:
        return _ipv4(frame, length, offset, wire_length, verify_checksums, out)
    if frame[offset] >> 4 == 6:
        return _ipv6(frame, length, offset, wire_length, verify_checksums, out)
    return NOT_IP


cdef int _by_ethertype(
    const uint8_t *frame, size_t length, size_t offset, uint32_t ethertype, size_t wire_length, bint verify_checksums, segment_s *out
) noexcept nogil:
    while True:
        if ethertype == 0x0800:
            return _ipv4(frame, length, offset, wire_length, verify_checksums, out)
        if ethertype == 0x86DD:
            return _ipv6(frame, length, offset, wire_length, verify_checksums, out)
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
            return NOT_IP


cdef int _by_ppp_protocol(
    const uint8_t *frame, size_t length, size_t offset, size_t wire_length, bint verify_checksums, segment_s *out
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
        return _ipv4(frame, length, offset, wire_length, verify_checksums, out)
    if protocol == 0x57:
        return _ipv6(frame, length, offset, wire_length, verify_checksums, out)
    return NOT_IP


cdef int _by_family(
    const uint8_t *frame, size_t length, uint32_t family, size_t wire_length, bint verify_checksums, segment_s *out
) noexcept nogil:
    if family == 2:
        return _ipv4(frame, length, 4, wire_length, verify_checksums, out)
    if family == 10 or family == 24 or family == 28 or family == 30:  # AF_INET6 of Linux, NetBSD and OpenBSD, FreeBSD, macOS
        return _ipv6(frame, length, 4, wire_length, verify_checksums, out)
    return NOT_IP


cdef int _wlan(
    const uint8_t *frame, size_t length, size_t offset, bint data_pad, size_t wire_length, bint verify_checksums, segment_s *out
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
        return FRAGMENT
    if kind & 0x80 and frame[offset + (30 if flags & 3 == 3 else 24)] & 0x80:  # several packets aggregated
        return NOT_IP
    if data_pad:
        header = (header + 3) & ~<size_t>3
        if length - offset < header:
            return TRUNCATED
    return _by_ethertype(frame, length, offset + header, 0, wire_length, verify_checksums, out)


cdef int _radiotap(const uint8_t *frame, size_t length, size_t wire_length, bint verify_checksums, segment_s *out) noexcept nogil:
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
    return _wlan(frame, length, header, data_pad, wire_length, verify_checksums, out)


cdef int _by_linktype(
    const uint8_t *frame, size_t length, size_t wire_length, int linktype, bint verify_checksums, segment_s *out
) noexcept nogil:
    cdef uint32_t protocol
    cdef size_t header
    if linktype == 1:  # EN10MB
        if length < 14:
            return TRUNCATED
        return _by_ethertype(frame, length, 14, be16(frame + 12), wire_length, verify_checksums, out)
    if linktype == 101 or linktype == 12 or linktype == 14:  # RAW
        return _by_version(frame, length, 0, wire_length, verify_checksums, out)
    if linktype == 228:  # IPV4
        return _ipv4(frame, length, 0, wire_length, verify_checksums, out)
    if linktype == 229:  # IPV6
        return _ipv6(frame, length, 0, wire_length, verify_checksums, out)
    if linktype == 113 or linktype == 276:  # LINUX_SLL, LINUX_SLL2
        header = 16 if linktype == 113 else 20
        if length < header:
            return TRUNCATED
        protocol = be16(frame + (14 if linktype == 113 else 0))
        if protocol < 0x0600 and protocol != 4:  # Linux's own numbers, of which 4 is LLC
            return NOT_IP
        return _by_ethertype(frame, length, header, protocol, wire_length, verify_checksums, out)
    if linktype == 0 or linktype == 108:  # NULL: the writer's byte order; LOOP: network order
        if length < 4:
            return TRUNCATED
        protocol = be32(frame)
        if linktype == 0 and protocol > 0xFFFFFF:
            protocol = frame[0] | (<uint32_t>frame[1] << 8) | (<uint32_t>frame[2] << 16) | (<uint32_t>frame[3] << 24)
        return _by_family(frame, length, protocol, wire_length, verify_checksums, out)
    if linktype == 9:  # PPP
        return _by_ppp_protocol(frame, length, 0, wire_length, verify_checksums, out)
    if linktype == 50 or linktype == 104:  # PPP_SERIAL: either of the two; C_HDLC: Cisco's framing (RFC 1547 4.3.1)
        if length == 0:
            return TRUNCATED
        if linktype == 50 and frame[0] != 0x0F and frame[0] != 0x8F:
            return _by_ppp_protocol(frame, length, 0, wire_length, verify_checksums, out)
        if length < 4:
            return TRUNCATED
        protocol = be16(frame + 2)
        if protocol < 0x0600:
            return NOT_IP
        return _by_ethertype(frame, length, 4, protocol, wire_length, verify_checksums, out)
    if linktype == 51:  # PPP_ETHER (RFC 2516 4)
        if length < 6:
            return TRUNCATED
        if frame[0] != 0x11 or frame[1] != 0:  # not session data
            return NOT_IP
        return _by_ppp_protocol(frame, length, 6, wire_length, verify_checksums, out)
    if linktype == 10:  # FDDI
        if length < 13:
            return TRUNCATED
        if frame[0] & 0x70 != 0x50:  # no LLC frame with addresses of 48 bits
            return NOT_IP
        return _by_ethertype(frame, length, 13, 0, wire_length, verify_checksums, out)
    if linktype == 105:  # IEEE802_11
        return _wlan(frame, length, 0, False, wire_length, verify_checksums, out)
    if linktype == 127:  # IEEE802_11_RADIOTAP
        return _radiotap(frame, length, wire_length, verify_checksums, out)
    return UNKNOWN_LINKTYPE


cdef int decode(
    const uint8_t *frame, size_t length, size_t wire_length, int linktype, bint verify_checksums, segment_s *out
) noexcept nogil:
    cdef size_t total
    # Ethernet, no tag, IPv4 without options, wholly captured, no fragment, TCP: nearly every packet there is.
    if linktype == 1 and length >= 54 and be16(frame + 12) == 0x0800 and frame[14] == 0x45 and frame[23] == TCP:
        total = be16(frame + 16)
        if total >= 40 and be16(frame + 20) & 0x3FFF == 0 and length >= total + 14:
            _ipv4_addresses(frame + 14, out)
            return _tcp(frame + 34, total - 20, total - 20, total - 20, verify_checksums, out)
    return _by_linktype(frame, length, wire_length, linktype, verify_checksums, out)


_VERDICTS = tuple(Verdict)


def decode_frame(frame, linktype, wire_length=None, verify_checksums=False):
    """Decode one frame. For Python callers and tests; inside the core `decode` is called.

    Args:
        frame: the captured bytes, any buffer.
        linktype: LINKTYPE_ number of the capture; any int.
        wire_length: bytes that the frame had on the wire. None, or less than were captured: as captured.
        verify_checksums: refuse a wrong TCP checksum, where the whole segment was captured.

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
        verdict = decode(start, view.len, on_wire, link, bool(verify_checksums), &segment)
        if verdict != SEGMENT:
            return _VERDICTS[verdict], None
        size = 16 if segment.is_ipv6 else 4
        return _VERDICTS[SEGMENT], Segment(
            (<char *>segment.src)[:size], (<char *>segment.dst)[:size], segment.src_port, segment.dst_port, segment.seq, segment.ack,
            segment.flags, segment.window, segment.urgent, segment.payload - start, segment.payload_length, segment.wire_payload_length,
            segment.header,
        )
    finally:
        PyBuffer_Release(&view)
