"""What decoding made of a frame: a usable TCP segment, or the numbered reason why not.

Lives here: the numbers. Both cores return them; `AssemblerStats.verdicts` counts them.
"""

from enum import IntEnum

__all__ = ["Verdict"]


class Verdict(IntEnum):
    """What one frame was. Only `SEGMENT` goes on to the assembler. `str()` gives the name.

    Attributes:
        SEGMENT: 0, a TCP segment, used.
        UNKNOWN_LINKTYPE: 1, the capture's link type is none of those that are decoded. Which one it is, a logged warning tells, once.
        NOT_IP: 2, neither IPv4 nor IPv6 (ARP, LLDP, spanning tree, 802.11 control, ...), or something else in labels (MPLS, PPPoE).
        NOT_TCP: 3, IP, but another protocol than TCP (UDP, ICMP, ESP, no next header, ...), also in a tunnel; or a tunnel without IP.
        FRAGMENT: 4, a fragment of an IP datagram (RFC 791 3.2, RFC 8200 4.5) that did not become whole with it, or of an 802.11 frame.
            The one that makes a datagram whole is what the datagram is: SEGMENT, NOT_TCP, ...
        TRUNCATED: 5, the capture cut the frame before the end of the TCP header.
        BAD_IP_HEADER: 6, a version, header length or total length that contradicts itself (RFC 791 3.1, RFC 8200 3).
        BAD_TCP_HEADER: 7, a data offset below 5 words or beyond the segment (RFC 9293 3.1).
        BAD_CHECKSUM: 8, the TCP checksum is wrong, and `verify_checksums` refuses it (RFC 9293 3.1).
    """

    SEGMENT = 0
    UNKNOWN_LINKTYPE = 1
    NOT_IP = 2
    NOT_TCP = 3
    FRAGMENT = 4
    TRUNCATED = 5
    BAD_IP_HEADER = 6
    BAD_TCP_HEADER = 7
    BAD_CHECKSUM = 8

    def __str__(self) -> str:
        return self.name
