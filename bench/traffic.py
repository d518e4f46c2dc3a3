"""The workloads: seeded TCP traffic as arrays of packets, the capture file that it makes, and what a reassembler must get out of it.

Lives here: shapes of traffic, the pcap writer, the truth. Not here: names, sizes and files on disk (captures). Everything works on whole
arrays; Python runs once a packet only where the file's pieces are joined, and once a direction where its digest is made.

What a direction sends is a window of one block of random bytes (`Content`): it begins at a place of its own and wraps around, so that
no stream has to be kept in order to know its bytes. Offsets count a direction's bytes from 0; the SYN stands at -1, the FIN behind the
last one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "ARRIVALS",
    "Direction",
    "Traffic",
    "arrival_order",
    "bulk",
    "bytes_in_order",
    "directions",
    "lossy",
    "many_flows",
    "out_of_order",
    "small",
    "web",
    "write_pcap",
]

Array = np.ndarray[Any, Any]

FIN, SYN, PSH, ACK = 1, 2, 8, 16
CLIENT, SERVER = 0, 1
FULL = 1448  # payload of a full segment: 1500 bytes less the IPv4 header, the TCP header and its time stamp option
START = 1_700_000_000  # capture time of the first packet, seconds since 1970
LINE_GAP = 12e-6  # seconds between two full segments at about 1 Gbit/s
FAR = np.int64(1) << 40  # more than any direction is long: keeps directions apart in one running maximum


# -- content --------------------------------------------------------------------------------------------------------------


class Content:
    """The block of random bytes that all payload is cut from, and the checksum of any piece of it."""

    BYTES = 1 << 24
    TAIL = 1 << 16  # the block's beginning once more, so that a segment never wraps

    def __init__(self) -> None:
        block = np.random.default_rng(20240229).integers(0, 256, self.BYTES, dtype=np.uint8)
        data = np.concatenate([block, block[: self.TAIL]])
        self.view = data.data
        weighted = data.astype(np.int64)
        weighted[::2] <<= 8  # as high bytes of 16-bit words that begin at even places
        self._sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(weighted)])

    def word_sums(self, begin: Array, size: Array) -> Array:
        """Sums of the 16-bit words of pieces, modulo 65535 (RFC 1071). From an odd place on, high and low bytes change roles: that is
        a factor of 256."""
        sums = self._sums[begin + size] - self._sums[begin]
        return np.asarray(np.where(begin & 1, (sums % 65535) << 8, sums))

    def feed(self, digest: Any, place: int, begin: int, end: int) -> None:
        """Give a digest the bytes from begin to end of a direction that starts at `place`."""
        while begin < end:
            at = (place + begin) % self.BYTES
            size = min(end - begin, self.BYTES - at)
            digest.update(self.view[at : at + size])
            begin += size


@cache
def content() -> Content:
    """The one block, made when it is first needed."""
    return Content()


# -- connections and packets ----------------------------------------------------------------------------------------------


class Connections:
    """Who talks: addresses, ports, initial sequence numbers and places in the content, each an array of [side, connection]."""

    def __init__(self, count: int, rng: np.random.Generator, server_port: int = 40000) -> None:
        self.count = count
        number = rng.permutation(count)  # so that neither addresses nor ports are in the order of opening
        hosts = min(count, 1 << 14)
        self.address = np.stack([(10 << 24) + 1 + number % hosts, (172 << 24) + (16 << 16) + 1 + rng.integers(0, 4096, count)])
        self.port = np.stack([20000 + number // hosts, np.full(count, server_port)])
        self.isn = rng.integers(0, 1 << 32, (2, count))
        self.place = rng.integers(0, Content.BYTES, (2, count))


PACKET = np.dtype(
    [
        ("time", "f8"),  # seconds
        ("connection", "i8"),
        ("sender", "i8"),  # CLIENT or SERVER
        ("offset", "i8"),  # in the sender's direction
        ("acked", "i8"),  # bytes of the other direction that it acknowledges, the FIN as one
        ("size", "i8"),  # payload
        ("flags", "u1"),
    ]
)


class Trace:
    """Packets, put together in any order. A column is a number for all or an array, as numpy broadcasts."""

    def __init__(self) -> None:
        self._parts: list[Array] = []

    def add(self, time: Any, connection: Any, sender: Any, offset: Any = 0, acked: Any = 0, flags: Any = ACK, size: Any = 0) -> None:
        """Packets of this moment each."""
        time = np.atleast_1d(time)
        part = np.zeros(len(time), PACKET)
        for name, column in (
            ("connection", connection),
            ("sender", sender),
            ("offset", offset),
            ("acked", acked),
            ("flags", flags),
            ("size", size),
        ):
            part[name] = column
        part["time"] = time
        self._parts.append(part)

    def packets(self) -> Array:
        """All of them in the order of their times."""
        packets = np.concatenate(self._parts)
        self._parts = [packets]
        return by_time(packets)

    def handshake(self, who: Array, time: Array, rtt: Array) -> Array:
        """SYN, SYN and ACK, ACK. Returns when the client may send."""
        self.add(time, who, CLIENT, -1, 0, SYN)
        self.add(time + rtt / 2, who, SERVER, -1, 0, SYN | ACK)
        self.add(time + rtt, who, CLIENT, 0, 0, ACK)
        return time + rtt + 1e-6

    def goodbye(self, who: Array, time: Array, rtt: Array, sent: Array, first: int = SERVER) -> None:
        """Both FINs, and the last ACK. sent: bytes of [side, one of who]."""
        other = 1 - first
        self.add(time, who, first, sent[first], sent[other], FIN | ACK)
        self.add(time + rtt / 2, who, other, sent[other], sent[first] + 1, FIN | ACK)
        self.add(time + rtt, who, first, sent[first] + 1, sent[other] + 1, ACK)

    def transfer(
        self, who: Array, sender: int, time: Array, rtt: Array, offset: Array, acked: Array, size: Array, gap: float = LINE_GAP
    ) -> Array:
        """Full segments with a slow start: 10 in the first round trip, twice as many in each further one, without a pause from 640 on;
        an ACK for every second one. Returns when the last ACK is captured, half a round trip behind the data."""
        count = -(-size // FULL)
        owner, index = runs(count)
        length = np.minimum(FULL, size[owner] - index * FULL)
        round_ = np.minimum(np.floor(np.log2(index / 10 + 1)), 6)
        moment = time[owner] + round_ * (rtt[owner] + 64 * gap) + (index - 10 * (2**round_ - 1)) * gap
        last = index == count[owner] - 1
        at = offset[owner] + index * FULL
        self.add(moment, who[owner], sender, at, acked[owner], np.where(last | (index % 8 == 7), ACK | PSH, ACK), length)
        heard = last | (index % 2 == 1)
        self.add(moment[heard] + rtt[owner[heard]] / 2, who[owner[heard]], 1 - sender, acked[owner[heard]], (at + length)[heard], ACK)
        return np.asarray(moment[last] + rtt / 2)


def by_time(packets: Array) -> Array:
    """In capture order; packets of one moment stay as they are."""
    return packets[np.argsort(packets["time"], kind="stable")]


def runs(count: Array) -> tuple[Array, Array]:
    """For runs of so many elements: the run of each element, and its index there. runs([2, 1]) is [0, 0, 1], [0, 1, 0]."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) - (np.cumsum(count) - count)[owner]


