"""Reassembly as one writes it by hand with the standard library alone: struct, a dictionary of flows, a heap of early segments each.

Called once a packet: the loop's body, all of it in one function, since a call costs more than what it would do.
"""

from __future__ import annotations

import heapq
import mmap
import struct
from typing import Any

from outcome import Outcome, main

HALF = 1 << 31
MASK = (1 << 32) - 1


def count(path: str) -> Outcome:
    packets = delivered = skipped = 0
    flows: dict[
        bytes, list[Any]
    ] = {}  # addresses and ports -> [next sequence number, position of it, heap of (position, length), any bytes]
    record = struct.Struct("<IIII").unpack_from
    segment = struct.Struct(">HHIIBB").unpack_from
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, end = 24, len(data)
        while at < end:
            captured = record(data, at)[2]
            frame = at + 16
            at = frame + captured
            packets += 1
            if data[frame + 12 : frame + 14] != b"\x08\x00" or data[frame + 23] != 6:
                continue
            ip = frame + 14
            tcp = ip + (data[ip] & 15) * 4
            _, _, seq, _, offset, flags = segment(data, tcp)
            begin = tcp + (offset >> 4) * 4
            length = ip + int.from_bytes(data[ip + 2 : ip + 4], "big") - begin
            syn = flags & 2
            if not length and not syn:
                continue
            key = data[ip + 12 : ip + 20] + data[tcp : tcp + 4]
            flow = flows.get(key)
            if syn:
                if flow is None:
                    flows[key] = [seq + 1 & MASK, 0, [], False]
                continue
            if flow is None:
                flow = flows[key] = [seq, 0, [], False]
            payload = data[begin : begin + length]
            ahead = (seq - flow[0] + HALF & MASK) - HALF
            if ahead > 0:
                heapq.heappush(flow[2], (flow[1] + ahead, length, payload))
                continue
            fresh = length + ahead
            if fresh <= 0:
                continue
            delivered += fresh
            flow[0] = flow[0] + fresh & MASK
            flow[1] += fresh
            flow[3] = True
            held = flow[2]
            while held and held[0][0] <= flow[1]:
                position, length, payload = heapq.heappop(held)
                fresh = position + length - flow[1]
                if fresh > 0:
                    delivered += fresh
                    flow[0] = flow[0] + fresh & MASK
                    flow[1] += fresh
    for flow in flows.values():
        position, held = flow[1], flow[2]
        while held:
            begin, length, _ = heapq.heappop(held)
            flow[3] = True
            if begin > position:
                skipped += begin - position
                position = begin
            if begin + length > position:
                delivered += begin + length - position
                position = begin + length
    return Outcome(packets, delivered, skipped, sum(flow[3] for flow in flows.values()))


if __name__ == "__main__":
    main(count)
