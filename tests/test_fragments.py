"""Fragmented IP datagrams: the bytes that come out, in whatever order, through every way in, on both cores; limits, and what is counted.

Not here: which packets count as fragments (test_decode), captures of real fragments (test_corpus_kernel, test_corpus_real).
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import fields
from itertools import pairwise, permutations
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from capture_bytes import NS, pcap_header, pcap_record
from hypothesis import given, settings
from hypothesis import strategies as st

FIN, SYN, ACK = 1, 2, 16
RAW = 101
SRC4, DST4 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
SRC6, DST6 = bytes(15) + b"\1", bytes(15) + b"\2"


def tcp(data: bytes, seq: int = 1001, flags: int = ACK, port: int = 40000) -> bytes:
    return struct.pack("!HHIIBBHHH", port, 80, seq, 1, 0x50, flags, 1024, 0, 0) + data


def ipv4(
    body: bytes, *, ident: int = 1, offset: int = 0, more: bool = False, protocol: int = 6, total: int | None = None, src: bytes = SRC4
) -> bytes:
    field = offset // 8 | more << 13
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, total or 20 + len(body), ident, field, 64, protocol, 0, src, DST4) + body


def ipv6(body: bytes, next_header: int = 6) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(body), next_header, 64, SRC6, DST6) + body


def fragment(ip: int, body: bytes, begin: int, end: int, ident: int = 1, protocol: int = 6) -> bytes:
    """Bytes begin to end of a datagram's payload."""
    if ip == 4:
        return ipv4(body[begin:end], ident=ident, offset=begin, more=end < len(body), protocol=protocol)
    return ipv6(struct.pack("!BBHI", protocol, 0, begin | (end < len(body)), ident) + body[begin:end], 44)


def fragments(ip: int, body: bytes, size: int, ident: int = 1, protocol: int = 6) -> list[bytes]:
    return [fragment(ip, body, at, min(at + size, len(body)), ident, protocol) for at in range(0, len(body), size)]


def whole(ip: int, body: bytes) -> bytes:
    return ipv4(body) if ip == 4 else ipv6(body)


class Rig:
    """An assembler whose streams note their pieces."""

    def __init__(self, package: ModuleType, **options: Any) -> None:
        self.pieces: list[tuple[bytes, int, int, int]] = []
        self.kept: list[Any] = []
        rig = self

        class Stream:
            def __init__(self, net_flow: Any, transport_flow: Any) -> None:
                self.key = f"{net_flow.src} {transport_flow.src}"

            def reassembled(self, pieces: list[Any]) -> None:
                rig.kept.extend(pieces)
                rig.pieces.extend((bytes(piece), piece.skip, piece.seen_ns, piece.offset) for piece in pieces if len(piece) or piece.skip)

            def reassembly_complete(self) -> None:
                pass

        self.assembler = package.Assembler(package.StreamPool(Stream), package.AssemblerOptions(**options))
        self.verdicts: list[str] = []

    def feed(self, frames: Iterable[bytes], start: int = 0, step: int = 1000) -> None:
        for number, frame in enumerate(frames):
            self.verdicts.append(str(self.assembler.assemble_frame(frame, timestamp_ns=start + number * step, linktype=RAW)))
            self.check()

    def check(self) -> Any:
        stats = self.assembler.stats
        assert stats.fragments == stats.fragments_joined + stats.fragments_held + sum(stats.fragments_dropped.values())
        assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held
        return stats

    @property
    def data(self) -> bytes:
        return b"".join(data for data, *_ in self.pieces)


def opened(package: ModuleType, ip: int = 4, **options: Any) -> Rig:
    rig = Rig(package, **options)
    rig.feed([whole(ip, tcp(b"", 1000, SYN))])
    rig.verdicts.clear()
    return rig


BODY = bytes(i * 7 % 251 for i in range(100))  # with TCP's header: 120 bytes


@pytest.mark.parametrize("ip", [4, 6])
def test_every_order(tcpreasm: ModuleType, ip: int) -> None:
    parts = fragments(ip, tcp(BODY), 32)
    assert len(parts) == 4
    for order in permutations(parts):
        rig = opened(tcpreasm, ip)
        rig.feed(order, 5000)
        assert rig.pieces == [(BODY, 0, 8000, -1)], "the time of the last fragment, and no place in a capture"
        assert rig.verdicts == ["FRAGMENT"] * 3 + ["SEGMENT"]
        stats = rig.check()
        assert (stats.fragments, stats.fragments_joined, stats.fragments_held, stats.datagrams) == (4, 4, 0, 1)
        assert stats.segments == 2
        assert not stats.fragments_dropped


@pytest.mark.parametrize("ip", [4, 6])
@pytest.mark.parametrize("size", [8, 16, 24, 1480, 65_000])
def test_every_size_shuffled_and_duplicated(tcpreasm: ModuleType, ip: int, size: int) -> None:
    body = random.Random(size).randbytes(1000 if size < 1000 else 65_400)
    for seed in range(3):
        parts = fragments(ip, tcp(body), size)
        again = [*parts, *parts[1:-1]]
        random.Random(seed).shuffle(again)
        rig = opened(tcpreasm, ip)
        rig.feed(again)
        assert rig.data == body
        stats = rig.check()
        assert stats.datagrams == 1
        assert stats.fragments == len(again)
        assert stats.fragments_joined == len(parts)


