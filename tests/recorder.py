"""What the tests of the engine share: a factory that writes down every call, a rig around one Assembler, builders of packets.

Lives here: helpers only, no test. They take the package as an argument (fixture `tcpreasm`), so that they serve both cores, and what
they write down is made of plain tuples, bytes and text, so that what two cores did can be compared with `==`.

    recorder = Recorder()                        a stream factory
    rig = Rig(tcpreasm, max_gap=None)            pool and Assembler over a Recorder; keywords are AssemblerOptions
    assert rig.segment(1000, syn=True) == [new(), got(piece(start=True))]
    assert rig.segment(1001, b"abc", at=2) == [got(piece(b"abc", at=2))]
    assert rig.flush_all() == (1, [complete()])

Each call of a rig returns what it led to, after it has checked what holds after every call (see `Rig.check`).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterable
from datetime import datetime
from types import ModuleType
from typing import Any

Ends = tuple[str, int, str, int]  # source address and port, destination address and port
Piece = tuple[bytes, int, bool, bool, int]  # bytes, skip, start, end, seen_ns
Call = tuple[Any, ...]  # ("new", key), ("reassembled", key, [Piece, ...]) or ("complete", key)

NS = 1_000_000_000
FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
ENDS: Ends = ("10.0.0.1", 1234, "10.0.0.2", 80)
BACK: Ends = ("10.0.0.2", 80, "10.0.0.1", 1234)


def to_ns(seconds: float) -> int:
    """Seconds as tests write them, in nanoseconds."""
    return round(seconds * NS)


def key_of(ends: Ends = ENDS) -> str:
    """The key as it is written down: `10.0.0.1:1234->10.0.0.2:80`, with brackets around IPv6 addresses."""
    src, src_port, dst, dst_port = str(ipaddress.ip_address(ends[0])), ends[1], str(ipaddress.ip_address(ends[2])), ends[3]
    return f"[{src}]:{src_port}->[{dst}]:{dst_port}" if ":" in src else f"{src}:{src_port}->{dst}:{dst_port}"


def number(index: int) -> Ends:
    """Ends of one of many connections."""
    return f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}", 1024 + index % 60000, "192.0.2.1", 80


# -- what is expected ---------------------------------------------------------------------------------------------------


def piece(data: bytes = b"", skip: int = 0, start: bool = False, end: bool = False, at: float = 0) -> Piece:
    """One piece of a `reassembled` call; at: capture time in seconds."""
    return data, skip, start, end, to_ns(at)


def new(ends: Ends = ENDS) -> Call:
    """A call of the factory."""
    return "new", key_of(ends)


def got(*pieces: Piece, ends: Ends = ENDS) -> Call:
    """A call of `reassembled`."""
    return "reassembled", key_of(ends), list(pieces)


def complete(ends: Ends = ENDS) -> Call:
    """A call of `reassembly_complete`."""
    return "complete", key_of(ends)


# -- writing down -------------------------------------------------------------------------------------------------------


class RecordedStream:
    """Writes each call down. A call that no stream may ever get is an AssertionError, kept in `Recorder.wrong` as well."""

    def __init__(self, recorder: Recorder, key: str) -> None:
        self.recorder = recorder
        self.key = key
        self.completed = 0
        self.stopped = False

    def reassembled(self, reassemblies: list[Any]) -> object:
        recorder = self.recorder
        pieces = [(bytes(r), r.skip, r.start, r.end, r.seen_ns) for r in reassemblies]
        recorder.calls.append(("reassembled", self.key, pieces))
        recorder.expect(bool(pieces), f"{self.key}: an empty list")
        recorder.expect(not self.completed, f"{self.key}: reassembled after reassembly_complete")
        recorder.expect(not self.stopped, f"{self.key}: reassembled after STOP")
        # No generator here: where memory runs out as one is made, CPython 3.12 and 3.13 drop its code object once too often.
        recorder.expect(True not in [end for _, _, _, end, _ in pieces[:-1]], f"{self.key}: a piece behind the end")
        if recorder.keep:
            recorder.kept.extend(reassemblies)
        returned = recorder.raise_planned("reassembled")
        self.stopped = repr(returned) == "tcpreasm.STOP"
        return returned

    def reassembly_complete(self) -> None:
        self.recorder.calls.append(("complete", self.key))
        self.completed += 1
        self.recorder.expect(self.completed == 1, f"{self.key}: reassembly_complete twice")
        self.recorder.raise_planned("complete")


class Hooks:
    """What a stream with all hooks has beside a RecordedStream's methods: writes down what it is told, as ("gap of", key, ...)."""

    recorder: Recorder
    key: str

    def on_gap(self, seq: int, missing: int, why: str) -> None:
        self._tell("gap of", seq, missing, why)

    def on_conflict(self, seq: int, held: bytes, new: bytes, wins: str) -> None:
        self._tell("conflict of", seq, held, new, wins)

    def on_evict(self, why: str) -> None:
        self._tell("eviction of", why)

    def _tell(self, kind: str, *what: Any) -> None:
        self.recorder.calls.append((kind, self.key, *what))
        self.recorder.raise_planned(kind)


