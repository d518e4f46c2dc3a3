# cython: language_level=3
"""Frame to TCP segment, or a numbered reason why not: the C contract of the stage.

Lives here: link layers, IPv4, IPv6 and its extension headers, the TCP header, the TCP checksum. Not here: tunnels, fragments, keys,
anything with state. `decode` is called once a packet and holds, allocates and calls nothing: it may run in any thread, without the GIL.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t


# One decoded segment. Plain data; `payload` borrows from the frame and is good for as long as the frame is.
#
# Only a return value of 0 (Verdict.SEGMENT) fills it, and then every field; after any other its content means nothing.
# src .. is_ipv6 are 37 bytes without a hole from offset 0 on, every one of them written: they may be compared and hashed as one run.
cdef struct segment_s:
    uint8_t src[16]               # sender, network order; IPv4: 4 bytes, then 12 of zero (no ::ffff: mapping, is_ipv6 tells)
    uint8_t dst[16]               # receiver, likewise
    uint16_t src_port             # host order, as every number below
    uint16_t dst_port
    uint8_t is_ipv6               # 0 or 1
    uint8_t flags                 # FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128
    uint8_t header                # bytes of the TCP header, options included; it lies right before the payload
    uint16_t window               # as in the header, not scaled
    uint16_t urgent               # urgent pointer, whether URG is set or not
    uint32_t seq                  # of the first byte, or of the SYN
    uint32_t ack                  # whether ACK is set or not
    const uint8_t *payload        # never NULL; inside the frame, or just behind it where payload_length is 0
    uint32_t payload_length       # captured bytes; payload + payload_length <= frame + length
    uint32_t wire_payload_length  # bytes on the wire, payload_length <= wire_payload_length < 2**31


# Decode one frame.
#
# frame        `length` readable bytes, at any alignment; not one beyond is read. May be NULL where length is 0.
# wire_length  bytes that the frame had on the wire; below `length` counts as `length`. Where the IP header gives no length (offloading,
#              jumbograms), or a greater one, this one counts.
# linktype     LINKTYPE_ number of the capture file; any value is allowed.
# verify_checksums   refuse a wrong TCP checksum, where the whole segment was captured. IP header checksums are never looked at.
# out          filled on 0 only.
#
# Returns the number of a `tcpreasm.verdict.Verdict`: 0 for a usable segment. Never raises, for any bytes.
cdef int decode(
    const uint8_t *frame, size_t length, size_t wire_length, int linktype, bint verify_checksums, segment_s *out
) noexcept nogil

# The TSval of a timestamp option (RFC 7323 3.2) among a header's options. False: there is none, or what stands before it is broken.
cdef bint timestamp_value(const uint8_t *options, int size, uint32_t *tsval) noexcept nogil
