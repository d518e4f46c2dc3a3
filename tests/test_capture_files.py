"""Capture files: every byte of every capture here is built in this file, so what must come out is known exactly."""

from __future__ import annotations

import bz2
import gc
import gzip
import io
import mmap
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from capture_bytes import (
    ETHERNET,
    NS,
    RAW,
    T0,
    Dribble,
    ReadOnly,
    block,
    epb,
    idb,
    old_packet,
    option,
    payload,
    pcap_header,
    pcap_record,
    shb,
    small_pcap,
    small_pcapng,
    spb,
    tsoffset,
    tsresol,
    us,
)
from conftest import IMPLEMENTATIONS, load, submodule
from hypothesis import given, settings
from hypothesis import strategies as st

import tcpreasm.capture
import tcpreasm.capture.source
from tcpreasm.capture import Capture, Frame, open_capture
from tcpreasm.errors import CaptureError


@pytest.fixture(scope="module", autouse=True, params=IMPLEMENTATIONS)
def _core(request: pytest.FixtureRequest) -> None:
    """All of this once on each core: the names of the package that the tests use are those of the core at hand."""
    package = load(request.param)
    for name in ("Capture", "Frame", "open_capture"):
        globals()[name] = getattr(submodule(package, "capture"), name)
    globals()["CaptureError"] = submodule(package, "errors").CaptureError


def read_all(source: Any) -> tuple[list[Frame], Capture]:
    with open_capture(source) as capture:
        frames = list(capture)
    assert capture.packets == len(frames)
    for frame in frames:
        assert type(frame) is Frame
        assert type(frame.data) is bytes
        assert frame.wire_length >= len(frame.data)
        assert -(2**62) <= frame.timestamp_ns <= 2**62
    return frames, capture


# ---- pcap --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1), (0xA12B3C4D, 1000)])
def test_pcap_byte_orders_and_units(order: str, magic: int, unit: int) -> None:
    data = pcap_header(order, magic) + pcap_record(order, T0, 123456, b"abc") + pcap_record(order, 0xFFFFFFFF, 999_999, b"defg", 2000)
    frames, capture = read_all(data)
    assert frames == [
        Frame(b"abc", T0 * NS + 123456 * unit, 3, ETHERNET, 0),
        Frame(b"defg", 0xFFFFFFFF * NS + 999_999 * unit, 2000, ETHERNET, 0),
    ]
    assert (capture.format, capture.complete, capture.problem) == ("pcap", True, None)


def test_pcap_of_kuznetsov() -> None:
    records = b"".join(
        struct.pack("<IIIIIHBB", T0, i, len(data), len(data), 3, 0x0800, 0, 0) + data for i, data in enumerate((b"one", b"three"))
    )
    frames, capture = read_all(pcap_header(magic=0xA1B2CD34) + records)
    assert [frame.data for frame in frames] == [b"one", b"three"]
    assert capture.complete


def test_pcap_lengths_of_old_versions() -> None:
    swapped = struct.pack("<IIII", T0, 0, 90, 3) + b"abc"
    straight = struct.pack("<IIII", T0, 0, 3, 90) + b"abc"
    expected = [Frame(b"abc", T0 * NS, 90, ETHERNET)]
    for version, record in (((2, 2), swapped), ((2, 3), swapped), ((2, 3), straight), ((543, 0), swapped), ((2, 4), straight)):
        frames, capture = read_all(pcap_header(version=version) + record)
        assert frames == expected, version
        assert capture.complete


def test_pcap_linktype_without_its_upper_bits() -> None:
    frames, _ = read_all(pcap_header(linktype=0xF4000000 | 276) + pcap_record("<", T0, 0, b"x"))
    assert frames[0].linktype == 276


def test_pcap_wire_length_is_never_below_what_was_captured() -> None:
    frames, _ = read_all(pcap_header() + pcap_record("<", T0, 0, b"abcdef", 0))
    assert frames[0].wire_length == 6