def sums_before(group: Array, value: Array) -> Array:
    """For each element the sum of the values before it in its group; groups are contiguous."""
    before = np.cumsum(value) - value
    return np.asarray(before - before[first_of(group)[run_numbers(group)]])


def equals_before(value: Array) -> Array:
    """For each element the number of equal ones before it."""
    order = np.argsort(value, kind="stable")
    number = np.empty(len(value), np.int64)
    number[order] = sums_before(value[order], np.ones(len(value), np.int64))
    return number


def first_of(group: Array) -> Array:
    """Where each run of equal elements begins."""
    return np.flatnonzero(np.concatenate([np.ones(min(len(group), 1), bool), group[1:] != group[:-1]]))


def run_numbers(group: Array) -> Array:
    """Which run of equal elements each belongs to."""
    number = np.zeros(len(group), np.int64)
    number[first_of(group)] = 1
    return np.cumsum(number) - 1


@dataclass(frozen=True)
class Traffic:
    """A workload: who talks, the packets in capture order, and the bytes that each side sends, [side, connection]."""

    description: str
    connections: Connections
    packets: Array
    sent: Array


def scaled(number: int, scale: float) -> int:
    """That much of it, and at least 1."""
    return max(1, round(number * scale))


# -- the shapes -----------------------------------------------------------------------------------------------------------