@pytest.mark.parametrize("ip", [4, 6])
def test_a_repeated_fragment_is_counted(tcpreasm: ModuleType, ip: int) -> None:
    parts = fragments(ip, tcp(BODY), 40)
    rig = opened(tcpreasm, ip)
    rig.feed([parts[0], parts[0], parts[2], parts[2], parts[0], parts[1]])
    assert rig.data == BODY
    assert dict(rig.check().fragments_dropped) == {"repeated": 3}


def test_ipv4_the_first_copy_of_a_byte_stays(tcpreasm: ModuleType) -> None:
    body = tcp(BODY)
    other = body[:20] + bytes(byte ^ 0xFF for byte in BODY)
    rig = opened(tcpreasm)
    rig.feed([fragment(4, body, 32, 64), fragment(4, other, 24, 80), fragment(4, other, 0, 48), fragment(4, body, 72, 120)])
    assert rig.data == (body[:20] + other[20:32] + body[32:64] + other[64:80] + body[80:])[20:]
    assert rig.check().fragments_joined == 4


def test_ipv4_a_fragment_over_several_holes(tcpreasm: ModuleType) -> None:
    body = tcp(BODY)
    other = body[:20] + bytes(byte ^ 0xFF for byte in BODY)
    rig = opened(tcpreasm)
    rig.feed([fragment(4, body, 24, 32), fragment(4, body, 48, 56), fragment(4, body, 72, 80)])
    rig.feed([fragment(4, other, 16, 96), fragment(4, body, 0, 24), fragment(4, body, 96, 120)])
    keep = {*range(24, 32), *range(48, 56), *range(72, 80), *range(16), *range(96, 120)}
    assert rig.data == bytes(body[at] if at in keep else other[at] for at in range(20, 120))


def test_ipv6_overlap_discards_the_datagram(tcpreasm: ModuleType) -> None:
    """RFC 5722: and what comes of it later too."""
    body = tcp(BODY)
    other = body[:20] + bytes(byte ^ 0xFF for byte in BODY)
    for second in (fragment(6, other, 32, 72), fragment(6, other, 24, 40), fragment(6, other, 40, 56), fragment(6, body, 56, 72)):
        rig = opened(tcpreasm, 6)
        rig.feed([fragment(6, body, 32, 64), second, fragment(6, body, 0, 32), fragment(6, body, 64, 120), fragment(6, body, 32, 64)])
        assert rig.data == b""
        assert dict(rig.check().fragments_dropped) == {"overlap": 5}
        rig.feed(fragments(6, body, 40, ident=2))
        assert rig.data == BODY, "another one is another one"


@pytest.mark.parametrize("ip", [4, 6])
def test_datagrams_are_told_apart(tcpreasm: ModuleType, ip: int) -> None:
    first, second = (fragments(ip, tcp(BODY[at : at + 50], 1001 + at), 24, ident=7 + at) for at in (0, 50))
    rig = opened(tcpreasm, ip)
    rig.feed([part for pair in zip(first, second, strict=True) for part in pair])
    assert rig.data == BODY
    third = fragments(ip, tcp(b"xx", 1101), 16, ident=9)
    udp = fragments(ip, bytes(40), 16, ident=9, protocol=17)
    rig.feed([third[0], *(udp if ip == 4 else []), third[1]])
    assert rig.data == BODY + b"xx", "IPv4: the protocol is part of it"