@pytest.mark.parametrize("snaplen", [0, 96, 65535, 262144, 0xFFFFFFFF])
def test_pcap_record_longer_than_the_snaplen_says(snaplen: int) -> None:
    data = payload(200_000)
    frames, capture = read_all(pcap_header(snaplen=snaplen) + pcap_record("<", T0, 0, data))
    assert frames[0].data == data
    assert capture.complete


@pytest.mark.parametrize("order", "<>")
def test_pcap_cut_at_every_byte(order: str) -> None:
    data, places = small_pcap(order)
    for cut in range(len(data) + 1):
        if cut < 4:
            with pytest.raises(CaptureError):
                open_capture(data[:cut])
            continue
        frames, capture = read_all(data[:cut])
        assert frames == [frame for _, end, frame in places if end <= cut]
        assert capture.complete == (cut in {24, *(end for _, end, _ in places)})
        assert (capture.problem is None) == capture.complete
        if cut > 24 and not capture.complete:
            start, end, _ = next(place for place in places if place[1] > cut)
            need = 16 if cut - start < 16 else end - start
            assert capture.problem == f"the file ends in the middle of a record at byte {start}: {cut - start} of {need} bytes are there"


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x80000000, (256 << 20) + 1, 5_000_000])
@pytest.mark.parametrize("snaplen", [65535, 0xFFFFFFFF])
def test_pcap_absurd_length_ends_it_there(length: int, snaplen: int) -> None:
    good = pcap_header(snaplen=snaplen) + pcap_record("<", T0, 0, b"good")
    bad = struct.pack("<IIII", T0, 0, length, length) + b"what follows"
    tracemalloc.start()
    frames, capture = read_all(good + bad)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert [frame.data for frame in frames] == [b"good"]
    assert not capture.complete
    assert capture.problem is not None
    assert f"byte {len(good)}" in capture.problem


def test_pcap_zeros_are_no_packets() -> None:
    good = pcap_header() + pcap_record("<", T0, 0, b"good")
    frames, capture = read_all(good + bytes(4096))
    assert [frame.data for frame in frames] == [b"good"]
    assert (
        capture.problem == f"the file is damaged: the record at byte {len(good)} is all zeros, as where a file was never written to its end"
    )


def test_pcap_records_across_blocks() -> None:
    # Record lengths that make every part of a record fall on the border of the blocks read.
    rng = random.Random(5)
    expected, parts = [], [pcap_header(snaplen=1 << 22)]
    for i in range(9000):
        data = rng.randbytes(rng.choice((1, 60, 700, 1514)))
        expected.append(Frame(data, (T0 + i) * NS, len(data), ETHERNET))
        parts.append(pcap_record("<", T0 + i, 0, data))
    big = payload(3 << 20)
    expected.append(Frame(big, 0, len(big), ETHERNET))
    parts += [pcap_record("<", 0, 0, big), pcap_record("<", 1, 0, b"last")]
    expected.append(Frame(b"last", NS, 4, ETHERNET))
    data = b"".join(parts)
    assert len(data) > 3 * tcpreasm.capture.source.BLOCK_BYTES
    frames, capture = read_all(data)
    assert frames == expected
    assert capture.complete
    assert capture.position == capture.size == len(data)


# ---- pcapng ------------------------------------------------------------------------------------------------------------


def test_pcapng_all_blocks_orders_sections_interfaces() -> None:
    data, places = small_pcapng()
    frames, capture = read_all(data)
    assert frames == [frame for _, _, frame in places if frame is not None]
    assert len(frames) == 8
    assert (capture.format, capture.complete, capture.problem) == ("pcapng", True, None)