def bulk(scale: float) -> Traffic:
    """16 uploads at once, 12,800 full segments each, in trains of 8 to 40."""
    rng = np.random.default_rng(11)
    uploads, segments = 16, scaled(12_800, scale)
    connections, trace = Connections(uploads, rng, server_port=5001), Trace()
    who = np.arange(uploads)
    rtt = np.full(uploads, 400e-6)
    trace.handshake(who, who * 1e-4, rtt)
    sent = np.stack([segments * FULL - rng.integers(0, FULL, uploads), np.zeros(uploads, np.int64)])

    trains = rng.integers(8, 41, (uploads, -(-segments // 8)))
    borders = np.minimum(np.cumsum(trains, axis=1), segments)
    lengths = np.diff(borders, axis=1, prepend=0)
    owner = rng.permutation(np.nonzero(lengths)[0])  # whose train is next; each takes its own in order
    length = np.empty(len(owner), np.int64)
    length[np.argsort(owner, kind="stable")] = lengths[lengths > 0]
    train, _ = runs(length)
    sender = owner[train]
    index = equals_before(sender)

    time = 0.01 + np.arange(len(sender)) * 1.3e-6
    size = np.minimum(FULL, sent[CLIENT, sender] - index * FULL)
    last = index == segments - 1
    trace.add(time, sender, CLIENT, index * FULL, 0, np.where(last, ACK | PSH, ACK), size)
    heard = last | (index % 2 == 1)
    trace.add(time[heard] + 3.9e-6, sender[heard], SERVER, 0, (index * FULL + size)[heard], ACK)
    trace.goodbye(who, np.full(uploads, time[-1] + 0.01), rtt, sent, first=CLIENT)
    return Traffic(
        f"{uploads} uploads at once, {FULL} bytes a segment, trains of 8 to 40, an ACK for two", connections, trace.packets(), sent
    )


def _browse(trace: Trace, who: Array, rng: np.random.Generator, rate: float, median: float, sigma: float) -> tuple[Array, float]:
    """Short connections: handshake, 1 to 5 requests with their responses, goodbye. Returns the bytes sent, and when the last is over."""
    count = len(who)
    time = np.cumsum(rng.exponential(1 / rate, count))
    rtt = np.clip(rng.lognormal(np.log(0.02), 0.7, count), 0.5e-3, 0.3)
    sent = np.zeros((2, count), np.int64)
    time = trace.handshake(who, time, rtt)
    exchanges = np.minimum(rng.geometric(0.75, count), 5)
    for exchange in range(int(exchanges.max())):
        active = np.flatnonzero(exchanges > exchange)
        now, trip = time[active], rtt[active]
        request = np.clip(rng.normal(400, 120, len(active)), 60, 1400).astype(np.int64)
        trace.add(now, who[active], CLIENT, sent[CLIENT, active], sent[SERVER, active], ACK | PSH, request)
        sent[CLIENT, active] += request
        trace.add(now + trip / 2, who[active], SERVER, sent[SERVER, active], sent[CLIENT, active])
        response = np.clip(rng.lognormal(np.log(median), sigma, len(active)), 80, 20_000_000).astype(np.int64)
        ready = now + trip / 2 + rng.exponential(4e-3, len(active)) + 1e-5
        over = trace.transfer(who[active], SERVER, ready, trip, sent[SERVER, active], sent[CLIENT, active], response)
        sent[SERVER, active] += response
        time[active] = over + rng.exponential(20e-3, len(active))
    trace.goodbye(who, time, rtt, sent)
    return sent, float(time.max())


def web(scale: float, count: int, rate: float, median: float, sigma: float) -> Traffic:
    """Short connections, so many a second, with responses of a heavy-tailed (lognormal) size."""
    rng = np.random.default_rng(12)
    count = scaled(count, scale)
    connections, trace = Connections(count, rng), Trace()
    sent, _ = _browse(trace, np.arange(count), rng, rate, median, sigma)
    text = f"connections of 1 to 5 requests, {rate:.0f} a second; responses lognormal, median {median:.0f} bytes, sigma {sigma}; slow start"
    return Traffic(text, connections, trace.packets(), sent)


def many_flows(scale: float) -> Traffic:
    """500,000 connections that are open all at once, 2,000,000 packets of 64 to 300 bytes both ways among them, in random order."""
    rng = np.random.default_rng(13)
    count, data, seconds = scaled(500_000, scale), scaled(2_000_000, scale), 60.0
    data = max(data, 2 * count)
    connections, trace = Connections(count, rng), Trace()
    who = np.arange(count)
    opened = rng.uniform(0, 0.05 * seconds, count)
    trace.add(opened, who, CLIENT, -1, 0, SYN)
    trace.add(opened + 1e-3, who, SERVER, -1, 0, SYN | ACK)
    rest = data - 2 * count  # each connection says something early and something late, so that all stay in use
    connection = np.concatenate([who, who, rng.integers(0, count, rest)])
    early, late = rng.uniform(0.06 * seconds, 0.35 * seconds, count), rng.uniform(0.65 * seconds, seconds, count)
    time = np.concatenate([early, late, rng.uniform(0.06 * seconds, seconds, rest)])
    order = np.lexsort((time, connection))
    connection, time = connection[order], time[order]
    sender = np.where(rng.random(data) < 0.6, CLIENT, SERVER)
    size = rng.integers(64, 301, data)
    by_side = [np.where(sender == side, size, 0) for side in (CLIENT, SERVER)]
    before = [sums_before(connection, column) for column in by_side]
    trace.add(time, connection, sender, np.choose(sender, before), np.choose(1 - sender, before), ACK | PSH, size)
    sent = np.stack([np.bincount(connection, column, count).astype(np.int64) for column in by_side])
    text = "all connections open at once and to the end, 64 to 300 bytes a packet, both ways, in random order"
    return Traffic(text, connections, trace.packets(), sent)


def small(scale: float) -> Traffic:
    """1,000 connections, 3,000,000 packets of 64 bytes in random order, one way."""
    rng = np.random.default_rng(14)
    count, data, size = 1000, scaled(3_000_000, scale), 64
    connections, trace = Connections(count, rng), Trace()
    who = np.arange(count)
    rtt = np.full(count, 2e-3)
    trace.handshake(who, who * 1e-6, rtt)
    connection = rng.integers(0, count, data)
    trace.add(0.01 + np.arange(data) * 1e-6, connection, CLIENT, equals_before(connection) * size, 0, ACK | PSH, size)
    sent = np.stack([np.bincount(connection, minlength=count) * size, np.zeros(count, np.int64)])
    trace.goodbye(who, 0.02 + data * 1e-6 + who * 1e-6, rtt, sent, first=CLIENT)
    return Traffic(f"{count} connections, {size} bytes a packet, one way, in random order", connections, trace.packets(), sent)


def lossy(scale: float) -> Traffic:
    """8,000 short connections and 8 uploads of 14,000 segments over a bad line: see `_damage`."""
    rng = np.random.default_rng(15)
    browsers, uploads, segments = scaled(8_000, scale), 8, scaled(14_000, scale)
    connections, trace = Connections(browsers + uploads, rng), Trace()
    sent = np.zeros((2, browsers + uploads), np.int64)
    sent[:, :browsers], over = _browse(trace, np.arange(browsers), rng, 1200, 10_000, 1.2)
    who = browsers + np.arange(uploads)
    rtt, nothing, size = np.full(uploads, 0.01), np.zeros(uploads, np.int64), np.full(uploads, segments * FULL)
    time = trace.handshake(who, np.arange(uploads) * 0.01, rtt)
    end = trace.transfer(who, CLIENT, time, rtt, nothing, nothing, size, gap=max(1e-6, (over - 0.5) / segments))
    sent[CLIENT, who] = size
    trace.goodbye(who, np.full(uploads, float(end.max()) + 0.1), rtt, sent[:, who])
    packets, counts = _damage(trace.packets(), sent, rng)
    damage = ", ".join(f"{count} {name}" for name, count in counts.items())
    return Traffic(f"{browsers} short connections and {uploads} uploads; of the data packets {damage}", connections, packets, sent)


def _damage(packets: Array, sent: Array, rng: np.random.Generator) -> tuple[Array, dict[str, int]]:
    """Of the packets with payload, 2 % come up to 64 data packets of their direction too late, 1 % are captured only as such a late
    retransmission, 0.5 % never, 1 % twice (the second one up to 10 later), and 0.5 % are retransmitted with other borders."""
    data = np.flatnonzero(packets["size"] > 0)
    data = data[np.lexsort((packets["time"][data], packets["sender"][data], packets["connection"][data]))]
    direction = packets["connection"][data] * 2 + packets["sender"][data]
    begin = first_of(direction)
    last = np.append(begin[1:], len(data))[run_numbers(direction)] - 1
    position = np.arange(len(data))
    late, soon = (data[np.minimum(position + steps, last)] for steps in (rng.integers(1, 65, len(data)), rng.integers(0, 11, len(data))))
    fates = ("reordered", "retransmitted", "never captured", "duplicated", "overlapped")
    fate = rng.choice(len(fates) + 1, len(data), p=[0.02, 0.01, 0.005, 0.01, 0.005, 0.95])

    arrival = packets["time"].copy()
    moved = fate < 2  # the copy that is captured stands right behind a later data packet, and so never behind the FIN
    arrival[data[moved]] = packets["time"][late[moved]] + 1e-7
    twice = packets[data[fate == 3]].copy()
    twice["time"] = packets["time"][soon[fate == 3]] + 2e-7
    again = packets[data[fate == 4]].copy()
    again["time"] = packets["time"][late[fate == 4]] + 3e-7
    again["offset"] = np.maximum(0, again["offset"] + rng.integers(-700, 700, len(again)))
    again["size"] = np.minimum(rng.integers(200, FULL + 1, len(again)), sent[again["sender"], again["connection"]] - again["offset"])
    again = again[again["size"] > 0]

    captured = packets.copy()
    captured["time"] = arrival
    captured = np.delete(captured, data[fate == 2])
    fate[(fate == 0) & (late == data)] = len(fates)  # the last ones have nothing to come behind
    counts = {name: int(np.count_nonzero(fate == number)) for number, name in enumerate(fates)}
    return by_time(np.concatenate([captured, twice, again])), counts


ARRIVALS = ("reverse", "random", "even-odd", "head-last")


def arrival_order(arrival: str, count: int, window: int, rng: np.random.Generator) -> Array:
    """Numbers from 0 to count - 1 in the order in which they come, disordered within windows of so many.

    reverse: from the window's end. random. even-odd: the odd ones forward, then the even ones backward, which fill every second place.
    head-last: in order, but the window's first one comes last.
    """
    orders = []
    for base in range(0, count, window):
        number = np.arange(min(window, count - base))
        if arrival == "reverse":
            number = number[::-1]
        elif arrival == "random":
            number = rng.permutation(number)
        elif arrival == "even-odd":
            number = np.concatenate([number[1::2], number[::2][::-1]])
        elif arrival == "head-last":
            number = np.roll(number, -1)
        else:
            raise ValueError(f"arrival is one of {', '.join(ARRIVALS)}, not {arrival!r}")
        orders.append(base + number)
    return np.concatenate(orders)


def out_of_order(scale: float, arrival: str, window: int) -> Traffic:
    """One upload of 200,000 segments of 256 bytes, disordered within windows of so many."""
    rng = np.random.default_rng(16)
    segments, size = scaled(200_000, scale), 256
    connections, trace = Connections(1, rng), Trace()
    who, rtt = np.zeros(1, np.int64), np.full(1, 1e-3)
    trace.handshake(who, np.zeros(1), rtt)
    order = arrival_order(arrival, segments, window, rng)
    trace.add(0.01 + np.arange(segments) * 1e-6, 0, CLIENT, order * size, 0, ACK, size)
    sent = np.array([[segments * size], [0]])
    trace.goodbye(who, np.full(1, 0.02 + segments * 1e-6), rtt, sent, first=CLIENT)
    return Traffic(f"one upload, {size} bytes a segment, {arrival} within {window} segments", connections, trace.packets(), sent)


# -- the truth ------------------------------------------------------------------------------------------------------------


class Direction(NamedTuple):
    """What one side of a connection sent, and what of it the packets hold."""

    connection: int
    sender: int
    sent: int
    gaps: list[tuple[int, int]]
    """(offset, length) of what was never captured, in order."""
    sha256: bytes
    """Of what was captured, in the stream's order, gaps left out."""

    @property
    def present(self) -> int:
        """Bytes that were captured."""
        return self.sent - sum(length for _, length in self.gaps)


def directions(traffic: Traffic) -> Iterator[Direction]:
    """Every direction that sends anything, worked out from the packets themselves."""
    data = traffic.packets[traffic.packets["size"] > 0]
    direction = data["connection"] * 2 + data["sender"]
    order = np.lexsort((data["offset"], direction))
    direction, begin, end = direction[order], data["offset"][order], (data["offset"] + data["size"])[order]
    reached = _running_maximum(direction, end)  # bytes that are there up to and with each packet
    first = first_of(direction)
    before = np.concatenate([[0], reached[:-1]])
    before[first] = 0
    gaps: dict[int, list[tuple[int, int]]] = {}
    for at in np.flatnonzero(begin > before).tolist():
        gaps.setdefault(int(direction[at]), []).append((int(before[at]), int(begin[at] - before[at])))
    last = np.append(first[1:], len(direction)) - 1
    ends = dict(zip(direction[last].tolist(), reached[last].tolist())) if len(direction) else {}

    sent, place = traffic.sent.T.ravel().tolist(), traffic.connections.place.T.ravel().tolist()
    feed = content().feed
    for number in np.flatnonzero(traffic.sent.T.ravel()).tolist():
        length, there = sent[number], ends.get(number, 0)
        missing = gaps.get(number, [])
        if there < length:
            missing.append((there, length - there))
        digest = hashlib.sha256()
        position = 0
        for offset, size in missing:
            feed(digest, place[number], position, offset)
            position = offset + size
        feed(digest, place[number], position, length)
        yield Direction(number // 2, number % 2, length, missing, digest.digest())


def bytes_in_order(traffic: Traffic) -> int:
    """Payload of the packets that begin exactly where all earlier ones of their direction end: what a loop that holds nothing back gets,
    and that goes on behind the highest byte it saw."""
    data = traffic.packets[traffic.packets["size"] > 0]
    direction = data["connection"] * 2 + data["sender"]
    order = np.argsort(direction, kind="stable")
    direction, data = direction[order], data[order]
    reached = _running_maximum(direction, data["offset"] + data["size"])
    before = np.concatenate([[0], reached[:-1]])
    before[first_of(direction)] = 0
    return int(data["size"][data["offset"] == before].sum())


def _running_maximum(group: Array, value: Array) -> Array:
    """The highest value so far in each group; groups are contiguous."""
    base = run_numbers(group) * FAR
    return np.asarray(np.maximum.accumulate(value + base) - base)


# -- the file -------------------------------------------------------------------------------------------------------------

RECORD = np.dtype(
    [
        ("seconds", "<u4"), ("microseconds", "<u4"), ("captured", "<u4"), ("on_wire", "<u4"),
        ("to_mac", "u1", 6), ("from_mac", "u1", 6), ("ethertype", ">u2"),
        ("version", "u1"), ("tos", "u1"), ("total", ">u2"), ("id", ">u2"), ("fragment", ">u2"), ("ttl", "u1"), ("protocol", "u1"),
        ("ip_checksum", ">u2"), ("src", ">u4"), ("dst", ">u4"),
        ("src_port", ">u2"), ("dst_port", ">u2"), ("seq", ">u4"), ("ack", ">u4"), ("data_offset", "u1"), ("flags", "u1"),
        ("window", ">u2"), ("checksum", ">u2"), ("urgent", ">u2"), ("options", "u1", 20),
    ]
)  # fmt: skip
IP_AT, TCP_AT = 30, 50  # in the record
WRITTEN_AT_ONCE = 1 << 16  # packets
MACS = np.array([[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]], np.uint8)


def write_pcap(path: Path, traffic: Traffic) -> int:
    """Write the capture: pcap with microseconds, Ethernet, IPv4, TCP with time stamps, all checksums right. Returns the file's size."""
    view = content().view
    microseconds = np.floor(traffic.packets["time"] * 1e6).astype(np.int64)
    with path.open("wb") as file:
        file.write(np.array([0xA1B2C3D4, 2 | 4 << 16, 0, 0, 1 << 18, 1], "<u4").tobytes())
        for begin in range(0, len(traffic.packets), WRITTEN_AT_ONCE):
            part = slice(begin, begin + WRITTEN_AT_ONCE)
            packets = traffic.packets[part]
            place = (traffic.connections.place[packets["sender"], packets["connection"]] + packets["offset"]) % Content.BYTES
            records, lengths = _records(traffic, packets, microseconds[part], begin, place)
            heads = memoryview(records.tobytes())
            pieces: list[memoryview] = []
            at = 0
            for length, where, size in zip(lengths.tolist(), place.tolist(), packets["size"].tolist()):
                pieces.append(heads[at : at + length])
                at += RECORD.itemsize
                if size:
                    pieces.append(view[where : where + size])
            file.write(b"".join(pieces))
        return file.tell()


def _records(traffic: Traffic, packets: Array, microseconds: Array, number: int, place: Array) -> tuple[Array, Array]:
    """Record and packet headers, and the length of each: the rest of a row is no part of it."""
    connections, connection, sender, size = traffic.connections, packets["connection"], packets["sender"], packets["size"]
    receiver = 1 - sender
    syn = packets["flags"] & SYN > 0
    tcp_header = np.where(syn, 40, 32)
    records = np.zeros(len(packets), RECORD)
    records["seconds"], records["microseconds"] = START + microseconds // 1_000_000, microseconds % 1_000_000
    records["captured"] = records["on_wire"] = 34 + tcp_header + size
    records["from_mac"], records["to_mac"], records["ethertype"] = MACS[sender], MACS[receiver], 0x0800
    records["version"], records["total"], records["id"] = 0x45, 20 + tcp_header + size, (number + np.arange(len(packets))) & 0xFFFF
    records["fragment"], records["ttl"], records["protocol"] = 0x4000, 64, 6
    records["src"], records["dst"] = connections.address[sender, connection], connections.address[receiver, connection]
    records["src_port"], records["dst_port"] = connections.port[sender, connection], connections.port[receiver, connection]
    records["seq"] = (connections.isn[sender, connection] + 1 + packets["offset"]) & 0xFFFFFFFF
    acked = (connections.isn[receiver, connection] + 1 + packets["acked"]) & 0xFFFFFFFF
    records["ack"] = np.where(packets["flags"] & ACK, acked, 0)
    records["data_offset"], records["flags"], records["window"] = tcp_header << 2, packets["flags"], 502
    options = records["options"]
    clock = (microseconds // 1000).astype(">u4").view(np.uint8).reshape(-1, 4)
    options[:, :4], options[:, 4:8], options[:, 8:12] = (1, 1, 8, 10), clock, clock  # two NOPs and the time stamp
    options[syn, :8], options[syn, 8:12] = (2, 4, FULL + 12 >> 8, FULL + 12 & 0xFF, 4, 2, 8, 10), clock[syn]  # MSS, SACK, time stamp
    options[syn, 12:] = (0, 0, 0, 0, 1, 3, 3, 7)  # its echo, NOP, window scale
    words = records.view(np.uint8).reshape(len(packets), -1)[:, IP_AT:].copy().view(">u2").astype(np.int64)
    ip, tcp = words[:, : (TCP_AT - IP_AT) // 2], words[:, (TCP_AT - IP_AT) // 2 :]  # unused options are zeros, and add nothing
    records["ip_checksum"] = -ip.sum(1) % 65535
    pseudo_header = ip[:, 6:].sum(1) + 6 + tcp_header + size
    records["checksum"] = -(tcp.sum(1) + pseudo_header + content().word_sums(place, size)) % 65535
    return records, TCP_AT + tcp_header