def test_ipv4_by_source(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    body = tcp(BODY)
    rig.feed([fragment(4, body, 0, 64), ipv4(bytes(56), offset=64, src=bytes([10, 0, 0, 9])), fragment(4, body, 64, 120)])
    assert rig.data == BODY


def test_the_last_fragment_has_the_verdict_of_the_datagram(tcpreasm: ModuleType) -> None:
    for protocol, body, verdict in (
        (17, bytes(40), "NOT_TCP"), (6, bytes(40), "BAD_TCP_HEADER"), (6, bytes(16), "BAD_TCP_HEADER"), (47, bytes(40), "NOT_TCP"),
    ):  # fmt: skip
        rig = Rig(tcpreasm)
        rig.feed(fragments(4, body, 8, protocol=protocol))
        assert rig.verdicts == ["FRAGMENT"] * (len(body) // 8 - 1) + [verdict]
        assert rig.check().datagrams == 1


@pytest.mark.parametrize("ip", [4, 6])
def test_switched_off(tcpreasm: ModuleType, ip: int) -> None:
    rig = opened(tcpreasm, ip, defragment=False)
    rig.feed(fragments(ip, tcp(BODY), 40))
    assert rig.verdicts == ["FRAGMENT"] * 3
    assert rig.pieces == []
    stats = rig.check()
    assert (stats.fragments, stats.datagrams) == (0, 0)


def test_what_cannot_be_is_malformed(tcpreasm: ModuleType) -> None:
    body = tcp(BODY)
    rig = opened(tcpreasm)
    rig.feed([ipv4(b"", more=True), ipv4(body[:12], more=True), ipv4(body[:9], offset=8, more=True)])
    rig.feed([fragment(4, body, 64, 120), ipv4(bytes(16), offset=120), ipv4(bytes(8), offset=64), ipv4(bytes(64), offset=64, more=True)])
    rig.feed([fragment(4, body, 0, 64)])
    assert rig.data == BODY
    assert dict(rig.check().fragments_dropped) == {"malformed": 6}


def test_a_last_fragment_before_what_came_is_malformed(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    body = tcp(BODY)
    rig.feed([fragment(4, body, 64, 96), ipv4(body[32:64], offset=32), fragment(4, body, 0, 64), fragment(4, body, 96, 120)])
    assert rig.data == BODY
    assert dict(rig.check().fragments_dropped) == {"malformed": 1}


@pytest.mark.parametrize("ip", [4, 6])
def test_too_large(tcpreasm: ModuleType, ip: int) -> None:
    """The ping of death."""
    limit = 65_535 - (20 if ip == 4 else 0)
    rig = opened(tcpreasm, ip)
    body = tcp(bytes(limit - 20))
    rig.feed(fragments(ip, body, 8000))
    assert len(rig.data) == limit - 20
    over = body + b"x"
    rig.feed(fragments(ip, over, 8000, ident=2))
    assert len(rig.data) == limit - 20
    assert dict(rig.check().fragments_dropped) == {"too_large": 9}


def test_time_out(tcpreasm: ModuleType) -> None:
    first, second = fragments(4, tcp(BODY), 64)
    for seconds, data in ((30, BODY), (31, b"")):
        rig = opened(tcpreasm)
        rig.feed([first])
        rig.feed([second], seconds * NS)
        assert rig.data == data
    assert dict(rig.check().fragments_dropped) == {"timeout": 1}
    rig = opened(tcpreasm, fragment_timeout=100)
    rig.feed([first])
    rig.feed([second], 40 * NS)
    assert rig.data == BODY
    rig = opened(tcpreasm, fragment_timeout=None)
    rig.feed([first])
    for at in range(0, 4000, 50):
        rig.feed([whole(4, tcp(b"", 2000, ACK))], at * NS)
    rig.feed([second], 4000 * NS)
    assert rig.data == BODY


def test_a_wild_time_expires_nothing(tcpreasm: ModuleType) -> None:
    first, second = fragments(4, tcp(BODY), 64)
    rig = opened(tcpreasm)
    rig.feed([first])
    rig.feed([fragment(4, tcp(BODY), 0, 8, ident=9)], 10**9 * NS)
    rig.feed([second], 2000)
    assert rig.data == BODY


def test_limit_of_datagrams(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm, max_fragmented_datagrams=3)
    pairs = [fragments(4, tcp(bytes([65 + n]) * 20, 1001 + 20 * n), 24, ident=n) for n in range(5)]
    rig.feed(first for first, _ in pairs)
    assert dict(rig.check().fragments_dropped) == {"limit": 2}
    rig.feed([pairs[2][1], pairs[3][1], pairs[4][1]])
    rig.assembler.flush_all()
    assert rig.data == b"C" * 20 + b"D" * 20 + b"E" * 20


def taken_by(room: int, ranges: int = 1) -> int:
    """Bytes of memory that a datagram counts as: itself, room for its payload, and for its ranges, that grew one after the other."""
    range_room = 0
    for number in range(ranges):
        if number == range_room:
            range_room = 2 * range_room + 4
    return 256 + room + 8 * range_room


def test_limit_of_bytes(tcpreasm: ModuleType) -> None:
    body = tcp(bytes(980))
    most = taken_by(512) + taken_by(1024)
    for limit, left in ((most, 1), (most - 1, 0)):
        rig = opened(tcpreasm, max_fragment_bytes=limit)
        rig.feed([*fragments(4, body, 504, ident=1)[:1], *fragments(4, body, 504, ident=2)[:1]])
        assert rig.check().fragments_held == 2
        rig.feed([fragment(4, body, 504, 1000, ident=2)])
        assert (len(rig.data), rig.check().fragments_held) == (980, left)
    rig = opened(tcpreasm, max_fragment_bytes=most)
    rig.feed([fragment(4, body, 0, 504, ident=1), fragment(4, body, 504, 1000, ident=3)])
    assert rig.check().fragments_held == 2
    rig.feed([fragment(4, body, 504, 1000, ident=4)])
    assert dict(rig.check().fragments_dropped) == {"limit": 2}, "each counts with the room up to its highest byte: the two oldest gave way"
    rig.feed([ipv4(bytes(8), ident=5, offset=16_000, more=True)])
    assert rig.check().fragments_held == 0, "one alone that is larger gives way to itself"


def test_a_limit_below_what_one_datagram_takes(tcpreasm: ModuleType) -> None:
    for limit in (1, 255, 256, taken_by(256) - 1):
        rig = opened(tcpreasm, max_fragment_bytes=limit)
        rig.feed(fragments(4, tcp(BODY), 64))
        assert (rig.data, dict(rig.check().fragments_dropped)) == (b"", {"limit": 2})
    rig = opened(tcpreasm, max_fragment_bytes=taken_by(256))
    rig.feed(fragments(4, tcp(BODY), 64))
    assert rig.data == BODY


@pytest.mark.parametrize("count", [1, 4, 5, 12, 13, 28, 29, 500])
def test_ranges_count_for_the_limit(tcpreasm: ModuleType, count: int) -> None:
    """Every other eight bytes of one datagram."""
    room = 256
    while room < 16 * count - 8:
        room *= 2
    for less in (0, 1):
        limit = taken_by(room, count) - less
        rig = opened(tcpreasm, max_fragment_bytes=limit)
        for number in range(count):
            frame = ipv4(bytes(8), offset=16 * number, more=True)
            assert str(rig.assembler.assemble_frame(frame, timestamp_ns=1, linktype=RAW)) == "FRAGMENT"
        stats = rig.check()
        assert ("limit" in stats.fragments_dropped, stats.fragments_held < count) == ((True, True) if less else (False, False))


def flood(count: int, body: bytes = bytes(8), offset: int = 0) -> tuple[bytes, list[int], list[int], list[int]]:
    """One fragment of each of many datagrams, for `assemble_batch`."""
    frame = bytearray(ipv4(body, offset=offset, more=True))
    parts = []
    for number in range(count):
        struct.pack_into("!I", frame, 12, number)
        parts.append(bytes(frame))
    return b"".join(parts), [len(frame) * number for number in range(count)], [len(frame)] * count, [1] * count


def test_a_flood_of_datagrams_is_bounded_by_what_they_take(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm, max_fragmented_datagrams=1 << 20, max_fragment_bytes=100 * taken_by(256) + 200)
    rig.assembler.assemble_batch(*flood(3000), linktype=RAW)
    stats = rig.check()
    assert (stats.fragments_held, dict(stats.fragments_dropped)) == (100, {"limit": 2900})
    rig.assembler.flush_all()
    rig.assembler.assemble_batch(*flood(100), linktype=RAW)
    assert rig.check().fragments_held == 100, "nothing is left counted of those that went"


def test_what_was_given_up_counts_less(tcpreasm: ModuleType) -> None:
    """Of a datagram that cannot become whole its record stays: 256 bytes."""
    rig = Rig(tcpreasm, max_fragmented_datagrams=1 << 20, max_fragment_bytes=10 * 256)
    rig.assembler.assemble_batch(*flood(30, bytes(64), 65_528), linktype=RAW)
    assert dict(rig.check().fragments_dropped) == {"too_large": 30}
    data, offsets, lengths, times = flood(30)
    rig.assembler.assemble_batch(data, offsets[20:], lengths[20:], times[20:], linktype=RAW)
    assert dict(rig.check().fragments_dropped) == {"too_large": 40}, "ten of them are known"
    for number in (0, 23, 22):
        rig.assembler.assemble_batch(data, offsets[number:][:1], lengths[:1], times[:1], linktype=RAW)
    stats = rig.check()
    assert (dict(stats.fragments_dropped), stats.fragments_held) == ({"too_large": 41}, 2), "a new one takes the place of three"


def test_the_table_of_datagrams_grows(both: tuple[ModuleType, ModuleType]) -> None:
    rig = Rig(both[0], max_fragmented_datagrams=1 << 20, max_fragment_bytes=1 << 30)
    assert rig.assembler._fragment_table() == (0, 0, 0)
    for count in (60, 5000, 200_000):
        rig.assembler.assemble_batch(*flood(count), linktype=RAW)
        buckets, datagrams, longest = rig.assembler._fragment_table()
        assert count == datagrams <= buckets < 2 * max(64, count)
        assert longest <= 12
    assert rig.check().fragments_dropped["repeated"] == 60 + 5000, "they are found in the greater table"
    rig.assembler.flush_all()
    assert rig.assembler._fragment_table() == (0, 0, 0)


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps freed memory: nothing to learn of it")
@pytest.mark.parametrize(("size", "offset"), [(8, 0), (200, 0), (1400, 0), (8, 60_000)])
def test_the_limit_is_of_memory(size: int, offset: int) -> None:
    """Resident memory, in a process of its own."""
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import tcpreasm
from test_fragments import RAW, flood
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) << 10
limit = 32 << 20
options = tcpreasm.AssemblerOptions(max_fragmented_datagrams=1 << 20, max_fragment_bytes=limit)
assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), options)
flooding = flood(80_000, bytes({size}), {offset})
before = resident()
assembler.assemble_batch(*flooding, linktype=RAW)
print((resident() - before) / limit)
"""
    environment = {**os.environ, "TCPREASM_IMPLEMENTATION": "compiled"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < 1.25


def test_a_flush_of_all_gives_them_up(tcpreasm: ModuleType) -> None:
    first, second = fragments(4, tcp(BODY), 64)
    rig = opened(tcpreasm)
    rig.feed([first])
    rig.assembler.flush_all()
    stats = rig.check()
    assert (stats.fragments_held, dict(stats.fragments_dropped)) == (0, {"incomplete": 1})
    rig.feed([second])
    assert rig.data == b""
    rig.assembler.close()
    assert rig.check().fragments_dropped["incomplete"] == 2


@pytest.mark.parametrize("ip", [4, 6])
def test_what_the_capture_cut_off_is_a_gap(tcpreasm: ModuleType, ip: int) -> None:
    parts = fragments(ip, tcp(BODY), 40)
    header = 20 if ip == 4 else 48
    for cut in (0, 1, 39):
        for order in permutations(range(3)):
            rig = opened(tcpreasm, ip)
            for at in order:
                frame = parts[at][: header + cut] if at == 1 else parts[at]
                rig.assembler.assemble_frame(frame, timestamp_ns=1, linktype=RAW, wire_length=len(parts[at]))
            rig.feed([whole(ip, tcp(b"END", 1101, ACK | FIN))])
            assert [piece[:2] for piece in rig.pieces] == [(BODY[: 20 + cut], 0), (b"END", 80 - cut)]


@pytest.mark.parametrize("ip", [4, 6])
def test_checksums_of_datagrams(tcpreasm: ModuleType, ip: int) -> None:
    right = summed(tcp(BODY), ip)
    rig = Rig(tcpreasm, verify_checksums=True)
    rig.feed([whole(ip, summed(tcp(b"", 1000, SYN), ip))])
    rig.feed(fragments(ip, right[:-1] + b"\0", 40))
    assert rig.verdicts[-1] == "BAD_CHECKSUM"
    rig.feed(fragments(ip, right, 40, ident=2))
    assert rig.verdicts[-1] == "SEGMENT"
    assert rig.data == BODY


def summed(body: bytes, ip: int = 4, src: bytes | None = None) -> bytes:
    addresses = (src or SRC4) + DST4 if ip == 4 else SRC6 + DST6
    pseudo = addresses + struct.pack("!II", len(body), 6)
    data = pseudo + body[:16] + b"\0\0" + body[18:] + bytes(len(body) & 1)
    return body[:16] + struct.pack("!H", 0xFFFF - (int.from_bytes(data, "big") % 0xFFFF)) + body[18:]


def test_ipv6_headers_behind_the_fragment_header(tcpreasm: ModuleType) -> None:
    body = struct.pack("!BB6s", 6, 0, b"\1\4\0\0\0\0") + tcp(BODY)
    rig = opened(tcpreasm, 6)
    rig.feed(fragments(6, body, 48, protocol=60))
    assert rig.data == BODY


def test_ipv6_only_the_first_fragment_tells_the_protocol(tcpreasm: ModuleType) -> None:
    """RFC 8200 4.5."""
    body = tcp(BODY)
    for order in permutations([fragment(6, body, 0, 40), fragment(6, body, 40, 80, 1, 17), fragment(6, body, 80, 120, 1, 44)]):
        rig = opened(tcpreasm, 6)
        rig.feed(order)
        assert rig.data == BODY


def test_tunnels_in_fragments_and_fragments_in_tunnels(tcpreasm: ModuleType) -> None:
    gre = b"\0\0\x08\0"
    rig = Rig(tcpreasm)
    rig.feed([ipv4(gre + ipv4(tcp(b"", 1000, SYN)), protocol=47)])
    rig.feed(fragments(4, gre + ipv4(tcp(BODY)), 48, protocol=47))
    assert rig.data == BODY
    inner = fragments(4, tcp(BODY, 1101), 48, ident=5)
    rig.feed(ipv4(gre + part, protocol=47) for part in inner)
    assert rig.data == BODY * 2
    twice = [
        outer for n, part in enumerate(fragments(4, tcp(BODY, 1201), 64, ident=6)) for outer in fragments(4, gre + part, 40, 20 + n, 47)
    ]
    random.Random(1).shuffle(twice)
    rig.feed(twice)
    assert rig.data == BODY * 3
    stats = rig.check()
    assert (stats.fragments_held, dict(stats.fragments_dropped)) == (0, {})
    assert stats.fragments == stats.fragments_joined == 3 + 3 + len(twice) + 2


def test_fragments_without_end_in_each_other(tcpreasm: ModuleType) -> None:
    """A datagram whose payload is IPv6 fragments of itself, to any depth."""
    packet = tcp(BODY)
    protocol = 6
    for _ in range(30):
        packet = struct.pack("!BBHI", protocol, 0, 1, 7) + packet + bytes(-len(packet) % 8)
        protocol = 44
    rig = Rig(tcpreasm)
    rig.feed(fragments(6, packet, 200, ident=9, protocol=44))
    rig.assembler.flush_all()
    assert rig.data == b""
    rig.check()


def test_kept_pieces_stay_what_they_are(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    views = []
    for n in range(20):
        rig.feed(fragments(4, tcp(bytes([n]) * 2000, 1001 + 2000 * n), 504, ident=n))
        views.append(memoryview(rig.kept[-1]))
    assert [bytes(view) for view in views] == [bytes([n]) * 2000 for n in range(20)]
    assert [bytes(piece) for piece in rig.kept if len(piece)] == [bytes(view) for view in views]


def test_early_segments_are_copied(tcpreasm: ModuleType) -> None:
    rig = opened(tcpreasm)
    rig.feed(fragments(4, tcp(b"b" * 3000, 2001), 504, ident=1))
    rig.feed(fragments(4, tcp(b"c" * 3000, 5001), 504, ident=2))
    assert rig.data == b""
    rig.feed([whole(4, tcp(b"a" * 1000))])
    assert rig.data == b"a" * 1000 + b"b" * 3000 + b"c" * 3000
    assert all(offset == -1 for *_, offset in rig.pieces)


# Whole captures, through every way in.


def traffic(seed: int, connections: int = 12) -> tuple[list[bytes], dict[int, bytes]]:
    """Frames of several connections, of which most segments are fragmented, out of order, some fragments twice; and what was sent."""
    chance = random.Random(seed)
    queues: list[list[bytes]] = []
    sent = {}
    identification = 0
    for number in range(connections):
        ip, port = chance.choice((4, 6)), 40000 + number
        data = sent[port] = chance.randbytes(chance.randrange(3000, 20_000))
        queue = [whole(ip, tcp(b"", 1000, SYN, port))]
        at = 0
        parts: list[bytes] = []
        while at < len(data):
            size = chance.randrange(1, 4000)
            body = tcp(data[at : at + size], 1001 + at, ACK, port)
            identification += 1
            split = (
                [whole(ip, body)] if chance.random() < 0.3 else fragments(ip, body, chance.choice((8 * 20, 8 * 61, 1480)), identification)
            )
            parts += split + ([chance.choice(split[1:-1])] if len(split) > 2 and chance.random() < 0.2 else [])
            at += size
        for _ in range(len(parts) // 3):
            i = chance.randrange(len(parts))
            j = min(len(parts) - 1, i + chance.randrange(6))
            parts[i], parts[j] = parts[j], parts[i]
        queues.append([*queue, *parts, whole(ip, tcp(b"", 1001 + len(data), ACK | FIN, port))])
    frames = []
    while queues := [queue for queue in queues if queue]:
        frames.append(chance.choice(queues).pop(0))
    return frames, sent


def told(assembler: Any) -> dict[str, Any]:
    stats = assembler.stats
    return {field.name: getattr(stats, field.name) for field in fields(stats) if field.name != "pages_allocated"} | {
        "verdicts": dict(stats.verdicts), "dropped": dict(stats.dropped), "fragments_dropped": dict(stats.fragments_dropped),
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["python", "BytesStream", "ByteCountStream", "SpanStream"])
def test_every_way_in_gives_the_same(tcpreasm: ModuleType, tmp_path: Path, seed: int, kind: str) -> None:
    import numpy as np

    frames, sent = traffic(seed)
    path = tmp_path / "fragments.pcap"
    records = [pcap_record("<", 100 + n // 1000, n % 1000 * 100, frame) for n, frame in enumerate(frames)]
    content = pcap_header(linktype=RAW) + b"".join(records)
    path.write_bytes(content)
    buffer = b"".join(frames)
    lengths = [len(frame) for frame in frames]
    offsets = [sum(lengths[:n]) for n in range(len(lengths))]
    times = [(100 + n // 1000) * NS + n % 1000 * 100_000 for n in range(len(frames))]

    def one_by_one(assembler: Any) -> None:
        for frame, seen_ns in zip(frames, times, strict=True):
            assembler.assemble_frame(frame, timestamp_ns=seen_ns, linktype=RAW)
        assembler.flush_all()

    def batch(assembler: Any, coalesce: bool) -> None:
        assembler.assemble_batch(buffer, np.array(offsets), np.array(lengths), np.array(times), linktype=RAW, coalesce=coalesce)
        assembler.flush_all()

    ways: dict[str, Any] = {
        "one by one": one_by_one,
        "batch": lambda assembler: batch(assembler, False),
        "batch, coalesced": lambda assembler: batch(assembler, True),
        **{
            f"{name}, {threads} threads, coalesce={coalesce}": lambda assembler, source=source, threads=threads, coalesce=coalesce: (
                assembler.assemble_capture(source, threads=threads, coalesce=coalesce)
            )
            for name, source in (("path", path), ("bytes", content))
            for threads in (1, 2, 3)
            for coalesce in (False, True)
        },
    }
    results = {}
    for name, way in ways.items():
        streams: dict[int, Any] = {}

        class Noted:
            def __init__(self) -> None:
                self.data = b""

            def reassembled(self, pieces: list[Any]) -> None:
                self.data += b"".join(bytes(piece) for piece in pieces)

            def reassembly_complete(self) -> None:
                pass

        def factory(net_flow: Any, transport_flow: Any, streams: dict[int, Any] = streams, noted: Any = Noted) -> Any:
            stream = noted() if kind == "python" else getattr(tcpreasm, kind)(net_flow, transport_flow)
            streams[transport_flow.src] = stream
            return stream

        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory))
        way(assembler)
        if kind in ("python", "BytesStream"):
            assert {port: bytes(stream.data) for port, stream in streams.items()} == sent, name
        else:
            assert {port: stream.length for port, stream in streams.items()} == {port: len(data) for port, data in sent.items()}, name
        if kind == "SpanStream":
            for port, stream in streams.items():
                for _, offset, size, *_ in stream.spans.tolist():
                    assert size == 0 or offset == -1 or name == "one by one" or offset >= 0, port
        results[name] = told(assembler)
    first = results["one by one"]
    assert first["datagrams"] > 20
    for name, result in results.items():
        assert result == first, name


# Both cores on anything.

PIECES = st.tuples(
    st.sampled_from((4, 6)), st.integers(0, 2), st.integers(0, 12), st.integers(0, 12), st.booleans(), st.integers(0, 3), st.integers(0, 20)
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=40), st.integers(1, 4), st.integers(200, 3000), st.sampled_from((False, True, "auto")))
def test_cores_agree_on_any_fragments(
    pieces: list[tuple[int, int, int, int, bool, int, int]], datagrams: int, size: int, verify: Any
) -> None:
    from conftest import load

    rigs = [
        Rig(load(core), max_fragmented_datagrams=datagrams, max_fragment_bytes=size, verify_checksums=verify, fragment_timeout=0.00001)
        for core in ("compiled", "pure")
    ]
    now = 0
    for ip, ident, begin, words, more, odd, step in pieces:
        now += step * 500
        body = bytes(16) + tcp(bytes(range(200)), 1001 + 8 * ident)[: words * 8 + odd]
        if begin == 0:
            body = tcp(bytes(range(200)), 1001, SYN if ident == 0 else ACK)[: words * 8 + odd]
        if ip == 4:
            frame = ipv4(body, ident=ident, offset=begin * 8, more=more)
        else:
            frame = ipv6(struct.pack("!BBHI", 6, 0, begin * 8 | more, ident) + body, 44)
        for rig in rigs:
            rig.feed([frame], now)
        assert told(rigs[0].assembler) == told(rigs[1].assembler)
    for rig in rigs:
        rig.assembler.flush_all()
        rig.check()
    assert told(rigs[0].assembler) == told(rigs[1].assembler)
    assert rigs[0].verdicts == rigs[1].verdicts
    assert rigs[0].pieces == rigs[1].pieces


# verify_checksums="auto".


def pseudo_sum(body: bytes, src: bytes = SRC4) -> bytes:
    total = int.from_bytes(src + DST4 + struct.pack("!II", len(body), 6), "big") % 0xFFFF
    return body[:16] + struct.pack("!H", total) + body[18:]


def auto(package: ModuleType, kinds: str, src: bytes = SRC4) -> tuple[str, Any]:
    """Segments with checksums that are right (r), wrong (w), left to the card (u), or zero (0). S: taken, B: refused."""
    rig = Rig(package, verify_checksums="auto")
    for number, kind in enumerate(kinds):
        body = tcp(b"x", 1000 + number, SYN if number == 0 else ACK)
        right = summed(body, src=src)
        wrong = right[:16] + bytes([right[16] ^ 0x5A, right[17]]) + right[18:]
        made = {"r": right, "w": wrong, "u": pseudo_sum(body, src), "0": right[:16] + b"\0\0" + right[18:]}[kind]
        rig.feed([ipv4(made, src=src)])
    return "".join("S" if verdict == "SEGMENT" else verdict[0] for verdict in rig.verdicts), rig.check()


@pytest.mark.parametrize(
    ("kinds", "verdicts", "offloading"),
    [
        ("r" * 20 + "w" + "r", "S" * 20 + "B" + "S", 0),
        ("u" * 20, "S" * 20, 1),
        ("0" * 20, "S" * 20, 1),
        ("uw0r", "SSSS", 1),
        ("ru" + "r" * 20 + "u", "SB" + "S" * 20 + "B", 0),
        ("w" * 20, "B" * 8 + "S" * 12, 1),
        ("wu", "BS", 1),
        ("rw" * 8 + "w", "SB" * 8 + "B", 0),
        ("r" * 7 + "w" * 10, "S" * 7 + "B" * 8 + "SS", 1),
        ("r" * 8 + "w" * 10, "S" * 8 + "B" * 10, 0),
        ("w" * 8 + "r" * 8 + "u", "B" * 8 + "S" * 8 + "B", 0),
    ],
)
def test_offloading_is_noticed(tcpreasm: ModuleType, kinds: str, verdicts: str, offloading: int) -> None:
    got, stats = auto(tcpreasm, kinds)
    assert got == verdicts
    assert stats.offloading_senders == offloading
    assert stats.verdicts.get(tcpreasm.Verdict.BAD_CHECKSUM, 0) == verdicts.count("B")


def test_each_sender_is_judged_by_itself_and_one_warning_comes(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(tcpreasm, verify_checksums="auto")
    for sender in range(200):
        src = bytes([10, 1, sender, 1])
        body = tcp(b"x", 1000, SYN)
        made = pseudo_sum(body, src) if sender % 2 else summed(body, src=src)
        rig.feed([ipv4(made, src=src), ipv4(made[:-1] + b"y", src=src)])
    assert rig.verdicts == ["SEGMENT", "BAD_CHECKSUM", "SEGMENT", "SEGMENT"] * 100
    assert rig.check().offloading_senders == 100
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["checksums of 10.1.1.1 are left to its network card: not verified"]


def test_auto_through_whole_captures(tcpreasm: ModuleType) -> None:
    """In packet order whatever the number of threads: each sender's first segments decide."""
    chance = random.Random(4)
    records = []
    seqs: dict[tuple[int, int], int] = {}
    for number in range(3000):
        sender, port = chance.randrange(20), 40000 + chance.randrange(30)
        src = bytes([10, 2, 0, sender])
        seq = seqs.setdefault((sender, port), 1000)
        body = tcp(b"" if seq == 1000 else b"z", seq, SYN if seq == 1000 else ACK, port)
        seqs[sender, port] += 1
        right = summed(body, src=src)
        wrong = chance.random() < (0.7 if sender < 10 else 0.02)
        records.append(pcap_record("<", 100, number, ipv4(right[:16] + b"\x55\x55" + right[18:] if wrong else right, src=src)))
    content = pcap_header(linktype=RAW) + b"".join(records)
    results = []
    for threads in (1, 2, 4):
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), tcpreasm.AssemblerOptions(verify_checksums="auto"))
        assembler.assemble_capture(content, threads=threads)
        results.append(told(assembler))
    assert results[0] == results[1] == results[2]
    assert 5 <= results[0]["offloading_senders"] <= 10
    assert results[0]["verdicts"][tcpreasm.Verdict.BAD_CHECKSUM] > 60