def test_pcapng_cut_at_every_byte() -> None:
    data, places = small_pcapng()
    whole = {end for _, end, _ in places}
    for cut in range(len(data) + 1):
        if cut < 4:
            with pytest.raises(CaptureError):
                open_capture(data[:cut])
            continue
        frames, capture = read_all(data[:cut])
        assert frames == [frame for _, end, frame in places if end <= cut and frame is not None], cut
        assert capture.complete == (cut in whole)
        assert (capture.problem is None) == capture.complete
        if not capture.complete:
            start = max(begin for begin, _, _ in places if begin < cut)
            assert f"the file ends in the middle of a block at byte {start}: {cut - start} of " in str(capture.problem)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("resolution", "units"),
    [(0, 1), (3, 10**3), (6, 10**6), (9, 10**9), (12, 10**12), (0x80, 1), (0x8A, 1 << 10), (0x94, 1 << 20), (0xA0, 1 << 32)],
)
@pytest.mark.parametrize("offset", [0, 1_000_000_000, -3])
def test_pcapng_time_resolutions(order: str, resolution: int, units: int, offset: int) -> None:
    ticks = min(700_000_000, 2**63 // units) * units + 12345 % units
    data = shb(order) + idb(order, options=tsoffset(order, offset) + tsresol(order, resolution)) + epb(order, 0, ticks, b"x")
    frames, capture = read_all(data)
    assert frames[0].timestamp_ns == ticks * NS // units + offset * NS
    assert capture.complete


def test_pcapng_time_beyond_all_bounds_is_held_at_the_bound() -> None:
    far = 2**62 - 1
    for resolution, offset, expected in ((0, 0, far), (6, 2**63 - 1, far), (6, -(2**63), -far), (127, 0, 0), (0xFF, 0, 0)):
        data = shb() + idb(options=tsresol("<", resolution) + tsoffset("<", offset)) + epb("<", 0, 2**64 - 1, b"x")
        frames, capture = read_all(data)
        assert frames[0].timestamp_ns == expected, resolution
        assert capture.complete


def test_pcapng_options_that_are_broken_leave_the_defaults() -> None:
    for options in (struct.pack("<HH", 9, 60000), option("<", 9, b""), option("<", 9, b"\x09\x09"), option("<", 14, b"\1\2"), b"\x09\0"):
        frames, capture = read_all(shb() + idb(options=options) + epb("<", 0, us(T0), b"x"))
        assert frames[0].timestamp_ns == T0 * NS
        assert capture.complete
    # Nothing behind the end of the options counts.
    frames, _ = read_all(shb() + idb(options=option("<", 0, b"") + tsresol("<", 9)) + epb("<", 0, us(T0), b"x"))
    assert frames[0].timestamp_ns == T0 * NS


def test_pcapng_simple_packets() -> None:
    first = read_all(shb() + idb(linktype=RAW, snaplen=10) + spb("<", payload(10), 50) + epb("<", 0, us(T0), b"e") + spb("<", b"abc"))[0]
    assert first == [
        Frame(payload(10), 0, 50, RAW),  # the snaplen cut it; no time is known yet
        Frame(b"e", T0 * NS, 1, RAW),
        Frame(b"abc", T0 * NS, 3, RAW),  # and here the last one is
    ]


def test_pcapng_packet_of_an_unknown_interface_is_left_out() -> None:
    data = (
        shb()
        + spb("<", b"none")
        + idb()
        + epb("<", 1, 0, b"no")
        + epb("<", 0, 5, b"yes")
        + old_packet("<", 7, 0, b"no")
        + shb()
        + epb("<", 0, 0, b"x")
    )
    frames, capture = read_all(data)
    assert frames == [Frame(b"yes", 5000, 3, ETHERNET)]
    assert not capture.complete
    assert capture.problem == "a packet was left out: it names an interface that the file does not describe (4 times)"


def test_pcapng_packet_longer_than_its_block_is_left_out() -> None:
    bad = block("<", 6, struct.pack("<IIIII", 0, 0, 0, 21, 21) + bytes(20))
    frames, capture = read_all(shb() + idb() + bad + epb("<", 0, 5, b"yes"))
    assert [frame.data for frame in frames] == [b"yes"]
    assert capture.problem == "a packet was left out: it claims more bytes than its block has"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (struct.pack("<III", 6, 8, 8), "claims 8 bytes"),
        (struct.pack("<III", 6, 0, 0), "claims 0 bytes"),
        (struct.pack("<II", 77, 13) + bytes(40), "claims 13 bytes"),
        (epb("<", 0, 0, b"abcd")[:-4] + struct.pack("<I", 32), "by its head, not by its tail"),
        (block("<", 77, bytes(40))[:-4] + bytes(4), "by its head, not by its tail"),
        (struct.pack("<II", 77, 3 << 20) + bytes(3 << 20), "by its head, not by its tail"),
        (block("<", 6, bytes(16)), "fewer than it needs"),
        (block("<", 2, bytes(16)), "fewer than it needs"),
        (block("<", 3, b""), "fewer than it needs"),
        (block("<", 1, bytes(4)), "fewer than it needs"),
        (struct.pack("<II", 6, 0xFFFFFFF0) + bytes(5000), "more than the 268435456 that are possible"),
        (struct.pack("<II", 1, 0x20000000) + bytes(5000), "more than the 268435456 that are possible"),
        (struct.pack("<II", 77, 0xFFFFFFF0) + bytes(5000), "in the middle of a block"),
        (block("<", 0x0A0D0D0A, b"\1\2\3\4" + bytes(12)), "names no byte order"),
        (shb(version=(2, 0)), "version 2"),
        (block("<", 0x0A0D0D0A, b"\x4d\x3c\x2b\x1a"), "version 0"),
    ],
)
def test_pcapng_damage_ends_it_there(bad: bytes, words: str) -> None:
    good = shb() + idb() + epb("<", 0, 5, b"good")
    frames, capture = read_all(good + bad + epb("<", 0, 6, b"behind"))
    assert [frame.data for frame in frames] == [b"good"]
    assert not capture.complete
    assert words in str(capture.problem)
    assert f"byte {len(good)}" in str(capture.problem)


