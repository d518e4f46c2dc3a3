"""The usual loop with dpkt: every payload goes into a list of its flow, and in the end the lists are sorted and joined.

Its weak places are those of the idiom: everything is in memory until the end, and a flow beyond 4 GiB or a port used again comes out wrong.
"""

from __future__ import annotations

from collections import defaultdict

import dpkt
from outcome import Outcome, main

MASK = (1 << 32) - 1
Key = tuple[bytes, int, bytes, int]


def count(path: str) -> Outcome:
    packets = 0
    flows: defaultdict[Key, list[tuple[int, bytes]]] = defaultdict(list)
    starts: dict[Key, int] = {}
    with open(path, "rb") as file:
        for _, frame in dpkt.pcap.Reader(file):
            packets += 1
            ip = dpkt.ethernet.Ethernet(frame).data
            if not isinstance(ip, (dpkt.ip.IP, dpkt.ip6.IP6)) or not isinstance(ip.data, dpkt.tcp.TCP):
                continue
            tcp = ip.data
            key = (ip.src, tcp.sport, ip.dst, tcp.dport)
            if tcp.flags & dpkt.tcp.TH_SYN:
                starts[key] = tcp.seq + 1
            if tcp.data:
                flows[key].append((tcp.seq, tcp.data))
    delivered = skipped = 0
    for key, segments in flows.items():
        start = starts.get(key, segments[0][0])
        stream = bytearray()
        position = 0
        for offset, payload in sorted(((seq - start & MASK, payload) for seq, payload in segments), key=lambda segment: segment[0]):
            if offset > position:
                skipped += offset - position
                position = offset
            if offset + len(payload) > position:
                stream += payload[position - offset :]
                position = offset + len(payload)
        delivered += len(stream)
    return Outcome(packets, delivered, skipped, len(flows))


if __name__ == "__main__":
    main(count)
