# cython: language_level=3
"""Frame to TCP segment, or a numbered reason why not: the C contract of the stage.

Lives here: link layers, IPv4, IPv6 and its extension headers, tunnels, the TCP header, the TCP checksum. Not here: how fragments become
datagrams, keys, anything with state. `decode` is called once a packet and holds, allocates and calls nothing: it may run in any
thread, without the GIL.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef enum:                        # tcpreasm.verdict.Verdict, and with JUDGE_CHECKSUMS two more
    SEGMENT = 0
    UNKNOWN_LINKTYPE = 1
    NOT_IP = 2
    NOT_TCP = 3
    FRAGMENT = 4
    TRUNCATED = 5
    BAD_IP_HEADER = 6
    BAD_TCP_HEADER = 7
    BAD_CHECKSUM = 8
    RIGHT_CHECKSUM = 9            # a segment whose checksum could be verified
    UNFILLED_CHECKSUM = 10        # a wrong one as systems leave it for the network card to fill in: the sum of the pseudo-header, or zero

cdef enum:                        # decode's flags
    VERIFY_CHECKSUMS = 1          # refuse a wrong TCP checksum, where the whole segment was captured
    JUDGE_CHECKSUMS = 2           # tell of each segment what its checksum was like, and fill in `out` for BAD_CHECKSUM too
    TUNNEL_BITS = 8               # from this bit on: what may be looked into, in the order of options.TUNNELS
    TUNNEL_GRE = 1 << 8
    TUNNEL_VXLAN = 1 << 9
    TUNNEL_GENEVE = 1 << 10
    TUNNEL_IPIP = 1 << 11
    TUNNEL_6IN4 = 1 << 12
    TUNNEL_4IN6 = 1 << 13
    TUNNEL_6IN6 = 1 << 14
    TUNNEL_MPLS = 1 << 15
    TUNNEL_PPPOE = 1 << 16
    TUNNEL_GTP = 1 << 17

cdef enum:                        # of the TCP header: RFC 9293 3.1
    FIN = 1
    SYN = 2
    RST = 4
    ACK = 16
    URG = 32

cdef enum:
    MAX_TUNNELS = 8               # one within the other, labels counted; what is deeper stays unopened

cdef enum:                        # what `level` is made of
    LEVEL_IPV6 = 1                # the IP header's version; without it IPv4
    LEVEL_TUNNEL = 2              # so much for each packet that this IP header lies in: labels (MPLS, PPPoE, VLAN) are none


# One decoded segment. Plain data; `payload` borrows from the frame and is good for as long as the frame is.
#
# Only a return value of 0 (Verdict.SEGMENT) fills it, and then every field; after most others its content means nothing (decode).
# src .. level are 37 bytes without a hole from offset 0 on, every one of them written: they may be compared and hashed as one run.
cdef struct segment_s:
    uint8_t src[16]               # sender, network order; IPv4: 4 bytes, then 12 of zero (no ::ffff: mapping, level tells)
    uint8_t dst[16]               # receiver, likewise
    uint16_t src_port             # host order, as every number below
    uint16_t dst_port
    uint8_t level                 # LEVEL_IPV6, and LEVEL_TUNNEL for each tunnel around
    uint8_t flags                 # FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128
    uint8_t header                # bytes of the TCP header, options included; it lies right before the payload
    uint16_t window               # as in the header, not scaled
    uint16_t urgent               # urgent pointer, whether URG is set or not
    uint32_t seq                  # of the first byte, or of the SYN
    uint32_t ack                  # whether ACK is set or not
    const uint8_t *payload        # never NULL; inside the frame, or just behind it where payload_length is 0
    uint32_t payload_length       # captured bytes; payload + payload_length <= frame + length
    uint32_t wire_payload_length  # bytes on the wire, payload_length <= wire_payload_length < 2**31


# One fragment of an IP datagram (RFC 791 3.2, RFC 8200 4.5), in the place of a segment: the result FRAGMENT fills this.
#
# src .. level are the same run of bytes as in segment_s, with the identification where the ports are.
cdef struct fragment_s:
    uint8_t src[16]
    uint8_t dst[16]
    uint16_t id_high              # identification: 16 bits (IPv4), 32 (IPv6)
    uint16_t id_low
    uint8_t level
    uint8_t protocol              # of the datagram's payload; IPv6: as this fragment says, and only the first one counts
    uint8_t more                  # others follow
    uint32_t flags                # to decode the datagram with
    uint32_t offset               # in the datagram's payload, bytes
    uint32_t depth                # tunnels and labels around it, it being one itself
    uint32_t before               # bytes of the header that count for the datagram's length
    const uint8_t *data           # borrowed from the frame. NULL: a fragment of the link layer (IEEE 802.11), and the rest means nothing
    uint32_t length               # captured bytes
    uint32_t wire_length          # bytes on the wire, at least length


# Decode one frame.
#
# frame        `length` readable bytes, at any alignment; not one beyond is read. May be NULL where length is 0.
# wire_length  bytes that the frame had on the wire; below `length` counts as `length`. Where the IP header gives no length (offloading,
#              jumbograms), or a greater one, this one counts.
# linktype     LINKTYPE_ number of the capture file; any value is allowed.
# flags        as above. IP header checksums are never looked at.
# out          filled on SEGMENT, and on FRAGMENT with a fragment_s; with JUDGE_CHECKSUMS also on BAD_, RIGHT_ and UNFILLED_CHECKSUM.
#
# Returns the number of a `tcpreasm.verdict.Verdict` (or of the two besides): 0 for a usable segment. Never raises, for any bytes.
cdef int decode(
    const uint8_t *frame, size_t length, size_t wire_length, int linktype, uint32_t flags, segment_s *out
) noexcept nogil

# The payload of a datagram that was put together of fragments: `length` bytes of it, of `wire_length`. `out` has its addresses and level;
# `depth` and `flags` are its fragments'. The rest as above.
cdef int decode_datagram(
    const uint8_t *data, size_t length, size_t wire_length, uint8_t protocol, uint32_t depth, uint32_t flags, segment_s *out
) noexcept nogil

# The TSval of a timestamp option (RFC 7323 3.2) among a header's options. False: there is none, or what stands before it is broken.
cdef bint timestamp_value(const uint8_t *options, int size, uint32_t *tsval) noexcept nogil