class HookedStream(Hooks, RecordedStream):
    """A stream with all hooks."""


class Recorder:
    """A stream factory that logs every call in `calls`: ("new", key), ("reassembled", key, [(bytes, skip, start, end, seen_ns), ...]),
    ("complete", key).

    Args:
        keep: hold on to every Reassembly, in `kept`.
        stream: class of the streams, called with the recorder and the key.

    `plan` says what raises: plan["new"], plan["reassembled"] or plan["complete"] is an exception, raised once, at the next such call, after
    that was logged; or a function, called at each such call: `reassembled` returns what it
    does.
    """

    def __init__(self, keep: bool = False, stream: type[RecordedStream] = RecordedStream) -> None:
        self.stream = stream
        self.calls: list[Call] = []
        self.streams: list[RecordedStream] = []
        self.keep = keep
        self.kept: list[Any] = []
        self.wrong: list[str] = []
        self.plan: dict[str, BaseException | Callable[[], object]] = {}

    def new(self, net_flow: Any, transport_flow: Any) -> RecordedStream:
        key = key_of((str(net_flow.src), transport_flow.src, str(net_flow.dst), transport_flow.dst))
        key += f" in {net_flow.tunnels}" if net_flow.tunnels else ""
        self.calls.append(("new", key))
        self.raise_planned("new")
        stream = self.stream(self, key)
        self.streams.append(stream)
        return stream

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)
        assert holds, what

    def raise_planned(self, call: str) -> object:
        planned = self.plan.get(call)
        if isinstance(planned, BaseException):
            del self.plan[call]
            raise planned
        return None if planned is None else planned()

    def take(self) -> list[Call]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls

    def data(self, ends: Ends = ENDS) -> bytes:
        """The bytes that one key's streams were given, in `calls` as it is now."""
        return b"".join(data for call in self.calls if call[:2] == ("reassembled", key_of(ends)) for data, *_ in call[2])


class Rig:
    """A pool and an Assembler over a Recorder, and what must hold after every call.

    Args:
        package: tcpreasm or tcpreasm_pure.
        recorder: the factory; a new Recorder unless given.
        pool: a pool to share; a new one unless given (then promise 12 is not checked: others hold bytes as well).
        options: AssemblerOptions. Limits are off unless given, hole_timeout and the like are the defaults.
    """

    def __init__(self, package: ModuleType, recorder: Recorder | None = None, pool: Any = None, **options: Any) -> None:
        self.package = package
        self.recorder = Recorder() if recorder is None else recorder
        self.shared = pool is not None
        self.pool = package.StreamPool(self.recorder) if pool is None else pool
        self.assembler = package.Assembler(self.pool, package.AssemblerOptions(**options))
        self.delivered = 0
        self.skipped = 0

    # What goes in. Each returns what it led to.

    def segment(
        self, seq: int, payload: bytes = b"", *, at: float = 0, ends: Ends = ENDS, wire: int | None = None, **flags: Any
    ) -> list[Call]:
        """One segment. wire: bytes of text that it had on the wire; flags: as for TCPSegment (syn=True, fin=True, ack_flag=False, ...)."""
        self.send(segment(self.package, seq, payload, ends=ends, wire=wire, **flags), at=at, ends=ends)
        return self.taken(one_segment=True)

    def send(self, tcp: Any, *, at: float = 0, ends: Ends = ENDS) -> None:
        self.assembler.assemble(self.package.Flow(ends[0], ends[2]), tcp, timestamp_ns=to_ns(at))

    def frame(self, data: bytes, *, at: float = 0, linktype: int = 1, wire_length: int | None = None) -> list[Call]:
        """One frame, as `frame()` below builds it."""
        self.assembler.assemble_frame(data, timestamp_ns=to_ns(at), linktype=linktype, wire_length=wire_length)
        return self.taken(one_segment=True)

    def flush(self, t: float | datetime | None = None, close_all: bool = False) -> tuple[tuple[int, int], list[Call]]:
        """`flush_with_options`: ((flushed, closed), calls)."""
        result = self.assembler.flush_with_options(self.package.FlushOptions(t=t, close_all=close_all))
        return result, self.taken()

    def flush_older_than(self, t: float | datetime) -> tuple[tuple[int, int], list[Call]]:
        result = self.assembler.flush_older_than(t)
        return result, self.taken()

    def flush_all(self) -> tuple[int, list[Call]]:
        closed = self.assembler.flush_all()
        calls = self.taken()
        stats = self.assembler.stats
        if not self.shared:
            assert (stats.bytes_held, stats.pages_used, stats.connections, len(self.pool)) == (0, 0, 0, 0)
            assert stats.bytes_skipped == self.skipped, "bytes_skipped is the sum of all positive skips"
        return closed, calls

    @property
    def dropped(self) -> dict[str, int]:
        """Dropped bytes by reason."""
        return dict(self.assembler.stats.dropped)

    # What holds after every call.

    def taken(self, one_segment: bool = False) -> list[Call]:
        """The calls since the last time, after `check`."""
        calls = self.recorder.take()
        self.count(calls)
        self.check(calls, one_segment)
        return calls

    def count(self, calls: Iterable[Call]) -> None:
        for call in calls:
            if call[0] == "reassembled":
                for data, skip, *_ in call[2]:
                    self.delivered += len(data)
                    self.skipped += max(skip, 0)

    def check(self, calls: list[Call], one_segment: bool) -> None:
        """Promise 12 (every captured byte is accounted for), and the order of calls that one segment may lead to."""
        assert not self.recorder.wrong
        if not self.shared:
            stats = self.assembler.stats
            assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped + stats.bytes_held, stats
            assert stats.bytes_delivered == self.delivered, stats
            assert stats.connections == len(self.pool), stats
            assert stats.connections > 50 or stats.connections == len(self.pool.keys()), stats  # costs too much when there are many
            assert 0 <= stats.pages_used <= stats.pages_allocated, stats
            assert stats.pages_used or not stats.bytes_held, stats
        if one_segment:
            names = [call[0] for call in calls]
            assert names in ALLOWED, names


