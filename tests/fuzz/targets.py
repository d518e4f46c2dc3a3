"""What one input of bytes means to each target: both cores do the same with it, and what holds on any input is asked of both.

Lives here: `decode`, `capture` and `assembler`, each a function of bytes that returns None or raises. Not here: who makes the inputs up
(run.py), and what is right (test_model, test_promises): an input that nobody chose has no known answer, only that both cores must agree,
that no byte may go missing, and that nothing crashes or hangs.

Called once per input, some thousands of times a second: what can be made once is made when this is imported.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import fields
from types import ModuleType
from typing import Any

from cores import load, submodule
from recorder import checksum, in_a_tunnel

__all__ = ["SEEDS", "TARGETS", "Different", "make_haste"]

BOTH = (load("compiled"), load("pure"))
START_NS = 1_700_000_000_000_000_000


class Different(AssertionError):
    """The cores do not agree, or a promise does not hold."""


def agree(what: str, compiled: Any, pure: Any) -> None:
    if compiled != pure:
        raise Different(f"{what}:\ncompiled {compiled!r}\npure     {pure!r}")


# -- decode ---------------------------------------------------------------------------------------------------------------

LINKTYPES = (1, 1, 1, 101, 113, 276, 0, 108, 12, 14, 228, 229, 9, 50, 51, 104, 10, 105, 127, 147)
DECODERS = tuple(submodule(package, f"_{package.implementation}.decode").decode_frame for package in BOTH)


def decode(data: bytes) -> None:
    """A byte for the link type, one for what the wire had more and for the options, and the frame."""
    if len(data) < 2:
        return
    linktype = LINKTYPES[data[0] % len(LINKTYPES)]
    frame = data[2:]
    wire = (None, len(frame), len(frame) + (data[1] >> 2), 1 << 31)[data[1] & 3]
    found = []
    for decoder in DECODERS:
        verdict, segment = decoder(frame, linktype, wire, data[1] & 128 != 0)
        found.append((int(verdict), segment))
    agree("decode", *found)
    segment = found[0][1]
    if segment is not None:
        text = segment.payload_offset
        if not (
            20 <= text <= text + segment.payload_length <= len(frame) and segment.payload_length <= segment.wire_payload_length < 1 << 31
        ):
            raise Different(f"a payload outside of its frame: {segment}")


# -- capture files --------------------------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self.data, self.step, self.at = data, step, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece = self.data[self.at : self.at + self.step]
        self.at += len(piece)
        return piece


def capture(data: bytes) -> None:
    """A byte that tells how it is read, and the file."""
    if not data:
        return
    told = []
    for package in BOTH:
        source: Any = data[1:] if data[0] & 1 else Pipe(data[1:], 1 + (data[0] >> 1))
        try:
            with package.open_capture(source) as opened:
                told.append(([tuple(frame) for frame in opened], opened.packets, opened.complete, opened.problem))
        except package.CaptureError as error:
            told.append(str(error))
    agree("capture", *told)


# -- the assembler --------------------------------------------------------------------------------------------------------

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"max_buffered_pages_per_connection": 2},
    {"max_buffered_pages_total": 3, "start_wait_segments": 2},
    {"max_buffered_pages_total": 0, "max_buffered_pages_per_connection": 0, "max_gap": None},
    {"start_wait_segments": None, "start_wait": None, "max_gap": 100},
    {"start_wait_segments": 1, "hole_timeout": 1.0, "idle_timeout": 3.0, "closed_timeout": 0.0, "on_gap": True},
    {"hole_timeout": None, "idle_timeout": None, "closed_timeout": 5.0, "start_wait": 0.0},
    {"verify_checksums": True, "max_gap": 1 << 20},
    {"overlap": "last", "max_buffered_bytes_per_connection": 4000, "on_conflict": True},
    {"overlap": "bsd", "urgent": "oob", "max_connections": 2, "on_evict": True},
    {"overlap": "linux", "urgent": "oob-linux", "syn_data": "acked", "on_conflict": True},
    {"overlap": "solaris", "open_on": "data", "paws": True, "max_buffered_bytes_total": 10_000, "depth": 4000},
    {"overlap": "old-linux", "syn_data": "acked", "open_on": "data", "closed_timeout": 1.0, "on_conflict": True, "on_evict": True},
    {"verify_checksums": "auto", "max_fragmented_datagrams": 1, "fragment_timeout": 1.0, "max_connections": 1},
    {"defragment": False, "decapsulate": False, "paws": True, "urgent": "oob", "depth": 30, "on_gap": True},
    {"max_fragment_bytes": 3000, "urgent": "oob", "syn_data": "acked", "on_conflict": True, "max_buffered_pages_total": 5},
)
HOOKS = ("on_conflict", "on_evict", "on_gap")  # True: note what is told
MAPPINGS = ("dropped", "fragments_dropped", "connections_evicted")
NAMES = tuple(one.name for one in fields(BOTH[0].AssemblerStats) if one.name not in ("pages_allocated", "verdicts", *MAPPINGS))
FLAGS = (16, 16, 16, 16, 24, 2, 18, 17, 1, 4, 20, 0, 48, 3, 6, 25)
FAR = (0, 1 << 8, 1 << 16, 1 << 27, (1 << 31) - 64, 1 << 31, 1 << 30, -(1 << 20))
SIZES = (0, 1, 2, 3, 5, 8, 13, 21, 40, 40, 100, 500, 1460, 1900, 1901, 6000)
CONTENT = bytes(i * 31 + (i >> 8) & 255 for i in range(1 << 16)) * 2
ISNS = (1000, 2**32 - 40, 2**31 - 20, 0)


def segment_frame(which: int, seq: int, flags: int, payload: bytes, sums: bool, damaged: bool, more: int = 0) -> bytes:
    """Connections 0 and 1 are the two directions of one conversation, 2 and 3 others; 3 over IPv6. sums: with a checksum. more: the urgent
    pointer, and how much a timestamp is above another; none where that is 0."""
    ports = (80, 1234) if which == 1 else (1234 + which, 80)
    stamp = struct.pack("!BBBBII", 1, 1, 8, 10, 1000 + more // 8, 0) if more >= 8 else b""
    tcp = bytearray(struct.pack("!HHIIBBHHH", *ports, seq & 0xFFFFFFFF, 1, 80 + 4 * len(stamp), flags, 9000, 0, more & 7) + stamp + payload)
    if which == 3:
        ip = struct.pack("!IHBB15xB15xB", 6 << 28, len(tcp), 6, 64, 1, 2)
        addresses, kind = ip[8:], b"\x86\xdd"
    else:
        ends = bytes((10, 0, 0, 1, 10, 0, 0, 2)) if which != 1 else bytes((10, 0, 0, 2, 10, 0, 0, 1))
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + ends
        addresses, kind = ends, b"\x08\x00"
    if sums:
        struct.pack_into("!H", tcp, 16, checksum(addresses + struct.pack("!II", len(tcp), 6) + bytes(tcp)) ^ damaged)
    return bytes(12) + kind + ip + bytes(tcp)


def fragments(frame: bytes, at: int, how: int) -> list[bytes]:
    """The IPv4 datagram of a frame in two parts, or in some that overlap, or one of them only; in any order."""
    body = frame[34:]
    parts = []
    for begin, end, more in ((0, at + 8, 1), (at + (how & 8), len(body), 0), (8, at, 1)):
        ip = bytearray(frame[14:34])
        struct.pack_into("!HHH", ip, 2, 20 + len(body[begin:end]), how & 3, begin >> 3 | more << 13)
        parts.append(frame[:14] + bytes(ip) + body[begin:end])
    return [parts[i] for i in ((0, 1), (1, 0), (0, 2, 1), (1, 2, 0), (1,), (0,), (2, 0, 1), (0, 0, 1))[how >> 4 & 7]]


class Stream:
    """Notes what it is called with; raises where it is told to."""

    __slots__ = ("book", "key")

    def __init__(self, book: list[Any], key: tuple[str, str]) -> None:
        self.book = book
        self.key = key

    def reassembled(self, reassemblies: list[Any]) -> None:
        self.book.append((self.key, [(bytes(r), r.skip, r.start, r.end, r.seen_ns, r.offset) for r in reassemblies]))

    def reassembly_complete(self) -> None:
        self.book.append((self.key, "complete"))


Act = tuple[int, Any]


def script(data: bytes) -> list[Act]:
    """Six bytes an act: what, and which connection; which flags, and what is wrong with it; where (2); how much; when, and how far off."""
    sums = "verify_checksums" in OPTIONS[data[0] % len(OPTIONS)]
    acts: list[Act] = []
    now = START_NS
    for at in range(1, min(len(data) - 5, 6 * 32), 6):
        what, how, low, high, size, time = data[at : at + 6]
        now += (0, 0, 1000, 10_000_000, 400_000_000, 2_000_000_000, 70_000_000_000, -1_500_000_000)[time & 7]
        if what < 232:
            which, place = what & 3, ((high << 8 | low) ^ 0x8000) - 0x8000 + FAR[(time >> 3) & 7 if what & 4 else 0]
            length = SIZES[size & 15]
            variant = 7 * (size >> 7)  # another text for the same place
            text = CONTENT[(place & 0x7FFF) + variant : (place & 0x7FFF) + variant + length]
            frame = segment_frame(which, ISNS[which] + place, FLAGS[how & 15], text, sums, how & 128 != 0, what >> 3)
            cut = (how >> 4) & 7
            if cut == 4 and which < 3:
                acts.extend((0, (part, len(part), now)) for part in fragments(frame, 8 * (size & 15), low))
            else:
                if cut == 3:
                    frame = in_a_tunnel(frame)
                acts.append((0, (frame[: len(frame) - cut] if cut > 4 else frame, len(frame), now)))
        else:
            acts.append((1 + what % 4, now - (low << 24)))
    return acts


def state(package: ModuleType, assembler: Any) -> Any:
    stats = assembler.stats
    if stats.bytes_captured != stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held:
        raise Different(f"bytes went missing on {package.implementation}: {stats}")
    if stats.fragments != stats.fragments_joined + stats.fragments_held + sum(stats.fragments_dropped.values()):
        raise Different(f"fragments went missing on {package.implementation}: {stats}")
    verdicts = {int(one): count for one, count in stats.verdicts.items()}
    return [getattr(stats, name) for name in NAMES], [dict(getattr(stats, name)) for name in MAPPINGS], verdicts


def play(core: int, choice: int, acts: list[Act]) -> tuple[list[Any], Any]:
    package = BOTH[core]
    book: list[Any] = []
    options = dict(OPTIONS[choice % len(OPTIONS)])
    for name in HOOKS:
        if name in options:
            options[name] = lambda *told, name=name: book.append((name, *map(str, told)))
    assembler = package.Assembler(
        package.StreamPool(lambda net, transport: Stream(book, (repr(net), str(transport)))), package.AssemblerOptions(**options)
    )
    for number, (kind, argument) in enumerate(acts):
        if kind == 0:
            frame, wire, now = argument
            book.append(int(assembler.assemble_frame(frame, timestamp_ns=now, wire_length=wire)))
        elif kind == 1:
            book.append(tuple(assembler.flush_with_options(package.FlushOptions(t=argument / 1e9, close_all=True))))
        elif kind == 2:
            book.append(tuple(assembler.flush_with_options(package.FlushOptions(t=argument / 1e9))))
        elif kind == 3:
            assembler.tick()
        else:
            book.append(assembler.flush_all())
        if number % 8 == 7:
            book.append(state(package, assembler))
    book.append(state(package, assembler))
    assembler.flush_all()
    assembler.close()
    return book, state(package, assembler)


def assembler(data: bytes) -> None:
    """A byte for the options, and a script of acts."""
    if len(data) < 7:
        return
    acts = script(data)
    agree("assembler", *(play(core, data[0], acts) for core in range(2)))


def make_haste() -> None:
    """The pure core makes its first thousand connections and pages one by one, which takes most of an input's time: only some, from now
    on. For a process that does nothing but fuzz."""
    submodule(BOTH[1], "_pure.pool").INITIAL_CONNECTIONS = 4  # type: ignore[attr-defined]
    submodule(BOTH[1], "_pure.pages").PageCache.__init__.__defaults__ = (4,)


TARGETS: dict[str, Callable[[bytes], None]] = {"decode": decode, "capture": capture, "assembler": assembler}


# -- what fuzzing begins with ---------------------------------------------------------------------------------------------


def _files() -> list[bytes]:
    records = b"".join(struct.pack("<IIII", i, 0, 60, 60) + bytes(60) for i in range(3))
    pcap = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + records
    block = struct.pack("<IIIIIII", 6, 92, 0, 0, 5, 60, 60) + bytes(60) + struct.pack("<I", 92)
    section = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    return [pcap, section + struct.pack("<IIHHII", 1, 20, 1, 0, 0, 20) + block + block]


def _frames() -> list[bytes]:
    """Plain ones, and one in each kind of tunnel."""
    frames = [segment_frame(which, 5, 24, b"some text", True, False, 9 * which) for which in range(4)]
    four, six = frames[0][14:], frames[3][14:]

    def ipv4(protocol: int, body: bytes) -> bytes:
        return frames[0][:14] + struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0) + frames[0][26:34] + body

    def udp(port: int, body: bytes) -> bytes:
        return ipv4(17, struct.pack("!HHHH", 9999, port, 8 + len(body), 0) + body)

    return [
        *frames,
        *fragments(frames[0], 8, 0),
        ipv4(4, four),
        ipv4(41, six),
        ipv4(47, struct.pack("!HH", 0, 0x0800) + four),
        ipv4(47, struct.pack("!HHII", 0x3000, 0x6558, 7, 1) + frames[0]),
        udp(4789, struct.pack("!II", 0x08000000, 7 << 8) + frames[0]),
        udp(6081, struct.pack("!HHI", 0x0100, 0x6558, 7 << 8) + bytes(4) + frames[0]),
        udp(2152, struct.pack("!BBHI", 0x30, 255, len(four), 7) + four),
        udp(2152, struct.pack("!BBHIHBBBBBB", 0x34, 255, len(four) + 8, 7, 0, 0, 0x85, 1, 0, 0, 0) + four),
        frames[0][:12] + struct.pack("!HI", 0x8847, 5 << 12 | 0x1FF) + four,
        frames[0][:12] + struct.pack("!HBBHHH", 0x8864, 0x11, 0, 1, len(four) + 2, 0x21) + four,
    ]


SEEDS: dict[str, list[bytes]] = {
    "decode": [bytes((LINKTYPES.index(1), 0)) + frame for frame in _frames()]
    + [bytes((LINKTYPES.index(101), 4)) + frame[14:] for frame in _frames() if frame[12] in (0x08, 0x86)],
    "capture": [bytes((how,)) + file for file in _files() for how in (0, 1, 40)],
    "assembler": [
        bytes((choice,)) + b"".join(bytes((which, flags, place & 255, place >> 8, size, time)) for which, flags, place, size, time in acts)
        for choice in range(len(OPTIONS))
        for acts in (
            [(0, 5, 0, 0, 2), (0, 0, 1, 7, 2), (0, 0, 41, 7, 2), (0, 7, 81, 0, 2)],
            [(0, 5, 0, 0, 2), (0, 0, 41, 7, 2), (0, 0, 41, 135, 2), (0, 0, 1, 7, 3), (1, 0, 9, 3, 3), (240, 0, 0, 0, 4)],
            [(0, 5, 0, 0, 2), (0, 64, 1, 10, 2), (64, 76, 101, 10, 2), (0, 7, 201, 0, 2), (2, 64, 1, 9, 6)],
        )
    ],
}
"""A few sound inputs of each, from which others are made."""