def test_pcapng_big_unknown_block_is_passed_over_without_holding_it() -> None:
    class Zeros(io.RawIOBase):
        """shb, idb, a block of 200 MiB of zeros, a packet: without the memory for it."""

        def __init__(self) -> None:
            size = 12 + (200 << 20)
            self.parts: list[bytes | int] = [
                shb() + idb() + struct.pack("<II", 0x80000001, size),
                200 << 20,
                struct.pack("<I", size) + epb("<", 0, 1, b"behind"),
            ]

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            while self.parts:
                part = self.parts[0]
                if isinstance(part, int):
                    step = min(part, size)
                    self.parts[0] = part - step
                    if step:
                        return bytes(step)
                    self.parts.pop(0)
                else:
                    self.parts.pop(0)
                    return part
            return b""

    tracemalloc.start()
    frames, capture = read_all(Zeros())
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert frames == [Frame(b"behind", 1000, 6, ETHERNET)]
    assert capture.complete


def test_pcapng_blocks_across_reads() -> None:
    parts = [shb(), idb()]
    expected = []
    for i in range(4000):
        data = payload(i % 1500, i)
        parts.append(epb("<", 0, i, data))
        expected.append(Frame(data, i * 1000, len(data), ETHERNET))
        if i % 1000 == 0:
            parts.append(block("<", 0xBAD, payload(1_500_000)))
    data = b"".join(parts)
    assert read_all(data)[0] == expected
    frames, capture = read_all(Dribble(data, 4093))
    assert frames == expected
    assert capture.complete


# ---- compression -------------------------------------------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