def wrong_sums(frames: list[bytes], chance: random.Random) -> list[bytes]:
    """Plain segments get their checksums: of IPv4, left to a network card, or wrong, or right; fragments stay as they are."""
    made = []
    for frame in frames:
        if frame[0] >> 4 == 4 and not struct.unpack_from("!H", frame, 6)[0] & 0x3FFF:
            port = struct.unpack_from("!H", frame, 20)[0]
            src = bytes([10, 3, 0, port % 5])
            body = summed(frame[20:], src=src)
            kind = chance.random()
            if port % 5 < 2:
                body = pseudo_sum(body, src) if kind < 0.3 else body[:16] + b"\x55\x55" + body[18:] if kind < 0.6 else body
            elif kind < 0.05:
                body = body[:16] + b"\x55\x55" + body[18:]
            frame = ipv4(body, src=src)
        made.append(frame)
    return made


@pytest.mark.parametrize("in_calls", [False, True], ids=["a list", "calls"])
@pytest.mark.parametrize("verify", [False, "auto"])
@pytest.mark.parametrize("seed", range(3))
def test_threads_know_what_came_before(tcpreasm: ModuleType, tmp_path: Path, seed: int, verify: Any, in_calls: bool) -> None:
    """Datagrams whose fragments lie in two captures of a list, senders known from another capture or call: as with one thread."""
    chance = random.Random(seed)
    frames, _ = traffic(seed, 8)
    if verify:
        frames = wrong_sums(frames, chance)
    seconds = 100.0
    records = []
    for frame in frames:
        seconds += chance.choice((0.0001, 0.001, 0.4)) if chance.random() < 0.999 else 100
        records.append(pcap_record("<", int(seconds), int(seconds % 1 * 10**6), frame))
    cuts = [0, *sorted(chance.randrange(len(records)) for _ in range(4)), len(records)]
    paths = []
    for number, (begin, end) in enumerate(pairwise(cuts)):
        paths.append(tmp_path / f"{number}.pcap")
        paths[-1].write_bytes(pcap_header(linktype=RAW) + b"".join(records[begin:end]))
    results = []
    for threads in (1, 2, 4):
        streams: list[Any] = []

        def factory(net_flow: Any, transport_flow: Any, streams: list[Any] = streams) -> Any:
            streams.append(tcpreasm.BytesStream(net_flow, transport_flow))
            return streams[-1]

        hole_timeout = None if in_calls else 1.5  # each call of several threads begins a time of its own
        options = tcpreasm.AssemblerOptions(verify_checksums=verify, hole_timeout=hole_timeout, start_wait=None, fragment_timeout=20)
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory), options)
        for source in paths if in_calls else [paths]:
            assembler.assemble_capture(source, threads=threads)
        results.append((told(assembler), sorted((str(stream.key), stream.data, stream.gaps) for stream in streams)))
        assert told(assembler)["datagrams"] > 3
        assert told(assembler)["fragments_held"] == 0
    assert results[0] == results[1] == results[2]
    assert results[0][0]["offloading_senders"] >= (2 if verify else 0)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_datagram_in_two_captures(tcpreasm: ModuleType, tmp_path: Path, threads: int) -> None:
    """Whole in a list; in two calls each of which gives up what is not whole at its end; and begun by frames before the call."""
    begin, end = fragments(4, tcp(BODY), 64)
    syn = whole(4, tcp(b"", 1000, SYN))
    paths = []
    for name, frames in (("one", [syn, begin]), ("two", [end]), ("both", [syn, end])):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(pcap_header(linktype=RAW) + b"".join(pcap_record("<", 100, 0, frame) for frame in frames))
    one, two, both = paths
    rig = Rig(tcpreasm)
    rig.assembler.assemble_capture([one, two], threads=threads)
    assert (rig.data, rig.check().datagrams) == (BODY, 1)
    rig = Rig(tcpreasm)
    rig.assembler.assemble_capture(one, threads=threads)
    assert dict(rig.check().fragments_dropped) == {"incomplete": 1}
    rig.assembler.assemble_capture(two, threads=threads)
    assert (rig.data, rig.check().datagrams, dict(rig.check().fragments_dropped)) == (b"", 0, {"incomplete": 2})
    rig = Rig(tcpreasm)
    rig.feed([begin], 100 * NS)
    rig.assembler.assemble_capture(both, threads=threads)
    assert (rig.data, rig.check().datagrams) == (BODY, 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_warning_comes_once(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture, threads: int) -> None:
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream), tcpreasm.AssemblerOptions(verify_checksums="auto"))
    for sender in range(3):
        src = bytes([10, 1, 0, sender])
        record = pcap_record("<", 100, 0, ipv4(pseudo_sum(tcp(b"x", 1000, SYN), src), src=src))
        assembler.assemble_capture(pcap_header(linktype=RAW) + record, threads=threads)
        assert assembler.stats.offloading_senders == sender + 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "checksums of 10.1.0.0 are left to its network card: not verified"
    ]


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("verify_checksums", "yes", ValueError, "verify_checksums is a bool or 'auto', not 'yes'"),
        ("verify_checksums", 1, TypeError, "verify_checksums is a bool or 'auto', not int: 1"),
        ("defragment", 1, TypeError, "defragment is a bool, not int: 1"),
        ("fragment_timeout", -1, ValueError, "fragment_timeout is from 0 to 1e9 seconds, not -1"),
        ("max_fragmented_datagrams", 0, ValueError, "max_fragmented_datagrams is from 1 to 2**31 - 1, not 0"),
        ("max_fragment_bytes", None, TypeError, "max_fragment_bytes is an int, not NoneType: None"),
    ],
)
def test_wrong_options(tcpreasm: ModuleType, name: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        tcpreasm.AssemblerOptions(**{name: value})
    assert str(raised.value) == text


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["http.pcap", "http6.pcapng", "disordered.pcap"])
def test_auto_takes_what_was_captured_on_the_sending_host(tcpreasm: ModuleType, data: Path, name: str, threads: int) -> None:
    """These come from a loopback interface, where nobody fills in checksums. Every piece stands where it stands without a look at them."""
    told_by = {}
    for verify in (False, True, "auto"):
        streams: dict[str, Any] = {}

        def factory(net_flow: Any, transport_flow: Any, streams: dict[str, Any] = streams) -> Any:
            key = f"{transport_flow.src} {transport_flow.dst}"
            streams[key] = tcpreasm.SpanStream(net_flow, transport_flow)
            return streams[key]

        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory), tcpreasm.AssemblerOptions(verify_checksums=verify))
        assembler.assemble_capture(data / name, threads=threads)
        told_by[verify] = {key: stream.spans.tolist() for key, stream in streams.items()}
        if verify == "auto":
            assert assembler.stats.offloading_senders > 0
    assert told_by["auto"] == told_by[False]
    assert told_by[True] != told_by[False]