# Zero or one call of each, in this order; or, where a connection was opened anew, the end of the old stream before that.
_END = [[], ["reassembled"], ["complete"], ["reassembled", "complete"]]
ALLOWED = [ended + made + served for ended in ([], ["complete"], ["reassembled", "complete"]) for made in ([], ["new"]) for served in _END]


# -- packets ------------------------------------------------------------------------------------------------------------


def segment(package: ModuleType, seq: int, payload: bytes = b"", *, ends: Ends = ENDS, wire: int | None = None, **flags: Any) -> Any:
    """A TCPSegment; seq is taken modulo 2**32."""
    return package.TCPSegment(ends[1], ends[3], seq & 0xFFFFFFFF, payload, wire_payload_length=wire, **flags)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) & 1)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def timestamps(value: int) -> bytes:
    """A timestamp option (RFC 7323 3.2), padded."""
    return struct.pack("!BBBBII", 1, 1, 8, 10, value & 0xFFFFFFFF, 0)


def frame(
    seq: int,
    payload: bytes = b"",
    flags: int = ACK,
    *,
    ends: Ends = ENDS,
    ack: int = 1,
    link: bytes | None = None,
    padding: bytes = b"",
    options: bytes = b"",
    urgent: int = 0,
) -> bytes:
    """An Ethernet frame with one TCP segment over IPv4 or IPv6, its checksums right; seq is taken modulo 2**32.

    link: what stands before the IP header instead of an Ethernet header. padding: what follows the IP packet. options: of the TCP header,
    whole words; urgent: its urgent pointer.
    """
    src, dst = ipaddress.ip_address(ends[0]), ipaddress.ip_address(ends[2])
    tcp = bytearray(struct.pack("!HHIIBBHHH", ends[1], ends[3], seq & 0xFFFFFFFF, ack, 5 + len(options) // 4 << 4, flags, 65535, 0, urgent))
    tcp += options + payload
    pseudo = src.packed + dst.packed + struct.pack("!II", len(tcp), 6)
    struct.pack_into("!H", tcp, 16, checksum(pseudo + bytes(tcp)))
    if src.version == 4:
        ip = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0, src.packed, dst.packed))
        struct.pack_into("!H", ip, 10, checksum(bytes(ip)))
        kind = b"\x08\x00"
    else:
        ip = bytearray(struct.pack("!IHBB16s16s", 6 << 28, len(tcp), 6, 64, src.packed, dst.packed))
        kind = b"\x86\xdd"
    return (bytes(12) + kind if link is None else link) + bytes(ip) + bytes(tcp) + padding


def in_a_tunnel(data: bytes) -> bytes:
    """An Ethernet frame in one more tunnel (GRE)."""
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 24 + len(data), 0, 0x4000, 64, 47, 0, b"\xac\x10\0\1", b"\xac\x10\0\2")
    return bytes(12) + b"\x08\x00" + ip + b"\0\0\x65\x58" + data


def pcap(frames: Iterable[tuple[int, bytes]], linktype: int = 1) -> bytes:
    """A capture file of (nanoseconds, frame)."""
    parts = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, linktype)]
    parts += [struct.pack("<IIII", ns // NS, ns % NS, len(data), len(data)) + data for ns, data in frames]
    return b"".join(parts)