SKIPPABLE = struct.pack("<II", 0x184D2A53, 11) + b"user's data"


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_compressed_whole_in_members_and_by_name_only(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    for data, places in (small_pcap(), small_pcapng()):
        expected = [frame for _, _, frame in places if frame is not None]
        one = compress(data)
        many = b"".join(compress(data[i : i + 50]) for i in range(0, len(data), 50)) + compress(b"")
        for packed in (one, many, *((SKIPPABLE + one + SKIPPABLE,) if compress is zstd else (one + bytes(512),))):
            path = tmp_path / "misnamed.txt"
            path.write_bytes(packed)
            for source in (packed, path, Dribble(packed, 1), Dribble(packed, 7)):
                frames, capture = read_all(source)
                assert frames == expected
                assert (capture.complete, capture.problem) == (True, None)
        path = tmp_path / "not-compressed.pcap.gz"
        path.write_bytes(data)
        assert read_all(path)[0] == expected


@pytest.mark.parametrize("compress", [gzip.compress, zstd])
def test_compressed_cut_at_every_byte(compress: Callable[[bytes], bytes]) -> None:
    data, places = small_pcap()
    # Two members, so that one of the cuts falls between them.
    packed = [compress(data[:110]), compress(data[110:])]
    whole = b"".join(packed)
    for cut in range(len(whole)):
        try:
            frames, capture = read_all(whole[:cut])
        except CaptureError:
            assert cut < len(packed[0])
            continue
        if cut == len(packed[0]):
            assert "in the middle of a record" in str(capture.problem)
            assert "compressed" not in str(capture.problem)
        else:
            kind = "gzip" if compress is gzip.compress else "zstd"
            assert f"the {kind} data is cut short after byte {cut} of the compressed file" in str(capture.problem)
        assert not capture.complete
        assert frames == [frame for _, _, frame in places][: len(frames)]
        if cut > len(packed[0]):
            assert frames[0] == places[0][2]


def test_gzip_gives_everything_before_the_cut() -> None:
    data, places = small_pcap()
    packer = zlib.compressobj(0, wbits=31)  # stored: each byte is there as soon as it was read
    packed = packer.compress(data) + packer.flush()
    start = packed.index(data[:24])
    for cut in range(start + 24, start + len(data)):
        frames, capture = read_all(packed[:cut])
        assert frames == [frame for _, end, frame in places if end <= cut - start]
        assert not capture.complete


def test_gzip_gives_everything_before_the_damage() -> None:
    data = pcap_header() + b"".join(pcap_record("<", T0 + i, 0, payload(50, i)) for i in range(2000))
    packed = gzip.compress(data, 1)
    broken = packed[: len(packed) // 2] + b"\xff" * 40 + packed[len(packed) // 2 + 40 :]
    frames, capture = read_all(broken)
    assert 900 < len(frames) < 1100
    assert "the gzip data is damaged around byte" in str(capture.problem)
    wrong_sum = packed[:-8] + b"\0\1\2\3" + packed[-4:]
    frames, capture = read_all(wrong_sum)
    assert len(frames) == 2000
    assert "the gzip data is damaged around byte" in str(capture.problem)


def test_bytes_behind_the_last_gzip_member_are_told() -> None:
    data, places = small_pcap()
    frames, capture = read_all(gzip.compress(data) + b"no gzip member")
    assert frames == [frame for _, _, frame in places]
    assert not capture.complete
    assert "damaged" in str(capture.problem)


def test_zstd_damage() -> None:
    data = pcap_header() + b"".join(pcap_record("<", T0 + i, 0, payload(500, i)) for i in range(2000))
    packed = bytearray(zstd(data))
    packed[len(packed) // 2 : len(packed) // 2 + 200] = b"\xff" * 200
    frames, capture = read_all(bytes(packed) + b"garbage")
    assert len(frames) <= 2000
    assert capture.problem is not None
    assert not capture.complete


@pytest.mark.parametrize("compress", [lambda data: gzip.compress(data, 9), zstd])
def test_decompression_bomb_takes_little_memory(compress: Callable[[bytes], bytes]) -> None:
    # 150 MB of zeros as an unknown pcapng block: all of it is decompressed, little of it at a time.
    size = 150_000_012
    bomb = compress(shb() + idb() + struct.pack("<II", 0xBAD, size) + bytes(size - 12) + struct.pack("<I", size) + epb("<", 0, 1, b"x"))
    assert len(bomb) < 200_000
    tracemalloc.start()
    frames, capture = read_all(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [frame.data for frame in frames] == [b"x"]
    assert capture.complete
    assert peak < 80_000_000


def test_zstd_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd(small_pcap()[0])
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    with pytest.raises(CaptureError, match=r"zstd.*pip install 'tcpreasm\[zstd\]'"):
        open_capture(packed)


# ---- sources -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small_pcap, small_pcapng])
def test_every_kind_of_source(make: Callable[[], tuple[bytes, list[Any]]], tmp_path: Path) -> None:
    data, places = make()
    expected = [frame for _, _, frame in places if frame is not None]
    path = tmp_path / "a.capture"
    path.write_bytes(data)
    with (
        open(path, "rb") as file,
        open(path, "rb", buffering=0) as raw,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        sources = [
            (str(path), str(path), len(data)),
            (path, str(path), len(data)),
            (data, f"<{len(data)} bytes in memory>", len(data)),
            (bytearray(data), f"<{len(data)} bytes in memory>", len(data)),
            (memoryview(b"no" + data)[2:], f"<{len(data)} bytes in memory>", len(data)),
            (memoryview(bytes(b for byte in data for b in (byte, 0)))[::2], f"<{len(data)} bytes in memory>", len(data)),
            (mapped, f"<{len(data)} bytes mapped>", len(data)),
            (file, str(path), len(data)),
            (raw, str(path), len(data)),
            (io.BytesIO(data), "<BytesIO>", len(data)),
            (Dribble(data, 1), "<Dribble>", None),
            (Dribble(data, 5), "<Dribble>", None),
            (io.BufferedReader(Dribble(data, 11)), "<BufferedReader>", None),
            (ReadOnly(data), "<ReadOnly>", None),
        ]
        for source, name, size in sources:
            frames, capture = read_all(source)
            assert frames == expected
            assert capture.complete
            assert (capture.source_name, capture.size, capture.position) == (name, size, len(data))
        assert not file.closed  # the caller's stays the caller's
        assert not raw.closed


def test_file_object_is_read_from_where_it_stands() -> None:
    data, places = small_pcap()
    file = io.BytesIO(b"something before" + data)
    file.seek(16)
    frames, capture = read_all(file)
    assert frames == [frame for _, _, frame in places]
    assert (capture.position, capture.size) == (len(data), len(data))


def test_standard_input(tmp_path: Path) -> None:
    data, _ = small_pcapng()
    code = "from tcpreasm.capture import open_capture\nc = open_capture('-')\nprint(c.source_name, c.size, len(list(c)), c.complete)\n"
    root = Path(tcpreasm.capture.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    for text in (data, gzip.compress(data)):
        done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, check=True, env=environment, timeout=60)
        assert done.stdout.decode().split() == ["standard", "input", "None", "8", "True"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_gives_frames_as_they_come(tmp_path: Path) -> None:
    """A packet is given out before the one behind it was written: nothing waits for a whole block."""
    reader, writer = os.pipe()
    with open(reader, "rb") as file, open(writer, "wb", buffering=0) as out:
        out.write(pcap_header() + pcap_record("<", T0, 0, b"first"))
        capture = open_capture(file)
        frames = iter(capture)
        assert next(frames).data == b"first"
        out.write(pcap_record("<", T0, 0, b"second")[:10])
        out.write(pcap_record("<", T0, 0, b"second")[10:])
        assert next(frames).data == b"second"
        out.close()
        assert list(frames) == []
        assert capture.complete


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\xd4\xc3\xb2", "d4 c3 b2"),
        (b"hello world, this is text", r"68 65 6c 6c 6f 20 77 6f 72 6c 64 2c 20 74 68 69$"),
        (b"\x0a\x0d\x0d\x0a" + bytes(24), "0a 0d 0d 0a 00"),
        (b"\xfd7zXZ\0\0\0", "xz data"),
        (bz2.compress(b"x"), "bzip2"),
        (b"PK\x03\x04aaaa", "zip"),
        (gzip.compress(b""), "nothing in it"),
        (gzip.compress(b"")[:8], "cut short"),
        (gzip.compress(b"text"), "74 65 78 74 .inside gzip."),
        (gzip.compress(gzip.compress(b"text")), "gzip data inside"),
        (b"version https://git-lfs.github.com/spec/v1", "LFS"),
    ],
)
def test_no_capture_at_all(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "it.pcap"
    path.write_bytes(data)
    with pytest.raises(CaptureError, match=words) as caught:
        open_capture(path)
    assert str(path) in str(caught.value)
    with pytest.raises(CaptureError, match=words):
        open_capture(data)


def test_sources_that_are_none(tmp_path: Path) -> None:
    none: list[Any] = [None, 5, ["a"], object(), io.StringIO("text")]
    for source in none:
        with pytest.raises(TypeError):
            open_capture(source)
    with pytest.raises(FileNotFoundError):
        open_capture(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        open_capture(tmp_path)
    path = tmp_path / "a.pcap"
    path.write_bytes(small_pcap()[0])
    opened: Any = open(path, encoding="latin-1")  # noqa: SIM115 -- Any is the point: type checkers refuse it
    with opened, pytest.raises(TypeError, match="'rb'"):
        open_capture(opened)


def test_errors_of_reading_pass_through() -> None:
    class Failing(Dribble):
        def readinto(self, buffer: Any) -> int:
            if self.at > 100:
                raise OSError(5, "the disk is broken")
            return super().readinto(buffer)

    with open_capture(Failing(small_pcap()[0], 40)) as capture, pytest.raises(OSError, match="the disk is broken"):
        list(capture)


def test_closing_and_going_on() -> None:
    data, places = small_pcap()
    expected = [frame for _, _, frame in places]
    with open_capture(data) as capture:
        assert isinstance(capture, Capture)
        for frame in capture:
            assert frame == expected[0]
            break
        assert (capture.packets, capture.complete, capture.problem) == (1, False, None)
        assert list(capture) == expected[1:]  # a second loop goes on
        assert list(capture) == []
        assert capture.complete
    capture.close()
    with pytest.raises(ValueError, match="closed"):
        iter(capture)
    assert "5 packets" in repr(capture)


def test_capture_is_closed_where_opening_fails(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"no capture")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(CaptureError):
            open_capture(path)
        gc.collect()
    assert [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)] == []


# ---- anything goes -----------------------------------------------------------------------------------------------------


def drain(data: bytes) -> None:
    """No exception but the one of open_capture; and what is said agrees with itself."""
    try:
        capture = open_capture(data)
    except CaptureError:
        return
    with capture:
        frames = list(capture)
    assert capture.packets == len(frames)
    assert capture.complete == (capture.problem is None)
    for frame in frames:
        assert frame.wire_length >= len(frame.data)
        assert -(2**62) <= frame.timestamp_ns <= 2**62


SEEDS = [small_pcap("<")[0], small_pcap(">")[0], small_pcapng()[0], gzip.compress(small_pcapng()[0])]


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_any_mutation_of_a_capture_never_raises(data: st.DataObject) -> None:
    seed = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(seed)))
        what = data.draw(st.sampled_from(("set", "word", "insert", "delete")))
        if what == "set":
            seed[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif what == "word":
            word = data.draw(st.sampled_from((0, 1, 3, 4, 12, 16, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF)))
            seed[at : at + 4] = struct.pack(data.draw(st.sampled_from("<>")) + "I", word)
        elif what == "insert":
            seed[at:at] = data.draw(st.binary(max_size=40))
        else:
            del seed[at : at + data.draw(st.integers(1, 30))]
    drain(bytes(seed))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([pcap_header(), pcap_header(">", 0xA1B23C4D), shb(), shb() + idb(), gzip.compress(b"a")[:10]]), st.binary(max_size=300)
)
def test_any_bytes_behind_a_header_never_raise(head: bytes, rest: bytes) -> None:
    drain(head + rest)


def test_every_single_byte_changed() -> None:
    for seed in SEEDS:
        for at in range(len(seed)):
            for value in (0, 0xFF, seed[at] ^ 0x80, seed[at] ^ 1):
                drain(seed[:at] + bytes([value]) + seed[at + 1 :])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from("<>"),
    st.sampled_from([(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)]),
    st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(0, 999_999), st.binary(max_size=80), st.integers(0, 200)), max_size=12),
    st.integers(1, 64),
)
def test_what_is_written_is_read(order: str, magic: tuple[int, int], packets: list[tuple[int, int, bytes, int]], step: int) -> None:
    data = pcap_header(order, magic[0])
    expected = []
    for seconds, fraction, body, more in packets:
        data += pcap_record(order, seconds, fraction, body, len(body) + more)
        expected.append(Frame(body, seconds * NS + fraction * magic[1], len(body) + more, ETHERNET))
    frames, capture = read_all(Dribble(data, step))
    assert frames == expected
    assert capture.complete
